"""A folder of published demonstrations, as the arrays that `demos.load` makes of our own."""

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
HINTS = 4  # numbers, none of which these files tell


def files(folder: str | Path) -> dict[str, list[Path]]:
    """The files of published demonstrations in a folder and those below, by pattern."""
    found = {pattern: sorted(Path(folder).rglob(pattern)) for pattern in READERS}
    return {pattern: paths for pattern, paths in found.items() if paths}


def load(folder: str | Path, chunk: int, every: int = 1) -> dict[str, np.ndarray]:
    """Every frame in a folder, one row each, as in `demos.load`; `task` is the instruction.

    Frames are the steps that move and have a whole chunk of such steps before them, as in OpenVLA-OFT's training;
    `every` leaves some out. UserError for a folder with none, or with both formats.
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
    """What every frame of an episode says of it. Both publications hold successes alone."""
    told: dict[str, str | float] = {
        "task": episode.instruction,
        "episode": number,
        "success": True,
        "steps": len(episode.actions),
        "noise": 0.0,
    }
    hints = np.full((frames, HINTS), np.nan, np.float32)
    return {"hints": hints} | {key: np.repeat(np.asarray(value), frames) for key, value in told.items()}
