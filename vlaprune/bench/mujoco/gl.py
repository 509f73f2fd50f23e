"""What benchmarks that draw with MuJoCo share: the packages each renderer needs, and silence while robosuite loads."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from vlaprune.errors import UserError

PACKAGES = {"egl": "libegl1 libgl1-mesa-dri", "osmesa": "libosmesa6"}


@contextmanager
def quiet() -> Iterator[None]:
    """No log lines below errors inside: robosuite's import advises about a private macro file."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def starting(gl: str) -> Iterator[None]:
    """What OpenGL raises, in as many ways as there are platforms, becomes a RuntimeError that says what to do."""
    try:
        yield
    except Exception as error:
        missing = isinstance(error, (ImportError, AttributeError))  # how PyOpenGL misses a library
        need = f"; on Debian, apt install {PACKAGES.get(gl, 'its libraries')}" if missing else ""
        said = " ".join(str(error).split())
        raise UserError(f"renderer {gl} cannot start ({type(error).__name__}: {said}){need}") from error


def draws_with(renderer: str) -> str:
    """Chooses how this process draws, once. UserError where it draws otherwise: the journal would not be true."""
    gl = os.environ.setdefault("MUJOCO_GL", renderer)  # read when mujoco is first imported
    if gl != renderer:
        raise UserError(
            f"bench.renderer={renderer}, but this process draws with MUJOCO_GL={gl}; set them alike, and in a sweep "
            "over renderers add bench.worker=true"
        )
    return gl
