"""Checks observations, step results and hand positions of a world before a policy gets them.

A wrong one raises UserError. In a rollout the episode then counts as raised; the run goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vlaprune.benchmark import Interface, Observation
from vlaprune.errors import UserError

PICTURES = 1 << 24  # most bytes of all pictures of one observation
WORDS = 2000  # most characters of an instruction


class Gate:
    """Checks every observation of one open task against what its benchmark declares."""

    def __init__(self, interface: Interface) -> None:
        self._cameras, self._state, self._size = interface.cameras, interface.state, interface.state_size
        self._shapes: dict[str, tuple[int, ...]] = {}  # shapes of the first pictures; later ones must have the same

    def check(self, seen: Any) -> Observation:
        """The observation `seen` with contiguous pictures and a float64 state. UserError names the first error.

        Both are copies: a simulator may draw every picture into one buffer.
        """
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
        return np.array(image, order="C")

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
    """The result of a step as a bool. UserError for anything but a truth value, such as 1, None or a tuple."""
    if isinstance(said, (bool, np.bool_)):
        return bool(said)
    if isinstance(said, np.ndarray) and said.dtype == bool and said.ndim == 0:
        return bool(said)
    raise UserError(f"step returned {_kind(said)}; True or False is needed")


def check_hand(place: Any) -> np.ndarray:
    """The hand's position [3] as float64. UserError for anything but three finite numbers."""
    hand = np.asarray(place, np.float64)
    if hand.shape != (3,) or not np.isfinite(hand).all():
        raise UserError(f"hand is {' '.join(str(hand).split())[:100]}; a position of 3 finite numbers is needed")
    return hand


def _words(instruction: Any) -> str:
    if not isinstance(instruction, str):
        raise UserError(f"observation: instruction is {_kind(instruction)}; a text is needed")
    if not instruction.strip():
        raise UserError("observation: instruction is empty; say what to do")
    if len(instruction) > WORDS:
        raise UserError(f"observation: instruction has {len(instruction)} characters; at most {WORDS} are allowed")
    return instruction


def _kind(thing: Any) -> str:
    """Describes a value in a few words: [64, 64, 4] uint8, None, str 'left'."""
    if isinstance(thing, np.ndarray):
        return f"{list(thing.shape)} {thing.dtype}"
    if thing is None:
        return "None"
    text = repr(thing)
    plain = len(text) <= 40 and "\n" not in text and " at 0x" not in text
    return f"{type(thing).__name__} {text}" if plain else type(thing).__name__
