"""Files: written whole or not at all, and found where the package ships them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SHIPPED = Path(__file__).resolve().parent / "weights"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it replaces `path` at the end of the block.

    After an error inside the block `path` is as it was, and nothing is left beside it. Processes do not share the path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def shipped_file(model: str, name: str, kind: str) -> Path:
    """The file of a kind that is shipped for a model under a name; where there is none, the name as a path."""
    path = SHIPPED / f"{model}-{name}.{kind}"
    return path if path.is_file() else Path(name)
