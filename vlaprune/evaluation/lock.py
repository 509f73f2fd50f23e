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
    holder = f"{socket.gethostname()} {os.getpid()}"
    for _ in range(2):
        try:
            with open(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY), "w") as file:
                file.write(holder)
            break
        except FileExistsError:
            host, _, pid = lock.read_text().partition(" ")
            if host == socket.gethostname() and pid.isdecimal() and process_ended(int(pid)):
                lock.unlink(missing_ok=True)
                continue
            raise UserError(
                f"{path} is being written by process {pid} on {host}; wait for it or {otherwise}. If that process has "
                f"ended, delete {lock}"
            ) from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def process_ended(pid: int) -> bool:
    """Whether this host has no such process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's, so it runs
        return False
    return False
