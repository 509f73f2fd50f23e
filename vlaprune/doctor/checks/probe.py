"""Runs a few lines in an interpreter that may crash, hang, or be another one than ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from vlaprune.errors import UserError


def ask(code: str, python: str = sys.executable, env: Mapping[str, str] | None = None, seconds: float = 120) -> str:
    """Runs a few lines of Python in a process and returns their last line of output. UserError says how they failed."""
    try:
        done = subprocess.run(
            [python, "-c", code],
            capture_output=True,
            text=True,
            timeout=seconds,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise UserError(f"{python} is no program here") from None
    except OSError as error:
        raise UserError(f"{python} cannot be run: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"no answer within {seconds:.0f} s") from None
    if done.returncode < 0:
        raise UserError(f"crashed ({signal.Signals(-done.returncode).name})")
    if done.returncode:
        raise UserError(cause(done.stderr) or f"exit code {done.returncode}")
    return _last(done.stdout.splitlines())


def cause(stderr: str) -> str:
    """The error that ended a program, from its stderr, without errors of destructors; else the last line."""
    lines, found = stderr.splitlines(), ""
    for number, line in enumerate(lines):
        ignored = number and lines[number - 1].startswith("Exception ignored")
        if line.startswith("Traceback (most recent call last)") and not ignored:
            found = next((after for after in lines[number + 1 :] if not after.startswith(" ")), found)
    return found or _last(lines)


def _last(lines: Sequence[str]) -> str:
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
