"""Intervals and means of success rates; an episode run under several seeds is one cluster. numpy and scipy only.

Bad input raises UserError in one line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv
from scipy.stats import norm, t

from vlaprune.errors import UserError


@dataclass(frozen=True)
class Interval:
    """A confidence interval of a rate or of a difference of rates."""

    low: float
    high: float


def wilson(successes: int, n: int, confidence: float = 0.95, design: float = 1.0) -> Interval:
    """The Wilson score interval of a success rate, the default (Wilson 1927); `design` as in `design_effect`."""
    rate, many = _rate(successes, n, design)
    z = float(norm.isf((1 - confidence) / 2))
    middle, reach = rate + z * z / (2 * many), z * math.sqrt(rate * (1 - rate) / many + z * z / (4 * many * many))
    low, high = ((middle + sign * reach) / (1 + z * z / many) for sign in (-1, 1))
    return Interval(0.0 if successes == 0 else low, 1.0 if successes == n else high)


def clopper_pearson(successes: int, n: int, confidence: float = 0.95, design: float = 1.0) -> Interval:
    """The exact interval of a success rate, never too narrow (Clopper & Pearson 1934)."""
    rate, many = _rate(successes, n, design)
    won, tail = rate * many, (1 - confidence) / 2
    low = float(betaincinv(won, many - won + 1, tail)) if successes else 0.0
    return Interval(low, float(betaincinv(won + 1, many - won, 1 - tail)) if successes < n else 1.0)


def _rate(successes: int, n: int, design: float) -> tuple[float, float]:
    """The rate, and the number of independent episodes with the same information (n / design)."""
    if n < 1 or not 0 <= successes <= n:
        raise UserError(f"no success rate of {successes} out of {n} episodes")
    return successes / n, n / design


def design_effect(clusters: Iterable[Sequence[float]]) -> float:
    """The factor by which clusters enlarge the variance of a mean, at least 1 (Kish 1965).

    A cluster holds the values of one (task, episode) under every seed. One more cluster, in which all seeds change
    together, is added, so that a sample without any change does not count as independent. 1 with one seed.
    """
    groups = [np.asarray(values, float) for values in clusters]
    several = max((len(g) for g in groups), default=1)
    if several < 2:
        return 1.0
    every = np.concatenate(groups)
    centre = every.mean()
    among = sum(float((g - centre).sum()) ** 2 for g in groups) + several**2
    within = float(((every - centre) ** 2).sum()) + several
    return max(1.0, among / within)


def mean_of_tasks(tasks: Sequence[tuple[int, int]]) -> tuple[float, Interval]:
    """The unweighted mean rate over tasks (successes, episodes), with a 95 % interval over episodes.

    It is Wilson's interval of the pooled episodes if tasks have equally many. Else it is the normal interval of a mean
    of rates; two successes and two failures are added to each rate in its error (Agresti and Coull 1998), so that a
    task without a failure has a spread.
    """
    rates = [won / n for won, n in tasks]
    rate = sum(rates) / len(rates)
    if len({n for _, n in tasks}) == 1:
        return rate, wilson(sum(won for won, _ in tasks), sum(n for _, n in tasks))
    seen = [((won + 2) / (n + 4), n) for won, n in tasks]
    error = math.sqrt(sum(p * (1 - p) / (n + 4) for p, n in seen)) / len(rates)
    return rate, Interval(max(0.0, rate - 1.96 * error), min(1.0, rate + 1.96 * error))


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, Interval]:
    """The mean of some values with Student's interval. One value gives an infinite interval, none gives NaN."""
    if not values:
        return float("nan"), Interval(float("nan"), float("nan"))
    middle = float(np.mean(values))
    if len(values) < 2:
        return middle, Interval(-np.inf, np.inf)
    reach = float(t.ppf((1 + confidence) / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return middle, Interval(middle - reach, middle + reach)


RARE = 3.0  # changes that are added to the spread, see `mean_change`


def mean_change(strata: Sequence[Sequence[float]]) -> tuple[float, Interval]:
    """The unweighted mean over independent strata of their mean changes of success, with its 95 % interval.

    strata  for each stratum the changes of its clusters, from -1 to 1 (differences of differences: from -2 to 2)

    Student's interval with Welch's degrees of freedom. Three more changes than were seen are added to the spread: if
    changes are rare, few or none are seen, and their spread is too small. The added ones are as large as those seen
    (root mean square), or 1 if none was seen: with none in n clusters the interval reaches to 3.5 / n, not 0. It is
    infinite if a stratum has fewer than two clusters.
    """
    middle = float(np.mean([np.mean(own) for own in strata]))
    if min(map(len, strata)) < 2:
        return middle, Interval(-np.inf, np.inf)
    sizes = np.array([len(own) for own in strata])
    seen = np.array([value for own in strata for value in own if value])
    unseen = RARE * (float((seen**2).mean()) if len(seen) else 1.0) / len(strata)
    spread = np.array([float(((np.asarray(own) - np.mean(own)) ** 2).sum()) for own in strata]) + unseen
    squares = spread / (sizes - 1) / sizes
    freedom = squares.sum() ** 2 / (squares**2 / (sizes - 1)).sum()
    reach = float(t.ppf(0.975, freedom) * np.sqrt(squares.sum()) / len(strata))
    return middle, Interval(middle - reach, middle + reach)
