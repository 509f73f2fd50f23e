"""Runs episodes: which ones, in which slots, and what happens when one of them raises or hangs."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from vlaprune.benchmark import Benchmark, Env, Observation, Task
from vlaprune.evaluation.motion import motion
from vlaprune.policy import Policy, episode_seed
from vlaprune.records import EpisodeRecord, Header
from vlaprune.trace import Trace

Attempt = Generator[Observation, np.ndarray, tuple[bool, int]]


def attempt(env: Env, task: Task, episode: int) -> Attempt:
    """What an episode is: yields an observation, is sent [n, action_dim] actions and executes them.

    Returns whether the task was achieved and the control steps it took.
    """
    env.reset(episode)
    success, steps = False, 0
    while True:
        actions = yield env.observe()
        for action in actions:
            success = env.step(action)
            steps += 1
            if steps == task.max_steps or (success and task.terminate_on_success):
                return success, steps


@dataclass(frozen=True)
class Shard:
    """Every count-th (task, episode) pair from the index-th on; the union over shards is the full list."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        """ValueError for a shard that does not exist."""
        if not 0 <= self.index < self.count:
            raise ValueError(f"shard.index={self.index} of shard.count={self.count}; use 0..{self.count - 1}")

    def of(self, episodes: int) -> range:
        """This shard's episodes of one task."""
        return range(self.index, episodes, self.count)

    @property
    def suffix(self) -> str:
        """Of the journal's file name; shards of one run write to one folder."""
        return "" if self.count == 1 else f"-{self.index}-of-{self.count}"


@contextmanager
def watchdog(seconds: float) -> Iterator[None]:
    """TimeoutError inside the block once it has lasted too long; 0 switches it off. Main thread only."""
    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise TimeoutError(f"no answer within {seconds} s (time_limit)")

    old = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


@dataclass(frozen=True)
class RolloutConfig:
    """How episodes are run.

    seed        of the policy; the world's initial states do not depend on it
    time_limit  seconds between two looks after which an environment counts as hung; 0 for never
    patience    episodes that may raise one after the other before the run is given up
    stop        asked after every episode; its yes ends the run, and what other slots are at is not recorded
    """

    seed: int
    time_limit: float = 0.0
    patience: int = 5
    stop: Callable[[EpisodeRecord], bool] = lambda record: False


class Journal(Protocol):
    """What episodes are written to: a Recorder, or what stands in for one."""

    header: Header
    folder: Path

    def has(self, task: str, episode: int) -> bool:
        """Whether this episode need not be run."""

    def attempt(self, task: str, episode: int) -> AbstractContextManager[None]:
        """Catches what the world raises inside."""

    def write(self, record: EpisodeRecord) -> None:
        """An episode is finished."""


class Watcher(Protocol):
    """Looks on: a film, a progress bar. It sees what happened and changes nothing."""

    def look(self, task: str, episode: int, trace: Trace) -> None:
        """A model call is over."""

    def end(self, task: str, episode: int, record: EpisodeRecord | None) -> None:
        """An episode is over; without a record the world raised."""


class EnvSlot:
    """One slot: its environment, opened anew after trouble, and the episode under way."""

    def __init__(self, slot: int, bench: Benchmark, task: Task) -> None:
        self.slot, self._bench, self._task = slot, bench, task
        self._stack = ExitStack()
        self._env: Env | None = None
        self._attempt: Attempt | None = None
        self.episode = -1
        self.began = 0.0

    @property
    def busy(self) -> bool:
        """Whether an episode is under way."""
        return self._attempt is not None

    def open(self, time_limit: float) -> None:
        """Starts the simulator; what that raises, TimeoutError too, is for the user to mend."""
        try:
            with watchdog(time_limit):
                self._open()
        except TimeoutError as error:
            raise TimeoutError(f"opening the simulator of {self._task.name}: {error}") from None

    def _open(self) -> Env:
        if self._env is None:
            self._env = self._stack.enter_context(self._bench.open(self._task))
        return self._env

    def start(self, episode: int) -> None:
        """Takes an episode; the world moves, and after trouble is opened again, at the first `advance`."""
        self.episode, self._attempt, self.began = episode, self._course(episode), time.monotonic()

    def _course(self, episode: int) -> Attempt:
        return (yield from attempt(self._open(), self._task, episode))

    def advance(self, actions: np.ndarray | None, time_limit: float) -> Observation | tuple[bool, int]:
        """The next observation, or the outcome (success, steps). What the world raises ends episode and world."""
        assert self._attempt is not None
        try:
            with watchdog(time_limit):
                return self._attempt.send(actions)  # type: ignore[arg-type]
        except StopIteration as stop:
            self._attempt = None
            return stop.value
        except BaseException:
            self._attempt = None
            self.close()
            raise

    def close(self) -> None:
        """Closes the environment. One that cannot even close is left behind."""
        self._env = None
        with suppress(Exception):
            self._stack.close()


