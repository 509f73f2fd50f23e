"""The open simulators of a run, one for a slot. Those in workers run side by side, any other when it is waited for.

Nothing here blocks but `wait`: no simulator, however slow, holds up another slot.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from math import inf
from multiprocessing.connection import wait
from typing import Any

import numpy as np

from vlaprune.bench.episodes import Episodes, Outcome
from vlaprune.bench.remote import CLOSING, RemoteEnv
from vlaprune.benchmark import Benchmark, Observation, Task


@dataclass(frozen=True)
class Event:
    """What has become of a slot: its simulator is open (`said` is None), an observation, an outcome, or an error.

    seconds  since it was asked
    """

    slot: int
    said: Observation | Outcome | None = None
    error: Exception | None = None
    seconds: float = 0.0


class _Late(BaseException):
    """The alarm; no `except Exception` of a simulator catches it."""


@contextmanager
def watchdog(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in a block that lasts too long; 0 switches it off.

    It works in the main thread only, and only while Python code runs.
    """
    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise _Late

    old = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # and every second again, for those that swallow it
    try:
        yield
    except _Late:
        raise TimeoutError(f"no answer within {seconds:g} s (time_limit)") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


class _Simulator:
    """One open simulator: what it is asked, and whether it is at it."""

    def __init__(self, bench: Benchmark, task: Task, time_limit: float) -> None:
        """Starts the simulator. A worker then opens beside this process; any other is open at once."""
        self.task = task
        self._limit = time_limit
        self._stack = ExitStack()
        with self._watched():
            env: Any = self._stack.enter_context(bench.open(task))
        self.remote = env if isinstance(env, RemoteEnv) else None
        self._episodes = Episodes(env, task, bench.interface)
        self._ask: tuple[str, Any] | None = None  # what a simulator in this process is to do
        self.opening = True
        self.since = time.monotonic()
        if self.remote is not None:
            self.remote.limit(time_limit)

    def post(self, verb: str, argument: Any) -> None:
        """Asks the simulator to `start` an episode, or to `advance` by actions; `answer` gives the result."""
        self.since = time.monotonic()
        if self.remote is not None:
            plain = argument.tolist() if isinstance(argument, np.ndarray) else argument
            self.remote.begin(verb, plain)
        else:
            self._ask = verb, argument

    def answer(self) -> Observation | Outcome | None:
        """The result of the last `post`; None for a simulator that was opening.

        To be called for a worker that has answered or is late, or for a simulator in this process.
        """
        if self.remote is not None:
            if not self.opening:
                return self.remote.finish()
            self.opening = not self.remote.up()
            return None
        if self.opening:
            self.opening = False
            return None
        assert self._ask is not None
        verb, argument = self._ask
        with self._watched():
            result: Observation | Outcome = getattr(self._episodes, verb)(argument)
        if isinstance(result, Outcome):
            return result
        return replace(result, images={camera: image.copy() for camera, image in result.images.items()})

    def close(self) -> None:
        """Closes the simulator. One that raises or hangs while it closes is left behind; a worker is killed."""
        with suppress(Exception), watchdog(CLOSING):
            self._stack.close()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Makes an Exception of whatever a simulator in this process raises; only Ctrl-C passes as it is."""
        try:
            with watchdog(self._limit):
                yield
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if isinstance(error, Exception) and _can_be_printed(error):
                raise
            text = f": {error}" if _can_be_printed(error) else ""  # sys.exit ends an episode, not the run
            raise RuntimeError(f"{type(error).__name__}{text}") from error


class Pool:
    """The simulators of a run's slots.

    time_limit  seconds that each has to open and to answer; 0 for no limit
    """

    def __init__(self, bench: Benchmark, time_limit: float) -> None:
        self._bench = bench
        self._limit = time_limit
        self._open: dict[int, _Simulator] = {}
        self._busy: dict[int, _Simulator] = {}
        self._events: list[Event] = []
        self._leaving: list[tuple[_Simulator, float]] = []

    @property
    def busy(self) -> bool:
        """Whether an event is still to come."""
        return bool(self._busy or self._events)

    def ages(self) -> list[float]:
        """Seconds for which each world in a worker has been at its chunk."""
        now = time.monotonic()
        return [now - s.since for s in self._busy.values() if s.remote is not None and not s.opening]

    def task(self, slot: int) -> str | None:
        """The task that a slot has open."""
        return self._open[slot].task.name if slot in self._open else None

    def tasks(self) -> list[str]:
        """The tasks that all slots have open."""
        return [simulator.task.name for simulator in self._open.values()]

    def open(self, slot: int, task: Task) -> None:
        """Begins to open a task in a slot, in place of what it has open."""
        self.leave(slot)
        try:
            self._open[slot] = self._busy[slot] = _Simulator(self._bench, task, self._limit)
        except Exception as error:
            self._events.append(Event(slot, error=_opening(task, error)))

    def post(self, slot: int, verb: str, argument: Any) -> None:
        """Asks a slot's world to `start` an episode or to `advance` by [n, action_dim] actions."""
        self._busy[slot] = self._open[slot]
        self._attend(slot, lambda: self._open[slot].post(verb, argument))

    def wait(self, timeout: float | None = None) -> list[Event]:
        """The events that have come, after waiting up to `timeout` seconds (None: until one comes). Empty if none has.

        After an error the slot's simulator is gone.
        """
        self._sweep()
        here = [slot for slot, simulator in self._busy.items() if simulator.remote is None]
        for slot in here:
            self._take(slot)
        far = {slot: s.remote for slot, s in self._busy.items() if s.remote is not None}
        if far:
            now = time.monotonic()
            deadlines = {slot: remote.deadline for slot, remote in far.items()}
            first = max(0.0, min(deadlines.values()) - now)
            limit = 0.0 if self._events else first if timeout is None else min(first, timeout)
            if self._leaving:
                limit = min(limit, CLOSING)
            ready = wait([remote.connection for remote in far.values()], None if limit == inf else limit)
            now = time.monotonic()
            for slot, remote in far.items():
                if remote.connection in ready or deadlines[slot] <= now:
                    self._take(slot)
        events, self._events = self._events, []
        return events

    def leave(self, slot: int) -> None:
        """Closes what a slot has open, without waiting for a worker."""
        self._busy.pop(slot, None)
        simulator = self._open.pop(slot, None)
        if simulator is None:
            return
        if simulator.remote is None:
            simulator.close()
            return
        simulator.remote.hang_up()
        self._leaving.append((simulator, time.monotonic() + CLOSING))

    def close(self) -> None:
        """Closes everything."""
        for slot in list(self._open):
            self.leave(slot)
        while self._leaving:
            self._sweep()
            time.sleep(0.005 if self._leaving else 0.0)

    def _take(self, slot: int) -> None:
        """Makes an event of the answer of a slot that has one."""
        simulator = self._busy[slot]

        def answer() -> None:
            opened = simulator.opening
            result = simulator.answer()
            if not simulator.opening:
                del self._busy[slot]
                self._events.append(Event(slot, result, seconds=time.monotonic() - simulator.since))
            assert result is not None or opened

        self._attend(slot, answer)

    def _attend(self, slot: int, action: Callable[[], None]) -> None:
        """Runs `action` for a slot; if it raises, the error becomes an event and the slot gives up its simulator."""
        simulator = self._open[slot]
        try:
            action()
        except Exception as error:
            self.leave(slot)
            self._events.append(Event(slot, error=_opening(simulator.task, error) if simulator.opening else error))

    def _sweep(self) -> None:
        """Forgets workers that have closed, and kills those that do not."""
        now = time.monotonic()
        for entry in list(self._leaving):
            simulator, until = entry
            assert simulator.remote is not None
            if simulator.remote.ended or now >= until:
                self._leaving.remove(entry)
                simulator.remote.kill()
                simulator.close()


def _can_be_printed(error: BaseException) -> bool:
    """Whether an error can say what it is."""
    try:
        str(error)
    except Exception:
        return False
    return True


def _opening(task: Task, error: Exception) -> Exception:
    """The error of a simulator that failed as it opened: a timeout says so and names the task, others are unchanged."""
    if isinstance(error, TimeoutError) and "opening" not in str(error):
        return TimeoutError(f"opening the simulator of {task.name}: {error}")
    return error
