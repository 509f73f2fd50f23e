"""A table of methods by suite, with the mean over the suites, as in tables of LIBERO. No torch.

A suite is a benchmark or a part of one (`bench.suite`). It may have weights of its own, but the model is the same.
Every method is paired with the baseline of the same suite; its verdict there is that of the suite's own table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vlaprune.errors import UserError
from vlaprune.records import Header, Run, differences, mean, without
from vlaprune.report import audits, tables
from vlaprune.report.grids import Shade, shade
from vlaprune.report.runs import Arm, Comparison, begun, by_episode, compare, short_name
from vlaprune.report.sources import sources
from vlaprune.report.tables import tabulate
from vlaprune.report.text import latex_of, pretty, short_notes
from vlaprune.stats import rates
from vlaprune.stats.markdown import TERMINAL, columns
from vlaprune.stats.markdown import table as lined

MEAN = "mean"
COLUMNS = ("suite", *tables.COLUMNS)
LEAD = "Success in %; in brackets the difference to the baseline on the same episodes, in points."
APART = ("suite", "label", "only", "names")  # settings of a benchmark that may differ from suite to suite


@dataclass(frozen=True)
class Suite:
    """One suite: its name, the runs on it, and their table as `tabulate` makes it."""

    name: str
    comparison: Comparison
    table: pd.DataFrame


@dataclass(frozen=True)
class Study:
    """The suites of one model, a row of means for every method that all suites have (`COLUMNS`), notes and sources."""

    title: str
    suites: Sequence[Suite]
    means: pd.DataFrame
    notes: Sequence[str]
    sources: Sequence[str]

    @property
    def table(self) -> pd.DataFrame:
        """All rows of all suites, then the means: suite and the columns of `tabulate`, NaN if not known."""
        parts = [one.table.assign(suite=one.name) for one in self.suites]
        whole = [*("success", "episodes", "seeds", "paired", "both", "lost", "gained", "neither"), *tables.WHOLE]
        rows = pd.concat([part.astype(dict.fromkeys(whole, "Int64")) for part in (*parts, self.means)])
        return rows.reindex(columns=COLUMNS).reset_index(drop=True)


def suite_of(run: Run) -> str:
    """The name of a run's benchmark for readers: its label, else its suite, else its name."""
    bench = run.header.identity["bench"]
    return str(bench.get("label") or bench.get("suite") or bench["name"])


def several(runs: Sequence[Run]) -> bool:
    """Whether these runs are of one model on several suites."""
    return len(set(map(suite_of, runs))) > 1 and len({short_name(run, "model") for run in runs}) == 1


def study(
    runs: Sequence[Run],
    baseline: str = "dense",
    partial: bool = False,
    mixed: bool = False,
    audited: Sequence[Run] = (),
    timed: bool = False,
    untimed: bool = False,
) -> Study:
    """Compares the runs of each suite and takes means over suites.

    UserError as in `compare`, for several models, for a single suite, and for different baselines.

    mixed    allow runs that differ from suite to suite in more than benchmark and weights; a note then says so
    audited  runs of audits, of some methods on some of the suites
    timed    keep milliseconds even if runs shared their machine
    untimed  leave out all milliseconds
    """
    runs = begun(runs, partial)
    if len(models := sorted({short_name(run, "model") for run in runs})) > 1:
        raise UserError(f"runs of the models {', '.join(models)}; make a report of each")
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(suite_of(run), []).append(run)
    if len(groups) < 2:
        raise UserError(f"all of these runs are on {', '.join(groups)}; --suites needs several suites or benchmarks")
    if lost := sorted({suite_of(run) for run in audited} - set(groups)):
        raise UserError(f"audits are of {', '.join(lost)}, which no run here is on; there are {', '.join(groups)}")
    every, apart = [run.header for run in runs], _apart(groups)
    if apart and not mixed:
        raise UserError(f"{next(iter(apart.values()))}; make a report of each, or pass --mixed to look anyway")
    found = []
    for one, group in groups.items():
        comparison = compare(group, baseline, partial, mixed, every)
        if own := [run for run in audited if suite_of(run) == one]:
            comparison = audits.beside(comparison, own, partial)
        found.append(Suite(one, comparison, tabulate(comparison, timed=timed, untimed=untimed, beside=runs)))
    bases = {one.comparison.baseline.label: one.name for one in found if one.comparison.baseline}
    if len(bases) > 1:
        said = " and ".join(f"{label} (on {suite})" for label, suite in bases.items())
        raise UserError(f"baseline {baseline} is {said}; name one with --baseline")
    notes = [*apart.values(), *_notes(found)]
    return Study(f"{models[0]} on {', '.join(groups)}", found, _means(found), notes, sources(runs))


