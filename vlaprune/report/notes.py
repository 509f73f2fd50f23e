"""Footnotes of a table, and a list of what a report does not claim."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from vlaprune.records import UNPROVED
from vlaprune.report.machines import devices
from vlaprune.report.runs import Arm, Comparison, short_name
from vlaprune.report.times import STEADY
from vlaprune.stats import power

JUDGED = ("no worse", "worse", "undecided")


def footnotes(comparison: Comparison, table: pd.DataFrame) -> list[str]:
    """The footnotes of a table: how verdicts were made, power of the test, what marks mean, how times were taken."""
    whole = table[table["task"] == "all"]
    out = _verdicts(comparison, whole)
    if whole["difference_clustered"].notna().any():
        out.append(
            f"s.e. over tasks: standard error of the difference, in points, with the {len(comparison.tasks)} tasks as "
            "clusters; the intervals speak of these tasks only."
        )
    out += _noise(comparison, whole)
    if comparison.criteria:
        audited = next(iter(comparison.criteria.values())).audited
        out.append(
            "Against random: success less that of as many tokens drawn at random at the same layers and calls, in "
            f"points (experiment=audit); exact p, Holm over the {audited} methods audited; empty where not audited."
        )
    out += marks(comparison)
    out += [_answers(a, row) for a, row in _rows(comparison, whole) if not a.proved and pd.notna(row.ms_answer)]
    return out + _times(comparison, table, whole)


def marks(comparison: Comparison) -> list[str]:
    """Notes on the meaning of the marks after the names of arms, repeated episodes and pooled seeds."""
    out = [f"* {a.label}: {a.missing} episodes missing." for a in comparison.arms if a.missing]
    again = [f"{a.label} {a.repeated}" for a in comparison.arms if a.repeated]
    if again:
        out.append(f"Episodes begun more than once, since their simulator raised: {', '.join(again)}.")
    out += [
        f"‡ {a.label}: {a.stopped}; its rate counts the episodes it has, its interval is not made for such a stop, and "
        "it takes no part in the verdicts on a fixed number."
        for a in comparison.arms
        if a.stopped
    ]
    tuned = [a.label for a in comparison.arms if a.tuned]
    if tuned:
        out.append(
            f"§ {', '.join(tuned)}: weights tuned from the baseline's with the method at work; policy and method are "
            "judged as one."
        )
    marked = [(_why(a), a.label) for a in comparison.arms if a.mixed]
    out += [f"† {', '.join(one for said, one in marked if said == why)}: {why}." for why in dict(marked)]
    out += [f"¶ {a.label}: {_unproved(a)}" for a in comparison.arms if not a.proved]
    return out + _devices(comparison) + _pooled(comparison)


def _devices(comparison: Comparison) -> list[str]:
    """The note on arms of several devices: which computed which."""
    found = [(" and ".join(dict.fromkeys(d for run in a.runs for d in devices(run))), a.label) for a in comparison.arms]
    named = {device: [label for one, label in found if one == device] for device, _ in found if device}
    if len(named) < 2:
        return []
    most = max(named, key=lambda device: len(named[device]))
    told = [f"{device}: {', '.join(labels)}" for device, labels in named.items() if device != most]
    return [f"Computed on {most}; on {'; on '.join(told)}. Two devices do not give the same bits."]


def _rows(comparison: Comparison, whole: pd.DataFrame) -> list[tuple[Arm, Any]]:
    """Every arm with its row of the table."""
    found = {row.method: row for row in whole.itertuples()}
    return [(arm, found[arm.marked]) for arm in comparison.arms]


def _unproved(arm: Arm) -> str:
    """The note on an arm without proof: where its run comes from."""
    source = arm.run.header.provenance.get("source", "another harness")
    return f"{UNPROVED}: {source}. What it computes is not known, so tokens and FLOPs are left empty."


def _answers(arm: Arm, row: Any) -> str:
    """The note on the time of a black box's answers."""
    return f"{arm.label}: an answer takes {row.ms_answer:.2f} ms, mean of {row.answers:.0f}, the network included."


def _times(comparison: Comparison, table: pd.DataFrame, whole: pd.DataFrame) -> list[str]:
    """Notes on times: how they were taken, how many calls they rest on, which are impossible."""
    out = []
    if table.attrs["shared"]:
        shown = "~ Times are shown because of --timed" if table["ms"].notna().any() else "No times"
        out.append(f"{shown}: {table.attrs['shared']}.")
    if whole["ms"].notna().any():
        told = "; ".join(_counts(whole, table.attrs["times"]))
        out.append(
            "Times: median of steady calls of one size (calls alone on the device, none that compiled, captured or "
            f"allocated), sizes weighed by how often they are called. Calls: {told}."
        )
        if comparison.baseline is not None and whole["speedup"].isna().any():
            out.append(f"No speed-up where the method or the baseline has fewer than {STEADY} steady calls.")
    if whole["impossible"].any():
        odd = whole[whole["impossible"]]
        said = ", ".join(f"{r.method} {r.speedup:.2f}x for {_most(r.flops_cut):.2f}x" for r in odd.itertuples())
        out.append(f"? The speed-up is more than the FLOPs saved allow ({said}): do not trust these times.")
    return out


