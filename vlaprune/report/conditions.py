"""Method by perturbation: what pruning costs when the world changes, apart from what the change costs. No torch.

A condition is a perturbation of the benchmark and its severity (`bench.stress`, `bench.severity`). Every method is
paired with the baseline under the same condition, on the same episodes; verdicts are made for all together (Holm).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vlaprune.errors import UserError
from vlaprune.records import Header, Run, differences, mean, without
from vlaprune.report.grids import Shade, shade
from vlaprune.report.notes import marks
from vlaprune.report.runs import Arm, Comparison, Key, begun, by_episode, compare
from vlaprune.report.sources import sources
from vlaprune.report.tables import pairs, shared_episodes
from vlaprune.report.text import short_notes
from vlaprune.stats import noise, rates
from vlaprune.stats import paired as stats
from vlaprune.stats.markdown import TERMINAL, columns
from vlaprune.stats.markdown import table as lined

PLAIN, ALL = "none", "together"
POOLED = (
    f"{ALL}: mean over the perturbations, of success and of differences, the latter on the episodes that all of them "
    "have. Intervals are at 95 %, with the episodes of one (task, episode) under all perturbations as one cluster. No "
    "verdict is made of it."
)
COLUMNS = (
    *("condition", "method", "marks", "base", "success", "episodes", "rate", "low", "high"),
    *("paired", "lost", "gained", "difference", "held_low", "held_high", "verdict", "more"),
    *("moved", "moved_low", "moved_high", "beyond", "beyond_low", "beyond_high"),
)


@dataclass(frozen=True)
class Condition:
    """One perturbation, named in words, and the comparison of the runs under it."""

    name: str
    comparison: Comparison


def perturbed(runs: Sequence[Run]) -> bool:
    """Whether these runs differ in their perturbation."""
    return len({_name(run.header) for run in runs}) > 1


def _name(header: Header) -> str:
    bench = header.identity["bench"]
    return f"{bench['stress']} {bench['severity']}" if bench.get("stress") else PLAIN


def conditions(runs: Sequence[Run], baseline: str = "dense", partial: bool = False) -> list[Condition]:
    """Groups runs by perturbation, the unperturbed first. UserError if they differ in more than method and seed."""
    runs = begun(runs, partial)
    groups = sorted(noise.alike(runs), key=lambda group: _name(group[0].header) != PLAIN)
    first = {_name(group[0].header): group[0] for group in reversed(groups)}
    for group in groups:
        one = group[0]
        two = f"{one.folder} and {groups[0][0].folder}"
        if differing := differences(_unstressed(groups[0][0]), _unstressed(one)):
            raise UserError(f"{two} differ in more than method and stress ({differing}); make a report of each")
        if one.header.tasks != groups[0][0].header.tasks:
            raise UserError(f"{two} were asked for different episodes; make a report of each")
        if (twin := first[_name(one.header)]) is not one:
            raise UserError(
                f"{one.folder} and {twin.folder} are both of the condition {_name(one.header)}, with other settings "
                f"({differences(noise.conditions(twin.header), noise.conditions(one.header))}); make a report of each"
            )
    every = [run.header for run in runs]
    return [Condition(_name(group[0].header), compare(group, baseline, partial, others=every)) for group in groups]


def _unstressed(run: Run) -> Header:
    same = without(run.header, "method", "seed").identity
    world = {k: v for k, v in same["bench"].items() if k not in ("stress", "severity")}
    return Header({**same, "bench": world}, {}, {})


def table(runs: Sequence[Run], baseline: str = "dense", partial: bool = False) -> pd.DataFrame:
    """A row per condition and arm, the baseline of each first; then rows over all perturbations, if there are several.

    The columns are always COLUMNS. A value that is not known is NaN. Rates and differences are shares from 0 to 1.

    condition  the perturbation and its severity; "none", or "together" for all perturbations
    method, marks  label of the arm, and its marks (`Arm.marks`)
    base  whether it is the baseline
    success, episodes  numbers of successful and of finished episodes
    rate, low, high  success rate with its 95 % Wilson interval
    paired, lost, gained  episodes shared with the baseline of the condition, and those lost and gained
    difference, held_low, held_high  difference to that baseline, with the interval at the level of the verdict
    verdict, more  verdict, adjusted over all comparisons (Holm), and further episodes needed for one
    moved, moved_low, moved_high  rate minus that of the same method without perturbation, Tango's 95 % interval
    beyond, beyond_low, beyond_high  difference to the baseline minus the difference without perturbation, on the
        episodes that all of these runs have, with its 95 % interval

    In a row "together", rate and difference are means over perturbations and intervals are at 95 %; low, high, paired,
    lost, gained, verdict, more and moved are NaN. `attrs` holds title, notes and sources.
    """
    found = conditions(runs, baseline, partial)
    plain = next((c.comparison for c in found if c.name == PLAIN), None)
    rows, tables = [], {}
    for condition in found:
        base = condition.comparison.baseline
        for arm in condition.comparison.arms:
            rows.append(_row(condition.name, arm, base, plain))
            if (
                base is not None
                and arm is not base
                and arm.judged
                and base.judged
                and (keys := shared_episodes(arm, base))
            ):
                tables[len(rows) - 1] = pairs(arm, base, keys)
    margin = found[0].comparison.margin
    for i, said in zip(tables, stats.verdicts(list(tables.values()), margin), strict=True):
        pair = tables[i]
        rows[i] |= {
            "paired": pair.n,
            "lost": pair.lost,
            "gained": pair.gained,
            "difference": pair.difference,
            "held_low": said.held.low,
            "held_high": said.held.high,
            "verdict": said.decision,
            "more": said.more,
        }
    pooled = _pooled([c.comparison for c in found if c.name != PLAIN], plain)
    out = pd.DataFrame([*rows, *pooled]).reindex(columns=COLUMNS)
    out.attrs["title"] = f"{found[0].comparison.title}, by perturbation"
    out.attrs["sources"] = sources(runs)
    out.attrs["notes"] = [
        *_notes(margin, len(tables), plain is not None),
        *([POOLED] if pooled else []),
        *_marks(found),
    ]
    return out


def _notes(margin: float, count: int, plain: bool) -> list[str]:
    out = [
        f"Verdict: method - baseline under the same perturbation, on the same episodes, against a margin of "
        f"{100 * margin:g} points; exact unconditional test at alpha 0.05, Holm over all {count} comparisons. "
        "Intervals of differences are at the level of their verdict."
    ]
    if plain:
        out.append("beyond: that difference less the one without a perturbation, on the same episodes, 95 % interval.")
    return out


def _marks(found: Sequence[Condition]) -> list[str]:
    """Notes on the meaning of the marks, and on conditions without a baseline."""
    out = [f"{c.name}: {line}" for c in found for line in marks(c.comparison)]
    lone = [c.name for c in found if c.comparison.baseline is None]
    return [*out, *([f"Without a baseline, so not compared: {', '.join(lone)}."] if lone else [])]


def _row(condition: str, arm: Arm, base: Arm | None, plain: Comparison | None) -> dict[str, Any]:
    won, n = sum(r.success for r in arm.episodes.values()), len(arm.episodes)
    clusters = by_episode({key: record.success for key, record in arm.episodes.items()})
    interval = rates.wilson(won, n, design=rates.design_effect(clusters))
    row: dict[str, Any] = {"condition": condition, "method": arm.label, "marks": arm.marks, "base": arm is base}
    row["success"] = won
    row |= {"episodes": n, "rate": won / n, "low": interval.low, "high": interval.high}
    if plain is None or condition == PLAIN:
        return row
    before = next((a for a in plain.arms if a.label == arm.label), None)
    if before is not None:
        own = [key for key in arm.episodes if key in before.episodes]
        row |= _moved(arm, before, own)
        if base is not None and arm is not base and plain.baseline is not None:
            row |= _change("beyond", "beyond", [(arm, base)], (before, plain.baseline))
    return row


def _pooled(perturbed: Sequence[Comparison], plain: Comparison | None) -> list[dict[str, Any]]:
    """A row over all perturbations for each arm that all of them have; no rows for fewer than two perturbations.

    A difference is the mean over perturbations. The episodes of one (task, episode) under all perturbations and seeds
    are one cluster; the interval is Student's over these clusters. No rows if a perturbation lacks its baseline.
    """
    if len(perturbed) < 2 or any(c.baseline is None for c in perturbed):
        return []
    out = []
    for label in [arm.label for arm in perturbed[0].arms]:
        arms = [next((a for a in c.arms if a.label == label), None) for c in perturbed]
        bases = [c.baseline for c in perturbed]
        pairs_of = [(a, b) for a, b in zip(arms, bases, strict=True) if a is not None and b is not None]
        if len(pairs_of) < len(perturbed):
            continue
        won = [int(r.success) for a, _ in pairs_of for r in a.episodes.values()]
        row: dict[str, Any] = {"condition": ALL, "method": label, "base": pairs_of[0][0] is pairs_of[0][1]}
        row |= {"marks": "".join(dict.fromkeys("".join(a.marks for a, _ in pairs_of)))}
        rates_of = [mean([int(r.success) for r in a.episodes.values()]) for a, _ in pairs_of]
        row |= {"success": sum(won), "episodes": len(won), "rate": mean(rates_of)}
        if not row["base"]:
            row |= _change("difference", "held", pairs_of, None)
            before = next((a for a in plain.arms if a.label == label), None) if plain else None
            if before is not None and plain is not None and plain.baseline is not None:
                row |= _change("beyond", "beyond", pairs_of, (before, plain.baseline))
        out.append(row)
    return out


def _change(name: str, ends: str, arms: Sequence[tuple[Arm, Arm]], less: tuple[Arm, Arm] | None) -> dict[str, float]:
    """The mean of arm - base over pairs of arms, minus that of the pair `less`, on the episodes that all of them have.

    With its 95 % interval over clusters of (task, episode), see `rates.mean_change`. Empty for fewer than two clusters.
    """
    every = [*arms, *([less] if less else [])]
    changes = {}
    for key in arms[0][0].episodes:
        if all(key in one.episodes for pair in every for one in pair):
            here = mean([_won(a, key) - _won(b, key) for a, b in arms])
            changes[key] = here - (_won(less[0], key) - _won(less[1], key) if less else 0)
    clusters = by_episode(changes)
    if len(clusters) < 2:
        return {}
    middle, interval = rates.mean_change([list(map(mean, clusters))])
    return {name: middle, f"{ends}_low": interval.low, f"{ends}_high": interval.high}


def _won(arm: Arm, key: Key) -> int:
    return int(arm.episodes[key].success)


def _moved(arm: Arm, before: Arm, keys: Sequence[Key]) -> dict[str, float]:
    """The change of one method's success by the perturbation, with Tango's 95 % interval; empty without episodes."""
    if not keys:
        return {}
    found = pairs(arm, before, keys)
    interval = stats.tango(found)
    return {"moved": found.difference, "moved_low": interval.low, "moved_high": interval.high}


def grid(rows: pd.DataFrame) -> tuple[list[str], list[tuple[str, list[Shade]]]]:
    """The conditions, and a row of cells for each method: success, and below it the difference to the baseline.

    The colour shows that difference; for the baseline it shows the change by the perturbation.
    """
    names, methods = (list(dict.fromkeys(rows[key])) for key in ("condition", "method"))
    found = {(r.method, r.condition): r for r in rows.itertuples()}
    return names, [(method, [_shade(found.get((method, name))) for name in names]) for method in methods]


def _shade(row: Any) -> Shade:
    if row is None:
        return Shade("", value=-1.0)
    points = 100 * (row.moved if row.base else row.difference)
    hue, depth = ("", 0) if pd.isna(points) else shade(points)
    words = f" {row.verdict}" if isinstance(row.verdict, str) else ""
    told = "" if pd.isna(points) else f"{points:+.1f}{words}"
    return Shade(f"{100 * row.rate:.1f}{row.marks}", told, row.rate, hue, depth, row.verdict == "worse")


def cells(rows: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Column heads and rows of the long table, as text."""
    judged, compared = rows["difference"].notna().any(), rows["beyond"].notna().any()
    heads = [
        "condition",
        "method",
        "%",
        *(["difference", "verdict"] if judged else []),
        *(["beyond"] if compared else []),
    ]
    body = []
    for r in rows.itertuples():
        line = [r.condition, f"{r.method}{r.marks}", f"{100 * r.rate:.1f}"]
        if judged:
            alone = "baseline" if r.base else "" if r.condition == ALL else "not compared"
            line += [_around(r, "difference", "held"), r.verdict if isinstance(r.verdict, str) else alone]
        if compared:
            line.append(_around(r, "beyond", "beyond"))
        body.append(line)
    return heads, body


