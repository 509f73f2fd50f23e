"""Worlds that misbehave, importable without any model code."""

import os
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vlaprune.bench import remote
from vlaprune.bench.toy import Toy
from vlaprune.benchmark import Interface, Observation
from vlaprune.errors import UserError

MAIN = Interface("any", "any", "delta", ("main",), None)


class Away:
    """The toy world in a worker."""

    def __init__(self, python=None):
        self.python, self.inner = python, Toy()

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def open(self, task):
        return remote.opened(self.inner, task, self.python)


class Trouble:
    """A world whose step does what its first number says."""

    def __init__(self, path):
        self.path = path

    def reset(self, episode):
        with open(self.path, "a") as file:
            file.write(f"{os.getpid()}\n")

    def observe(self):
        return Observation({"main": np.zeros((4096, 4096), np.uint8)}, None, "x")

    def step(self, action):
        if action[0] == 1:
            print("the simulator's own complaint", flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        if action[0] == 2:
            time.sleep(60)
        if action[0] == 3:
            raise ValueError("no such action")
        return action[0] == 4

    def modules(self):
        return sorted(sys.modules)


@dataclass(frozen=True)
class Troubled:
    """Opens `Trouble`; dies while opening until so many have tried, or says what the user can mend."""

    path: str
    bad: int = 0
    lacks: str = ""
    name: str = "troubled"
    interface: Interface = MAIN

    @contextmanager
    def open(self, task):
        with open(self.path, "a") as file:
            file.write("opened\n")
        if Path(self.path).read_text().count("opened") <= self.bad:
            os._exit(3)
        if self.lacks:
            raise UserError(f"no {self.lacks}; fetch them")
        yield Trouble(self.path)


class ToyLike:
    """The toy benchmark. Subclasses give `worker` and `here(task)`, which opens a world in this process."""

    @property
    def interface(self):
        return Toy().interface

    def tasks(self):
        return Toy().tasks()

    @contextmanager
    def open(self, task):
        with remote.opened(replace(self, worker=False), task) if self.worker else self.here(task) as env:
            yield env


@dataclass(frozen=True)
class Dying(ToyLike):
    """The toy world in workers; in the first attempt at episode 1 of reach-red, the first step goes wrong.

    how      what happens: segv, exit, stop, raise, interrupt, deaf or never
    mark     a file that says that it has happened; PIDs of workers beside it
    closing  seconds that closing takes
    """

    how: str
    mark: str
    closing: float = 0.0
    worker: bool = True
    name: str = "dying"
    robot: None = None
    control_hz: float = 5.0

    @contextmanager
    def here(self, task):
        with open(f"{self.mark}.pids", "a") as file:
            file.write(f"{os.getpid()}\n")
        with Toy().open(task) as world:
            yield _Mortal(world, task, self)
        time.sleep(self.closing)


class _Mortal:
    def __init__(self, world, task, bench):
        self._world, self._task, self._bench = world, task, bench
        self.observe = world.observe

    def reset(self, episode):
        self._episode, self._steps = episode, 0
        self._world.reset(episode)

    def step(self, action):
        self._steps += 1
        if (self._task.name, self._episode, self._steps) == ("reach-red", 1, 1) and not os.path.exists(
            self._bench.mark
        ):
            self._break()
        return self._world.step(action)

    def _break(self):
        how = self._bench.how
        if how == "never":
            return
        Path(self._bench.mark).touch()
        if how == "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        if how == "exit":
            sys.exit(0)
        if how == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if how == "raise":
            raise KeyError("no such joint")
        if how == "interrupt":
            raise KeyboardInterrupt
        if how == "deaf":  # one long native call with every signal blocked
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            time.sleep(600)
