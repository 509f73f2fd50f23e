"""Where an OpenVLA-style policy comes from: a checkpoint's folder, the hub, or seeded random weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlaprune.errors import UserError
from vlaprune.models.prismatic import (
    HALF,
    ROUNDED,
    Prismatic,
    Sizes,
    Stats,
    Tokenize,
    read_tokenizer,
    stand_in,
    unused,
    weight_map,
)
from vlaprune.nn.checkpoint import Checkpoint, check_companions, read_json, shards
from vlaprune.nn.hub import locate
from vlaprune.nn.statistics import Range, Statistics
from vlaprune.nn.weights import load_weights, randomise

READ = ("config.json", "preprocessor_config.json", "tokenizer.json", "dataset_statistics.json")
PATTERNS = ("*.json", "*.safetensors", "*_checkpoint.pt")  # of the hub; the last are OpenVLA-OFT's


@dataclass(frozen=True)
class Source:
    """What stands beside the weights of an OpenVLA checkpoint, or in its place for random ones.

    folder      of the checkpoint; None for random weights
    tokenize    text to token ids
    statistics  of the datasets it was trained on; None for random weights
    eps, stats  of the decoder's norms; (mean, std) of both towers' pixels
    """

    folder: Path | None
    tokenize: Tokenize
    statistics: Statistics | None = None
    eps: float = 1e-6
    stats: Stats = (ROUNDED, HALF)

    @classmethod
    def of(cls, weights: str, name: str, reads: Sequence[str] = ()) -> Source:
        """The source in a folder or on the hub, or a stand-in for `random`. UserError for what is missing or malformed.

        name   of the model
        reads  patterns of files of weights that it reads besides the checkpoint's; any other is refused
        """
        if weights == "random":
            return cls(None, stand_in)
        folder = locate(weights, PATTERNS)
        if not folder.is_dir():
            raise UserError(f"weights {folder} are a file; {name} needs the checkpoint's folder, with its json files")
        shards(folder)  # what is no checkpoint is named first
        check_companions(folder, reads, name)
        return cls(folder, read_tokenizer(folder), Statistics.of(folder), read_eps(folder), read_stats(folder))

    def range(self, group: str, size: int, unnorm: str | None, eps: float = 0.0) -> Range:
        """The range of a dataset's `action` or `proprio` numbers. UserError for a dataset not named, or not there.

        Random weights have no statistics: their numbers are not scaled.
        """
        if self.statistics is None:
            return Range.identity(size)
        if unnorm is None:
            raise UserError(
                f"weights {self.folder} need unnorm=DATASET or suite=SUITE to give actions a unit; "
                f"there are statistics for {', '.join(self.statistics.names)}"
            )
        return self.statistics.range(unnorm, group, size, eps=eps)

    def trunk(
        self, sizes: Sizes, causal: bool, seed: int, device: torch.device, dtype: torch.dtype
    ) -> tuple[Prismatic, dict[str, object]]:
        """The trunk with its weights, and their card."""
        with torch.device("meta"):
            trunk = Prismatic(sizes, causal, self.eps, self.stats)
        if self.folder is None:
            randomise(trunk, seed, device, dtype)
            return trunk.eval(), {"weights": "random", "seed": seed, "tokenizer": "stand-in, one id a word"}
        checkpoint = Checkpoint(self.folder)
        load_weights(trunk, checkpoint, weight_map(trunk), unused(trunk), device, dtype)
        digest = checkpoint.digest_with(self.folder / name for name in READ)
        return trunk.eval(), {"weights": str(self.folder), "sha256": digest}


def published(weights: str | None, suite: str | None, known: Mapping[str, str], name: str) -> str:
    """`weights` as given, or the published checkpoint of a benchmark's suite. UserError where there is none."""
    if weights is not None:
        return weights
    if suite is not None and suite in known:
        return known[suite]
    raise UserError(
        f"{name} has published weights for the suites {', '.join(known)}, not {suite}; set model.weights to a folder, "
        "owner/name of the hub, or random"
    )


def read_eps(folder: Path) -> float:
    """The epsilon of the decoder's norms from config.json: the library's default where it says none. Else UserError."""
    file = folder / "config.json"
    text = read_json(file).get("text_config") or {}
    eps = text.get("rms_norm_eps", 1e-6) if isinstance(text, Mapping) else None
    if not isinstance(eps, (int, float)) or not 0 < eps < 1:
        raise UserError(f"{file}: text_config.rms_norm_eps of {text} is no number between 0 and 1; download it again")
    return float(eps)


def read_stats(folder: Path) -> Stats:
    """(mean, std) of both towers from preprocessor_config.json, three numbers each. UserError where they are not there.

    Also for a number that is not finite, and a std that is not above 0: pixels are divided by it.
    """
    file = folder / "preprocessor_config.json"
    params = read_json(file).get("tvf_normalize_params")
    if not isinstance(params, list) or len(params) != 2:
        raise UserError(f"{file} has tvf_normalize_params {params}; expected one entry for each of the two towers")
    for number, entry in enumerate(params):
        for key in ("mean", "std"):
            values: Any = entry.get(key) if isinstance(entry, Mapping) else None
            if not _three(values) or (key == "std" and min(values) <= 0):
                need = "3 numbers above 0" if key == "std" else "3 finite numbers"
                raise UserError(f"{file}: tvf_normalize_params[{number}].{key} is {values}; expected {need}")
    return tuple((tuple(p["mean"]), tuple(p["std"])) for p in params)


def _three(numbers: Any) -> bool:
    """Whether these are three finite numbers."""
    return (
        isinstance(numbers, list)
        and len(numbers) == 3
        and all(isinstance(n, (int, float)) and math.isfinite(n) for n in numbers)
    )
