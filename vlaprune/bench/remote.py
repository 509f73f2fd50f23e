"""An environment in a worker process, which loads no model code and may run under another Python.

Use it inside a benchmark's `open`:

    with remote.opened(replace(self, worker=False), task, self.python) as env:
        yield env

The benchmark must be picklable and open the simulator itself (here: with worker=False). Its module may import numpy,
the standard library, `vlaprune.benchmark` and others of `vlaprune.bench`, because the other Python has nothing else of
vlaprune. The environment it gives has the contract's `reset`, `observe` and `step`, and `call(name, ...)` for any
further method with plain arguments and a plain result. A worker that dies or hangs raises; the next `reset` starts
another.

With several workers, nobody need wait for one: `begin` sends a command, `connection` can be read once there is an
answer, and `finish` takes it. `start` and `advance` (`vlaprune.bench.episodes`) run a whole chunk of actions with one
message. Opening begins at once; the first use waits for it.
"""

from __future__ import annotations

import builtins
import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from math import inf
from multiprocessing.connection import Connection
from pathlib import Path
from traceback import FrameSummary
from typing import Any, Protocol

import numpy as np

from vlaprune.bench.episodes import Outcome
from vlaprune.bench.gate import PICTURES
from vlaprune.benchmark import Env, Interface, Observation, Task
from vlaprune.errors import UserError

TRIES = 2  # most starts of a simulator that dies or hangs while it opens
CLOSING = 5.0  # seconds after which a simulator that does not close is killed


class Openable(Protocol):
    """The part of a benchmark that a worker needs."""

    @property
    def name(self) -> str:
        """The name of the benchmark."""

    @property
    def interface(self) -> Interface:
        """The conventions of its observations and actions."""

    def open(self, task: Task) -> AbstractContextManager[Env]:
        """Starts the simulator for one task, in this very process."""


class WorkerDied(RuntimeError):
    """Raised if the worker died."""


class RemoteEnv:
    """The environment of one task in a worker process; made by `opened`."""

    def __init__(self, bench: Openable, task: Task, python: str | None, opening: float, answering: float) -> None:
        """Starts the worker under `python` (None for this one), with limits in seconds to open and to answer."""
        self.task, self._what = task, pickle.dumps((bench, task), protocol=4)
        self._label = f"worker of {bench.name} {task.name}"
        self._python, self._opening, self._answering = python, opening, answering
        self._worker: _Worker | None = None
        self._tries = 0  # starts so far while opening; 0 once open
        self._start(tries=1)

    def limit(self, seconds: float) -> None:
        """Sets the limits to open and to answer: after this many seconds the worker is killed; 0 for never."""
        self._opening = self._answering = seconds or inf
        self._until = self._asked + self._opening

    @property
    def connection(self) -> Connection:
        """The connection, which can be read once the worker has answered or died."""
        return self._there().pipe

    @property
    def deadline(self) -> float:
        """The time at which the worker's limit is over, on the clock of `time.monotonic`."""
        return self._until

    def up(self) -> bool:
        """Waits for the worker's first answer; returns whether the simulator is open now.

        False if it died or hung and was started again. Raises what opening raised, or TimeoutError or
        `WorkerDied` after the last try.
        """
        if self._tries == 0:
            return True
        try:
            self._receive("opening")
        except (WorkerDied, TimeoutError):
            tries = self._tries
            self.close()
            if tries == TRIES:
                raise
            self._start(tries + 1)
            return False
        except BaseException:
            self.close()
            raise
        self._tries = 0
        return True

    def begin(self, name: str, *arguments: Any) -> None:
        """Asks the worker for `start`, `advance` or a method of the environment; `finish` takes the answer."""
        while not self.up():
            pass
        self._doing, self._asked = name, time.monotonic()
        self._until = self._asked + self._answering
        self._there().send((name, arguments))

    def finish(self) -> Any:
        """Waits for the answer. Raises the world's errors; TimeoutError or `WorkerDied` end the worker."""
        try:
            return self._receive(self._doing)
        except (WorkerDied, TimeoutError):
            self.close()
            raise

    def call(self, name: str, *arguments: Any) -> Any:
        """Calls the environment's method `name` and returns the result."""
        self.begin(name, *arguments)
        return self.finish()

    def reset(self, episode: int) -> None:
        """Puts the world into initial state `episode`; starts a new worker if the last one is gone."""
        if self._worker is None:
            self._start(tries=1)
        self.call("reset", episode)

    def observe(self) -> Observation:
        """The present observation for the policy; pictures are copied out of shared memory."""
        seen = self.call("observe")
        assert isinstance(seen, Observation)
        return seen

    def step(self, action: np.ndarray) -> bool:
        """Applies one [action_dim] action for one control period; True while the task is achieved."""
        return bool(self.call("step", np.asarray(action, np.float64).tolist()))

    def hang_up(self) -> None:
        """Lets the worker close its simulator; `close` waits for it."""
        if self._worker is not None:
            self._worker.pipe.close()

    def kill(self) -> None:
        """Ends the worker and the processes that it has started, at once."""
        if self._worker is not None:
            self._worker.kill()

    @property
    def ended(self) -> bool:
        """Whether the worker's process is over, so that `close` need not wait."""
        return self._worker is None or self._worker.process.poll() is not None

    def close(self) -> None:
        """Ends the worker and waits for it."""
        if self._worker is not None:
            self._worker.close()
        self._worker = None

    def _there(self) -> _Worker:
        if self._worker is None:
            raise WorkerDied(f"{self._label} is gone; reset starts another")
        return self._worker

    def _start(self, tries: int) -> None:
        self._worker = _Worker(self._python)
        self._tries = tries
        self._asked = time.monotonic()
        self._until = self._asked + self._opening
        self._worker.send_bytes(self._what)

    def _receive(self, doing: str) -> Any:
        limit = self._until - self._asked
        return self._there().answer(self._until, f"{self._label}, {doing}", limit)


