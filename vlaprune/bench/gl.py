"""What benchmarks that draw with MuJoCo share: the packages each renderer needs, and silence while robosuite loads."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

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
