#!/usr/bin/env python
"""Lays out the pages of the documentation site in one folder: `docs.py FOLDER`, then mkdocs builds from it.

The folder mirrors the repository (docs/, results/, CONTRIBUTING.md, CHANGELOG.md), so that every relative link of a
page works on the site as it does in the repository. docs/index.md becomes the first page. Pages of all methods, models,
benchmarks and experiments are written from the first comments of their configuration files.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

from vlaprune.commands import options

ROOT = Path(__file__).resolve().parents[1]
SHOWN = {".md", ".svg", ".png", ".webp", ".gif", ".csv", ".css", ".ipynb"}
GROUPS = {
    "model": "Models",
    "method": "Methods",
    "bench": "Benchmarks",
    "robots": "Robots",
    "experiment": "Experiments",
}


def copied(target: Path) -> None:
    """Copies pages and pictures; recorded runs are left out."""
    for path in [
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        *(ROOT / "docs").rglob("*"),
        *(ROOT / "results").rglob("*"),
    ]:
        inside = path.relative_to(ROOT)
        if path.is_file() and path.suffix in SHOWN and inside.parts[:2] != ("results", "runs"):
            (target / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / inside)


def first_page(target: Path) -> None:
    """docs/index.md at the top of the site, its relative links with the folder in front."""
    text = (target / "docs" / "index.md").read_text()
    (target / "docs" / "index.md").unlink()
    text = re.sub(r"\]\((?!https?:|#|\.\./)", "](docs/", text).replace("](../", "](")
    (target / "index.md").write_text(re.sub(r'src="(?!https?:)', 'src="docs/', text))


def notebooks(target: Path) -> None:
    """Every notebook as a page: text, code, and what the code printed. Links of pages to it lead to the page."""
    for path in sorted(target.rglob("*.ipynb")):
        parts = []
        for cell in json.loads(path.read_text())["cells"]:
            text = "".join(cell["source"])
            parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
            for out in cell.get("outputs", ()):
                shown = out.get("text") or out.get("data", {}).get("text/plain", "")
                parts.append("```text\n" + "".join(shown).rstrip() + "\n```")
        path.with_suffix(".md").write_text("\n\n".join(parts) + "\n")
        path.unlink()
    for page in target.rglob("*.md"):
        page.write_text(re.sub(r"(\]\((?!https?:)[^)\s]*)\.ipynb\b", r"\1.md", page.read_text()))


def listed(group: str) -> str:
    """A page with every option of a group: what it is, and its settings."""
    lines = [
        f"# {GROUPS[group]}: all options",
        "",
        f"`{group}=NAME` chooses one. From the comments of `configs/{group}/`.",
        "",
    ]
    for option in options.options(group).values():
        lines += [f"## `{option.name}`", "", option.about, ""]
        rows = [
            f"| `{s.key}` | `{s.value}` | {s.about.replace('|', chr(92) + '|')} |"
            for s in options.settings(option.path)
        ]
        if rows:
            lines += ["| setting | default | what it is |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def main() -> None:
    """Writes the folder anew."""
    target = Path(sys.argv[1])
    shutil.rmtree(target, ignore_errors=True)
    copied(target)
    first_page(target)
    notebooks(target)
    for group in GROUPS:
        page = target / "docs" / "options" / f"{group}.md"
        page.parent.mkdir(exist_ok=True)
        page.write_text(listed(group))


if __name__ == "__main__":
    main()
