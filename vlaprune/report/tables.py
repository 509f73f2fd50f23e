"""The table of a report: success with intervals, paired comparison with the baseline, tokens, FLOPs, times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from vlaprune.records import EpisodeRecord, Run, episode_row, mean
from vlaprune.report.machines import shared
from vlaprune.report.notes import footnotes
from vlaprune.report.runs import Arm, Comparison, Key, compare, context
from vlaprune.report.sources import sources
from vlaprune.report.times import times
from vlaprune.stats import paired as stats
from vlaprune.stats import rates
from vlaprune.stats.measured import impossible

WHOLE = ["visual", "steady", "cold", "packed", "untimed", "answers"]  # columns of counts; NA where not known
COLUMNS = (
    *("method", "task", "success", "episodes", "seeds", "rate", "low", "high", "exact_low", "exact_high"),
    *("average", "clustered", "proved", "kept", "visual", "gflops"),
    *("ms", "ms_method", "steady", "cold", "packed", "untimed", "ms_answer", "answers"),
    *("verdict", "paired", "both", "lost", "gained", "neither", "otherwise", "times_noise"),
    *("difference", "difference_low", "difference_high", "held_low", "held_high", "difference_clustered"),
    *("mcnemar_p", "holm_p", "more", "flops_cut", "speedup", "impossible"),
    *("criterion", "criterion_p", "criterion_verdict"),
)


def summarise(
    runs: Sequence[Run], baseline: str = "dense", by_task: bool = False, partial: bool = False, mixed: bool = False
) -> pd.DataFrame:
    """The table of `tabulate`; UserError in one line where the runs cannot stand in one (`runs.compare`)."""
    return tabulate(compare(runs, baseline, partial, mixed), by_task)


def tabulate(
    comparison: Comparison,
    by_task: bool = False,
    timed: bool = False,
    untimed: bool = False,
    beside: Sequence[Run] = (),
) -> pd.DataFrame:
    """One row per arm (with `by_task` also one per arm and task), the baseline first.

    timed    keep milliseconds even if the runs shared their machine
    untimed  leave out all milliseconds
    beside   further runs that must not have shared the machine either

    The columns are always COLUMNS. Rates, differences and their intervals are shares from 0 to 1, not percent.

    method  label with marks (`Arm.marked`)
    task  task name; "all" for the row over all tasks
    success, episodes  numbers of successful and of finished episodes
    seeds  number of seeds
    rate, low, high  success rate with its 95 % Wilson interval; episodes of one initial state are one cluster
    exact_low, exact_high  95 % Clopper-Pearson interval of the rate
    average  unweighted mean rate over tasks; NaN if all tasks have equally many episodes
    clustered  standard error of the rate with tasks as clusters; NaN for a single task
    proved  False if nobody saw the layers (a black box, results of another harness)
    kept  visual tokens computed, mean over layers and calls; NaN if not proved
    visual  visual tokens of a call; NA if not proved
    gflops  GFLOPs of a call, mean over calls; NaN if not proved
    ms, ms_method  milliseconds of a call and of the method in it, medians as in `times`; NaN if too few calls were
        timed, if not proved, with `untimed`, or if the machine was shared (unless `timed`)
    steady, cold, packed, untimed  numbers of calls of each kind (`times`); NA if not proved
    ms_answer, answers  milliseconds of a black box's answer, mean over `answers` steady answers; NaN and NA for other
        arms and with `untimed`. A shared machine does not remove it
    verdict  "no worse", "worse", "undecided"; "stopped: worse" or "stopped: better" if a rule ended the run;
        "not judged"; NaN for the baseline, and if there is none

    These compare an arm with the baseline on the same episodes. They are NaN for the baseline, and if no episode is
    shared.

    paired  number of shared episodes
    both, lost, gained, neither  episodes that both won, only the baseline, only the arm, neither
    otherwise  share of episodes lost or gained
    times_noise  `otherwise` divided by that share for a repeat of the baseline; NaN if not measured, or if that is 0
    difference, difference_low, difference_high  rate minus the baseline's, with Tango's 95 % interval
    held_low, held_high  interval of the difference at the level of the verdict; Tango's 95 % if not judged
    difference_clustered  standard error of the difference with tasks as clusters; NaN for a single task
    mcnemar_p  exact McNemar p-value, not adjusted
    holm_p  p-value of the verdict, adjusted over the methods (Holm); NaN if not judged
    more  further episodes needed for a verdict, at even odds; 0 once decided, NaN if not judged

    These compare costs with the baseline. They are NaN without a baseline.

    flops_cut  share of the baseline's FLOPs that is saved; NaN if either is not proved
    speedup  the baseline's ms divided by ms; NaN if either has fewer than 20 steady calls (`STEADY`), or no ms
    impossible  whether the speed-up is more than the FLOPs saved allow; False if not known

    These come from an audit. They are NaN for methods not audited, and in rows of single tasks.

    criterion  success of the method minus that of as many tokens chosen at random
    criterion_p, criterion_verdict  p-value of that difference (Holm over the audited methods), and its verdict in words

    `attrs` holds title, sources, notes (the footnotes), shared (why milliseconds do not compare; empty if they do) and
    times (the counts of calls in words).
    """
    frames = {a.label: _frame(a) for a in comparison.arms}
    rows = []
    for task in [None, *comparison.tasks] if by_task else [None]:
        here = [a for a in comparison.arms if task is None or any(k[0] == task for k in a.episodes)]
        found = {a.label: _row(a, frames[a.label], task) for a in here}
        _judge(comparison, here, task, found)
        if task is None:
            for one, said in comparison.criteria.items():
                words = {"criterion": said.difference, "criterion_p": said.p, "criterion_verdict": said.verdict}
                found[one] |= words
        rows += list(found.values())
    table = pd.DataFrame(rows).reindex(columns=[*COLUMNS, "enough"])
    table[WHOLE] = table[WHOLE].astype("Int64")
    timed_runs = [run for run in {id(r): r for r in (*comparison.runs, *beside)}.values() if run.header.proved]
    reason = shared(timed_runs) if table["ms"].notna().any() and not untimed else ""
    if untimed or (reason and not timed):
        table = table.assign(ms=math.nan, ms_method=math.nan, speedup=math.nan)
    if untimed:
        table = table.assign(ms_answer=math.nan, answers=pd.NA).astype({"answers": "Int64"})
    if comparison.baseline is not None:
        dense = table[table["method"] == comparison.baseline.marked].set_index("task")
        table["flops_cut"] = 1 - table["gflops"] / table["task"].map(dense["gflops"])
        enough = table["enough"] & table["task"].map(dense["enough"]).fillna(False).astype(bool)
        table["speedup"] = (table["task"].map(dense["ms"]) / table["ms"]).where(enough)
    table["impossible"] = list(map(impossible, table["speedup"], table["flops_cut"]))
    table.attrs["shared"] = reason
    table.attrs["title"] = comparison.title
    table.attrs["sources"] = sources(comparison.runs)
    table.attrs["times"] = {a.marked: times(a.calls).told for a in comparison.arms if a.proved}
    table.attrs["notes"] = footnotes(comparison, table)
    return table.drop(columns=["enough"])


def _frame(arm: Arm) -> pd.DataFrame:
    """A table with one row per episode."""
    return pd.DataFrame([episode_row(r) | {"seed": seed} for (_, _, seed), r in arm.episodes.items()])


def _counted(arm: Arm, frame: pd.DataFrame, task: str | None) -> dict[str, Any]:
    """Tokens, FLOPs and times of an arm's calls; for an arm without proof only the milliseconds of an answer."""
    calls = [call for key, record in arm.episodes.items() if task in (None, key[0]) for call in record.calls]
    if not arm.proved:
        alone = [sum(call.ms.values()) for call in calls if call.steady]
        none = dict.fromkeys(("kept", "gflops", "ms", "ms_method"), math.nan)
        counts = dict.fromkeys(("visual", "steady", "cold", "packed", "untimed"))
        return {**none, **counts, "ms_answer": mean(alone), "answers": len(alone), "enough": False}
    weights, took = frame["calls"] / frame["calls"].sum(), times(calls)
    return {
        "kept": (frame["kept"] * weights).sum(),
        "visual": int(frame["visual"].iloc[0]),
        "gflops": (frame["gflops"] * weights).sum(),
        "ms": took.ms,
        "ms_method": took.method,
        "steady": took.steady,
        "cold": took.cold,
        "packed": took.packed,
        "untimed": took.untimed,
        "enough": took.enough,
    }