def _apart(groups: Mapping[str, Sequence[Run]]) -> dict[str, str]:
    """Suite -> how its runs differ from those of the first suite in more than suite, weights and method, in words."""
    first = next(iter(groups.values()))[0]
    out = {}
    for name, runs in groups.items():
        same = short_name(runs[0], "bench") == short_name(first, "bench")
        a, b = (_common(run.header, same) for run in (first, runs[0]))
        if differing := differences(a, b):
            out[name] = f"{runs[0].folder} and {first.folder} differ in more than suite and method ({differing})"
    return out


def _common(header: Header, alike: bool) -> Header:
    """The settings that must be equal in all suites.

    alike  both suites are of one benchmark. If not, options of the model and control may differ: only seed, kernel,
           delay and the perturbation must be equal
    """
    same = dict(without(header, "method", "weights").identity)
    bench, model = same.pop("bench"), {k: v for k, v in same.pop("model").items() if k != "weights"}
    stress = {"stress": bench.get("stress")} | ({"severity": bench["severity"]} if bench.get("stress") else {})
    if not alike:
        return Header({key: same.get(key) for key in ("seed", "kernel", "delay")} | {"bench": stress}, {}, {})
    rest = {k: v for k, v in bench.items() if k not in (*APART, "severity")}
    return Header({**same, "model": model, "bench": {**rest, **stress}}, {}, {})


def _means(found: Sequence[Suite]) -> pd.DataFrame:
    """A row for each method that every suite has: unweighted means over the suites, as papers have them.

    A method whose policy was tuned on one suite and not on another gets no row.
    """
    rows = []
    for label in [arm.label for arm in found[0].comparison.arms]:
        own = [a for s in found for a in s.comparison.arms if a.label == label]
        if len(own) < len(found) or len({a.tuned for a in own}) > 1:
            continue
        each = [s.table[s.table["method"] == a.marked].iloc[0] for s, a in zip(found, own, strict=True)]
        marks = "".join(dict.fromkeys("".join(a.marks for a in own)))
        row: dict[str, Any] = {"suite": MEAN, "method": label + marks, "task": "all"}
        row |= {"proved": all(a.proved for a in own), "rate": mean([_success(one) for one in each])}
        row |= {key: mean([float(one[key]) for one in each]) for key in ("kept", "gflops", "flops_cut")}
        bases = [s.comparison.baseline for s in found]
        pairs = [(a, b) for a, b in zip(own, bases, strict=True) if b is not None and a is not b]
        if len(pairs) == len(found):
            row |= _difference(pairs)
        rows.append(row)
    return pd.DataFrame(rows).reindex(columns=COLUMNS)


def _success(row: Any) -> float:
    """The success of a row as papers print it: the mean over tasks if they have unequal episodes, else the rate."""
    return float(row["rate"] if pd.isna(row["average"]) else row["average"])


def _difference(pairs: Sequence[tuple[Arm, Arm]]) -> dict[str, float]:
    """The mean over suites of method - baseline with its 95 % interval, see `rates.mean_change`.

    Suites are strata, and a (task, episode) under all its seeds is a cluster. Empty if a suite has no common episode.
    """
    strata = []
    for arm, base in pairs:
        both = tables.shared_episodes(arm, base)
        changes = {key: arm.episodes[key].success - base.episodes[key].success for key in both}
        strata.append(list(map(mean, by_episode(changes))))
    if not all(strata):
        return {}
    middle, interval = rates.mean_change(strata)
    return {"difference": middle, "difference_low": interval.low, "difference_high": interval.high}


def _notes(found: Sequence[Suite]) -> list[str]:
    """The footnotes of all suites' tables, each once, and a note on the mean."""
    told: dict[str, list[str]] = {}
    for one in found:
        for note in one.table.attrs["notes"]:
            told.setdefault(note, []).append(one.name)
    out = [note if len(names) == len(found) else f"{', '.join(names)}: {note}" for note, names in told.items()]
    out.append(
        f"{MEAN}: unweighted, over the suites, of methods that all of them have. The interval of its difference is at "
        "95 %, with the episodes of one (task, episode) as one cluster. No verdict is made of it."
    )
    if any(one.table["average"].notna().any() for one in found):
        out.append(
            "Where tasks have unequal numbers of episodes, success is the mean over tasks; differences are of all "
            "paired episodes."
        )
    lone = [one.name for one in found if one.comparison.baseline is None]
    return [*out, *([f"Without a baseline, so not compared: {', '.join(lone)}."] if lone else [])]


