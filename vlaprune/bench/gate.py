"""The gate between a world and a policy: what a world shows and what its steps say is checked here, once.

What does not fit raises UserError in one line. In a rollout that is one episode that raised, not the end of the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vlaprune.benchmark import Interface, Observation
from vlaprune.errors import UserError

PICTURES = 1 << 24  # bytes of all pictures of one observation, at most
WORDS = 2000  # characters of an instruction, at most


class Gate:
    """Checks every observation of one open task against what its benchmark declares."""

    def __init__(self, interface: Interface) -> None:
        self._cameras, self._state, self._size = interface.cameras, interface.state, interface.state_size
        self._shapes: dict[str, tuple[int, ...]] = {}  # of the first pictures; later ones have the same

    def check(self, seen: Any) -> Observation:
        """`seen` with contiguous pictures and a float64 state. UserError names the first thing that is wrong."""
        if not isinstance(seen, Observation):
            raise UserError(f"observation is {_kind(seen)}; an Observation is needed")
        if not isinstance(seen.images, Mapping):
            raise UserError(f"observation: images is {_kind(seen.images)}; a mapping from camera to picture is needed")
        if lacking := [camera for camera in self._cameras if camera not in seen.images]:
            there = ", ".join(map(str, seen.images)) or "none"
            raise UserError(f"observation: no picture of {', '.join(lacking)}; there are {there}")
        images = {camera: self._picture(camera, image) for camera, image in seen.images.items()}
        if (size := sum(image.size for image in images.values())) > PICTURES:
            raise UserError(
                f"observation: pictures of {size} bytes; at most {PICTURES} are allowed, use a smaller image"
            )
        return Observation(images, self._numbers(seen.state), _words(seen.instruction))

    def _picture(self, camera: str, image: Any) -> np.ndarray:
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserError(
                f"observation: camera {camera} is {_kind(image)}; a [height, width, 3] uint8 array is needed"
            )
        if not image.size:
            raise UserError(f"observation: camera {camera} is {_kind(image)}; it shows nothing")
        first = self._shapes.setdefault(camera, image.shape)
        if image.shape != first:
            raise UserError(
                f"observation: camera {camera} is {_kind(image)}; it was {list(first)} before, the size must not change"
            )
        return np.ascontiguousarray(image)

    def _numbers(self, state: Any) -> np.ndarray | None:
        if self._state is None:
            if state is not None:
                raise UserError(f"observation: state is {_kind(state)}; the benchmark declares none")
            return None
        if not isinstance(state, np.ndarray) or state.dtype.kind not in "fiu" or state.ndim != 1:
            raise UserError(f"observation: state is {_kind(state)}; an array of numbers for {self._state} is needed")
        if self._size and len(state) != self._size:
            raise UserError(f"observation: state has {len(state)} numbers; {self._state} has {self._size}")
        state = state.astype(np.float64)
        if not np.isfinite(state).all():
            at = int(np.flatnonzero(~np.isfinite(state))[0])
            raise UserError(f"observation: state is not finite, number {at} is {state[at]}")
        return state


def check_bool(said: Any) -> bool:
    """What a step said, as a bool. UserError for anything but a truth value: 1, None or a tuple are none."""
    if isinstance(said, (bool, np.bool_)):
        return bool(said)
    if isinstance(said, np.ndarray) and said.dtype == bool and said.ndim == 0:
        return bool(said)
    raise UserError(f"step returned {_kind(said)}; True or False is needed")


def _words(instruction: Any) -> str:
    if not isinstance(instruction, str):
        raise UserError(f"observation: instruction is {_kind(instruction)}; a text is needed")
    if not instruction.strip():
        raise UserError("observation: instruction is empty; say what to do")
    if len(instruction) > WORDS:
        raise UserError(f"observation: instruction has {len(instruction)} characters; at most {WORDS} are allowed")
    return instruction


def _kind(thing: Any) -> str:
    """What a thing is, in a few words: [64, 64, 4] uint8, None, str 'left'."""
    if isinstance(thing, np.ndarray):
        return f"{list(thing.shape)} {thing.dtype}"
    if thing is None:
        return "None"
    text = repr(thing)
    plain = len(text) <= 40 and "\n" not in text and " at 0x" not in text
    return f"{type(thing).__name__} {text}" if plain else type(thing).__name__