def _row(arm: Arm, frame: pd.DataFrame, task: str | None) -> dict[str, Any]:
    frame = frame if task is None else frame[frame["task"] == task]
    won, n = int(frame["success"].sum()), len(frame)
    design = rates.design_effect([one.to_list() for _, one in frame.groupby(["task", "episode"])["success"]])
    interval, exact = (f(won, n, design=design) for f in (rates.wilson, rates.clopper_pearson))
    each = {str(t): (int(f["success"].sum()), len(f)) for t, f in frame.groupby("task")}
    unequal = len({episodes for _, episodes in each.values()}) > 1
    return {
        "method": arm.marked,
        "task": task or "all",
        "success": won,
        "episodes": n,
        "seeds": len(arm.seeds),
        "rate": won / n,
        "low": interval.low,
        "high": interval.high,
        "exact_low": exact.low,
        "exact_high": exact.high,
        "average": rates.mean_of_tasks(list(each.values()))[0] if unequal else math.nan,
        "clustered": stats.clustered_error(each) if len(each) > 1 else math.nan,
        "proved": arm.proved,
        **_counted(arm, frame, task),
    }


def shared_episodes(arm: Arm, base: Arm, task: str | None = None) -> list[Key]:
    """The episodes that both arms have: same task, episode and seed. Empty if their benchmarks differ."""
    if context(arm.run)["bench"] != context(base.run)["bench"]:
        return []
    return [key for key in base.episodes if key in arm.episodes and task in (None, key[0])]


