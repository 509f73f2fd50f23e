"""Charts of a report: paired differences, success against cost, tokens at each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vlaprune.report.names import name
from vlaprune.report.svg import ACCENT, BAD, INK, MUTED, NARROW, PAPER, Chart, draw, frame, look, short


def forest(table: pd.DataFrame, margin: float, baseline: str) -> Chart:
    """Every method's paired difference with its interval, against no difference and against the margin."""
    rows = table[table["difference"].notna()]

    def paint(figure: Figure, width: int) -> dict[str, str]:
        ax, tips = figure.add_subplot(), {}
        ax.axvspan(-1000, -100 * margin, color=BAD, alpha=0.06, lw=0)
        ax.axvline(0, color=INK, lw=1)
        ax.axvline(-100 * margin, color=BAD, lw=1, ls=(0, (4, 3)))
        for y, r in enumerate(rows.itertuples()):
            colour, marker, face = look(r.verdict)
            d, low, high = (100 * v for v in (r.difference, r.held_low, r.held_high))
            ax.plot([low, high], [y, y], color=colour, lw=2, solid_capstyle="round")
            ax.plot(d, y, marker, color=colour, mfc=face, ms=7.5, mew=1.6, gid=f"tip{y}")
            tips[f"tip{y}"] = f"{r.method}: {d:+.1f} points [{low:+.1f}, {high:+.1f}], {r.verdict}"
        low, high = 100 * rows["held_low"].min(), 100 * rows["held_high"].max()
        low, high = min(low, -100 * margin), max(high, 0.0)
        ax.set_xlim(low - 0.04 * (high - low), high + 0.04 * (high - low))
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.set_yticks(range(len(rows)), [short(m, width) for m in rows["method"]])
        ax.set_xlabel(f"points of success, method - {short(baseline, width)}")
        frame(ax, "x")
        return tips

    told = "; ".join(f"{r.method} {100 * r.difference:+.1f} points, {r.verdict}" for r in rows.itertuples())
    return draw("differences", f"Paired difference to {baseline}", told, paint, lambda _: 54 + 25 * len(rows))


def cost(table: pd.DataFrame, column: str, axis: str, key: str, title: str) -> Chart:
    """Success with its interval against a cost; budgets of one method are joined by a line."""
    rows = table[table[column].notna()]

    def paint(figure: Figure, width: int) -> dict[str, str]:
        ax, tips, scale = figure.add_subplot(), {}, 100 if column == "flops_cut" else 1
        x, y = scale * rows[column].to_numpy(float), 100 * rows["rate"].to_numpy(float)
        for _, one in rows.groupby(rows["family"], sort=False):
            one = one.sort_values("kept")
            ax.plot(scale * one[column], 100 * one["rate"], color=MUTED, lw=1, alpha=0.45, zorder=1)
        best = front(x if column == "flops_cut" else -x, y)
        ax.step(x[best], y[best], where="post", color=INK, lw=1, ls=(0, (2, 3)), alpha=0.6, zorder=1)
        for i, r in enumerate(rows.itertuples()):
            colour, marker, face = look(getattr(r, "verdict", None))
            ax.plot([x[i]] * 2, [100 * r.low, 100 * r.high], color=colour, lw=1.4, alpha=0.55, zorder=2)
            ax.plot(x[i], y[i], marker, color=colour, mfc=face, ms=7.5, mew=1.6, zorder=3, gid=f"tip{i}")
            tips[f"tip{i}"] = f"{r.method}: {y[i]:.1f} % [{100 * r.low:.1f}, {100 * r.high:.1f}], {axis} {x[i]:.3g}"
        wide = width > NARROW
        reach = max(float(np.ptp(x)), 1e-9)
        ax.set_xlim(x.min() - 0.05 * reach, x.max() + (0.14 if wide else 0.3) * reach)  # room for names
        ax.set_xlabel(axis)
        ax.set_ylabel("success, %")
        frame(ax, "both")
        name(figure, ax, rows, x, y, width)
        return tips

    told = "; ".join(f"{r.method} {100 * r.rate:.1f} % at {getattr(r, column):.3g}" for r in rows.itertuples())
    return draw(key, title, told, paint, lambda width: 460 if width > NARROW else 340)


def front(gain: np.ndarray, success: np.ndarray) -> list[int]:
    """The points that none beats on both counts, by falling gain."""
    out: list[int] = []
    for i in sorted(range(len(gain)), key=lambda i: (-gain[i], -success[i])):
        if not out or success[i] > success[out[-1]]:
            out.append(i)
    return out


def tokens(layers: Mapping[str, Sequence[float]], totals: Mapping[str, int]) -> Chart:
    """Visual tokens computed at every layer, a row per method: the darker, the more of what came from the projector."""
    deepest, widest = max(len(v) for v in layers.values()), max(totals.values())

    def paint(figure: Figure, width: int) -> dict[str, str]:
        ax, tips = figure.add_subplot(), {}
        room = (width - (250 if width > NARROW else 150)) / deepest
        for y, (method, means) in enumerate(layers.items()):
            for layer, mean in enumerate(means):
                share, gid = mean / max(totals[method], 1), f"tip{y}-{layer}"
                ax.add_patch(
                    Rectangle((layer - 0.5, y - 0.42), 1, 0.84, fc=ACCENT, alpha=0.06 + 0.8 * share, lw=0, gid=gid)
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
    """Equal layers in one breath: "128 at layers 0 to 2, 32 at layers 3 to 5"."""
    out = []
    for value, group in groupby(enumerate(means), key=lambda pair: f"{pair[1]:.0f}"):
        own = [layer for layer, _ in group]
        where = f"layers {own[0]} to {own[-1]}" if len(own) > 1 else f"layer {own[0]}"
        out.append(f"{value} at {where}")
    return ", ".join(out)
