"""Toy: a point that must reach the light of the right colour. Instant, numpy only; for tests and newcomers."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from vlaprune.benchmark import Interface, Observation, Task, check_action


class _World:
    """One light of each colour, drawn as an 8 px square on a dim, noisy ground of 64 px."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._goal = int("blue" in task.instruction)

    def reset(self, episode: int) -> None:
        """Places both lights and the point."""
        lot = np.random.default_rng(zlib.crc32(f"{self._task.name}/{episode}".encode()))
        self._lights = lot.uniform(-0.85, 0.85, (2, 2))
        while np.abs(self._lights[0] - self._lights[1]).max() < 0.4:
            self._lights[1] = lot.uniform(-0.85, 0.85, 2)
        self._ground = lot.integers(0, 60, (64, 64, 3), dtype=np.uint8)
        self._at = np.zeros(2)

    def observe(self) -> Observation:
        """The picture from above; the point itself is not drawn, its position is the state."""
        image = self._ground.copy()
        for channel, (x, y) in zip((0, 2), self._lights, strict=True):
            column, row = (round((v + 1) * 32) for v in (x, y))
            image[max(0, row - 4) : row + 4, max(0, column - 4) : column + 4, channel] = 255
        return Observation({"main": image}, self._at.copy(), self._task.instruction)

    def step(self, action: np.ndarray) -> bool:
        """Moves the point by a fifth of the first two numbers, clipped to the unit square."""
        move = np.clip(check_action(action, 7)[:2], -1, 1)
        self._at = np.clip(self._at + 0.2 * move, -1, 1)
        return bool(np.abs(self._at - self._lights[self._goal]).max() < 0.16)


class Toy:
    """Two tasks that differ in the instruction only."""

    name = "toy"
    robot: str | None = None
    control_hz = 5.0
    interface = Interface("axis_angle", "close_positive", "delta", ("main",), "position2")

    def tasks(self) -> Sequence[Task]:
        """Reach the red light, reach the blue light."""
        return [Task(f"reach-{c}", f"reach the {c} light", limit=12, episodes=50) for c in ("red", "blue")]

    @contextmanager
    def open(self, task: Task) -> Iterator[_World]:
        """A fresh world."""
        yield _World(task)