class _Worker:
    """A worker process with its pipe, shared memory and log."""

    def __init__(self, python: str | None) -> None:
        near, far = socket.socketpair()
        shared = _memory(PICTURES)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        here = Path(__file__).resolve()
        # the kernel ends the worker when the thread that started it ends, so only the main thread is named
        parent = os.getpid() if threading.current_thread() is threading.main_thread() else 0
        command = [python or sys.executable, str(here.with_name("worker.py")), str(far.fileno()), str(shared)]
        try:
            self.process = subprocess.Popen(
                [*command, str(here.parents[1]), str(parent)],
                env=_environment(python),
                pass_fds=(far.fileno(), shared),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,  # the parent handles an interrupt at the keyboard
            )
        except OSError as error:
            near.close()
            os.close(shared)
            raise UserError(f"python={python} cannot be started ({error.strerror}); name an interpreter") from error
        finally:
            far.close()
        self._memory = mmap.mmap(shared, PICTURES)
        os.close(shared)
        self.pipe = Connection(near.detach())

    def send(self, message: Any) -> None:
        """Sends one message. A dead worker is noticed when it should answer."""
        with suppress(ConnectionError):
            self.pipe.send(message)

    def send_bytes(self, message: bytes) -> None:
        """Sends the first message, which is pickled already."""
        with suppress(ConnectionError):
            self.pipe.send_bytes(message)

    def answer(self, until: float, what: str, limit: float) -> Any:
        """The worker's answer. Raises its error; TimeoutError if none came in time, `WorkerDied` if it died."""
        try:
            left = until - time.monotonic()
            if not self.pipe.poll(None if left == inf else max(0.0, left)):
                self.kill()
                raise TimeoutError(f"{what}: no answer within {limit:g} s (time_limit); killed")
            kind, *said = self.pipe.recv()
        except (EOFError, ConnectionError):
            raise WorkerDied(f"{what}: {self._end()}; its last words: {self._tail()}") from None
        if kind == "error":
            raise _raised(*said)
        if kind == "observation":
            places, state, instruction = said
            images = {camera: self._picture(shape, at) for camera, shape, at in places}
            return Observation(images, None if state is None else np.array(state), instruction)
        return Outcome(*said) if kind == "end" else said[0]

    def _picture(self, shape: tuple[int, ...], at: int) -> np.ndarray:
        """A copy of the picture at offset `at` of the shared memory."""
        return np.frombuffer(self._memory, np.uint8, int(np.prod(shape)), at).reshape(shape).copy()

    def close(self) -> None:
        """Lets the worker close its simulator; kills it and its processes if that takes too long."""
        self.pipe.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(CLOSING)
        self.kill()
        self.process.wait()
        self._log.close()
        self._memory.close()

    def kill(self) -> None:
        """Kills the process and its whole session at once."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def _end(self) -> str:
        """In words, how a process that has closed its pipe ended."""
        try:
            code = self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            self.kill()
            return "closed its pipe without ending; killed"
        return f"died with {_cause(code)}"

    def _tail(self) -> str:
        """The last line of what the worker printed."""
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 65536))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "none"


@contextmanager
def opened(
    bench: Openable, task: Task, python: str | None = None, opening: float = 600.0, answering: float = 300.0
) -> Iterator[RemoteEnv]:
    """The environment of `bench.open(task)` in a worker process.

    python     the worker's interpreter; None for this one
    opening    seconds after which a simulator that has not opened is killed and started once more
    answering  seconds after which a worker that does not answer is killed
    """
    env = RemoteEnv(bench, task, python, opening, answering)
    try:
        yield env
    finally:
        env.close()


def _raised(name: str, text: str, trace: str, calls: Sequence[tuple[str, int, str]]) -> Exception:
    """The exception that a worker sent: of its type if that is UserError or built in, else a RuntimeError."""
    known = UserError if name == UserError.__name__ else getattr(builtins, name, None)
    simple = isinstance(known, type) and issubclass(known, Exception) and not issubclass(known, UnicodeError)
    error: Any = known(text) if simple else RuntimeError(f"{name}: {text}")  # type: ignore[misc]
    error.add_note(trace)
    error.far_frames = [FrameSummary(*call) for call in calls]  # errors.RemoteError
    return error


def _environment(python: str | None) -> dict[str, str]:
    """The worker's environment variables: with this interpreter's import path, without one for another interpreter."""
    rest = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    return rest | ({} if python else {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})


def _memory(size: int) -> int:
    """A file descriptor of `size` bytes of memory, which is freed when nobody holds it."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("vlaprune")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.truncate(descriptor, size)
    return descriptor


def _cause(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