def _around(row: Any, name: str, ends: str) -> str:
    middle = getattr(row, name)
    if pd.isna(middle):
        return ""
    low, high = (100 * getattr(row, f"{ends}_{end}") for end in ("low", "high"))
    return f"{100 * middle:+.1f} [{low:+.1f}, {high:+.1f}]"


def terminal(rows: pd.DataFrame, width: int | None = TERMINAL) -> str:
    """The report for a terminal: a title, the long table in the terminal's width, notes."""
    heads, body = cells(rows)
    swapped = [[line[1], line[0], *line[2:]] for line in (heads, *body)]
    return f"{rows.attrs['title']}\n\n{columns(swapped[0], swapped[1:], width)}\n\n{short_notes(rows.attrs['notes'])}"


def markdown(rows: pd.DataFrame) -> str:
    """The report as Markdown: the grid, the long table, notes and sources."""
    names, found = grid(rows)
    wide = [[method, *(f"{c.text} ({c.under})" if c.under else c.text for c in own)] for method, own in found]
    parts = [
        f"# {rows.attrs['title']}",
        "Success in %, and points of difference to the baseline under the same perturbation.",
    ]
    parts += [lined(["method", *names], wide), "## All numbers", lined(*cells(rows))]
    return (
        "\n\n".join([*parts, "\n".join(f"- {line}" for key in ("notes", "sources") for line in rows.attrs[key])]) + "\n"
    )


def write(rows: pd.DataFrame, folder: Path, name: str = "conditions") -> list[Path]:
    """Writes NAME.csv with plain numbers, NAME.md, and NAME.html with the grid in colours; returns their paths."""
    from vlaprune.report.page import conditions_page  # imports matplotlib, so only on demand

    folder.mkdir(parents=True, exist_ok=True)
    csv, md, html = (folder / f"{name}.{ending}" for ending in ("csv", "md", "html"))
    rows.to_csv(csv, index=False)
    md.write_text(markdown(rows))
    html.write_text(conditions_page(rows), encoding="utf-8")
    return [csv, md, html]
