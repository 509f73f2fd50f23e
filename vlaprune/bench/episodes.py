"""What an episode is: it starts, then executes chunks of actions until it is over. In this process or in a worker."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vlaprune.bench.gate import Gate, check_bool
from vlaprune.benchmark import Env, Interface, Observation, Task


class Outcome(NamedTuple):
    """How an episode ended: whether the task was achieved, and the control steps it took."""

    success: bool
    steps: int


class Episodes:
    """The episodes of one open task, one after the other. UserError where the world shows or says what it must not."""

    def __init__(self, env: Env, task: Task, interface: Interface) -> None:
        self._env, self._task, self._gate = env, task, Gate(interface)
        self._success, self._steps = False, 0

    def start(self, episode: int) -> Observation:
        """Puts the world into initial state `episode` and looks."""
        self._success, self._steps = False, 0
        self._env.reset(episode)
        return self._gate.check(self._env.observe())

    def advance(self, actions: np.ndarray) -> Observation | Outcome:
        """Executes [n, action_dim] actions, one a control step, then looks; or the outcome, once it is decided."""
        for action in actions:
            self._success = check_bool(self._env.step(action))
            self._steps += 1
            if self._steps == self._task.max_steps or (self._success and self._task.terminate_on_success):
                return Outcome(self._success, self._steps)
        return self._gate.check(self._env.observe())
