"""Intervals, paired tests and verdicts for success rates. numpy and scipy only.

Counts are episodes. Rates, differences and margins are proportions (0.02 = two points), and a
difference is method - dense: a loss is negative. Bad input raises ValueError in one line.
What a run could show is in `power`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaln
from scipy.stats import binomtest, norm

Key = TypeVar("Key", bound=Hashable)  # of an episode


@dataclass(frozen=True)
class Interval:
    """A confidence interval of a rate or of a difference of rates."""

    low: float
    high: float


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Return the Wilson score interval of a success rate, the default (Wilson 1927)."""
    return _proportion(successes, n, confidence, "wilson")


def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Return the exact interval of a success rate, never too narrow (Clopper & Pearson 1934)."""
    return _proportion(successes, n, confidence, "exact")


def _proportion(successes: int, n: int, confidence: float, method: str) -> Interval:
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"no success rate of {successes} out of {n} episodes")
    found = binomtest(successes, n).proportion_ci(confidence, method)
    return Interval(float(found.low), float(found.high))


@dataclass(frozen=True)
class Pairs:
    """A 2x2 table of the same episodes run dense and with the method; counts of episodes."""

    both: int
    lost: int  # only dense succeeded
    gained: int  # only the method succeeded
    neither: int

    def __post_init__(self) -> None:
        """Refuse an empty table and negative counts."""
        if min(self.both, self.lost, self.gained, self.neither) < 0 or self.n < 1:
            raise ValueError(f"paired counts must be >= 0 and hold an episode: {self}")

    @property
    def n(self) -> int:
        """Number of paired episodes."""
        return self.both + self.lost + self.gained + self.neither

    @property
    def difference(self) -> float:
        """Success rate of the method minus that of dense."""
        return (self.gained - self.lost) / self.n


def pair(dense: Mapping[Key, bool], method: Mapping[Key, bool]) -> Pairs:
    """Count a method against dense, episode by episode; both must hold the same episodes."""
    if dense.keys() != method.keys():
        absent, extra = len(dense.keys() - method.keys()), len(method.keys() - dense.keys())
        raise ValueError(f"not the same episodes: method lacks {absent}, dense lacks {extra}")
    count = Counter((bool(dense[key]), bool(method[key])) for key in dense)
    return Pairs(count[True, True], count[True, False], count[False, True], count[False, False])


def mcnemar_exact(pairs: Pairs) -> float:
    """Return the two-sided exact McNemar p-value: are losses and gains equally likely?"""
    discordant = pairs.lost + pairs.gained
    return float(binomtest(pairs.lost, discordant).pvalue) if discordant else 1.0


def newcombe(pairs: Pairs, confidence: float = 0.95) -> Interval:
    """Return the interval of the paired difference (Newcombe 1998, method 8); see `verdict`."""
    a, b, c, d, n = pairs.both, pairs.gained, pairs.lost, pairs.neither, pairs.n
    p1, p2 = (a + b) / n, (a + c) / n
    one, two = wilson(a + b, n, confidence), wilson(a + c, n, confidence)
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    phi = (a * d - b * c) / math.sqrt(margins) if margins else 0.0
    down, up = (p1 - one.low, two.high - p2), (one.high - p1, p2 - two.low)
    reach = [math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y)) for x, y in (down, up)]
    return Interval(p1 - p2 - reach[0], p1 - p2 + reach[1])


def tango(pairs: Pairs, confidence: float = 0.95) -> Interval:
    """Return the score interval of the paired difference (Tango 1998, Stat. Med. 17:891)."""
    z = float(norm.ppf((1 + confidence) / 2))

    def low(gained: int, lost: int) -> float:
        def excess(delta: float) -> float:
            distance, error = _score(gained, lost, pairs.n, delta)
            return distance - z * error

        # At the estimate the score may be 0/0, so the search ends just beside it.
        return float(brentq(excess, -1.0, (gained - lost) / pairs.n - 1e-9))

    return Interval(low(pairs.gained, pairs.lost), -low(pairs.lost, pairs.gained))


def _score(gained: int, lost: int, n: int, delta: float) -> tuple[float, float]:
    """Return Tango's numerator and its standard error, were the true difference delta."""
    linear = (2 * n - gained + lost) * delta - gained - lost
    root = math.sqrt(max(0.0, linear * linear + 8 * n * lost * delta * (1 - delta)))
    lost_rate = (root - linear) / (4 * n)  # most likely rate of losses, given delta
    variance = n * (2 * lost_rate + delta * (1 - delta))
    return gained - lost - n * delta, math.sqrt(max(0.0, variance))


