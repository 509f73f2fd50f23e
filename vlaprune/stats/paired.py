"""Intervals, paired tests and verdicts for success rates. numpy and scipy only.

Counts are episodes. Rates, differences and margins are proportions (0.02 = two points), and a
difference is method - dense: a loss is negative. Bad input raises UserError in one line.
`power` has the loss that a run can show.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaln
from scipy.stats import binomtest, norm

from vlaprune.errors import UserError
from vlaprune.stats.exact import below, score
from vlaprune.stats.rates import Interval, design_effect, wilson

Key = TypeVar("Key", bound=Hashable)  # names an episode
SEARCHED = 3000  # largest number of episodes for which the exact test is searched


@dataclass(frozen=True)
class Pairs:
    """A 2x2 table of the same episodes run dense and with the method; counts of episodes.

    design  with several seeds: design effect, the factor by which changes of one (task, episode) repeat each other
    net     with several seeds: number of (task, episode) that lost more often than they gained, and of the opposite
    """

    both: int
    lost: int  # only dense succeeded
    gained: int  # only the method succeeded
    neither: int
    design: float = 1.0
    net: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Refuse an empty table and negative counts."""
        if min(self.both, self.lost, self.gained, self.neither) < 0 or self.n < 1:
            raise UserError(f"paired counts must be >= 0 and hold an episode: {self}")

    @property
    def n(self) -> int:
        """Number of paired episodes."""
        return self.both + self.lost + self.gained + self.neither

    @property
    def difference(self) -> float:
        """Success rate of the method minus that of dense."""
        return (self.gained - self.lost) / self.n

    @property
    def effective(self) -> tuple[float, float, int]:
        """Gained, lost and n of independent episodes with the same information; with one seed, the counts."""
        n = max(1, int(self.n / self.design + 1e-9))
        return self.gained * n / self.n, self.lost * n / self.n, n


def pair(
    dense: Mapping[Key, bool], method: Mapping[Key, bool], cluster: Callable[[Key], Hashable] | None = None
) -> Pairs:
    """Count a method against dense, episode by episode; both must hold the same episodes.

    cluster  key -> name of its cluster, such as (task, episode) for several seeds
    """
    if dense.keys() != method.keys():
        absent, extra = len(dense.keys() - method.keys()), len(method.keys() - dense.keys())
        raise UserError(f"not the same episodes: method lacks {absent}, dense lacks {extra}")
    count = Counter((bool(dense[key]), bool(method[key])) for key in dense)
    found = Pairs(count[True, True], count[True, False], count[False, True], count[False, False])
    groups: dict[Hashable, list[int]] = {}
    for key in dense if cluster else ():
        assert cluster is not None
        groups.setdefault(cluster(key), []).append(bool(method[key]) - bool(dense[key]))
    if len(groups) in (0, len(dense)):
        return found
    net = sum(sum(g) < 0 for g in groups.values()), sum(sum(g) > 0 for g in groups.values())
    return replace(found, design=design_effect(groups.values()), net=net)


def mcnemar_exact(pairs: Pairs) -> float:
    """Return the two-sided exact McNemar p-value: are losses and gains equally likely?

    With several seeds a (task, episode) counts once, by the sign of its net change.
    """
    lost, gained = pairs.net or (pairs.lost, pairs.gained)
    return float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0


def tango(pairs: Pairs, confidence: float = 0.95) -> Interval:
    """Return the score interval of the paired difference (Tango 1998, Stat. Med. 17:891)."""
    z = float(norm.ppf((1 + confidence) / 2))
    gained, lost, n = pairs.effective

    def low(gained: float, lost: float) -> float:
        def excess(delta: float) -> float:
            distance, error = score(gained, lost, n, delta)
            return float(distance - z * error)

        # At the estimate the score may be 0/0, so the search ends just beside it.
        return float(brentq(excess, -1.0, (gained - lost) / n - 1e-9))

    return Interval(low(gained, lost), -low(lost, gained))


