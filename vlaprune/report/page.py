"""One self-contained HTML page from journals: no network, opens from disk."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from vlaprune.records import UNPROVED, Run
from vlaprune.report import conditions, plots, suites
from vlaprune.report.episodes import browser, films
from vlaprune.report.flips import flips, place_videos
from vlaprune.report.grids import Shade, heat, ordered, versus
from vlaprune.report.html import template
from vlaprune.report.notes import JUDGED, limits
from vlaprune.report.runs import Arm, Comparison, context
from vlaprune.report.svg import METHODS, Chart
from vlaprune.report.tables import tabulate

MATRIX = 40  # largest number of arms for the grid of all pairs
VIDEOS = 20_000_000  # bytes of film that a page embeds as base64; further films are linked


@dataclass(frozen=True)
class Cell:
    """A table cell: text, smaller second line, sort value."""

    text: str
    under: str = ""
    value: float | str = ""


def page(comparison: Comparison, file: Path, timed: bool = False, untimed: bool = False, videos: int = VIDEOS) -> str:
    """The page as HTML text.

    file     where the page will be, for links to videos
    timed    show milliseconds although the runs shared their machine
    untimed  show no milliseconds
    videos   bytes of video, as base64, that the page may embed; further videos are linked
    """
    colours = _colours(comparison)
    table, whole = _tables(comparison, colours, timed, untimed)
    order = list(whole["method"])
    comparison = replace(comparison, arms=tuple(sorted(comparison.arms, key=lambda a: order.index(a.marked))))
    about = "~" if table.attrs["shared"] else ""
    found = flips(comparison)
    places, held = place_videos(found, file, videos, films(comparison).values())
    data = _inert(browser(comparison, places))
    several = int(whole["verdict"].isin(JUDGED).sum()) > 1
    return template("page.html").render(
        hue=_hue,
        several=several,
        choices=[(i, a.marked) for i, a in enumerate(comparison.arms) if a is not comparison.baseline],
        comparison=comparison,
        rows=[(row, _cells(row, about)) for row in whole.itertuples()],
        shared=table.attrs["shared"],
        columns=_columns(whole),
        verdicts=_verdicts(whole),
        marked=[*(v for v, _ in _verdicts(whole)), "baseline"],
        charts=_charts(comparison, whole),
        notes=table.attrs["notes"],
        limits=limits(comparison, whole),
        heat=[(arm.marked, cells) for arm, cells in heat(comparison, table)],
        versus=[(arm.marked, cells) for arm, cells in versus(comparison)] if 1 < len(comparison.arms) <= MATRIX else [],
        colours=colours,
        flips=found,
        data=data,
        held=_inert(held),
        csv=base64.b64encode(table.to_csv(index=False).encode()).decode(),
        films=len(places),
        room=videos / 1e6,
        unproved=[a.marked for a in comparison.arms if not a.proved],
        unshelved=sum(not v.embedded for v in places.values()),
        protocol=list(_flat(context(comparison.arms[0].run))),
        arms=[_card(a) for a in comparison.arms],
        provenance=_provenance(comparison.runs),
    )


def _tables(
    comparison: Comparison, colours: Mapping[str, int], timed: bool, untimed: bool
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table of `tabulate` by task, with family and colour; and its rows over all tasks, in the page's order."""
    table = tabulate(comparison, by_task=True, timed=timed, untimed=untimed)
    table["family"] = table["method"].map({a.marked: a.method for a in comparison.arms})
    table["colour"] = table["method"].map(colours)
    whole = table[table["task"] == "all"].set_index("method", drop=False).rename_axis(None)
    whole = whole.loc[ordered(whole)]
    whole.attrs = table.attrs
    return table, whole


def _hue(number: int) -> int:
    """The colour number in the page's style: 0 for the baseline, else 1 to len(METHODS), repeating."""
    return (number - 1) % len(METHODS) + 1 if number else 0


