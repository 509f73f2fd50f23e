"""Worlds that misbehave, importable without any model code."""

import os
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlaprune.bench import remote
from vlaprune.bench.toy import Toy
from vlaprune.benchmark import Observation


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
    """Opens `Trouble`; dies or hangs while opening until so many have tried."""

    path: str
    bad: int = 0
    name: str = "troubled"

    @contextmanager
    def open(self, task):
        with open(self.path, "a") as file:
            file.write("opened\n")
        if Path(self.path).read_text().count("opened") <= self.bad:
            os._exit(3)
        yield Trouble(self.path)
