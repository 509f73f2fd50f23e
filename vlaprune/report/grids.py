"""Two grids of a page: success of every method on every task, and every method against every other."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import pandas as pd

from vlaprune.report.runs import Arm, Comparison
from vlaprune.report.tables import pairs, shared_episodes
from vlaprune.stats.paired import holm, mcnemar_exact

DEEPEST = 50.0  # points of difference at which a colour is deepest


@dataclass(frozen=True)
class Shade:
    """A coloured cell: text, second line, sort value, colour name and depth (percent), whether it is emphasised."""

    text: str
    under: str = ""
    value: float | str = ""
    hue: str = ""
    depth: int = 0
    strong: bool = False


def shade(points: float) -> tuple[str, int]:
    """The colour of a difference in points, and its depth in percent."""
    return ("good" if points > 0 else "bad"), round(70 * min(1.0, abs(points) / DEEPEST))


def heat(comparison: Comparison, table: pd.DataFrame) -> list[tuple[Arm, list[Shade]]]:
    """A row per arm, a cell per task: success, lost and gained; coloured by the difference to the baseline."""
    found = {(r.method, r.task): r for r in table.itertuples()}
    out = []
    for arm in comparison.arms:
        cells = []
        for task in comparison.tasks:
            r = found.get((arm.marked, task))
            if r is None:
                cells.append(Shade("", value=-1.0))
                continue
            flips = f" · -{r.lost:.0f} +{r.gained:.0f}" if r.lost + r.gained > 0 else ""
            hue, depth = shade(100 * r.difference) if pd.notna(r.difference) else ("accent", round(40 * r.rate))
            under = f"{r.success}/{r.episodes}{flips}"
            cells.append(Shade(f"{100 * r.rate:.0f}", under, r.rate, hue, depth))
        out.append((arm, cells))
    return out


def versus(comparison: Comparison) -> list[tuple[Arm, list[Shade]]]:
    """A grid of paired differences: the row's success minus the column's, in points, on the episodes that both have.

    A cell is `strong` if exact McNemar, adjusted over all pairs of methods (Holm), finds a difference at 5 %. A run
    that a rule ended, or that differs in more than the method, is not tested.
    """
    arms = comparison.arms
    keys = {(a.label, b.label): shared_episodes(a, b) for a, b in combinations(arms, 2)}
    found = {(a.label, b.label): pairs(a, b, own) for a, b in combinations(arms, 2) if (own := keys[a.label, b.label])}
    fixed = {a.label for a in arms if a.judged}
    tested = [key for key in found if fixed.issuperset(key)]
    held = dict(zip(tested, holm([mcnemar_exact(found[key]) for key in tested]), strict=True))
    return [(row, [_against(row, column, found, held) for column in arms]) for row in arms]


def _against(row: Arm, column: Arm, found: dict, held: dict) -> Shade:  # type: ignore[type-arg]
    for key, sign in (((row.label, column.label), 1), ((column.label, row.label), -1)):
        if key in found:
            pair = found[key]  # its difference is that of the first label in the key
            points = 100 * sign * pair.difference
            hue, depth = shade(points)
            p = held.get(key)
            judged = "not tested" if p is None else f"p {p:.2g}"
            told = f"{pair.n} episodes, {pair.lost + pair.gained} end otherwise, {judged}"
            strong = p is not None and p <= 0.05
            return Shade(f"{points:+.1f}" if points else "0", told, points, hue, depth, strong)
    return Shade("", value="")


def ordered(table: pd.DataFrame) -> list[str]:
    """Marked names of the arms by their effect: the baseline, then the largest difference first."""
    if table["difference"].isna().all():
        return list(table.sort_values("rate", ascending=False, kind="stable")["method"])
    first = table["difference"].isna() & table["verdict"].isna()
    rank = table["difference"].fillna(-9.0).where(~first, 9.0)
    return list(table["method"].iloc[rank.argsort(kind="stable")[::-1]])
