"""Worlds that sleep: the toy world with the times of a real simulator, and any benchmark with random pauses."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vlaprune.bench import remote
from vlaprune.bench.toy import Toy
from vlaprune.benchmark import Benchmark, Env, Observation, Task, in_process


class _Slow:
    """A world that pauses before each step and each look."""

    def __init__(self, world: Env, pause: Callable[[float], None], step: float, look: float) -> None:
        self._world, self._pause, self._step, self._look = world, pause, step, look

    def reset(self, episode: int) -> None:
        """Resets the world at once."""
        self._world.reset(episode)

    def observe(self) -> Observation:
        """Pauses for the time of a look, then observes."""
        self._pause(self._look)
        return self._world.observe()

    def step(self, action: np.ndarray) -> bool:
        """Pauses for the time of a step, then steps."""
        self._pause(self._step)
        return self._world.step(action)


@dataclass
class Sleeping(Toy):
    """The toy world, slowed down.

    step, look, start  seconds of a control step, of a look, and of opening
    steps   control steps of every episode, which does not end earlier; None for the toy's limit
    jitter  largest random change of each pause, as a share of its length, 0 .. 1: the order in which things finish is
            then random
    worker  each environment in a process of its own
    """

    step: float = 0.01
    look: float = 0.02
    start: float = 0.0
    steps: int | None = None
    jitter: float = 0.0
    worker: bool = True

    name = "sleeping"

    def tasks(self) -> list[Task]:
        """The tasks of the toy world, with a fixed length if `steps` is set."""
        tasks = super().tasks()
        if self.steps is None:
            return list(tasks)
        return [replace(t, max_steps=self.steps, terminate_on_success=False) for t in tasks]

    def open(self, task: Task) -> AbstractContextManager[Any]:
        """Opens a new world after the time of opening."""
        return remote.opened(replace(self, worker=False), task) if self.worker else self._here(task)

    @contextmanager
    def _here(self, task: Task) -> Iterator[Env]:
        self._pause(self.start)
        with super().open(task) as world:
            yield _Slow(world, self._pause, self.step, self.look)

    def _pause(self, seconds: float) -> None:
        if seconds:  # even a sleep of 0 s takes 0.1 ms
            time.sleep(seconds * random.uniform(1.0 - self.jitter, 1.0 + self.jitter))


@dataclass
class Paused:
    """Any benchmark, each environment in a worker that pauses before each look: the order of finishing is random.

    bench   the benchmark; its own numbers must not depend on the pauses
    most    longest pause in seconds; each pause is drawn anew
    worker  each environment in a process of its own
    """

    bench: Benchmark
    most: float = 0.1
    worker: bool = True

    def __post_init__(self) -> None:
        """Takes over everything but opening from the benchmark."""
        self.name, self.robot, self.interface = self.bench.name, self.bench.robot, self.bench.interface
        self.control_hz, self.margin, self.protocol = self.bench.control_hz, self.bench.margin, self.bench.protocol

    def tasks(self) -> Sequence[Task]:
        """The tasks of the benchmark."""
        return self.bench.tasks()

    def open(self, task: Task) -> AbstractContextManager[Any]:
        """Opens the benchmark's environment, which pauses before each look."""
        return remote.opened(replace(self, worker=False), task) if self.worker else self._here(task)

    @contextmanager
    def _here(self, task: Task) -> Iterator[Env]:
        with in_process(self.bench).open(task) as world:
            yield _Slow(world, self._pause, 0.0, self.most)

    def _pause(self, most: float) -> None:
        if most:
            time.sleep(random.uniform(0.0, most))
