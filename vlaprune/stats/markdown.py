"""Rows as a table in text: Markdown, and plain columns for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

TERMINAL = 80  # characters a line


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns aligned."""
    clean = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in (columns, *rows)]
    widths = [max(3, *(len(line[i]) for line in clean)) for i in range(len(columns))]
    lines = [" | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in clean]
    lines.insert(1, " | ".join("-" * w for w in widths))
    return "\n".join(f"| {line} |" for line in lines)


def columns(heads: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = TERMINAL) -> str:
    """A table for a terminal: two spaces between columns, names in the first one cut with an ellipsis if too long.

    width  characters a line; None for no limit. Columns that do not fit are left out, from the right.
    """
    count = len(heads)
    widths = [max(len(heads[i]), *(len(row[i]) for row in rows), 0) for i in range(count)]
    if width is not None:
        while count > 1 and min(widths[0], 12) + sum(w + 2 for w in widths[1:count]) > width:
            count -= 1
        widths[0] = min(widths[0], width - sum(w + 2 for w in widths[1:count]))
    names = _cut([row[0] for row in rows], widths[0])
    lines = []
    for name, row in [(heads[0], heads), *zip(names, rows, strict=True)]:
        rest = [cell.rjust(w) for cell, w in zip(row[1:count], widths[1:count], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *rest]).rstrip())
    return "\n".join(lines)


def _cut(names: Sequence[str], width: int) -> list[str]:
    """Names cut to at most `width` characters: at the end, or in the middle if names would be equal otherwise."""
    ends = [name if len(name) <= width else name[: width - 1] + "…" for name in names]
    half = (width - 1) // 2
    middles = [name if len(name) <= width else name[: width - 1 - half] + "…" + name[-half:] for name in names]
    return [
        middle if ends.count(end) > 1 and len(set(names)) > 1 else end
        for end, middle in zip(ends, middles, strict=True)
    ]
