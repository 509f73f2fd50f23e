#!/usr/bin/env python
"""Prints the part of CHANGELOG.md of a version: `release.py 0.1.0`. Exit code 2 where files name other versions."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def stated(root: Path = ROOT) -> dict[str, str]:
    """The version that each file states: file -> version, "none" where it states none."""
    patterns = {
        "vlaprune/__init__.py": r'__version__ = "([^"]+)"',
        "CITATION.cff": r"(?m)^version: (\S+)",
        "CHANGELOG.md": r"(?m)^## \[?(\d[^\] ]*)",
    }
    found = {name: re.search(pattern, (root / name).read_text()) for name, pattern in patterns.items()}
    return {name: match[1] if match else "none" for name, match in found.items()}


def notes(changelog: str, version: str) -> str:
    """The text below the heading of `version`, up to the next heading of a version."""
    parts = re.split(r"(?m)^## \[?([^\]\s]+).*$", changelog)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[version].strip()


def main() -> int:
    """Compares the versions, then prints the notes."""
    wanted = sys.argv[1] if len(sys.argv) > 1 else stated()["vlaprune/__init__.py"]
    wrong = {name: version for name, version in stated().items() if version != wanted}
    if wrong:
        said = ", ".join(f"{name} has {version}" for name, version in wrong.items())
        print(f"release of {wanted}: {said}; give all of them one version", file=sys.stderr)
        return 2
    print(notes((ROOT / "CHANGELOG.md").read_text(), wanted))
    return 0


if __name__ == "__main__":
    sys.exit(main())
