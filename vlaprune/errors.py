"""Tells errors that a user can correct from bugs."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path
from tempfile import gettempdir
from traceback import FrameSummary, extract_tb, format_exception, format_list
from typing import Protocol, runtime_checkable

LOG = "error.log"
PACKAGE = str(Path(__file__).resolve().parent)
LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


class UserError(ValueError):
    """Something outside the program is wrong and the user can correct it: an option, a file, a missing package.

    The message is one line: what came, what is allowed, what to do. The command prints it without a traceback and ends
    with exit code 2. Raise it in a plug-in, too.

    An OSError that names a file and comes through no plug-in counts as one, too. Any other error (of a plug-in, of
    torch, of an operation that failed within vlaprune) is a bug: the command prints the frames of the user's own files
    and ends with exit code 1.
    """


def line(error: BaseException) -> str:
    """An error in one line: `error` and its text where the user can correct it, else its class and text."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    kind = "error" if is_user_error(error) else type(error).__name__
    return f"{kind}: {' '.join(str(text).split())}"


def bug(error: BaseException, folder: Path | None) -> str:
    """What is printed of a bug: the user's own frames, the error, and the file with the whole traceback.

    folder  where that file is written, as error.log; None, or one that cannot be written to, for a temporary folder
    """
    whole = "".join(format_exception(error))
    shown = list(own_frames(error)) or frames(error)[-1:]
    place = next((path for path in (folder, Path(gettempdir())) if path is not None and _written(path, whole)), None)
    calls = "".join(format_list(shown))
    return f"{calls}{line(error)}\n" + (f"the whole traceback is in {place}/{LOG}" if place else whole)


def _written(folder: Path, text: str) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOG).write_text(text)
    except OSError:
        return False
    return True


@runtime_checkable
class RemoteError(Protocol):
    """An error that was raised in another process, and the calls that led to it there."""

    far_frames: list[FrameSummary]


def install_command(extra: str) -> str:
    """The command that installs what an optional part needs, as it is to be typed where this package came from."""
    root = Path(PACKAGE).parent
    if not (root / "pyproject.toml").is_file():
        return f"pip install 'vlaprune[{extra}]'"
    place = "." if root == Path.cwd() else str(root)
    return f"pip install -e '{place}[{extra}]'"


def frames(error: BaseException) -> list[FrameSummary]:
    """The calls that led to an error, the outermost first; those of the process where it was raised."""
    return error.far_frames if isinstance(error, RemoteError) else list(extract_tb(error.__traceback__))


def is_user_error(error: BaseException) -> bool:
    """Whether the user can correct an error, as the docstring of UserError defines."""
    if isinstance(error, UserError):
        return True
    return isinstance(error, OSError) and error.filename is not None and not list(own_frames(error))


def own_frames(error: BaseException) -> Iterator[FrameSummary]:
    """The frames of the user's files: neither vlaprune's nor those of Python and its installed packages."""
    for frame in frames(error):
        if not frame.filename.startswith((PACKAGE, *LIBRARIES, "<")):
            yield frame
