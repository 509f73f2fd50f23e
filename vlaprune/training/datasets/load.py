"""Loads a folder of published demonstrations as the same arrays that `demos.load` makes of our own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vlaprune.errors import UserError
from vlaprune.training.datasets import hdf5, rlds
from vlaprune.training.datasets.episode import Episode

READERS: dict[str, Callable[[Path], Iterator[Episode]]] = {"*.hdf5": hdf5.episodes, "*.tfrecord*": rlds.episodes}
HINTS = 4  # numbers of a hint, none of which are in these files


def files(folder: str | Path) -> dict[str, list[Path]]:
    """The files of published demonstrations in and below a folder: pattern -> paths."""
    found = {pattern: sorted(Path(folder).rglob(pattern)) for pattern in READERS}
    return {pattern: paths for pattern, paths in found.items() if paths}


def load(folder: str | Path, chunk: int, every: int = 1) -> dict[str, np.ndarray]:
    """Every frame in a folder, one row each, as in `demos.load`; `task` is the instruction.

    Frames are the moving steps at which a whole chunk of moving steps can begin, as in OpenVLA-OFT's training; with
    `every` only each such step. UserError for a folder without demonstrations, or with both formats.
    """
    found = files(folder)
    if len(found) != 1:
        raise UserError(f"{folder} has files {sorted(found) or 'none'} of {', '.join(READERS)}; it needs one kind")
    ((pattern, paths),) = found.items()
    parts: list[dict[str, np.ndarray]] = []
    seen: Counter[str] = Counter()
    for path in tqdm(paths, unit="file", mininterval=5.0, disable=len(paths) < 2):
        for episode in READERS[pattern](path):
            frames = episode.frames(chunk, every) if len(episode.actions) >= chunk else {}
            if frames and len(frames["state"]):
                parts.append(frames | _facts(episode, seen[episode.instruction], len(frames["state"])))
            seen[episode.instruction] += 1
    if not parts:
        raise UserError(f"{folder} has no episode of {chunk} steps that move; use a smaller model.chunk")
    shapes = {part["images"].shape[1:] for part in parts}
    if len(shapes) > 1:
        raise UserError(f"{folder} has images of {sorted(shapes)}; keep files of one size together")
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _facts(episode: Episode, number: int, frames: int) -> dict[str, np.ndarray]:
    """The facts of an episode, repeated for every frame. Both publications hold only successes."""
    told: dict[str, str | float] = {
        "task": episode.instruction,
        "episode": number,
        "success": True,
        "steps": len(episode.actions),
        "noise": 0.0,
    }
    hints = np.full((frames, HINTS), np.nan, np.float32)
    return {"hints": hints} | {key: np.repeat(np.asarray(value), frames) for key, value in told.items()}