def holm(pvalues: Sequence[float]) -> list[float]:
    """Return p-values adjusted for being several, in the given order (Holm 1979)."""
    p = np.array(pvalues, dtype=float)
    order, adjusted = np.argsort(p), np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [float(value) for value in adjusted]


def clustered_error(tasks: Mapping[str, Pairs | tuple[int, int]]) -> float:
    """Return the standard error of a pooled rate or difference whose episodes cluster in tasks.

    A task is (successes, episodes), or Pairs. Scaled by C / (C - 1) for C tasks, as inspect_ai's
    `stderr(cluster=)`; use with t of C - 1 degrees. 0 if all tasks agree: show Wilson beside it.
    """
    rows = [(t.gained - t.lost, t.n) if isinstance(t, Pairs) else t for t in tasks.values()]
    if len(rows) < 2 or min(n for _, n in rows) < 1:
        raise ValueError(f"a clustered error needs two tasks with episodes, got {dict(tasks)}")
    total, n = np.array(rows, dtype=float).T
    residuals = total - n * total.sum() / n.sum()
    return math.sqrt(len(rows) / (len(rows) - 1) * (residuals**2).sum()) / float(n.sum())


@dataclass(frozen=True)
class Verdict:
    """What a paired comparison allows to be said at a margin, and `words` to say it."""

    decision: Literal["no worse", "worse", "undecided"]
    interval: Interval  # Tango, of method - dense, of this method alone
    p: float  # exact McNemar
    adjusted: float  # p-value of the decision, made for as many methods as were judged together (Holm)
    more: int  # episodes still needed, 0 once decided
    words: str


def verdict(pairs: Pairs, margin: float, confidence: float = 0.95) -> Verdict:
    """Judge one method, once, after a fixed number of episodes: `verdicts` of one."""
    return verdicts([pairs], margin, confidence)[0]


def verdicts(several: Sequence[Pairs], margin: float, confidence: float = 0.95) -> list[Verdict]:
    """Judge methods together: the chance of any wrong decision among them is at most 1 - confidence.

    Tango's score test of "the difference is -margin", Holm over the methods. "No worse" if it is rejected and the
    difference lies above, "worse" if below and exact McNemar agrees (the score is too bold on few episodes). For one
    method this is Tango's interval against -margin; not Newcombe's, which may be 0 wide on two episodes.
    """
    if not 0 <= margin < 1:
        raise ValueError(f"a margin is a proportion in [0, 1), got {margin}")
    alpha = 1 - confidence
    ps = [_against(pairs, margin) for pairs in several]
    adjusted = holm(ps)
    level = alpha / max(1, sum(p > alpha for p in adjusted))  # Holm's, for whichever is decided next
    return [
        _say(pairs, margin, confidence, p, held, level) for pairs, p, held in zip(several, ps, adjusted, strict=True)
    ]


def _against(pairs: Pairs, margin: float) -> float:
    """Return the two-sided p-value of "the difference is -margin", of McNemar too where it lies below."""
    distance, error = _score(pairs.gained, pairs.lost, pairs.n, -margin)
    p = 2 * float(norm.sf(abs(distance) / error)) if error else 1.0
    return max(p, mcnemar_exact(pairs)) if distance < 0 else p


def _say(pairs: Pairs, margin: float, confidence: float, p: float, adjusted: float, level: float) -> Verdict:
    """Return the verdict; to be decided at even odds, the score, which grows as sqrt(n), must reach that of level."""
    interval, exact = tango(pairs, confidence), mcnemar_exact(pairs)
    found = f"{100 * pairs.difference:+.1f} points, {100 * confidence:g} % interval "
    found += f"[{100 * interval.low:+.1f}, {100 * interval.high:+.1f}], margin {100 * margin:g}, "
    found += f"n = {pairs.n}, lost {pairs.lost}, gained {pairs.gained}, McNemar p = {exact:.2g}"
    if adjusted <= 1 - confidence:
        decision: Literal["no worse", "worse"] = "no worse" if pairs.difference > -margin else "worse"
        return Verdict(decision, interval, exact, adjusted, 0, f"{decision}: {found}")
    z, score = (float(norm.isf(x / 2)) for x in (level, p))
    more = max(1, math.ceil(pairs.n * ((z / max(score, 1e-4)) ** 2 - 1)))
    about = f"about {round(more, 2 - len(str(more))):,}" if more < 1e6 else "over a million"
    words = f"undecided ({about} more episodes, for even odds, at these rates): {found}"
    return Verdict("undecided", interval, exact, adjusted, more, words)


def aa_floor(first: Mapping[Key, bool], second: Mapping[Key, bool]) -> tuple[float, Interval]:
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
