"""Names beside the marks of a chart, placed so that none covers a mark or another name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vlaprune.report.svg import INK, LINE, NARROW, short


def name(figure: Figure, ax: Axes, rows: pd.DataFrame, x: np.ndarray, y: np.ndarray, width: int) -> None:
    """Names every family once, beside its cheapest budget, where the name covers neither a mark nor another name."""
    figure.draw_without_rendering()
    size, gap = (11, 13.0) if width > NARROW else (10, 11.5)
    spots = ax.transData.transform(np.column_stack([x, y])) * 72 / figure.dpi
    floor, roof = ax.bbox.y0 * 72 / figure.dpi, ax.bbox.y1 * 72 / figure.dpi
    taken = [(px - 6, px + 6, py - 6, py + 6) for px, py in spots]
    last = {family: max(each, key=lambda i: x[i]) for family, each in families(rows).items()}
    for family in sorted(last, key=lambda f: -spots[last[f]][1]):
        i, text = last[family], short(family, width)
        px, py = spots[i]
        long = 0.58 * size * len(text)
        tries = [(k * gap / 2 * up, side) for k in range(40) for up in (1, -1) for side in (1, -1)]
        shift, side = next((t for t in tries if _free(taken, px, py, long, gap, (floor, roof), *t)), (0.0, 1))
        taken.append(_box(px, py, long, gap, shift, side))
        led = {"arrowstyle": "-", "color": LINE, "lw": 0.8, "shrinkA": 0, "shrinkB": 5} if abs(shift) > gap else None
        ax.annotate(
            text, (x[i], y[i]), (9 * side, shift), textcoords="offset points", va="center", fontsize=size, color=INK,
            ha="left" if side > 0 else "right", arrowprops=led, gid=f"name{i}",
        )  # fmt: skip


Box = tuple[float, float, float, float]  # left, right, bottom, top, in pixels


def _box(px: float, py: float, long: float, high: float, shift: float, side: int) -> Box:
    near, far = px + 9 * side, px + (9 + long) * side
    return min(near, far), max(near, far), py + shift - high / 2, py + shift + high / 2


def _free(
    taken: Sequence[Box], px: float, py: float, long: float, high: float, between: tuple[float, float], shift: float,
    side: int,
) -> bool:  # fmt: skip
    left, right, bottom, top = _box(px, py, long, high, shift, side)
    inside = between[0] <= bottom and top <= between[1]
    return inside and not any(a < right and left < b and c < top and bottom < d for a, b, c, d in taken)


def families(rows: pd.DataFrame) -> dict[str, list[int]]:
    """The rows of every family."""
    out: dict[str, list[int]] = {}
    for i, family in enumerate(rows["family"]):
        out.setdefault(family, []).append(i)
    return out
