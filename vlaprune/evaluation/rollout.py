"""Runs episodes: which ones, in which slots, and what happens when one of them raises or hangs.

Three parts: who runs what (`schedule`, pure), the open simulators (`pool`), and here the loop that joins them with the
policy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from vlaprune.bench.episodes import Outcome
from vlaprune.benchmark import Benchmark, Observation
from vlaprune.delay import Delay
from vlaprune.errors import UserError
from vlaprune.evaluation.motion import motion
from vlaprune.evaluation.pool import Event, Pool
from vlaprune.evaluation.schedule import Key, Pace, Queue
from vlaprune.records import EpisodeRecord, Header, StepRecord
from vlaprune.trace import Trace


@dataclass(frozen=True)
class Shard:
    """Every count-th episode of each task, from the index-th on; the union over shards is the full list."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        """Raises UserError for a shard that does not exist."""
        if not 0 <= self.index < self.count:
            raise UserError(f"shard.index={self.index} of shard.count={self.count}; use 0..{self.count - 1}")

    def of(self, episodes: int) -> range:
        """The numbers of this shard's episodes, of one task that has `episodes`."""
        return range(self.index, episodes, self.count)

    @property
    def suffix(self) -> str:
        """The suffix of the journal's file name; shards of one run write to one folder."""
        return "" if self.count == 1 else f"-{self.index}-of-{self.count}"


@dataclass(frozen=True)
class RolloutConfig:
    """How episodes are run.

    seed        of the policy; the world's initial states do not depend on it
    time_limit  seconds between two looks after which an environment counts as hung; 0 for never
    patience    episodes that may raise one after the other before the run is given up
    stop        asked after every episode; True ends the run. Episodes then begin, and are recorded, in the order of the
                list: those behind the last one that it saw would be a selection, since short ones finish first
    deterministic  one sequence a call: an episode's numbers are the same bits for any number of slots, in any order
    max_batch   most observations of a packed call; None for as many as there are
    """

    seed: int
    time_limit: float = 0.0
    patience: int = 5
    stop: Callable[[EpisodeRecord], bool] | None = None
    deterministic: bool = False
    max_batch: int | None = None

    def __post_init__(self) -> None:
        """Raises UserError for a `max_batch` below 1."""
        if self.max_batch is not None and self.max_batch < 1:
            raise UserError(f"max_batch={self.max_batch}; use 1 or more, or null for as many as there are")

    @property
    def largest(self) -> int | None:
        """The most observations of one call; None for as many as there are."""
        return 1 if self.deterministic else self.max_batch


class Journal(Protocol):
    """What episodes are written to: a Recorder, or what stands in for one."""

    header: Header
    folder: Path

    def has(self, task: str, episode: int) -> bool:
        """Whether this episode need not be run."""

    def attempt(self, task: str, episode: int) -> AbstractContextManager[None]:
        """Catches and notes what the world raises inside the block."""

    def write(self, record: EpisodeRecord) -> None:
        """Takes the record of an episode that is finished."""


