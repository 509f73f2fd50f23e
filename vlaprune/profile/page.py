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
    """A page: a title, then paragraphs and tables in the order in which they were added, then its sources."""

    title: str
    parts: list[str] = field(default_factory=list)

    def text(self, *lines: str) -> None:
        """Adds a paragraph."""
        self.parts.append("\n".join(lines))

    def table(self, heading: str, rows: Sequence[Cells]) -> None:
        """Adds a heading and a table, whose columns are the keys of the first row. Adds nothing without rows."""
        if not rows:
            return
        columns = list(rows[0])
        cells = [[row.get(c, "") for c in columns] for row in rows]
        self.parts.append(f"## {heading}\n\n{table(columns, cells)}")

    def write(self, folder: Path, name: str, rows: Sequence[Mapping[str, Any]], made: Mapping[str, Any]) -> list[Path]:
        """Writes NAME.md and NAME.csv; returns their paths. `made` is the provenance of this process.

        A page that git tracks is not overwritten: the new one gets the time after its name. Otherwise every later run
        of this checkout would be recorded as a run with changed files.
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
    """A name for a page that may be written: followed by the time if git tracks a page of this name."""
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}" if tracked(folder / f"{name}.md") else name


def tracked(path: Path) -> bool:
    """Whether git has this file under version control; False without git."""
    try:
        asked = ["git", "ls-files", "--error-unmatch", path.name]
        return subprocess.run(asked, cwd=path.parent, capture_output=True).returncode == 0
    except OSError:
        return False


def sources(made: Mapping[str, Any]) -> str:
    """The sources of a page as lines of Markdown: command, commit, versions, hardware."""
    lines = [f"- command: `{made['command']}`", f"- commit: {made['commit']}"]
    for key in ("versions", "hardware"):
        lines.append(f"- {key}: " + ", ".join(f"{k} {v}" for k, v in made[key].items() if v is not None))
    return "\n".join(lines)


def percent(share: float) -> str:
    """Formats a share: 0.123 as 12.3 %."""
    return f"{100 * share:.1f} %"
