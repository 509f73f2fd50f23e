"""Charts of a report: paired differences, success against cost, tokens at each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vlaprune.report.names import label_families
from vlaprune.report.svg import ACCENT, BAD, INK, NARROW, PAPER, Chart, draw, frame, marker_style, short


def forest(table: pd.DataFrame, margin: float, baseline: str) -> Chart:
    """Every method's paired difference with its interval, the best first, against no difference and the margin.

    A method far below the others stands at the left edge as an arrow with its number, so that the rest can be read.
    """
    rows = table[table["difference"].notna()].sort_values("difference", ascending=False, kind="stable")
    lows, highs = (100 * rows[key].to_numpy(float) for key in ("held_low", "held_high"))
    edge = scale_start(100 * rows["difference"].to_numpy(float), (-100 * margin, 0.0))
    inside = 100 * rows["difference"].to_numpy(float) >= edge
    low, high = min([-100 * margin, *lows[inside]]), max([0.0, *highs[inside]])

    def paint(figure: Figure, width: int) -> dict[str, str]:
        ax, tips = figure.add_subplot(), {}
        reach = high - low
        ax.axvspan(low - reach, -100 * margin, color=BAD, alpha=0.06, lw=0)
        ax.axvline(0, color=INK, lw=1)
        ax.axvline(-100 * margin, color=BAD, lw=1, ls=(0, (4, 3)))
        ax.set_xlim(low - 0.06 * reach, high + (0.1 if width > NARROW else 0.24) * reach)
        for y, r in enumerate(rows.itertuples()):
            colour, marker, face = marker_style(r.verdict, r.colour)
            d, left, right = (100 * v for v in (r.difference, r.held_low, r.held_high))
            if d >= edge:
                ax.plot([left, right], [y, y], color=colour, lw=2, solid_capstyle="round")
                ax.plot(d, y, marker, color=colour, mfc=face, ms=7.5, mew=1.6, gid=f"tip{y}")
            else:
                ax.plot(low - 0.03 * reach, y, "<", color=colour, mfc=face, ms=8, mew=1.6, gid=f"tip{y}")
            ax.text(1.0, y, f"{d:+.1f}", transform=ax.get_yaxis_transform(), ha="right", va="center", color=INK)
            tips[f"tip{y}"] = f"{r.method}: {d:+.1f} points [{left:+.1f}, {right:+.1f}], {r.verdict}"
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.set_yticks(range(len(rows)), [short(m, width) for m in rows["method"]])
        ax.set_xlabel(f"points of success, method - {short(baseline, width)}")
        frame(ax, "x")
        return tips

    told = "; ".join(f"{r.method} {100 * r.difference:+.1f} points, {r.verdict}" for r in rows.itertuples())
    return draw("differences", f"Paired difference to {baseline}", told, paint, lambda _: 54 + 25 * len(rows))


def scale_start(values: np.ndarray, always: Sequence[float] = ()) -> float:
    """The start of a scale: the least value, unless leaving out up to a third of the values more than halves the scale.

    `always` are values that a scale shows in any case.
    """
    ranked = np.sort(np.asarray(values, float))
    top = max([*ranked, *always])
    whole = top - min([*ranked, *always])
    for count in range(1, max(1, len(ranked) // 3) + 1):
        rest = [*ranked[count:], *always]
        if len(rest) > 1 and len(ranked) > 1 and top - min(rest) < 0.5 * whole:
            return float(min(rest))
    return float(min([*ranked, *always]))


def cost(table: pd.DataFrame, column: str, axis: str, key: str, title: str) -> Chart:
    """Success with its interval against a cost; budgets of one method are joined by a line.

    A run far below the others stands at the lower edge as an arrow, one far to the left at the left edge.
    """
    rows = table[table[column].notna()]
    cut = column == "flops_cut"
    rows = rows.assign(x=(100 if cut else 1) * rows[column], y=100 * rows["rate"])
    x, y = (rows[name].to_numpy(float) for name in ("x", "y"))
    bottom, left = scale_start(y), scale_start(x, (0.0,)) if cut else float(x.min())
    inside = (y >= bottom) & (x >= left)

    def paint(figure: Figure, width: int) -> dict[str, str]:
        ax, tips = figure.add_subplot(), {}
        _draw_lines(ax, rows[inside], cut)
        at_x, at_y = _place_marks(ax, rows, inside, left, width)
        for i, r in enumerate(rows.itertuples()):
            colour, marker, face = marker_style(r.verdict, r.colour)
            if inside[i]:
                ax.plot([r.x] * 2, [100 * r.low, 100 * r.high], color=colour, lw=1.4, alpha=0.55, zorder=2)
            else:
                marker = "<" if r.x < left else "v"
            ax.plot(at_x[i], at_y[i], marker, color=colour, mfc=face, ms=7.5, mew=1.6, zorder=3, gid=f"tip{i}")
            tips[f"tip{i}"] = f"{r.method}: {r.y:.1f} % [{100 * r.low:.1f}, {100 * r.high:.1f}], {axis} {r.x:.3g}"
        ax.set_xlabel(axis)
        ax.set_ylabel("success, %")
        frame(ax, "both")
        names = rows["family"].where(inside, [f"{r.family} {r.y:.0f} %" for r in rows.itertuples()])
        label_families(figure, ax, rows.assign(family=names), at_x, at_y, width)
        return tips

    told = "; ".join(f"{r.method} {r.y:.1f} % at {getattr(r, column):.3g}" for r in rows.itertuples())
    return draw(key, title, told, paint, lambda width: 460 if width > NARROW else 340)


def _draw_lines(ax: Axes, rows: pd.DataFrame, cut: bool) -> None:
    """Draws a line through the budgets of each method, and the front of the points that no other beats."""
    for _, one in rows.groupby("family", sort=False):
        one = one.sort_values("kept")
        colour, _, _ = marker_style(None, int(one["colour"].iloc[0]))
        ax.plot(one["x"], one["y"], color=colour, lw=1, alpha=0.45, zorder=1)
    x, y = (rows[name].to_numpy(float) for name in ("x", "y"))
    best = front(x if cut else -x, y)
    ax.step(x[best], y[best], where="post", color=INK, lw=1, ls=(0, (2, 3)), alpha=0.6, zorder=1)


def _place_marks(
    ax: Axes, rows: pd.DataFrame, inside: np.ndarray, left: float, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sets the limits, with room for names; returns the place of each mark, at the edge if it is not `inside`."""
    x, y, lows, highs = (rows[name].to_numpy(float) for name in ("x", "y", "low", "high"))
    across, lows, highs = x[x >= left], 100 * lows[inside], 100 * highs[inside]
    reach, span = max(float(np.ptp(across)), 1e-9), max(float(highs.max() - lows.min()), 1.0)
    start, end = across.min() - 0.05 * reach, across.max() + (0.14 if width > NARROW else 0.3) * reach
    base = max(-2.0, lows.min() - (0.03 if inside.all() else 0.06) * span)
    ax.set_xlim(start, end)
    ax.set_ylim(base, min(102.0, highs.max() + 0.03 * span))
    at_x = np.where(inside, x, np.clip(x, start + 0.02 * reach, end - 0.02 * reach))
    return at_x, np.where(inside, y, np.maximum(y, base + 0.03 * span))


