"""The worker process of `vlaprune.bench.remote`: one environment, possibly under another Python.

A script that needs Python 3.9 or later, numpy and what the simulator needs; it loads no model code. The first message
is a pickled (benchmark, task) to open; each further one is a command with plain arguments. It answers one at a time.
Pictures go through shared memory, the rest through the pipe. It ends when the pipe closes.
"""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
import os
import pickle
import signal
import sys
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np


def load_package(folder: Path) -> None:
    """Makes `vlaprune` importable from its folder, without the packages installed beside it."""
    if "vlaprune" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "vlaprune", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None
        sys.modules["vlaprune"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


def pack(observation: Any, memory: mmap.mmap) -> tuple[list[tuple[str, tuple[int, ...], int]], Any, str]:
    """Copies pictures uint8 into shared memory; returns (camera, shape, offset) of each, state, instruction."""
    from vlaprune.errors import UserError

    places, at = [], 0
    for camera, image in observation.images.items():
        if image.dtype != np.uint8:
            raise UserError(f"camera {camera} gives {image.dtype}; a picture is uint8")
        if at + image.size > len(memory):
            raise UserError(f"pictures of more than {len(memory)} bytes; use a smaller image")
        np.frombuffer(memory, np.uint8, image.size, at).reshape(image.shape)[:] = image
        places.append((camera, image.shape, at))
        at += image.size
    state = None if observation.state is None else np.asarray(observation.state, np.float64).tolist()
    return places, state, observation.instruction


def serve(connection: Connection, memory: mmap.mmap) -> None:
    """Opens the environment of the first message, then answers commands until the pipe closes.

    `start` and `advance` are methods of `vlaprune.bench.episodes.Episodes`: one message for a chunk of actions. Any
    other name is a method of the open environment.
    """
    from vlaprune.bench.episodes import Episodes

    try:
        bench, task = pickle.loads(connection.recv_bytes())
        with bench.open(task) as env:
            episodes = Episodes(env, task, bench.interface)
            connection.send(("ok", None))
            while True:
                name, arguments = connection.recv()
                try:
                    said = getattr(episodes if name in ("start", "advance") else env, name)(*arguments)
                    connection.send(_plain(said, memory))
                except BaseException as error:  # sys.exit in a simulator ends an episode, not the run
                    connection.send(_told(error))
    except (EOFError, ConnectionError):
        return
    except BaseException as error:  # while opening
        with suppress(ConnectionError):
            connection.send(_told(error))


def _plain(said: Any, memory: mmap.mmap) -> tuple[Any, ...]:
    """An answer as plain values; pictures go into shared memory."""
    from vlaprune.bench.episodes import Outcome
    from vlaprune.benchmark import Observation

    if isinstance(said, Observation):
        return ("observation", *pack(said, memory))
    if isinstance(said, Outcome):
        return ("end", *said)
    return "ok", said


def _told(error: BaseException) -> tuple[str, str, str, str, list[tuple[str, int | None, str]]]:
    """An exception as plain values: type, message, traceback, and file, line and function of each call."""
    try:
        text = str(error.args[0] if isinstance(error, KeyError) and len(error.args) == 1 else error)
    except Exception:  # an error whose text cannot be made
        text = ""
    calls = [(frame.filename, frame.lineno, frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    return "error", type(error).__name__, text, traceback.format_exc(), calls


def die_with(parent: int) -> None:
    """On Linux, lets the kernel kill this process as soon as the thread that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


if __name__ == "__main__":
    pipe, shared, package, parent = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    if parent:
        die_with(parent)
    os.dup2(2, 1)  # what simulators print goes to the log
    own = Path(__file__).resolve().parent  # its folders robosuite, libero and mujoco must not hide the packages
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != own]
    load_package(package)
    serve(Connection(pipe), mmap.mmap(shared, 0))