def rollout(
    policy: Policy,
    bench: Benchmark,
    journal: Journal,
    shard: Shard,
    rules: RolloutConfig,
    watchers: Sequence[Watcher] = (),
) -> None:
    """Runs every missing episode of the journal's tasks; a slot that finishes takes the next episode at once.

    What an environment raises is noted and its episode run again another time. What the policy raises ends the run:
    its numbers could not be believed. RuntimeError after `rules.patience` episodes that raised in a row.
    """
    for task in bench.tasks():
        asked = journal.header.tasks.get(task.name, 0)
        todo = deque(e for e in shard.of(asked) if not journal.has(task.name, e))
        slots = [EnvSlot(slot, bench, task) for slot in range(min(policy.slots, len(todo)))]
        try:
            for slot in slots:
                slot.open(rules.time_limit)
            for record in _Episodes(policy, bench, task, slots, todo, journal, rules, watchers):
                journal.write(record)
                if rules.stop(record):
                    return
        finally:
            for slot in slots:
                slot.close()


@dataclass
class _Episodes:
    """The missing episodes of one task, as they finish."""

    policy: Policy
    bench: Benchmark
    task: Task
    slots: Sequence[EnvSlot]
    todo: deque[int]
    journal: Journal
    rules: RolloutConfig
    watchers: Sequence[Watcher]
    _in_a_row: int = 0  # episodes that raised

    def __iter__(self) -> Iterator[EpisodeRecord]:
        actions: dict[int, np.ndarray] = {}
        while True:
            looks: dict[int, Observation] = {}
            for slot in self.slots:
                while slot.slot not in looks and (slot.busy or self.todo):
                    said = self._advance(slot, actions.pop(slot.slot, None))
                    if isinstance(said, Observation):
                        looks[slot.slot] = said
                    elif said is not None:
                        yield said
            if not looks:
                return
            actions = self.policy.act(looks)
            for slot in self.slots if self.watchers else ():
                if slot.slot in looks:
                    for watcher in self.watchers:
                        watcher.look(self.task.name, slot.episode, self.policy.trace(slot.slot))

    def _advance(self, slot: EnvSlot, actions: np.ndarray | None) -> Observation | EpisodeRecord | None:
        """The next observation of a slot or its finished episode; None where the world raised."""
        name = self.task.name
        if not slot.busy:
            slot.start(self.todo.popleft())
            self.policy.reset(slot.slot, episode_seed(self.rules.seed, name, slot.episode))
        said: Observation | tuple[bool, int] | None = None
        with self.journal.attempt(name, slot.episode):
            said = slot.advance(actions, self.rules.time_limit)
        if isinstance(said, Observation):
            return said
        record = None if said is None else self._record(slot, *said)
        self._in_a_row = self._in_a_row + 1 if record is None else 0
        for watcher in self.watchers:
            watcher.end(name, slot.episode, record)
        if self._in_a_row == self.rules.patience:
            raise RuntimeError(
                f"{self._in_a_row} episodes of {name} raised one after the other; see the error "
                f"lines in {self.journal.folder}, mend the environment and run the same command again"
            )
        return record

    def _record(self, slot: EnvSlot, success: bool, steps: int) -> EpisodeRecord:
        calls = self.policy.drain(slot.slot, steps)
        moved = motion(self.policy.executed(slot.slot, steps), self.bench.control_hz, self.bench.interface.frame)
        took = time.monotonic() - slot.began
        return EpisodeRecord(self.task.name, slot.episode, success, steps, calls, time.time(), took, moved)
