"""Names beside the marks of a chart, placed so that none covers a mark or another name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vlaprune.report.svg import INK, MUTED, NARROW, short


@dataclass(frozen=True)
class Box:
    """A rectangle, in pixels from the lower left."""

    left: float
    right: float
    bottom: float
    top: float

    def meets(self, other: Box) -> bool:
        """Whether the two boxes overlap."""
        return (
            self.left < other.right and other.left < self.right and self.bottom < other.top and other.bottom < self.top
        )

    def holds(self, other: Box) -> bool:
        """Whether the other box lies inside this one."""
        return (
            self.left <= other.left
            and other.right <= self.right
            and self.bottom <= other.bottom
            and other.top <= self.top
        )


def label_families(figure: Figure, ax: Axes, rows: pd.DataFrame, x: np.ndarray, y: np.ndarray, width: int) -> None:
    """Names every family once, beside its rightmost mark. A name that fits nowhere is in the tooltip only."""
    figure.draw_without_rendering()
    size, high = (11, 13.0) if width > NARROW else (10, 11.5)
    scale = 72 / figure.dpi
    spots = ax.transData.transform(np.column_stack([x, y])) * scale
    room = Box(*(scale * v for v in (ax.bbox.x0, ax.bbox.x1, ax.bbox.y0, ax.bbox.y1)))
    taken = [Box(px - 6, px + 6, py - 6, py + 6) for px, py in spots]
    last = {family: max(each, key=lambda i: x[i]) for family, each in _families(rows).items()}
    for family, i in sorted(last.items(), key=lambda item: -spots[item[1]][1]):
        text = short(family, width)
        tries = _places(float(spots[i][0]), float(spots[i][1]), 0.58 * size * len(text), high)
        found = next((t for t in tries if room.holds(t[2]) and not any(t[2].meets(b) for b in taken)), None)
        if found is None:
            continue
        side, shift, box = found
        taken.append(box)
        led = {"arrowstyle": "-", "color": MUTED, "lw": 0.6, "shrinkA": 0, "shrinkB": 5} if abs(shift) > high else None
        ax.annotate(
            text, (x[i], y[i]), (9 * side, shift), textcoords="offset points", va="center", fontsize=size, color=INK,
            ha="left" if side > 0 else "right", arrowprops=led, gid=f"name{i}",
        )  # fmt: skip


def _places(px: float, py: float, long: float, high: float) -> Iterator[tuple[int, float, Box]]:
    """Places for a name, the nearest first: right or left of its mark, then ever further up or down."""
    for step in range(40):
        for shift in (step * high / 2, -step * high / 2):
            for side in (1, -1):
                near, far = px + 9 * side, px + (9 + long) * side
                yield side, shift, Box(min(near, far), max(near, far), py + shift - high / 2, py + shift + high / 2)


def _families(rows: pd.DataFrame) -> dict[str, list[int]]:
    out: dict[str, list[int]] = {}
    for i, family in enumerate(rows["family"]):
        out.setdefault(family, []).append(i)
    return out
