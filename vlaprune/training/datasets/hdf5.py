"""LIBERO's own demonstrations: one HDF5 file a task, data/demo_N/{actions, obs/...}, pictures upside down."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vlaprune.errors import UserError, install_command
from vlaprune.training.datasets.episode import Episode

CAMERAS = ("obs/agentview_rgb", "obs/eye_in_hand_rgb")
STATE = ("obs/ee_states", "obs/gripper_states")
BROKEN = (OSError, KeyError, IndexError, TypeError, json.JSONDecodeError)


def episodes(path: Path) -> Iterator[Episode]:
    """Every episode of a file, by number. UserError for a file that is damaged or no demonstration.

    Pictures are turned by 180 degrees, as OpenVLA turns them for training and for evaluation.
    """
    try:
        import h5py
    except ImportError:
        raise UserError(f"{path} needs h5py; {install_command('train')}") from None
    try:
        with h5py.File(path) as file:
            instruction = _instruction(file, path)
            names = [name for name in file["data"] if name.startswith("demo_")]
            for name in sorted(names, key=lambda n: (len(n), n)):
                yield _episode(file["data"][name], instruction, f"{path}: {name}")
    except BROKEN as error:
        raise _broken(str(path), error) from None


def _broken(source: str, error: Exception) -> UserError:
    said = " ".join(str(error).split())
    return UserError(f"{source} is no whole file of LIBERO demonstrations ({said}); download it again")


def _episode(group: Any, instruction: str, source: str) -> Episode:
    def read_images(steps: np.ndarray) -> np.ndarray:
        try:
            return np.stack([group[camera][:][steps, ::-1, ::-1] for camera in CAMERAS], 1)
        except BROKEN as error:
            raise _broken(source, error) from None

    state = np.concatenate([group[key][:] for key in STATE], -1)
    return Episode(instruction, state, group["actions"][:], read_images, source)


def _instruction(file: Any, path: Path) -> str:
    """The instruction in the file, or else from its name, as in OpenVLA's conversion: [SCENE_]words_demo.hdf5."""
    said = file["data"].attrs.get("problem_info")
    if said is not None:
        return str(json.loads(said)["language_instruction"]).strip('"')
    words = path.stem.removesuffix("_demo").split("_")
    scene = max((i for i, word in enumerate(words) if "SCENE" in word), default=-1)
    return " ".join(words[scene + 1 :])