def front(gain: np.ndarray, success: np.ndarray) -> list[int]:
    """Indices of the points that no other beats in both gain and success, by falling gain."""
    out: list[int] = []
    for i in sorted(range(len(gain)), key=lambda i: (-gain[i], -success[i])):
        if not out or success[i] > success[out[-1]]:
            out.append(i)
    return out


def tokens(
    layers: Mapping[str, Sequence[float]], totals: Mapping[str, int], colours: Mapping[str, int] | None = None
) -> Chart:
    """A chart of the visual tokens computed at every layer, a row per method; darker is a larger share."""
    deepest, widest = max(len(v) for v in layers.values()), max(totals.values())

    def paint(figure: Figure, width: int) -> dict[str, str]:
        ax, tips = figure.add_subplot(), {}
        room = (width - (250 if width > NARROW else 150)) / deepest
        for y, (method, means) in enumerate(layers.items()):
            for layer, mean in enumerate(means):
                share, gid = mean / max(totals[method], 1), f"tip{y}-{layer}"
                colour = marker_style(None, colours[method])[0] if colours else ACCENT
                ax.add_patch(
                    Rectangle((layer - 0.5, y - 0.42), 1, 0.84, fc=colour, alpha=0.06 + 0.8 * share, lw=0, gid=gid)
                )
                tips[gid] = f"{method}, layer {layer}: {mean:.1f} of {totals[method]} visual tokens"
                if room > 9 * len(f"{widest}"):
                    paint = PAPER if share > 0.55 else INK
                    ax.text(layer, y, f"{mean:.0f}", ha="center", va="center", fontsize=10.5, color=paint)
        ax.set_xlim(-0.5, deepest - 0.5)
        ax.set_ylim(len(layers) - 0.4, -0.6)
        ax.set_yticks(range(len(layers)), [short(n, width) for n in layers])
        ax.set_xticks(range(0, deepest, max(1, deepest // (16 if width > NARROW else 8))))
        ax.set_xlabel("layer")
        frame(ax, "")
        return tips

    told = "; ".join(f"{method}: {_runs(means)}" for method, means in layers.items())
    of = f", of {widest}" if set(totals.values()) == {widest} else ""
    title = f"Visual tokens computed at each layer{of}"
    return draw("tokens", title, told, paint, lambda _: 54 + 25 * len(layers))


def _runs(means: Sequence[float]) -> str:
    """The numbers of all layers in words, equal ones together: "128 at layers 0 to 2, 32 at layers 3 to 5"."""
    out = []
    for value, group in groupby(enumerate(means), key=lambda pair: f"{pair[1]:.0f}"):
        own = [layer for layer, _ in group]
        where = f"layers {own[0]} to {own[-1]}" if len(own) > 1 else f"layer {own[0]}"
        out.append(f"{value} at {where}")
    return ", ".join(out)
