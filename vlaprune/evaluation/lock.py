"""One writer to a journal: by the file system's own lock, or, where it has none, by a file beside the journal."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from vlaprune.errors import UserError


@contextmanager
def locked(file: FileIO, path: Path, otherwise: str = "use shard.index", shared: bool = False) -> Iterator[None]:
    """Holds the open file for this process alone. UserError where another process has it.

    shared  only looks whether another process writes: several may look at the same time

    Some network file systems have no locks; there PATH.lock names the holder, and one that has ended on this host is
    taken over.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{path} is being written by another process; wait for it or {otherwise}") from None
    except OSError:
        with _beside(path, otherwise):
            yield
        return
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


@contextmanager
def _beside(path: Path, otherwise: str) -> Iterator[None]:
    lock = path.with_name(f"{path.name}.lock")
    for _ in range(2):
        try:
            with open(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY), "w") as file:
                file.write(this_process())
            break
        except FileExistsError:
            holder = lock.read_text()
            pid = pid_here(holder)
            if pid is not None and process_ended(pid):
                lock.unlink(missing_ok=True)
                continue
            host, _, number = holder.partition(" ")
            raise UserError(
                f"{path} is being written by process {number} on {host}; wait for it or {otherwise}. If that process "
                f"has ended, delete {lock}"
            ) from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def this_process() -> str:
    """The name of this process among those of all hosts: host and number."""
    return f"{socket.gethostname()} {os.getpid()}"


def pid_here(process: str) -> int | None:
    """The number of a process that `this_process` named; None if it is on another host, or the text is no such name."""
    host, _, number = process.rpartition(" ")
    return int(number) if host == socket.gethostname() and number.isdecimal() else None


def process_ended(pid: int) -> bool:
    """Whether this host has no such process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's, so it runs
        return False
    return False
