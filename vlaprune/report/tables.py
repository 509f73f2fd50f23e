"""Journals to numbers: success with intervals, the paired comparison with dense, tokens, FLOPs, milliseconds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from vlaprune.records import Run, episode_row
from vlaprune.report.notes import footnotes
from vlaprune.report.runs import Arm, Comparison, compare, context
from vlaprune.report.sources import shared, sources
from vlaprune.stats import paired as stats
from vlaprune.stats import rates


def summarise(
    runs: Sequence[Run], baseline: str = "dense", by_task: bool = False, partial: bool = False, mixed: bool = False
) -> pd.DataFrame:
    """The table of `tabulate`; ValueError in one line where the runs cannot stand in one (`runs.compare`)."""
    return tabulate(compare(runs, baseline, partial, mixed), by_task)


def tabulate(comparison: Comparison, by_task: bool = False, timed: bool = False) -> pd.DataFrame:
    """One row per arm (and per task), the baseline first.

    Columns: success and episodes; rate with its 95 % Wilson interval (low, high), its exact interval and its standard
    error over tasks (clustered); average, the unweighted mean over tasks where their numbers of episodes differ, as in
    SIMPLER's tables; pooled over the model calls kept (visual tokens computed, mean over layers) of visual, gflops, ms;
    against the baseline on the same episodes paired, both, lost, gained, neither, otherwise (the share lost or gained)
    and floors (that in units of what a repeat of the baseline does), difference with Tango's interval and its standard
    error over tasks, McNemar p, Holm p, verdict; flops_cut, speedup. No times where the runs shared their
    machine, unless `timed` says to look anyway. `attrs` holds title, sources, notes (the footnotes) and
    shared: why milliseconds do not compare, if they do not.
    """
    frames = {a.label: pd.DataFrame([episode_row(r) for r in a.run.episodes.values()]) for a in comparison.arms}
    rows = []
    for task in [None, *comparison.tasks] if by_task else [None]:
        here = [a for a in comparison.arms if task is None or any(k[0] == task for k in a.run.episodes)]
        found = {a.label: _row(a, frames[a.label], task) for a in here}
        _judge(comparison, here, task, found)
        rows += list(found.values())
    table = pd.DataFrame(rows)
    reason = shared([a.run for a in comparison.arms]) if table["ms"].notna().any() else ""
    if reason and not timed:
        table = table.drop(columns=["ms", "ms_method"])
    if comparison.baseline is not None:
        dense = table[table["method"] == comparison.baseline.marked].set_index("task")
        table["flops_cut"] = 1 - table["gflops"] / table["task"].map(dense["gflops"])
        if "ms" in table:
            table["speedup"] = table["task"].map(dense["ms"]) / table["ms"]
    table.attrs["shared"] = reason
    table.attrs["title"] = comparison.title
    table.attrs["sources"] = sources([a.run for a in comparison.arms])
    table.attrs["notes"] = footnotes(comparison, table)
    return table


def _row(arm: Arm, frame: pd.DataFrame, task: str | None) -> dict[str, Any]:
    frame = frame if task is None else frame[frame["task"] == task]
    won, n = int(frame["success"].sum()), len(frame)
    weights = frame["calls"] / frame["calls"].sum()
    interval, exact = rates.wilson(won, n), rates.clopper_pearson(won, n)
    each = {str(t): (int(f["success"].sum()), len(f)) for t, f in frame.groupby("task")}
    return {
        "method": arm.marked,
        "task": task or "all",
        "success": won,
        "episodes": n,
        "rate": won / n,
        "low": interval.low,
        "high": interval.high,
        "exact_low": exact.low,
        "exact_high": exact.high,
        "average": _average(list(each.values())),
        "clustered": stats.clustered_error(each) if len(each) > 1 else math.nan,
        "kept": (frame["kept"] * weights).sum(),
        "visual": int(frame["visual"].iloc[0]),
        "gflops": (frame["gflops"] * weights).sum(),
        "ms": pd.to_numeric(frame["ms"], errors="coerce").mul(weights).sum(min_count=n),
        "ms_method": pd.to_numeric(frame["ms_method"], errors="coerce").mul(weights).sum(min_count=n),
    }


def _average(tasks: Sequence[tuple[int, int]]) -> float:
    """The mean of the tasks' rates from (won, episodes) each; NaN where it is the pooled rate anyway."""
    if len({episodes for _, episodes in tasks}) < 2:
        return math.nan
    return sum(won / episodes for won, episodes in tasks) / len(tasks)


def pairs(arm: Arm, base: Arm, task: str | None = None) -> dict[str, stats.Pairs]:
    """Task -> 2x2 counts on the episodes that both arms have; empty where their benchmarks differ."""
    if context(arm.run)["bench"] != context(base.run)["bench"]:
        return {}
    both = [k for k in base.run.episodes if k in arm.run.episodes and task in (None, k[0])]
    out = {}
    for one in dict.fromkeys(t for t, _ in both):
        ours, theirs = ({k: r.episodes[k].success for k in both if k[0] == one} for r in (arm.run, base.run))
        out[one] = stats.pair(theirs, ours)
    return out


def pooled(tasks: Mapping[str, stats.Pairs]) -> stats.Pairs:
    """The 2x2 counts of all tasks together."""
    return stats.Pairs(*(sum(getattr(p, k) for p in tasks.values()) for k in ("both", "lost", "gained", "neither")))


def _judge(comparison: Comparison, here: Sequence[Arm], task: str | None, rows: Mapping[str, dict[str, Any]]) -> None:
    """Adds to every row but the baseline's the paired comparison, its verdict being one of several (Holm)."""
    base = comparison.baseline
    if base is None or base not in here:
        return
    tables = {a.label: found for a in here if a is not base and (found := pairs(a, base, task))}
    judged = [a.label for a in here if a.judged and a.label in tables]
    said = stats.verdicts([pooled(tables[one]) for one in judged], comparison.margin)
    verdicts = dict(zip(judged, said, strict=True))
    arms = {a.label: a for a in here}
    units = comparison.floor.units if comparison.floor else lambda apart: math.nan
    for one, tasks in tables.items():
        whole, told = pooled(tasks), verdicts.get(one)
        interval = stats.tango(whole)
        rows[one] |= {
            "paired": whole.n,
            "both": whole.both,
            "lost": whole.lost,
            "gained": whole.gained,
            "neither": whole.neither,
            "otherwise": (whole.lost + whole.gained) / whole.n,
            "floors": units((whole.lost + whole.gained) / whole.n),
            "difference": whole.difference,
            "difference_low": interval.low,
            "difference_high": interval.high,
            "difference_clustered": stats.clustered_error(tasks) if len(tasks) > 1 else math.nan,
            "mcnemar_p": stats.mcnemar_exact(whole),
            "holm_p": told.adjusted if told else math.nan,
            "verdict": told.decision if told else _other(arms[one]),
            "more": told.more if told else math.nan,
        }


def _other(arm: Arm) -> str:
    """What stands for a verdict where none is reached on a fixed number of episodes."""
    stop = arm.run.stopped
    return f"stopped: {stop['verdict']}" if stop and arm.stopped else "not judged"