def _counts(whole: pd.DataFrame, told: Mapping[str, str]) -> list[str]:
    """The calls of each arm in words; arms whose calls are all steady are summed up together."""
    plain = whole[(whole["steady"] >= STEADY) & (whole[["cold", "packed", "untimed"]].sum(axis=1) == 0)]
    if len(plain) < 3:
        return [f"{method} {count}" for method, count in told.items()]
    low, high = plain["steady"].min(), plain["steady"].max()
    rest = [f"{method} {count}" for method, count in told.items() if method not in set(plain["method"])]
    return [*rest, f"{'the others ' if rest else ''}{low:.0f} to {high:.0f} steady each"]


def _most(cut: float) -> float:
    return 1 / max(1e-9, 1 - max(0.0, cut))


def _noise(comparison: Comparison, whole: pd.DataFrame) -> list[str]:
    if comparison.noise is None:
        return []
    hidden = ties(comparison, whole)
    inside = f"Ties, inside it: {', '.join(hidden)}" if hidden else "No method is inside it"
    return [f"A/A noise, the baseline run again: {comparison.noise.told}. {inside}."]


def ties(comparison: Comparison, whole: pd.DataFrame) -> list[str]:
    """Methods not judged worse that change no more episodes than a repeat of the baseline may."""
    if comparison.noise is None:
        return []
    rows = whole[whole["otherwise"].notna() & ~whole["verdict"].isin(["worse", "stopped: worse"])]
    return [r.method for r in rows.itertuples() if comparison.noise.hides(r.otherwise)]


def _why(arm: Arm) -> str:
    how = "paired on the episodes both have" if arm.judged else "not judged"
    return f"{short_name(arm.run, 'model')} on {short_name(arm.run, 'bench')}, {arm.mixed}; {how}"


def _verdicts(comparison: Comparison, whole: pd.DataFrame) -> list[str]:
    base = comparison.baseline
    judged = whole[whole["verdict"].isin(JUDGED)]
    if base is None or judged.empty:
        return []
    several = f", Holm over the {len(judged)} methods (per task: over that task's)" if len(judged) > 1 else ""
    at = "the level at which Holm judges its method" if several else "95 %"
    n, flipped = typical(judged)
    return [
        f"Verdict: method - {base.label} on the same episodes against a margin of {100 * comparison.margin:g} points, "
        f"exact unconditional test at alpha 0.05{several}; worse also needs exact McNemar.",
        f"Intervals of differences are Tango's at {at}; their end stands at the margin where the exact test is "
        "stricter, so that they lie beside the margin exactly where there is a verdict.",
        f"Power: {detectable_loss(n, flipped, len(judged))}.",
    ]


def _pooled(comparison: Comparison) -> list[str]:
    """The note on pooled seeds; empty if every arm has one seed."""
    if all(len(arm.seeds) < 2 for arm in comparison.arms):
        return []
    seeds = ", ".join(dict.fromkeys(str(seed) for arm in comparison.arms for seed in arm.seeds))
    return [
        f"Seeds {seeds} are pooled: pairs have the same task, episode and seed; intervals and tests take an episode "
        "under all its seeds as one cluster."
    ]


def typical(judged: pd.DataFrame) -> tuple[int, float]:
    """The paired episodes of the smallest comparison, and the median share of episodes that flip equally both ways."""
    both_ways = 2 * judged[["lost", "gained"]].min(axis=1) / judged["paired"]
    return int(judged["paired"].min()), float(both_ways.median())


def detectable_loss(n: int, flipped: float, methods: int) -> str:
    """The loss that n paired episodes can show, in words; at Holm's first level, on top of a share `flipped`."""
    loss = power.mde(n, flipped, alpha=0.05 / methods)
    seen = f"a loss of about {100 * loss:.1f} points" if math.isfinite(loss) else "no loss of any size"
    level = f"alpha 0.05 / {methods}" if methods > 1 else "alpha 0.05"
    flips = f"with {n} paired episodes, {100 * flipped:.0f} % of which flip both ways alike"
    return f"{flips}, {seen} on top of that shows (power 0.8, {level})"


@dataclass(frozen=True)
class Limit:
    """Something that the report does not claim, and why."""

    claim: str
    reason: str


