"""The ranges that a policy's numbers were scaled by in training: dataset_statistics.json, or norm_stats in a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from vlaprune.errors import UserError
from vlaprune.nn.checkpoint import read_json


@dataclass(frozen=True, eq=False)
class Range:
    """The raw values that become -1 (low) and 1 (high), for each number; [s] float64 each.

    mask  numbers that are scaled; the others (the gripper) pass as they are
    eps   added to high - low, as the authors' code does
    """

    low: np.ndarray
    high: np.ndarray
    mask: np.ndarray
    eps: float = 0.0

    @classmethod
    def identity(cls, size: int) -> Range:
        """A range that changes nothing: for random weights, whose numbers have no unit."""
        return cls(np.full(size, -1.0), np.full(size, 1.0), np.zeros(size, bool))

    @cached_property
    def width(self) -> np.ndarray:
        """The raw width of the range from -1 to 1: high - low + eps."""
        return self.high - self.low + self.eps

    def scale(self, x: np.ndarray) -> np.ndarray:
        """Scales raw numbers [..., s] to [-1, 1] and clips them; unmasked ones are clipped too, as the authors do."""
        unit = 2 * (x - self.low) / self.width - 1
        return np.clip(np.where(self.mask, unit, x), -1.0, 1.0)

    def restore(self, unit: np.ndarray) -> np.ndarray:
        """Scales numbers [..., s] in [-1, 1] back to raw ones."""
        return np.where(self.mask, 0.5 * (unit + 1) * self.width + self.low, unit)


class Statistics:
    """The statistics of all datasets of one checkpoint; `source` is the file named in errors."""

    def __init__(self, norms: Mapping[str, object], source: str) -> None:
        self._norms, self._source = norms, source

    @classmethod
    def of(cls, folder: Path) -> Statistics:
        """Reads dataset_statistics.json, or else norm_stats in config.json. UserError if there is neither."""
        for file, entry in (("dataset_statistics.json", None), ("config.json", "norm_stats")):
            if (folder / file).is_file():
                said = read_json(folder / file)
                norms = said if entry is None else said.get(entry)
                if isinstance(norms, Mapping):
                    return cls(norms, str(folder / file))
        raise UserError(
            f"checkpoint {folder} has no dataset_statistics.json and no norm_stats in config.json; actions have no "
            "unit without them: download it again"
        )

    @property
    def names(self) -> list[str]:
        """The names of the datasets that have statistics."""
        return sorted(self._norms)

    def key(self, wanted: str) -> str:
        """The name `wanted`, or `wanted`_no_noops if only that exists. UserError lists the names that exist."""
        for key in (wanted, f"{wanted}_no_noops"):
            if key in self._norms:
                return key
        raise UserError(f"{self._source} has no statistics {wanted!r}; it has {sorted(self._norms)}: name one of them")

    def range(
        self, wanted: str, group: str, size: int, ends: Sequence[str] = ("q01", "q99"), eps: float = 0.0
    ) -> Range:
        """The range of `action` or `proprio` numbers of a dataset. UserError where it is missing or malformed.

        ends  what becomes -1 and 1: the 1st and 99th percentiles, or ("min", "max")
        """
        key = self.key(wanted)
        dataset = self._norms[key]
        norms = dataset.get(group) if isinstance(dataset, Mapping) else None
        if not isinstance(norms, Mapping) or any(end not in norms for end in ends):
            has = sorted(norms) if isinstance(norms, Mapping) else norms
            raise UserError(f"{self._source}: {key}.{group} lacks {'/'.join(ends)}; it has {has}")
        try:
            low, high = (np.asarray(norms[end], dtype=np.float64) for end in ends)
        except (TypeError, ValueError):
            raise UserError(
                f"{self._source}: {key}.{group} has {ends[0]}/{ends[1]} that are no numbers; the model needs {size}"
            ) from None
        mask = np.asarray(norms.get("mask", np.ones(low.shape)), dtype=bool)
        for name, numbers in ((ends[0], low), (ends[1], high), ("mask", mask)):
            if numbers.shape != (size,) or not np.isfinite(numbers).all():
                raise UserError(
                    f"{self._source}: {key}.{group}.{name} is {numbers.tolist()}; the model needs {size} finite numbers"
                )
        return Range(low, high, mask, eps)
