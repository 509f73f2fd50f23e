"""Errors that a user can mend, apart from bugs."""

from __future__ import annotations

import linecache
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from traceback import FrameSummary, extract_tb

PACKAGE = str(Path(__file__).resolve().parent)
LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


class UserError(ValueError):
    """Something outside the program is wrong and the user can mend it: an option, a file, a missing package.

    The message is one line: what came, what is allowed, what to do. The command prints it without a traceback and ends
    with exit code 2. Raise it in a plug-in, too.

    A ValueError, TypeError, RuntimeError, OSError or ImportError counts as a UserError where a `raise` statement of
    vlaprune itself raised it. From anywhere else (a plug-in, torch, an operation that failed within vlaprune) it is a
    bug: the command prints the frames of the user's own files and ends with exit code 1.
    """


def frames(error: BaseException) -> list[FrameSummary]:
    """The calls that led to an error, the outermost first."""
    return list(extract_tb(error.__traceback__))


def mendable(error: BaseException) -> bool:
    """Whether the user can mend it, as the docstring of UserError defines."""
    if isinstance(error, UserError):
        return True
    kinds = (ValueError, TypeError, RuntimeError, OSError, ImportError)
    called = frames(error)
    return isinstance(error, kinds) and bool(called) and _raised_here(called[-1])


def _raised_here(frame: FrameSummary) -> bool:
    inside = frame.filename.startswith(PACKAGE)
    return inside and linecache.getline(frame.filename, frame.lineno or 0).lstrip().startswith("raise ")


def own_frames(error: BaseException) -> Iterator[FrameSummary]:
    """The frames of the user's files: neither vlaprune's nor those of Python and its installed packages."""
    for frame in frames(error):
        if not frame.filename.startswith((PACKAGE, *LIBRARIES, "<")):
            yield frame
