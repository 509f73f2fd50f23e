"""A look into an interpreter that may crash, hang, or be another one than ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping


def ask(code: str, python: str = sys.executable, env: Mapping[str, str] | None = None, seconds: float = 120) -> str:
    """The last line that a few lines of Python print. RuntimeError says in one line how they failed."""
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
        raise RuntimeError(f"{python} is no program here") from None
    except OSError as error:
        raise RuntimeError(f"{python} cannot be run: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"no answer within {seconds:.0f} s") from None
    if done.returncode < 0:
        raise RuntimeError(f"crashed ({signal.Signals(-done.returncode).name})")
    lines = [line for line in (done.stderr if done.returncode else done.stdout).splitlines() if line.strip()]
    last = lines[-1].strip() if lines else ""
    if done.returncode:
        raise RuntimeError(last or f"exit code {done.returncode}")
    return last
