"""How pi0 and pi0.5 scale states and actions: norm_stats.json of openpi, or the processor files of lerobot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlaprune.errors import UserError
from vlaprune.nn.checkpoint import Checkpoint, read_json

Numbers = Mapping[str, np.ndarray]  # mean, std, q01, q99


@dataclass(frozen=True, eq=False)
class Scale:
    """How one group of numbers is scaled, by [s] float64 each. In: (x - centre) / inward. Out: y * outward + centre."""

    centre: np.ndarray
    inward: np.ndarray
    outward: np.ndarray

    @classmethod
    def identity(cls, size: int) -> Scale:
        """Leaves numbers as they are: for random weights, whose numbers have no unit."""
        return cls(np.zeros(size), np.ones(size), np.ones(size))

    def scale(self, x: np.ndarray) -> np.ndarray:
        """Raw numbers [..., s] to those the model reads."""
        return (x - self.centre) / self.inward

    def restore(self, y: np.ndarray) -> np.ndarray:
        """The model's first s numbers of [..., n] to raw ones [..., s]."""
        return y[..., : len(self.centre)] * self.outward + self.centre


@dataclass(frozen=True, eq=False)
class Scaling:
    """How states and actions are scaled."""

    state: Scale
    action: Scale

    @classmethod
    def identity(cls, state: int, action: int) -> Scaling:
        """Leaves states and actions as they are."""
        return cls(Scale.identity(state), Scale.identity(action))

    @classmethod
    def of(cls, folder: Path, quantiles: bool, state: int, action: int) -> Scaling:
        """Reads the scaling from a checkpoint's files. UserError where they are missing or malformed.

        quantiles      how openpi scales this model (pi0.5 by quantiles, pi0 by mean and deviation); lerobot's files say
        state, action  how many numbers there must be
        """
        processor = folder / "policy_preprocessor.json"
        step = _normalizer(processor) if processor.is_file() else None
        if step is not None and step.get("state_file"):
            groups, modes, source = _lerobot(processor, step)
        else:
            file = _norm_stats(folder)
            stats = read_json(file).get("norm_stats")
            source = str(file)
            if not isinstance(stats, Mapping) or not {"state", "actions"} <= stats.keys():
                has = sorted(stats) if isinstance(stats, Mapping) else stats
                raise UserError(f"{source} has no norm_stats of `state` and `actions`; it has {has}")
            groups = {"STATE": stats["state"], "ACTION": stats["actions"]}
            modes = dict.fromkeys(groups, "openpi quantiles" if quantiles else "openpi mean_std")
            modes = modes if step is None else _kinds(step)
        sizes = {"STATE": state, "ACTION": action}
        scales = [_scale(groups[g], modes[g], sizes[g], f"{source}: {g.lower()}") for g in ("STATE", "ACTION")]
        return cls(*scales)


def _norm_stats(folder: Path) -> Path:
    """The one norm_stats.json of an openpi checkpoint."""
    files = sorted({*folder.glob("norm_stats.json"), *folder.glob("assets/**/norm_stats.json")})
    if not files:
        raise UserError(
            f"checkpoint {folder} has no statistics of states and actions (norm_stats.json, or a state_file of the "
            "normalizer in policy_preprocessor.json), and actions have no unit without them; base models such as "
            "pi05_base have none: fine-tune them first, or put the norm_stats.json of your data set beside the weights"
        )
    if len(files) > 1:
        names = [str(f.relative_to(folder)) for f in files]
        raise UserError(f"checkpoint {folder} has {len(files)} files norm_stats.json: {names}; keep one")
    return files[0]


def read_files(folder: Path) -> list[Path]:
    """The files beside the weights of pi0 or pi0.5 that say how states and actions are read and scaled."""
    told = [folder / "config.json", *folder.glob("policy_*processor.json"), *folder.glob("**/norm_stats.json")]
    return told + [folder / name for name in processor_files(folder)]


def processor_files(folder: Path) -> list[str]:
    """Names of the files that the steps of a lerobot checkpoint's processors keep their numbers in."""
    steps = [step for file in folder.glob("policy_*processor.json") for step in read_json(file).get("steps") or ()]
    return [str(step["state_file"]) for step in steps if isinstance(step, Mapping) and step.get("state_file")]


def _normalizer(file: Path) -> Mapping[str, Any]:
    """The normalising step of a lerobot processor."""
    steps = read_json(file).get("steps")
    steps = [s for s in (steps if isinstance(steps, list) else []) if isinstance(s, Mapping)]
    normalizers = [s for s in steps if s.get("registry_name") == "normalizer_processor"]
    if len(normalizers) != 1 or not isinstance(normalizers[0].get("config", {}).get("norm_map"), Mapping):
        raise UserError(f"{file} has {len(normalizers)} steps `normalizer_processor` with a norm_map; expected one")
    return normalizers[0]


def _kinds(step: Mapping[str, Any]) -> dict[str, str]:
    """How lerobot scales states and actions."""
    return {g: f"lerobot {step['config']['norm_map'].get(g, 'IDENTITY').lower()}" for g in ("STATE", "ACTION")}


def _lerobot(file: Path, step: Mapping[str, Any]) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, str], str]:
    """Statistics and kinds of scaling by group, from the normalising step of a lerobot processor."""
    stats = Checkpoint(file.parent / step["state_file"])
    groups = {
        group: {
            k.removeprefix(f"{name}."): stats.tensor(k).double().numpy()
            for k in stats.shapes
            if k.startswith(f"{name}.")
        }
        for group, name in (("STATE", "observation.state"), ("ACTION", "action"))
    }
    return groups, _kinds(step), str(stats.path)


def _quantiles(n: Numbers, eps: float) -> Scale:
    half = (n["q99"] - n["q01"] + eps) / 2
    return Scale(n["q01"] + half, half, half)


# Of (statistics); each with the authors' own guard against a division by zero.
KINDS: dict[str, tuple[tuple[str, ...], Callable[[Numbers], Scale]]] = {
    "openpi mean_std": (("mean", "std"), lambda n: Scale(n["mean"], n["std"] + 1e-6, n["std"] + 1e-6)),
    "openpi quantiles": (("q01", "q99"), lambda n: _quantiles(n, 1e-6)),
    "lerobot mean_std": (("mean", "std"), lambda n: Scale(n["mean"], n["std"] + 1e-8, n["std"])),
    "lerobot quantiles": (
        ("q01", "q99"),
        lambda n: _quantiles({**n, "q99": np.where(n["q99"] == n["q01"], n["q01"] + 1e-8, n["q99"])}, 0.0),
    ),
}


def _scale(numbers: Mapping[str, object], kind: str, size: int, source: str) -> Scale:
    if kind not in KINDS:
        raise UserError(f"{source} is scaled by {kind!r}; this package knows {', '.join(KINDS)}")
    needed, make = KINDS[kind]
    missing = [n for n in needed if n not in numbers]
    if missing:
        raise UserError(f"{source} lacks {', '.join(missing)}; it has {sorted(numbers)}")
    arrays = {n: np.asarray(numbers[n], dtype=np.float64) for n in needed}
    for name, values in arrays.items():
        if values.ndim == 1 and np.isin(values[size:], (0, 1)).all():  # openpi pads them to 32, and reads `size`
            arrays[name] = values = values[:size]
        if values.shape != (size,) or not np.isfinite(values).all():
            raise UserError(f"{source}.{name} is {values.tolist()}; the model needs {size} finite numbers")
    return make(arrays)