class Player(Protocol):
    """What decides the actions of a run: a `policy.Policy`, or a black box that answers from elsewhere.

    slots  episodes side by side
    delay  how long calls take in the world's time; None for a world that waits
    """

    delay: Delay | None

    @property
    def slots(self) -> int: ...  # noqa: D102

    def begin(self, slot: int, task: str, episode: int, seed: int) -> None:
        """Starts an episode of a run with this seed in a slot; task, episode and seed alone decide what is random."""

    def act(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        """The [n, action_dim] float64 actions until the next look, for each slot that has an observation."""

    def trace(self, slot: int) -> Trace | None:
        """What a slot's latest call computed and kept; None where nobody can see it."""

    def drain(self, slot: int, steps: int | None = None) -> tuple[StepRecord, ...]:
        """The records of a slot's calls since the episode began, which ended after so many control steps."""

    def executed(self, slot: int, steps: int) -> np.ndarray:
        """The first `steps` actions [steps, action_dim] of the episode."""


class Watcher(Protocol):
    """What looks on, such as a film or a progress bar. It sees what happened and changes nothing."""

    def on_call(self, task: str, episode: int, trace: Trace) -> None:
        """Called when a model call of an episode is over."""

    def on_episode(self, task: str, episode: int, record: EpisodeRecord | None) -> None:
        """Called when an episode is over; without a record, the world raised."""


def rollout(
    policy: Player,
    bench: Benchmark,
    journal: Journal,
    shard: Shard,
    config: RolloutConfig,
    watchers: Sequence[Watcher] = (),
) -> None:
    """Runs every missing episode of the journal's tasks; a slot that finishes takes the next episode at once.

    Simulators in workers run side by side, and while the policy computes for others. Whatever finishes first, an
    episode's number alone decides its initial state and its randomness.

    What an environment raises is noted, and its episode run once more at the end. What the policy raises ends the run:
    its numbers could not be believed. So does what the first simulator of a task raises as it opens: the user has to
    correct it. UserError after `config.patience` episodes of a task that raised one after the other.
    """
    asked = journal.header.tasks
    todo = [(t.name, e) for t in bench.tasks() for e in shard.of(asked.get(t.name, 0)) if not journal.has(t.name, e)]
    queue = Queue(todo, ordered=config.stop is not None)
    pool = Pool(bench, config.time_limit)
    try:
        episodes = _Rollout(policy, bench, queue, pool, journal, config, watchers)
        for record in episodes if config.stop is None else _in_order(episodes, todo, queue):
            journal.write(record)
            if config.stop is not None and config.stop(record):
                return
    finally:
        pool.close()


def _in_order(episodes: Iterable[EpisodeRecord], todo: Sequence[Key], queue: Queue) -> Iterator[EpisodeRecord]:
    """The episodes in the order of the list; those that finish earlier wait. One that raised twice is left out."""
    waiting = list(todo)
    finished: dict[Key, EpisodeRecord] = {}
    for record in episodes:
        finished[record.task, record.episode] = record
        while waiting and (waiting[0] in finished or queue.given_up(waiting[0])):
            key = waiting.pop(0)
            if key in finished:
                yield finished.pop(key)
    yield from (finished[key] for key in waiting if key in finished)


class _Rollout:
    """The episodes of a run, as they finish."""

    def __init__(
        self,
        policy: Player,
        bench: Benchmark,
        queue: Queue,
        pool: Pool,
        journal: Journal,
        config: RolloutConfig,
        watchers: Sequence[Watcher],
    ) -> None:
        self._policy = policy
        self._bench = bench
        self._queue = queue
        self._pool = pool
        self._tasks = {task.name: task for task in bench.tasks()}
        self._journal = journal
        self._config = config
        self._watchers = watchers
        self._slots = range(min(policy.slots, len(queue)))
        self._at: dict[int, Key] = {}  # the episode of each busy slot
        self._began: dict[int, float] = {}  # and when it did
        self._looks: dict[int, Observation] = {}  # which the policy has still to answer
        self._pace = Pace()
        self._opened: set[str] = set()  # tasks of which a simulator came up
        self._in_a_row: dict[str, int] = {}  # episodes of a task that raised

    def __iter__(self) -> Iterator[EpisodeRecord]:
        while True:
            for slot in self._slots:
                if slot not in self._at:
                    self._next(slot)
            if not self._pool.busy and not self._looks:
                return
            patience = self._patience()
            events = self._pool.wait(patience)
            for event in events:
                record = self._handle(event)
                if record is not None:
                    yield record
            if self._looks and (patience == 0 or (patience and not events)):
                self._act()

    def _patience(self) -> float | None:
        """Seconds that observations in hand may wait for others; None where there is none."""
        if not self._looks:
            return None
        full = self._config.largest is not None and len(self._looks) >= self._config.largest
        return 0.0 if full else self._pace.wait(len(self._looks), self._pool.ages())

    def _next(self, slot: int) -> None:
        """Gives a free slot its next episode, and opens its task first where another one is open."""
        key = self._queue.take(self._pool.task(slot), self._pool.tasks())
        if key is None:
            return
        self._at[slot] = key
        if self._pool.task(slot) == key[0]:
            self._start(slot)
        else:
            self._pool.open(slot, self._tasks[key[0]])

    def _start(self, slot: int) -> None:
        task, episode = self._at[slot]
        self._began[slot] = time.monotonic()
        self._policy.begin(slot, task, episode, self._config.seed)
        self._pool.post(slot, "start", episode)

    def _handle(self, event: Event) -> EpisodeRecord | None:
        """Handles what has happened in a slot. Returns the record if its episode is over, else None."""
        slot = event.slot
        result = event.said
        if event.error is not None:
            self._raised(slot, event.error)
        elif result is None:
            self._opened.add(self._at[slot][0])
            self._start(slot)
        elif isinstance(result, Observation):
            self._looks[slot] = result
            self._pace.simulated(event.seconds)
        else:
            return self._over(slot, result)
        return None

    def _act(self) -> None:
        """Calls the policy once for the slots that have waited longest, and lets their worlds go on."""
        slots = list(self._looks)[: self._config.largest]
        looks = {slot: self._looks.pop(slot) for slot in slots}
        began = time.monotonic()
        actions = self._policy.act(looks)
        self._pace.called(len(looks), time.monotonic() - began)
        for slot in slots:
            self._pool.post(slot, "advance", actions[slot])
        for slot in slots if self._watchers else ():
            trace = self._policy.trace(slot)
            if trace is not None:
                for watcher in self._watchers:
                    watcher.on_call(*self._at[slot], trace)

    def _over(self, slot: int, outcome: Outcome) -> EpisodeRecord:
        task, episode = self._at.pop(slot)
        calls = self._policy.drain(slot, outcome.steps)
        took = time.monotonic() - self._began[slot]
        actions = self._policy.executed(slot, outcome.steps)
        bench = self._bench
        moved = motion(actions, bench.control_hz, bench.interface.frame, outcome.hands)
        record = EpisodeRecord(task, episode, outcome.success, outcome.steps, calls, time.time(), took, moved)
        self._in_a_row[task] = 0
        for watcher in self._watchers:
            watcher.on_episode(task, episode, record)
        return record

    def _raised(self, slot: int, error: Exception) -> None:
        task, episode = self._at.pop(slot)
        if task not in self._opened:
            raise error
        with self._journal.attempt(task, episode):
            raise error
        first = self._queue.raised((task, episode))
        for watcher in self._watchers:
            watcher.on_episode(task, episode, None)
        self._in_a_row[task] = self._in_a_row.get(task, 0) + first  # the second attempts are few, and all bad ones
        if first and self._in_a_row[task] == self._config.patience:
            raise UserError(
                f"{self._in_a_row[task]} episodes of {task} raised one after the other; see the error "
                f"lines in {self._journal.folder}, mend the environment and run the same command again"
            )
