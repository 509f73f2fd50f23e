"""Shared by benchmarks that render with MuJoCo: packages of each renderer, and no log while robosuite loads."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from vlaprune.errors import UserError

PACKAGES = {"egl": "libegl1 libgl1-mesa-dri", "osmesa": "libosmesa6"}


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, no log lines below errors: the import of robosuite warns about a private macro file."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def starting(gl: str) -> Iterator[None]:
    """Inside, any error becomes a UserError that says what to do: OpenGL raises different errors on each platform."""
    try:
        yield
    except Exception as error:
        missing = isinstance(error, (ImportError, AttributeError))  # errors of PyOpenGL for a missing library
        need = f"; on Debian, apt install {PACKAGES.get(gl, 'its libraries')}" if missing else ""
        said = " ".join(str(error).split())
        raise UserError(f"renderer {gl} cannot start ({type(error).__name__}: {said}){need}") from error


def draws_with(renderer: str) -> str:
    """Sets the renderer of this process, once. UserError if it has another one: the journal would be wrong."""
    gl = os.environ.setdefault("MUJOCO_GL", renderer)  # read when mujoco is first imported
    if gl != renderer:
        raise UserError(
            f"bench.renderer={renderer}, but this process draws with MUJOCO_GL={gl}; set them alike, and in a sweep "
            "over renderers add bench.worker=true"
        )
    return gl
