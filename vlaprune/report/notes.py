"""What must be said beside the numbers: footnotes of a table, and what a report does not claim."""

from __future__ import annotations

import math

import pandas as pd

from vlaprune import power
from vlaprune.report.runs import Arm, Comparison, part

JUDGED = ("no worse", "worse", "undecided")


def footnotes(comparison: Comparison, table: pd.DataFrame, untimed: str = "") -> list[str]:
    """How the verdicts of a table were reached, what it could have seen, what its marks mean."""
    whole = table[table["task"] == "all"]
    out = _verdicts(comparison, whole)
    if "lost" in whole and whole["difference_clustered"].notna().any():
        out.append(
            f"s.e. over tasks: standard error of the difference, in points, with the {len(comparison.tasks)} tasks as "
            "clusters; the intervals speak of these tasks only."
        )
    out += [f"* {a.label}: {a.missing} episodes missing." for a in comparison.arms if a.missing]
    marked = [(_why(a), a.label) for a in comparison.arms if a.mixed]
    out += [f"† {', '.join(one for said, one in marked if said == why)}: {why}." for why in dict(marked)]
    if untimed and whole["ms"].notna().any():
        out.append(f"No speed-up is given: {untimed}. --timed prints it all the same.")
    return out


def _why(arm: Arm) -> str:
    how = "paired on the episodes both have" if arm.judged else "not judged"
    return f"{part(arm.run, 'model')} on {part(arm.run, 'bench')}, {arm.mixed}; {how}"


def _verdicts(comparison: Comparison, whole: pd.DataFrame) -> list[str]:
    base = comparison.baseline
    judged = whole[whole["verdict"].isin(JUDGED)] if "verdict" in whole else whole[:0]
    if base is None or judged.empty:
        return []
    several = f", Holm over the {len(judged)} methods (per task: over that task's)" if len(judged) > 1 else ""
    n, apart = int(judged["paired"].min()), float(((judged["lost"] + judged["gained"]) / judged["paired"]).median())
    return [
        f"Verdict: method - {base.label} on the same episodes against a margin of {100 * comparison.margin:g} points, "
        f"Tango's score test at alpha 0.05{several}; worse also needs exact McNemar. Intervals are each method's own.",
        f"Power: {sees(n, apart, len(judged))}.",
    ]


def sees(n: int, apart: float, methods: int) -> str:
    """What loss n paired episodes show, at a rate of pairs that end differently and Holm's first level."""
    loss = power.mde(n, apart, alpha=0.05 / methods)
    seen = f"a loss of about {100 * loss:.1f} points" if math.isfinite(loss) else "no loss of any size"
    level = f"alpha 0.05 / {methods}" if methods > 1 else "alpha 0.05"
    return f"with {n} paired episodes, {100 * apart:.0f} % of which end differently, {seen} shows (power 0.8, {level})"