def holm(pvalues: Sequence[float]) -> list[float]:
    """Return p-values adjusted for multiple tests, in the given order (Holm 1979)."""
    p = np.array(pvalues, dtype=float)
    order, adjusted = np.argsort(p), np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [float(value) for value in adjusted]


def clustered_error(tasks: Mapping[str, tuple[int, int]]) -> float:
    """Return the standard error of a pooled rate or difference whose episodes cluster in tasks.

    A task is (successes, or episodes gained less those lost; episodes). Scaled by C / (C - 1) for C tasks, as
    inspect_ai's `stderr(cluster=)`; use with t of C - 1 degrees. 0 if all tasks agree: show Wilson beside it.
    """
    rows = list(tasks.values())
    if len(rows) < 2 or min(n for _, n in rows) < 1:
        raise UserError(f"a clustered error needs two tasks with episodes, got {dict(tasks)}")
    total, n = np.array(rows, dtype=float).T
    residuals = total - n * total.sum() / n.sum()
    return math.sqrt(len(rows) / (len(rows) - 1) * (residuals**2).sum()) / float(n.sum())


@dataclass(frozen=True)
class Verdict:
    """The verdict of a paired comparison at a margin, with its numbers, and in `words`."""

    decision: Literal["no worse", "worse", "undecided"]
    interval: Interval  # Tango, method - dense, not adjusted for other methods
    held: Interval  # at Holm's level for this method: it excludes -margin exactly if there is a decision
    p: float  # exact McNemar
    adjusted: float  # p-value of the decision, adjusted over the methods judged together (Holm)
    more: int  # episodes still needed, 0 once decided
    words: str


def verdict(pairs: Pairs, margin: float, confidence: float = 0.95) -> Verdict:
    """Judge one method, once, after a fixed number of episodes: `verdicts` of one."""
    return verdicts([pairs], margin, confidence)[0]


def verdicts(several: Sequence[Pairs], margin: float, confidence: float = 0.95) -> list[Verdict]:
    """Judge methods together: the chance of any wrong decision among them is at most 1 - confidence.

    The exact test of "the difference is -margin" (`exact.below`), both sides, Holm over the methods. "No worse" if it
    is rejected and the difference lies above, "worse" if below and exact McNemar agrees.
    """
    if not 0 <= margin < 1:
        raise UserError(f"a margin is a proportion in [0, 1), got {margin}")
    alpha = 1 - confidence
    ps = [against(pairs, margin) for pairs in several]
    adjusted = holm(ps)
    undecided = sum(p > alpha for p in adjusted)
    levels = [0.0] * len(ps)
    for rank, i in enumerate(np.argsort(ps, kind="stable")):
        levels[i] = alpha / max(len(ps) - rank, undecided)
    return [_say(pairs, margin, confidence, *told) for pairs, *told in zip(several, adjusted, levels, strict=True)]


def against(pairs: Pairs, margin: float) -> float:
    """Return the two-sided p-value of "the difference is -margin"; if it lies below, McNemar's if that is larger."""
    if pairs.difference < -margin:
        return max(_beside(*pairs.effective, margin), mcnemar_exact(pairs))
    return _beside(*pairs.effective, margin)


def _beside(gained: float, lost: float, n: int, margin: float) -> float:
    """Return the two-sided exact p-value of "the difference is -margin"."""
    under = (gained - lost) / n < -margin
    return min(1.0, 2 * (below(gained, lost, n, -margin) if under else below(lost, gained, n, margin)))


def _held(tango: Interval, decision: str, margin: float) -> Interval:
    """The score interval, with its end moved to the margin if the exact test at the margin disagrees."""
    if decision == "no worse":
        return Interval(max(tango.low, -margin), tango.high)
    if decision == "worse":
        return Interval(tango.low, min(tango.high, -margin))
    return Interval(min(tango.low, -margin), max(tango.high, -margin))


