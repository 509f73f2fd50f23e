"""Method by suite, with the mean over the suites, as tables of LIBERO have it. No torch.

A suite is a benchmark or a part of one (`bench.suite`). It may have weights of its own, but the model is the same.
Every method is paired with the baseline of the same suite; its verdict there is that of the suite's own table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t

from vlaprune.errors import UserError
from vlaprune.records import Run, mean
from vlaprune.report import audits, tables
from vlaprune.report.grids import Shade, shade
from vlaprune.report.notes import marks
from vlaprune.report.runs import Arm, Comparison, compare, short_name
from vlaprune.report.sources import sources
from vlaprune.report.tables import tabulate, without_times
from vlaprune.report.text import latex_of, pretty, short_notes
from vlaprune.stats.markdown import TERMINAL, columns
from vlaprune.stats.markdown import table as lined

MEAN = "mean"
COLUMNS = ("suite", *tables.COLUMNS)
LEAD = "Success in %; below it or in brackets the difference to the baseline on the same episodes, in points."


@dataclass(frozen=True)
class Suite:
    """One suite: its name, the runs on it, and their table as `tabulate` makes it."""

    name: str
    comparison: Comparison
    table: pd.DataFrame


@dataclass(frozen=True)
class Study:
    """The suites of one model; of every method that all of them have a row of means (`COLUMNS`); what made the runs."""

    title: str
    suites: Sequence[Suite]
    means: pd.DataFrame
    notes: Sequence[str]
    sources: Sequence[str]

    @property
    def table(self) -> pd.DataFrame:
        """Every row of every suite and the means: suite and the columns of `tabulate`, NaN where not known."""
        parts = [one.table.assign(suite=one.name) for one in self.suites]
        whole = [*("success", "episodes", "seeds", "paired", "both", "lost", "gained", "neither"), *tables.WHOLE]
        rows = pd.concat([part.astype(dict.fromkeys(whole, "Int64")) for part in (*parts, self.means)])
        return rows.reindex(columns=COLUMNS).reset_index(drop=True)


def suite_of(run: Run) -> str:
    """What a reader calls the benchmark of a run: its suite where it has one."""
    bench = run.header.identity["bench"]
    return str(bench.get("label") or bench.get("suite") or bench["name"])


def several(runs: Sequence[Run]) -> bool:
    """Whether these are runs of one model on several suites."""
    return len(set(map(suite_of, runs))) > 1 and len({short_name(run, "model") for run in runs}) == 1


def study(
    runs: Sequence[Run],
    baseline: str = "dense",
    partial: bool = False,
    mixed: bool = False,
    audited: Sequence[Run] = (),
    timed: bool = False,
) -> Study:
    """The suites among these runs. UserError where `compare` raises it, for several models, or for one suite.

    audited  runs of audits, of some methods on some of the suites
    timed    milliseconds even of runs that shared their machine
    """
    if len(models := sorted({short_name(run, "model") for run in runs})) > 1:
        raise UserError(f"runs of the models {', '.join(models)}; make a report of each")
    names = list(dict.fromkeys(map(suite_of, runs)))
    if len(names) < 2:
        raise UserError(f"all of these runs are on {names[0]}; --suites needs several suites or benchmarks")
    every, found = [run.header for run in runs], []
    for one in names:
        comparison = compare([run for run in runs if suite_of(run) == one], baseline, partial, mixed, every)
        if own := [run for run in audited if suite_of(run) == one]:
            comparison = audits.beside(comparison, own)
        found.append(Suite(one, comparison, tabulate(comparison, timed=timed)))
    if lost := sorted({suite_of(run) for run in audited} - set(names)):
        raise UserError(f"audits are of {', '.join(lost)}, which no run here is on; there are {', '.join(names)}")
    return Study(f"{models[0]} on {', '.join(names)}", found, _means(found), _notes(found), sources(runs))


def untimed(found: Study) -> Study:
    """The same without milliseconds."""
    suites = [Suite(s.name, s.comparison, without_times(s.table)) for s in found.suites]
    return Study(found.title, suites, found.means, found.notes, found.sources)


def _means(found: Sequence[Suite]) -> pd.DataFrame:
    """A row for each method that every suite has: unweighted means over the suites, as papers have them."""
    rows = []
    for label in [arm.label for arm in found[0].comparison.arms]:
        arms = [next((a for a in s.comparison.arms if a.label == label), None) for s in found]
        if None in arms:
            continue
        own = [a for a in arms if a is not None]
        each = [s.table[s.table["method"] == a.marked].iloc[0] for s, a in zip(found, own, strict=True)]
        marked = label + "".join(dict.fromkeys("".join(a.marks for a in own)))
        row: dict[str, Any] = {"suite": MEAN, "method": marked, "task": "all", "proved": all(a.proved for a in own)}
        row |= {key: mean([float(one[key]) for one in each]) for key in ("rate", "kept", "gflops", "flops_cut")}
        bases = [s.comparison.baseline for s in found]
        pairs = [(a, b) for a, b in zip(own, bases, strict=True) if b is not None and a is not b]
        if len(pairs) == len(found):
            row |= _difference(pairs)
        rows.append(row)
    return pd.DataFrame(rows).reindex(columns=COLUMNS)


def _difference(pairs: Sequence[tuple[Arm, Arm]]) -> dict[str, float]:
    """Mean over suites of method - baseline, with a 95 % interval; nothing where a suite has too few episodes for it.

    The suites are independent strata with (task, episode) as clusters: variances of their means add up, and Welch's
    degrees of freedom belong to the sum. One more episode that changed counts in every spread (as in `conditions`).
    """
    middles, squares, freedoms = [], [], []
    for arm, base in pairs:
        each: dict[tuple[str, int], list[int]] = {}
        for key in tables.shared_episodes(arm, base):
            each.setdefault(key[:2], []).append(arm.episodes[key].success - base.episodes[key].success)
        if len(each) < 2:
            return {}
        values = np.array([mean(own) for own in each.values()])
        n = len(values)
        middles.append(float(values.mean()))
        squares.append((float(((values - values.mean()) ** 2).sum()) + 1) / (n - 1) / n)
        freedoms.append(n - 1)
    total = sum(squares)
    freedom = total**2 / sum(s**2 / f for s, f in zip(squares, freedoms, strict=True))
    reach = float(t.ppf(0.975, freedom)) * math.sqrt(total) / len(pairs)
    middle = mean(middles)
    return {"difference": middle, "difference_low": middle - reach, "difference_high": middle + reach}


def _notes(found: Sequence[Suite]) -> list[str]:
    out = [f"{one.name}: {note}" for one in found for note in one.table.attrs["notes"] if note.startswith("Verdict")]
    out.append(
        f"{MEAN}: unweighted, over the suites, of methods that all of them have. The interval of its difference is at "
        "95 %, with the episodes of one (task, episode) as one cluster. No verdict is made of it."
    )
    for start in ("Against random", "No times", "~ Times"):
        said = [(one.name, n) for one in found for n in one.table.attrs["notes"] if n.startswith(start)]
        out += [f"{suite}: {note}" for suite, note in said]
    return [*out, *(f"{one.name}: {line}" for one in found for line in marks(one.comparison))]


def _order(found: Study) -> list[str]:
    """Labels without marks: the baselines first, then by mean difference, then those that not every suite has."""
    labels = list(dict.fromkeys(arm.label for one in found.suites for arm in one.comparison.arms))
    bases = {one.comparison.baseline.label for one in found.suites if one.comparison.baseline}
    known = dict(zip(map(_unmarked, found.means["method"]), found.means["difference"], strict=True))
    return sorted(labels, key=lambda one: (one not in bases, -known.get(one, -9.0) if pd.notna(known.get(one)) else 9))


def _unmarked(label: str) -> str:
    return label.rstrip("*‡§†¶")


def grid(found: Study) -> tuple[list[str], list[tuple[str, list[Shade]]]]:
    """Heads and a row for each method: success on each suite, its mean, mean of visual tokens, mean of FLOPs cut.

    The colour is the difference to the baseline of the suite.
    """
    heads = [*(one.name for one in found.suites), MEAN, "visual tokens", "FLOPs cut"]
    rows = found.table.assign(label=lambda r: r["method"].map(_unmarked))
    cells = {(r.suite, r.label): r for r in rows.itertuples()}
    out = []
    for label in _order(found):
        own = [cells.get((suite, label)) for suite in (*(s.name for s in found.suites), MEAN)]
        costs = own[-1] or next(r for r in own if r is not None)
        kept = Shade("" if pd.isna(costs.kept) else f"{costs.kept:.1f}", value=float(costs.kept))
        cut = Shade("" if pd.isna(costs.flops_cut) else f"{100 * costs.flops_cut:.1f}%", value=float(costs.flops_cut))
        out.append((label, [*map(_shade, own), kept, cut]))
    return heads, out


def _shade(row: Any) -> Shade:
    if row is None:
        return Shade("", value=-1.0)
    hue, depth, told = "", 0, ""
    if pd.notna(row.difference):
        points = 100 * row.difference
        hue, depth = shade(points)
        around = f" [{100 * row.difference_low:+.1f}, {100 * row.difference_high:+.1f}]" if row.suite == MEAN else ""
        told = f"{points:+.1f}{around}" + (f" {row.verdict}" if isinstance(row.verdict, str) else "")
    marked = row.method[len(_unmarked(row.method)) :] if row.suite != MEAN else ""
    return Shade(f"{100 * row.rate:.1f}{marked}", told, row.rate, hue, depth, row.verdict == "worse")


def flat(found: Study) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the grid as text, and what audits say of each suite."""
    heads, rows = grid(found)
    seen = [one for one in found.suites if one.comparison.criteria]
    body = []
    for method, own in rows:
        line = [method, *(f"{c.text} ({c.under})" if c.under else c.text for c in own)]
        for one in seen:
            said = one.comparison.criteria.get(method)
            line.append("" if said is None else f"{100 * said.difference:+.1f}, p {said.p:.2g}: {said.verdict}")
        body.append(line)
    return ["method", *heads, *(f"against random, {one.name}" for one in seen)], body