def _order(found: Study) -> list[str]:
    """The labels without marks: baselines first, then by mean difference, then methods that some suites lack."""
    labels = list(dict.fromkeys(arm.label for one in found.suites for arm in one.comparison.arms))
    bases = {one.comparison.baseline.label for one in found.suites if one.comparison.baseline}
    judged = found.means.dropna(subset=["difference"])
    known = dict(zip(map(_unmarked, judged["method"]), judged["difference"], strict=True))
    return sorted(labels, key=lambda one: (one not in bases, -known.get(one, -9.0)))


def _unmarked(label: str) -> str:
    return label.rstrip("*‡§†¶")


def grid(found: Study) -> tuple[list[str], list[tuple[str, list[Shade]]]]:
    """Column heads and a row for each method: success on each suite, its mean, mean visual tokens, mean FLOPs cut.

    The colour shows the difference to the baseline of the suite. Methods that some suites lack have no costs.
    """
    heads = [*(one.name for one in found.suites), MEAN, "visual tokens", "FLOPs cut"]
    rows = found.table.assign(label=lambda r: r["method"].map(_unmarked))
    cells = {(r.suite, r.label): r for r in rows.itertuples()}
    out = []
    for label in _order(found):
        own = [cells.get((suite, label)) for suite in (*(s.name for s in found.suites), MEAN)]
        costs = [
            _cost(getattr(own[-1], key, math.nan), form) for key, form in (("kept", "{:.1f}"), ("flops_cut", "{:.1%}"))
        ]
        out.append((label, [*map(_shade, own), *costs]))
    return heads, out


def _cost(value: float, form: str) -> Shade:
    return Shade("" if pd.isna(value) else form.format(value), value=-1.0 if pd.isna(value) else float(value))


def _shade(row: Any) -> Shade:
    if row is None:
        return Shade("", value=-1.0)
    hue, depth, told, success = "", 0, "", _success(row._asdict())
    if pd.notna(row.difference):
        points = 100 * row.difference
        hue, depth = shade(points)
        told = f"{points:+.1f}" + (f" {row.verdict}" if isinstance(row.verdict, str) else "")
        if row.suite == MEAN and math.isfinite(row.difference_low):
            told += f" [{100 * row.difference_low:+.1f}, {100 * row.difference_high:+.1f}]"
    marks = row.method[len(_unmarked(row.method)) :]
    return Shade(f"{100 * success:.1f}{marks}", told, success, hue, depth, row.verdict == "worse")


def flat(found: Study) -> tuple[list[str], list[list[str]]]:
    """Column heads and rows of the grid as text, with the results of audits on each suite."""
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
    """Column heads and rows of the tables of all suites, one after the other, as text."""
    parts = []
    for one in found.suites:
        alone = {} if one.comparison.baseline else {"verdict": "not compared"}
        parts.append(one.table.assign(suite=one.name, **alone))
    rows = pd.concat(parts, ignore_index=True)
    shown = pretty(rows)
    shown.insert(0, "suite", list(rows["suite"]))
    return list(shown.columns), [[str(cell) for cell in line] for line in shown.itertuples(index=False)]


def terminal(found: Study, width: int | None = TERMINAL) -> str:
    """The report for a terminal: title, success and difference on each suite and in the mean, notes."""
    heads, rows = grid(found)
    count = len(found.suites) + 1
    body = [[method, *(_short(cell) for cell in own[:count])] for method, own in rows]
    notes = ["<: worse than the baseline of that suite; every verdict is in the files.", *found.notes]
    return f"{found.title}\n\n{columns(['method', *heads[:count]], body, width)}\n\n{short_notes(notes)}"


def _short(cell: Shade) -> str:
    """A cell as short text: success, difference, and < if worse."""
    return f"{cell.text} {cell.under.split()[0]}{' <' if cell.strong else ''}" if cell.under else cell.text


def markdown(found: Study) -> str:
    """The report as Markdown: the grid, all numbers, notes and sources."""
    parts = [f"# {found.title}", LEAD, lined(*flat(found)), "## All numbers", lined(*cells(found))]
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in (*found.notes, *found.sources))]) + "\n"


def write(found: Study, folder: Path, name: str = "suites") -> list[Path]:
    """Writes NAME.csv with plain numbers, NAME.md, NAME.tex with the grid, NAME.html in colour; returns their paths."""
    from vlaprune.report.page import suites_page  # imports matplotlib, so only on demand

    folder.mkdir(parents=True, exist_ok=True)
    csv, md, tex, html = (folder / f"{name}.{ending}" for ending in ("csv", "md", "tex", "html"))
    found.table.to_csv(csv, index=False)
    md.write_text(markdown(found))
    tex.write_text(latex_of(found.title, *flat(found), found.notes))
    html.write_text(suites_page(found), encoding="utf-8")
    return [csv, md, tex, html]