def limits(comparison: Comparison, table: pd.DataFrame) -> list[Limit]:
    """The list of what these runs do not show, made from the runs."""
    whole = table[table["task"] == "all"]
    found = [_undecided(comparison, whole), _small(comparison, whole), _chance(comparison), _repeats(comparison, whole)]
    found += [_time(whole), _tasks(comparison), _seeds(comparison), _unseen(comparison), _marked(comparison)]
    found.append(_code(comparison))
    return [limit for limit in found if limit is not None]


def _undecided(comparison: Comparison, whole: pd.DataFrame) -> Limit | None:
    if comparison.baseline is None:
        return Limit("Any comparison", "there is no baseline among these runs; name one with --baseline.")
    rows = whole[whole["verdict"] == "undecided"]
    if rows.empty:
        return None
    rows = rows.sort_values("more")
    ends = [rows.iloc[0], rows.iloc[-1]] if len(rows) > 1 else [rows.iloc[0]]
    need = " to ".join(
        f"{format(r['more'], ',.0f') if r['more'] < 1e6 else 'over a million'} ({r['method']})" for r in ends
    )
    return Limit(
        f"Whether {len(rows)} of {len(whole) - 1} methods are worse than {comparison.baseline.label} or not",
        f"their differences may lie on either side of the margin; even odds need about {need} more episodes.",
    )


def _small(comparison: Comparison, whole: pd.DataFrame) -> Limit | None:
    judged = whole[whole["verdict"].isin(JUDGED)]
    if judged.empty:
        return None
    n, flipped = typical(judged)
    loss = power.mde(n, flipped, alpha=0.05 / len(judged))
    if loss <= comparison.margin:
        return None
    return Limit(
        "That small losses are absent", f"{detectable_loss(n, flipped, len(judged))}; smaller ones mostly go unseen."
    )


def _chance(comparison: Comparison) -> Limit | None:
    absent = [c for c in ("random", "uniform") if c not in {a.method for a in comparison.arms}]
    if len(absent) < 2 or not comparison.others:
        return None
    return Limit("That choosing tokens well matters", "no random or uniform selection was run beside them.")


def _repeats(comparison: Comparison, whole: pd.DataFrame) -> Limit | None:
    if comparison.noise is None:
        return Limit(
            "That a difference of an episode or two comes from the method",
            "no repeat of the baseline was given (--noise), so the noise of kernels and renderers is not known.",
        )
    hidden = ties(comparison, whole)
    if not hidden:
        return None
    return Limit(
        f"That {', '.join(hidden)} {'differs' if len(hidden) == 1 else 'differ'} from the baseline at all",
        "the baseline, run again, may end as many episodes otherwise.",
    )


def _time(whole: pd.DataFrame) -> Limit | None:
    if whole.attrs["shared"]:
        return Limit("Any speed", f"{whole.attrs['shared']}, so milliseconds do not compare.")
    if whole["ms"].notna().any():
        return None
    return Limit("Any speed", "no times are in this report; FLOPs say what is computed, not how long it takes.")


def _tasks(comparison: Comparison) -> Limit | None:
    count = len(comparison.tasks)
    if count >= 10:
        return None
    return Limit(
        f"Anything about tasks beside {'this one' if count == 1 else f'these {count}'}",
        "intervals count episodes, not tasks; the standard error over tasks rests on "
        + ("nothing here." if count == 1 else f"{count} of them."),
    )


def _seeds(comparison: Comparison) -> Limit | None:
    weights = {str(a.run.header.identity.get("weights")) for a in comparison.arms}
    seeds = {str(seed) for a in comparison.arms for seed in a.seeds}
    if len(weights) > 1 or len(seeds) > 1:
        return None
    return Limit("That another policy behaves the same", "one set of weights and one seed were run.")


def _unseen(comparison: Comparison) -> Limit | None:
    arms = [a.label for a in comparison.arms if not a.proved]
    if not arms:
        return None
    return Limit(f"What {', '.join(arms)} prunes, or whether", "nobody saw the layers: no token was counted (¶).")


def _marked(comparison: Comparison) -> Limit | None:
    marked = [a.marked for a in comparison.arms if a.missing or a.mixed]
    if not marked:
        return None
    return Limit(
        "A fair comparison of marked runs", f"episodes or protocol differ: {', '.join(marked)}; see the notes."
    )


def _code(comparison: Comparison) -> Limit | None:
    commits = {str(start.provenance.get("commit")) for run in comparison.runs for start in run.starts}
    loose = [c for c in commits if c == "None" or c.endswith("+")]
    if not loose and len(commits) == 1:
        return None
    why = (
        "some were made from files that differ from their commit (+)" if loose else "they were made at several commits"
    )
    return Limit("That one commit makes all of these runs again", f"{why}.")