def cells(found: Study) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of all numbers, suite by suite, as the table of each has them."""
    rows = pd.concat([one.table.assign(suite=one.name) for one in found.suites], ignore_index=True)
    shown = pretty(rows)
    shown.insert(0, "suite", list(rows["suite"]))
    return list(shown.columns), [[str(cell) for cell in line] for line in shown.itertuples(index=False)]


def terminal(found: Study, width: int | None = TERMINAL) -> str:
    """A title, success and difference on each suite and in the mean, in a terminal's width, notes."""
    heads, rows = grid(found)
    count = len(found.suites) + 1
    body = [[method, *(_short(cell) for cell in own[:count])] for method, own in rows]
    notes = ["<: worse than the baseline of that suite; every verdict is in the files.", *found.notes]
    return f"{found.title}\n\n{columns(['method', *heads[:count]], body, width)}\n\n{short_notes(notes)}"


def _short(cell: Shade) -> str:
    """Success and difference alone, and < for worse."""
    return f"{cell.text} {cell.under.split()[0]}{' <' if cell.strong else ''}" if cell.under else cell.text


def markdown(found: Study) -> str:
    """The grid, all numbers, notes and sources."""
    parts = [f"# {found.title}", LEAD, lined(*flat(found)), "## All numbers", lined(*cells(found))]
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in (*found.notes, *found.sources))]) + "\n"


def write(found: Study, folder: Path, name: str = "suites") -> list[Path]:
    """NAME.csv with plain numbers, NAME.md, NAME.tex with the grid, NAME.html with its colours; returns their paths."""
    from vlaprune.report.page import suites_page  # draws: loaded where it is wanted

    folder.mkdir(parents=True, exist_ok=True)
    csv, md, tex, html = (folder / f"{name}.{ending}" for ending in ("csv", "md", "tex", "html"))
    found.table.to_csv(csv, index=False)
    md.write_text(markdown(found))
    tex.write_text(latex_of(found.title, *flat(found), found.notes))
    html.write_text(suites_page(found), encoding="utf-8")
    return [csv, md, tex, html]