def pairs(arm: Arm, base: Arm, keys: Sequence[Key]) -> stats.Pairs:
    """The 2x2 counts of two arms on the episodes `keys`; one (task, episode) under several seeds is a cluster."""
    ours, theirs = ({key: one.episodes[key].success for key in keys} for one in (arm, base))
    return stats.pair(theirs, ours, cluster=lambda key: key[:2])


def _judge(comparison: Comparison, here: Sequence[Arm], task: str | None, rows: Mapping[str, dict[str, Any]]) -> None:
    """Adds the paired comparison to every row but the baseline's; verdicts are adjusted over the methods (Holm)."""
    base = comparison.baseline
    if base is None or base not in here:
        return
    keys = {a.label: found for a in here if a is not base and (found := shared_episodes(a, base, task))}
    arms = {a.label: a for a in here}
    whole = {one: pairs(arms[one], base, found) for one, found in keys.items()}
    judged = [one for one in whole if arms[one].judged and base.judged]
    said = stats.verdicts([whole[one] for one in judged], comparison.margin)
    verdicts = dict(zip(judged, said, strict=True))
    units = comparison.noise.units if comparison.noise else lambda share: math.nan
    for one in (a.label for a in here if a is not base):
        rows[one]["verdict"] = _other(arms[one])
        if one not in whole:
            continue
        pair, told = whole[one], verdicts.get(one)
        interval = stats.tango(pair)
        held = told.held if told else interval
        tasks = _by_task(keys[one], arms[one].episodes, base.episodes)
        rows[one] |= {
            "paired": pair.n,
            "both": pair.both,
            "lost": pair.lost,
            "gained": pair.gained,
            "neither": pair.neither,
            "otherwise": (pair.lost + pair.gained) / pair.n,
            "times_noise": units((pair.lost + pair.gained) / pair.n),
            "difference": pair.difference,
            "difference_low": interval.low,
            "difference_high": interval.high,
            "held_low": held.low,
            "held_high": held.high,
            "difference_clustered": stats.clustered_error(tasks) if len(tasks) > 1 else math.nan,
            "mcnemar_p": stats.mcnemar_exact(pair),
            "holm_p": told.adjusted if told else math.nan,
            "verdict": told.decision if told else _other(arms[one]),
            "more": told.more if told else math.nan,
        }


def _by_task(
    keys: Sequence[Key], ours: Mapping[Key, EpisodeRecord], theirs: Mapping[Key, EpisodeRecord]
) -> dict[str, tuple[int, int]]:
    """Task -> (episodes gained minus episodes lost, paired episodes)."""
    out: dict[str, tuple[int, int]] = {}
    for key in keys:
        net, n = out.get(key[0], (0, 0))
        out[key[0]] = (net + ours[key].success - theirs[key].success, n + 1)
    return out


def _other(arm: Arm) -> str:
    """The text in place of a verdict if none is made after a fixed number of episodes."""
    stop = next((run.stopped for run in arm.runs if run.stopped), None)
    return f"stopped: {stop['verdict']}" if stop and arm.stopped else "not judged"
