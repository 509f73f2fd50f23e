"""Toy: a point that must reach the light of the right colour. Instant, numpy only; for tests and newcomers.

Nothing turns or grips, every camera shows the same picture, and the state is as long as its layout says. So every model
can act here, though only models made for it will succeed.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlaprune.benchmark import Interface, Observation, Task, check_action, hold_still
from vlaprune.errors import UserError


class _World:
    """The world: one light of each colour, drawn as a square of an eighth of the picture on a dim, noisy ground."""

    def __init__(self, task: Task, interface: Interface, image: int) -> None:
        self._task, self._interface, self._image = task, interface, image
        self._goal = int("blue" in task.instruction)

    def reset(self, episode: int) -> None:
        """Places both lights and the point."""
        rng = np.random.default_rng(zlib.crc32(f"{self._task.name}/{episode}".encode()))
        self._lights = rng.uniform(-0.85, 0.85, (2, 2))
        while np.abs(self._lights[0] - self._lights[1]).max() < 0.4:
            self._lights[1] = rng.uniform(-0.85, 0.85, 2)
        self._ground = rng.integers(0, 60, (self._image, self._image, 3), dtype=np.uint8)
        self._at = np.zeros(2)

    def observe(self) -> Observation:
        """The picture from above. The point is not drawn; its position is the beginning of the state."""
        image, half = self._ground.copy(), self._image // 16
        for channel, (x, y) in zip((0, 2), self._lights, strict=True):
            column, row = (round((v + 1) * self._image / 2) for v in (x, y))
            image[max(0, row - half) : row + half, max(0, column - half) : column + half, channel] = 255
        state = np.zeros(self._interface.state_size)
        state[:2] = self._at
        return Observation({c: image.copy() for c in self._interface.cameras}, state, self._task.instruction)

    def step(self, action: np.ndarray) -> bool:
        """Moves the point by a fifth of the first two numbers, clipped to the unit square."""
        move = np.clip(check_action(action, 7)[:2], -1, 1)
        self._at = np.clip(self._at + 0.2 * move, -1, 1)
        return bool(np.abs(self._at - self._lights[self._goal]).max() < 0.16)


@dataclass
class Toy:
    """Two tasks that differ in the instruction only.

    cameras  names under which the one picture is shown
    state    layout of the state; its first two numbers are the position
    image    side of the picture in pixels
    """

    cameras: Sequence[str] = ("main",)
    state: str = "eef_pos3_axisangle3_gripper2"
    image: int = 64

    name = "toy"
    robot = None
    control_hz = 5.0
    margin = 0.05
    protocol = "vlaprune"

    def __post_init__(self) -> None:
        """Raises UserError for a state or a picture that is too small."""
        if self.interface.state_size < 2:
            raise UserError(
                f"state={self.state}; the toy world needs a layout of at least two numbers, such as position2"
            )
        if self.image < 16:
            raise UserError(f"image={self.image}; the toy world draws at least 16 px")

    @property
    def interface(self) -> Interface:
        """The conventions: any rotation and any gripper, since nothing turns or grips."""
        return Interface("any", "any", "delta", tuple(self.cameras), self.state)

    def hold(self, last: np.ndarray | None) -> np.ndarray:
        """An action that leaves the point where it is."""
        return hold_still(last, start=0.0)

    def tasks(self) -> Sequence[Task]:
        """Two tasks: reach the red light, reach the blue light."""
        return [Task(f"reach-{c}", f"reach the {c} light", max_steps=12, episodes=50) for c in ("red", "blue")]

    def open(self, task: Task) -> AbstractContextManager[Any]:
        """Opens a new world."""
        return nullcontext(_World(task, self.interface, self.image))
