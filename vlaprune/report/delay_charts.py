"""Charts of worlds that do not wait, and their page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
from matplotlib.figure import Figure

from vlaprune.report.delay import verdict
from vlaprune.report.html import template
from vlaprune.report.svg import BAD, INK, Chart, draw, frame, marker_style, short

MARKERS = "Dos^vXP<>*"  # markers of lines, one per line


def curve(rows: pd.DataFrame, line: str, column: str, axis: str, title: str) -> Chart:
    """A chart of `column` against delay in ms, with its intervals; success from 0 to 100 %.

    line  the column that tells lines apart: method, or mode if there is only one method
    """
    rate = column == "rate"
    low, high, scale = ("low", "high", 100) if rate else (f"{column}_low", f"{column}_high", 1)
    lines = list(dict.fromkeys(rows[line]))

    def paint(figure: Figure, width: int) -> dict[str, str]:
        ax, tips = figure.add_subplot(), {}
        for number, name in enumerate(lines):
            own = rows[rows[line] == name].sort_values("set_ms")
            colour, marker = marker_style(None, int(own["colour"].iloc[0]))[0], MARKERS[number % len(MARKERS)]
            ax.plot(own["set_ms"], scale * own[column], color=colour, lw=1.6, label=short(name, width), marker=marker)
            for i, r in enumerate(own.itertuples()):
                ends = [scale * getattr(r, k) for k in (low, high)]
                ax.plot([r.set_ms] * 2, ends, color=colour, lw=1.2, alpha=0.5, gid=f"tip{number}-{i}")
                middle = scale * getattr(r, column)
                tips[f"tip{number}-{i}"] = f"{name} at {r.set_ms:g} ms: {middle:.3g} [{ends[0]:.3g}, {ends[1]:.3g}]"
        ax.set_ylim(0, 102 if rate else None)
        ax.set_xlabel("delay of a call, ms")
        ax.set_ylabel(axis)
        ax.legend(frameon=False, labelcolor=INK)
        frame(ax, "both")
        return tips

    told = "; ".join(
        f"{getattr(r, line)} {scale * getattr(r, column):.3g} at {r.set_ms:g} ms" for r in rows.itertuples()
    )
    return draw(f"{column}-{rows['mode'].iloc[-1]}", title, told, paint, lambda width: 340)


def _curves(rows: pd.DataFrame) -> Iterator[Chart]:
    """Charts of success and seconds against delay: a line per method for each mode, or a line per mode."""
    zero = rows[rows["set_ms"] == 0].drop_duplicates("method")
    late = rows[rows["set_ms"] > 0]
    modes = list(dict.fromkeys(late["mode"]))
    if late["method"].nunique() == 1 and len(modes) > 1:
        own = [pd.concat([zero, late[late["mode"] == m]]).assign(mode=m, colour=i) for i, m in enumerate(modes)]
        groups = [("mode", pd.concat(own), str(late["method"].iloc[0]))]
    else:
        groups = [("method", pd.concat([zero, late[late["mode"] == mode]]), mode) for mode in modes]
    for line, own_rows, name in groups:
        yield curve(own_rows, line, "rate", "success, %", f"Success against delay, {name}")
        yield curve(own_rows, line, "seconds", "seconds to success", f"Seconds to success against delay, {name}")


def break_even(rows: pd.DataFrame, margin: float) -> Chart:
    """A chart of every method's difference of success to the baseline, each at its own latency, device by device."""
    rows = rows[rows["difference"].notna()]
    points = [
        tuple(100 * v for v in row) for row in rows[["difference", "held_low", "held_high"]].itertuples(index=False)
    ]
    told = [f", {verdict(r)}" for r in rows.itertuples()]
    axis = "points of success, method at its own latency - dense at its own"
    return _changes(rows, points, "{:+.1f}", axis, ("break-even", "Break-even"), told, -100 * margin)


