"""`vlaprune new`: writes a package with a method, a model or a benchmark of your own, ready to install."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vlaprune.commands import options

TEMPLATES = Path(__file__).resolve().parent / "templates"
KINDS = ("method", "model", "bench")
RUN = {
    "method": "model=toy method=NAME bench=toy episodes=3",
    "model": "model=NAME method=uniform bench=toy episodes=3",
    "bench": "model=toy method=fastv bench=NAME episodes=3",
}


def files(kind: str, name: str) -> Iterator[tuple[str, str]]:
    """Yields the path and the text of every file of a new package."""
    words = name.split("_")
    said = {
        "NAME": name,
        "PACKAGE": f"vlaprune_{name}",
        "PROJECT": f"vlaprune-{name.replace('_', '-')}",
        "CLASS": "".join(w.capitalize() for w in words),
        "KIND": kind,
        "COMMAND": f"vlaprune eval {RUN[kind].replace('NAME', name)}",
    }
    for folder in (TEMPLATES / "shared", TEMPLATES / kind):
        for path in sorted(p for p in folder.rglob("*.txt")):
            where = str(path.relative_to(folder).with_suffix(""))
            yield filled(where, said), filled(path.read_text(), said)


def filled(text: str, said: Mapping[str, str]) -> str:
    """The text with every placeholder {{NAME}} replaced."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: said[match[1]], text)


def main(argv: Sequence[str]) -> int:
    """Writes the package and says what to do next. Exit code 2 for a bad name or a folder that exists already."""
    parser = argparse.ArgumentParser(
        prog="vlaprune new",
        description="Writes a package with a method, a model or a benchmark of your own: code, configuration, tests. "
        "It installs, runs and passes its tests as it is; change it from there.",
        epilog="example: vlaprune new method mine && pip install -e mine && pytest mine",
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("name", help="its short name, as in method=NAME: small letters, digits and underscores")
    parser.add_argument("--folder", type=Path, help="where to write it (default: ./NAME)")
    args = parser.parse_args(argv)
    folder = args.folder or Path(args.name)
    if problem := refused(args.kind, args.name, folder):
        print(f"vlaprune new: {problem}", file=sys.stderr)
        return 2
    for where, text in files(args.kind, args.name):
        path = folder / where
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(path)
    command = RUN[args.kind].replace("NAME", args.name)
    print(f"\nNext:\n  pip install -e {folder}\n  pytest {folder}\n  vlaprune eval {command}")
    return 0


def refused(kind: str, name: str, folder: Path) -> str:
    """The reason why such a package cannot be written; empty if it can."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        return f"name {name!r}; use small letters, digits and single underscores, a letter first"
    if name in options.options(kind):
        return f"{kind}={name} exists already; choose another name"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        return f"{folder} exists already; name another place with --folder"
    return ""