def conditions_page(rows: pd.DataFrame) -> str:
    """The page of `conditions.table`: the grid in colours, the long table, notes."""
    base = set(rows[rows["base"]]["method"])
    told = (rows.attrs["title"], rows.attrs["notes"], rows.attrs["sources"])
    return _grid_page("conditions.html", conditions.grid(rows), conditions.cells(rows), base, *told)


def suites_page(found: suites.Study) -> str:
    """The page of `suites.study`: the grid in colours, the table of each suite, notes."""
    base = {one.comparison.baseline.label for one in found.suites if one.comparison.baseline}
    told = (found.title, found.notes, found.sources)
    return _grid_page("suites.html", suites.grid(found), suites.cells(found), base, *told)


def _grid_page(
    name: str,
    grid: tuple[Sequence[str], Sequence[tuple[str, Sequence[Shade]]]],
    cells: tuple[Sequence[str], Sequence[Sequence[str]]],
    base: Collection[str],
    title: str,
    notes: Sequence[str],
    made: Sequence[str],
) -> str:
    """A page with a grid (heads, rows by method) and a long table (heads, rows); one colour per family of methods."""
    families = dict.fromkeys(method.split()[0] for method, _ in grid[1] if method not in base)
    numbers = {family: i for i, family in enumerate(families, 1)}
    return template(name).render(
        title=title,
        names=grid[0],
        rows=grid[1],
        colours={method: 0 if method in base else numbers[method.split()[0]] for method, _ in grid[1]},
        hue=_hue,
        heads=cells[0],
        body=cells[1],
        notes=notes,
        made=made,
    )


def _inert(value: Any) -> str:
    """JSON that is safe inside a script element: no text of a journal can end the element or begin another."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def write(text: str, file: Path) -> Path:
    """Writes the page; creates its folder if needed. Returns its path."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def _columns(table: pd.DataFrame) -> list[str]:
    return [name for name, cell in _cells(next(table.itertuples())).items() if cell is not None and _shown(table, name)]


NEEDS = {"verdict": "verdict", "difference": "difference", "lost / gained": "lost", "FLOPs cut": "flops_cut"}
NEEDS |= {
    "GFLOPs": "gflops",
    "ms/answer": "ms_answer",
    "mean of tasks": "average",
    "ms": "ms",
    "speed-up": "speedup",
    "s.e. over tasks": "difference_clustered",
}


def _shown(table: pd.DataFrame, name: str) -> bool:
    needs = NEEDS.get(name)
    return needs is None or bool(table[needs].notna().any())


def _cells(row: Any, about: str = "") -> dict[str, Cell]:
    """The cells of one row of `tabulate`, by column; an unknown number is an empty cell."""

    def cell(value: float, text: str, under: str = "", scale: float = 1.0) -> Cell:
        return Cell("") if pd.isna(value) else Cell(text.format(scale * value), under, float(value))

    judged = isinstance(row.verdict, str)
    return {
        "verdict": Cell(row.verdict, _more(row), row.verdict) if judged else Cell("baseline", "", "a"),
        "FLOPs cut": cell(row.flops_cut, "{:.1f} %", "", 100),
        "success": cell(row.rate, "{:.1f} %", f"{row.success}/{row.episodes} · {_span(row.low, row.high)}", 100),
        "mean of tasks": cell(row.average, "{:.1f} %", "", 100),
        "difference": cell(row.difference, "{:+.1f}", _signed(row), 100),
        "lost / gained": cell(row.lost, "{:.0f}" + f" / {row.gained:.0f}", _otherwise(row)),
        "tokens": cell(row.kept, "{:.1f}", f"of {row.visual}") if row.proved else Cell("", UNPROVED),
        "GFLOPs": cell(row.gflops, "{:,.0f}" if row.gflops >= 100 else "{:.3g}"),
        "ms": cell(row.ms, about + "{:.2f}", f"method {row.ms_method:.2f}"),
        "ms/answer": cell(row.ms_answer, "{:.2f}"),
        "speed-up": cell(row.speedup, about + "{:.2f} x", "? see the note" if row.impossible else ""),
        "s.e. over tasks": cell(row.difference_clustered, "{:.1f}", "", 100),
    }


