"""Pages of results: Markdown with tables and what made them, and one CSV with plain numbers."""

from __future__ import annotations

import csv
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlaprune.stats.markdown import table

Cells = Mapping[str, str]


@dataclass
class Page:
    """A title, then paragraphs and tables in the order they were added, then what made it."""

    title: str
    parts: list[str] = field(default_factory=list)

    def text(self, *lines: str) -> None:
        """A paragraph."""
        self.parts.append("\n".join(lines))

    def table(self, heading: str, rows: Sequence[Cells]) -> None:
        """A heading and a table; the first row's keys are its columns. Nothing for no rows."""
        if not rows:
            return
        columns = list(rows[0])
        cells = [[row.get(c, "") for c in columns] for row in rows]
        self.parts.append(f"## {heading}\n\n{table(columns, cells)}")

    def write(self, folder: Path, name: str, rows: Sequence[Mapping[str, Any]], made: Mapping[str, Any]) -> list[Path]:
        """NAME.md and NAME.csv; `made` is the provenance of this process.

        A page that git tracks is left alone: the new one gets the time behind its name. Else every later run of this
        checkout would be recorded as one of changed files.
        """
        folder.mkdir(parents=True, exist_ok=True)
        name = free_name(folder, name)
        md, numbers = folder / f"{name}.md", folder / f"{name}.csv"
        md.write_text("\n\n".join([f"# {self.title}", *self.parts, sources(made)]) + "\n")
        with numbers.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
            writer.writeheader()
            writer.writerows({k: v for k, v in row.items() if v == v} for row in rows)  # no cell for NaN
        return [md, numbers]


def free_name(folder: Path, name: str) -> str:
    """The name of a page that may be written there: with the time behind it if git tracks one of this name."""
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}" if tracked(folder / f"{name}.md") else name


def tracked(path: Path) -> bool:
    """Whether git has this file under version control; False without git."""
    try:
        asked = ["git", "ls-files", "--error-unmatch", path.name]
        return subprocess.run(asked, cwd=path.parent, capture_output=True).returncode == 0
    except OSError:
        return False


def sources(made: Mapping[str, Any]) -> str:
    """What made a page, a line each."""
    lines = [f"- command: `{made['command']}`", f"- commit: {made['commit']}"]
    for key in ("versions", "hardware"):
        lines.append(f"- {key}: " + ", ".join(f"{k} {v}" for k, v in made[key].items() if v is not None))
    return "\n".join(lines)


def percent(share: float) -> str:
    """0.123 as 12.3 %."""
    return f"{100 * share:.1f} %"