def _say(pairs: Pairs, margin: float, confidence: float, adjusted: float, level: float) -> Verdict:
    """Return the verdict at Holm's level for this method."""
    interval, exact = tango(pairs, confidence), mcnemar_exact(pairs)
    decision: Literal["no worse", "worse", "undecided"] = "undecided"
    if adjusted <= 1 - confidence:
        decision = "no worse" if pairs.difference > -margin else "worse"
    held = _held(tango(pairs, 1 - level), decision, margin)
    found = f"{100 * pairs.difference:+.1f} points, {100 * (1 - level):.4g} % interval "
    found += f"[{100 * held.low:+.1f}, {100 * held.high:+.1f}], margin {100 * margin:g}, "
    found += f"n = {pairs.n}, lost {pairs.lost}, gained {pairs.gained}, McNemar p = {exact:.2g}"
    if decision != "undecided":
        return Verdict(decision, interval, held, exact, adjusted, 0, f"{decision}: {found}")
    more = _more(pairs, margin, level)
    about = f"about {round(more, 2 - len(str(more))):,}" if more < 1e6 else "over a million"
    words = f"undecided ({about} more episodes, for even odds, at these rates): {found}"
    return Verdict("undecided", interval, held, exact, adjusted, more, words)


def _more(pairs: Pairs, margin: float, level: float) -> int:
    """Return the further episodes for a verdict at even odds: those after which these rates decide, to 1 %.

    The score grows as sqrt(n); if this gives at most `SEARCHED` episodes, the exact test decides.
    """
    gained, lost, n = pairs.effective
    scale = pairs.n / n
    distance, error = score(gained, lost, n, -margin)
    growth = (float(norm.isf(level / 2)) * float(error) / max(abs(float(distance)), 1e-9)) ** 2
    if growth * n > SEARCHED:
        return math.ceil(pairs.n * (min(growth, 1e9) - 1))

    def decides(total: int) -> bool:
        more = total / n
        if _beside(gained * more, lost * more, total, margin) > level:
            return False
        changed = Pairs(0, round(lost * more), round(gained * more), 1)
        return pairs.difference >= -margin or mcnemar_exact(changed) <= level

    few, many = n, max(n + 1, math.ceil(growth * n))
    while not decides(many) and many < 2 * SEARCHED:
        few, many = many, many + max(1, many // 4)
    while many - few > max(1, many // 100):
        middle = (few + many) // 2
        few, many = (few, middle) if decides(middle) else (middle, many)
    return max(1, math.ceil(many * scale) - pairs.n)


def aa_noise(first: Mapping[Key, bool], second: Mapping[Key, bool]) -> tuple[float, Interval]:
    """Return how often two dense runs of the same episodes disagree, a rate, and its interval."""
    pairs = pair(first, second)
    discordant = pairs.lost + pairs.gained
    return discordant / pairs.n, wilson(discordant, pairs.n)


def e_process(lost: int, gained: int) -> float:
    """Return the natural log of e against "a discordant pair is lost or gained by a fair coin".

    e = 2**(l + g) * B(l + 1, g + 1): a uniform mixture of bets. Look after every episode.
    """
    return (lost + gained) * math.log(2) + float(betaln(lost + 1, gained + 1))


@dataclass(frozen=True)
class EProcess:
    """A monitor to stop an arm early: `state = state.after(dense, method)` until `stopped`."""

    alpha: float = 0.05
    lost: int = 0
    gained: int = 0
    peak: float = 0.0  # largest log e so far

    def after(self, dense: bool, method: bool) -> EProcess:
        """Return the state after one more paired episode."""
        lost, gained = self.lost + (dense and not method), self.gained + (method and not dense)
        return EProcess(self.alpha, lost, gained, max(self.peak, e_process(lost, gained)))

    @property
    def stopped(self) -> bool:
        """Whether a difference was seen; P(ever) <= alpha if there is none (Ville 1939)."""
        return self.peak >= -math.log(self.alpha)
