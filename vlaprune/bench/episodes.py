"""Runs episodes: start, then chunks of actions until the end. In this process or in a worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vlaprune.bench.gate import Gate, check_bool, check_hand
from vlaprune.benchmark import Env, Interface, Observation, SupportsHand, Task


class Outcome(NamedTuple):
    """The end of an episode.

    success  whether the task was achieved
    steps    control steps that it took
    hands    [steps + 1, 3] position of the hand before each step and after the last, in metres; empty if the world
             does not give it
    """

    success: bool
    steps: int
    hands: Sequence[Sequence[float]] = ()


class Episodes:
    """The episodes of one open task, one after the other. UserError for an invalid observation, step result or hand."""

    def __init__(self, env: Env, task: Task, interface: Interface) -> None:
        self._env, self._task, self._gate = env, task, Gate(interface)
        self._hand = env.hand if isinstance(env, SupportsHand) else None
        self._success, self._steps, self._hands = False, 0, []  # type: tuple[bool, int, list[list[float]]]

    def start(self, episode: int) -> Observation:
        """Puts the world into initial state `episode` and returns the first observation."""
        self._success, self._steps, self._hands = False, 0, []
        self._env.reset(episode)
        self._follow()
        return self._gate.check(self._env.observe())

    def advance(self, actions: np.ndarray) -> Observation | Outcome:
        """Executes [n, action_dim] actions, one per control step. Returns an observation, or the outcome at the end."""
        for action in np.asarray(actions, np.float64):
            self._success = check_bool(self._env.step(action))
            self._steps += 1
            self._follow()
            if self._steps == self._task.max_steps or (self._success and self._task.terminate_on_success):
                return Outcome(self._success, self._steps, tuple(self._hands))
        return self._gate.check(self._env.observe())

    def _follow(self) -> None:
        """Notes the present position of the hand."""
        if self._hand is not None:
            self._hands.append(check_hand(self._hand()).tolist())