def _span(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _signed(row: Any) -> str:
    return f"{100 * row.held_low:+.1f} to {100 * row.held_high:+.1f}"


def _otherwise(row: Any) -> str:
    noise = f", {row.times_noise:.1f} x noise" if pd.notna(row.times_noise) else ""
    return f"{100 * row.otherwise:.1f} %{noise}"


def _more(row: Any) -> str:
    if row.verdict != "undecided":
        return ""
    return f"about {row.more:,.0f} more" if row.more < 1e6 else "over a million more"


def _verdicts(table: pd.DataFrame) -> list[tuple[str, list[Any]]]:
    """Pairs of a verdict and its rows, the fewest GFLOPs first."""
    every = ("no worse", "worse", "undecided", "stopped: worse", "stopped: better", "not judged")
    words = [w for w in every if (table["verdict"] == w).any()]
    return [(w, list(table[table["verdict"] == w].sort_values("gflops").itertuples())) for w in words]


def _charts(comparison: Comparison, table: pd.DataFrame) -> dict[str, Chart]:
    charts = {}
    if table["difference"].notna().any():
        assert comparison.baseline is not None
        charts["forest"] = plots.forest(table, comparison.margin, comparison.baseline.label)
    if table["flops_cut"].notna().sum() > 1:
        charts["flops"] = plots.cost(table, "flops_cut", "FLOPs cut, %", "flops", "Success against FLOPs saved")
    if table["ms"].notna().sum() > 1:
        charts["ms"] = plots.cost(table, "ms", "ms per call", "ms", "Success against time per call")
    layers = {a.marked: _layers(a) for a in comparison.arms if a.proved}
    seen = table[table["proved"]]
    totals, colours = (dict(zip(seen["method"], seen[key].astype(int), strict=True)) for key in ("visual", "colour"))
    if layers:
        charts["tokens"] = plots.tokens({m: layers[m] for m in seen["method"]}, totals, colours)
    return charts


def _layers(arm: Arm) -> list[float]:
    """Visual tokens computed at each layer, mean over all model calls."""
    calls = [call.visual for call in arm.calls]
    return [sum(layer) / len(calls) for layer in zip(*calls, strict=True)]


def _colours(comparison: Comparison) -> dict[str, int]:
    """Marked name -> colour: 0 for the baseline, then one for each method, the same for all its budgets."""
    families = dict.fromkeys(a.method for a in comparison.arms if a is not comparison.baseline)
    numbers = {family: i for i, family in enumerate(families, 1)}
    return {a.marked: 0 if a is comparison.baseline else numbers[a.method] for a in comparison.arms}


def _card(arm: Arm) -> tuple[Arm, list[tuple[str, str]], str]:
    """An arm, the settings of its method, and the SHA-256 of its journals."""
    digest = hashlib.sha256()
    for run in arm.runs:
        for path in sorted(run.folder.glob("journal*.jsonl")):
            digest.update(path.read_bytes())
    return arm, list(_flat(arm.run.header.identity["method"])), digest.hexdigest()


def _provenance(runs: Sequence[Run]) -> dict[str, list[str]]:
    """The provenance of the runs: key -> every value that any run has, in order of appearance."""
    out: dict[str, dict[str, None]] = {}
    for header in (header for run in runs for header in run.headers or [run.header]):
        for key, value in header.provenance.items():
            parts = _flat(value) if isinstance(value, Mapping) else [("", value)]
            told = ", ".join(f"{k} {v}".strip() for k, v in parts if v not in (None, "", "None"))
            if told and key != "shard":
                out.setdefault(key, {})[told] = None
    return {key: list(values) for key, values in out.items()}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)
