"""An environment in a worker process, which loads no model code and may run under another Python.

Use it inside a benchmark's `open`:

    with remote.opened(replace(self, worker=False), task, self.python) as env:
        yield env

What is passed must be picklable and open the simulator itself (here: with worker=False). Its module may import numpy,
the standard library, `vlaprune.benchmark` and others of `vlaprune.bench`, because the other Python has nothing else of
ours. The environment it gives has the contract's `reset`, `observe` and `step`, and `call(name, ...)` for any further
method with plain arguments and a plain result. A worker that dies or hangs raises; the next `reset` starts another.
"""

from __future__ import annotations

import builtins
import mmap
import os
import pickle
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vlaprune.benchmark import Env, Observation, Task

MEMORY = 1 << 24  # bytes for the pictures of one observation; pages never written cost nothing
TRIES = 2  # starts of a simulator that dies or hangs while it opens


class Opens(Protocol):
    """As much of a benchmark as a worker needs."""

    @property
    def name(self) -> str:
        """Of the benchmark."""

    def open(self, task: Task) -> AbstractContextManager[Env]:
        """Starts the simulator for one task, in this very process."""


class Gone(RuntimeError):
    """The worker died or was killed because it gave no answer."""


class RemoteEnv:
    """One task, open in a worker process; made by `opened`."""

    def __init__(self, bench: Opens, task: Task, python: str | None, opening: float, answering: float) -> None:
        """Starts the worker under `python` (None for this one), with limits in seconds to open and to answer."""
        self.task, self._what = task, pickle.dumps((bench, task), protocol=4)
        self._label = f"worker of {bench.name} {task.name}"
        self._python, self._opening, self._answering = python, opening, answering
        self._worker: _Worker | None = None
        self._start()

    def reset(self, episode: int) -> None:
        """Puts the world into initial state `episode`; starts a new worker if the last one is gone."""
        if self._worker is None:
            self._start()
        self.call("reset", episode)

    def observe(self) -> Observation:
        """What the policy may see now; pictures are copied out of shared memory."""
        places, state, instruction = self.call("observe")
        assert self._worker is not None
        images = {camera: self._worker.picture(shape, at) for camera, shape, at in places}
        return Observation(images, None if state is None else np.array(state), instruction)

    def step(self, action: np.ndarray) -> bool:
        """Applies one [action_dim] action for one control period; True while the task is achieved."""
        return bool(self.call("step", np.asarray(action, np.float64).tolist()))

    def call(self, name: str, *arguments: Any) -> Any:
        """The result of the environment's method `name`. What it raises is raised here; `Gone` if the worker is."""
        if self._worker is None:
            raise Gone(f"{self._label} is gone; reset starts another")
        try:
            self._worker.send((name, arguments))
            return self._worker.answer(self._answering, f"{self._label}, {name}")
        except Gone:
            self.close()
            raise

    def close(self) -> None:
        """Ends the worker."""
        if self._worker is not None:
            self._worker.close()
        self._worker = None

    def _start(self) -> None:
        """A worker with the task open; one that dies or hangs on the way is started once more."""
        for attempt in range(1, TRIES + 1):
            worker = _Worker(self._python)
            try:
                worker.send_bytes(self._what)
                worker.answer(self._opening, f"{self._label}, opening")
            except BaseException as error:
                worker.close()
                if isinstance(error, Gone) and attempt < TRIES:
                    continue
                raise
            self._worker = worker
            return


class _Worker:
    """The process, its pipe, its shared memory and its log."""

    def __init__(self, python: str | None) -> None:
        near, far = socket.socketpair()
        shared = _memory(MEMORY)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        here = Path(__file__).resolve()
        command = [python or sys.executable, str(here.with_name("worker.py")), str(far.fileno()), str(shared)]
        try:
            self._process = subprocess.Popen(
                [*command, str(here.parents[1])],
                env=_environment(python),
                pass_fds=(far.fileno(), shared),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,  # an interrupt at the keyboard is the parent's to handle
            )
        except OSError as error:
            near.close()
            os.close(shared)
            raise ValueError(f"python={python} cannot be started ({error.strerror}); name an interpreter") from error
        finally:
            far.close()
        self._memory = mmap.mmap(shared, MEMORY)
        os.close(shared)
        self._pipe = Connection(near.detach())

    def send(self, message: Any) -> None:
        """One message. A dead worker is noticed when it should answer."""
        with suppress(ConnectionError):
            self._pipe.send(message)

    def send_bytes(self, message: bytes) -> None:
        """The first message, pickled already."""
        with suppress(ConnectionError):
            self._pipe.send_bytes(message)

    def answer(self, limit: float, what: str) -> Any:
        """The worker's answer. Raises what it raised; `Gone` if it died or gave none within `limit` s."""
        try:
            if not self._pipe.poll(limit):
                self._process.kill()
                raise Gone(f"{what}: no answer within {limit:g} s; killed")
            kind, *said = self._pipe.recv()
        except (EOFError, ConnectionError):
            code = self._process.wait()
            raise Gone(f"{what}: died with {_cause(code)}; its last words: {self._tail()}") from None
        if kind == "ok":
            return said[0]
        name, text, trace = said
        known = getattr(builtins, name, None)
        simple = isinstance(known, type) and issubclass(known, (ValueError, TypeError, RuntimeError, ImportError))
        error = known(text) if simple else RuntimeError(f"{name}: {text}")  # type: ignore[misc]
        error.add_note(trace)
        raise error

    def picture(self, shape: tuple[int, ...], at: int) -> np.ndarray:
        """A copy of the picture that lies at `at`."""
        return np.frombuffer(self._memory, np.uint8, int(np.prod(shape)), at).reshape(shape).copy()

    def close(self) -> None:
        """Lets the worker close its simulator, and kills it if it takes too long."""
        self._pipe.close()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _tail(self) -> str:
        """The last line of what the worker printed."""
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "none"


@contextmanager
def opened(
    bench: Opens, task: Task, python: str | None = None, opening: float = 600.0, answering: float = 300.0
) -> Iterator[RemoteEnv]:
    """`bench.open(task)` in a worker process.

    python     the worker's interpreter; None for this one
    opening    seconds after which a simulator that has not opened is killed and started once more
    answering  seconds after which one that does not answer is killed
    """
    env = RemoteEnv(bench, task, python, opening, answering)
    try:
        yield env
    finally:
        env.close()


def _environment(python: str | None) -> dict[str, str]:
    """The worker's variables: this interpreter's import path for itself, none for another."""
    rest = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    return rest | ({} if python else {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})


def _memory(size: int) -> int:
    """A file descriptor of so much memory, which is free again when nobody holds it."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("vlaprune")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.truncate(descriptor, size)
    return descriptor


def _cause(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