def motion(rows: pd.DataFrame, key: str, called: str) -> Chart:
    """A chart of the paired mean change of one number of motion against the baseline at the same delay."""
    rows = rows[rows[f"{key}_change"].notna()]
    ends = [f"{key}_change{end}" for end in ("", "_low", "_high")]
    values = list(rows[ends].itertuples(index=False, name=None))
    named = (f"motion-{key}", f"Motion: {called}")
    return _changes(rows, values, "{:+.3g}", f"{called}, method - baseline", named, [""] * len(rows))


def _changes(
    rows: pd.DataFrame,
    values: Sequence[tuple[float, ...]],
    form: str,
    axis: str,
    named: tuple[str, str],
    told: Sequence[str],
    limit: float | None = None,
) -> Chart:
    """A chart with a line per row: the change and its interval, `values` (middle, low, high), beside zero and a limit.

    form   format of the numbers in words
    named  id and title of the chart
    told   text after the numbers of each row
    """
    names = _names(rows)

    def paint(figure: Figure, width: int) -> dict[str, str]:
        ax, tips = figure.add_subplot(), {}
        ax.axvline(0, color=INK, lw=1)
        if limit is not None:
            ax.axvline(limit, color=BAD, lw=1, ls=(0, (4, 3)))
        for y, (r, (middle, low, high)) in enumerate(zip(rows.itertuples(), values, strict=True)):
            colour, marker, face = marker_style(r.verdict, r.colour)
            ax.plot([low, high], [y, y], color=colour, lw=2, solid_capstyle="round")
            ax.plot(middle, y, marker, color=colour, mfc=face, ms=7, mew=1.6, gid=f"tip{y}")
            said = f"{form.format(middle)} [{form.format(low)}, {form.format(high)}]"
            tips[f"tip{y}"] = f"{names[y]}: {said}{told[y]}"
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.set_yticks(range(len(rows)), [short(name, width) for name in names])
        ax.set_xlabel(axis)
        frame(ax, "x")
        return tips

    lines = [f"{name} {form.format(v[0])}{end}" for name, v, end in zip(names, values, told, strict=True)]
    return draw(*named, "; ".join(lines), paint, lambda _: 54 + 25 * len(rows))


def _names(rows: pd.DataFrame) -> list[str]:
    """The name of each row: device, mode and method; the timed model and the mode only if the rows differ in them."""
    places = [where.removesuffix(", modelled") for where in rows["where"]]
    if len({place.partition(" as ")[2] for place in places}) == 1:
        places = [place.partition(" as ")[0] for place in places]
    modes = [f", {mode}" if rows["mode"].nunique() > 1 else "" for mode in rows["mode"]]
    return [f"{place}{mode}: {method}" for place, mode, method in zip(places, modes, rows["method"], strict=True)]


def charts(rows: pd.DataFrame) -> list[Chart]:
    """All charts of the page: success and seconds against delay, break-even, motion."""
    out: list[Chart] = []
    judged = rows[rows["verdict"].notna()]
    numbers_of = {method: i for i, method in enumerate(dict.fromkeys(judged["family"]), 1)}
    rows = rows.assign(colour=[numbers_of.get(family, 0) for family in rows["family"]])
    out += _curves(rows[rows["set_ms"].notna()])
    devices = rows[rows["set_ms"].isna()]
    if devices["difference"].notna().any():
        out.append(break_even(devices, rows.attrs["margin"]))
    if rows["jerk_hand_change"].notna().any():
        named: Sequence[tuple[str, str]] = (("jerk_hand", "RMS jerk of the hand"), ("path_hand", "path of the hand"))
        out += [motion(rows, key, called) for key, called in (*named, ("flips", "gripper flips"))]
    return out


def html(rows: pd.DataFrame) -> str:
    """One self-contained page: charts, the table, notes."""
    shown = [(r, "" if pd.isna(r.difference) else f"{100 * r.difference:+.1f}") for r in rows.itertuples()]
    return template("delay.html").render(
        title=rows.attrs["title"],
        charts=charts(rows),
        rows=[(r, difference, verdict(r)) for r, difference in shown],
        judged=rows["verdict"].notna().any(),
        notes=[*rows.attrs["notes"], *rows.attrs["sources"]],
    )
