"""The exact test of a paired difference: its level holds at any number of episodes, however rare a change is.

Given the difference of success rates, the counts of lost and gained episodes are trinomial with one unknown left, the
rate of losses. A p-value is the largest chance, over that rate, of a score statistic as extreme as the one seen
(Barnard 1945; the statistic is Tango's 1998). Rates that the number of changed episodes excludes at a level of 1e-6 are
left out, and 1e-6 is added (Berger & Boos 1994), so that rare events decide only where events are rare.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from scipy.special import betainc, betaincinv, gammaln, xlog1py, xlogy

Counts = float | np.ndarray  # arrays share one shape
BEYOND = 1e-6  # the level at which a rate is excluded; no p-value is smaller
POINTS = 65  # rates that are tried, about a sixth of a standard error apart
MASS = 1e-10  # probability of counts of gained episodes left out on each side


def score(gained: Counts, lost: Counts, n: float, delta: float) -> tuple[np.ndarray, np.ndarray]:
    """The numerator of Tango's score and its standard error, if the true difference is delta; counts of n episodes."""
    linear = (2 * n - gained + lost) * delta - gained - lost
    root = np.sqrt(np.maximum(0.0, linear * linear + 8 * n * lost * delta * (1 - delta)))
    rate = (root - linear) / (4 * n)  # most likely rate of losses, given delta
    variance = n * (2 * rate + delta * (1 - delta))
    return np.asarray(gained - lost - n * delta), np.sqrt(np.maximum(0.0, variance))


def statistic(gained: Counts, lost: Counts, n: float, delta: float) -> np.ndarray:
    """The score in standard errors; 0 where both are 0."""
    distance, error = score(gained, lost, n, delta)
    return np.where(np.abs(distance) < 1e-12 * n, 0.0, distance / np.maximum(error, 1e-300))


@lru_cache(maxsize=4096)
def below(gained: float, lost: float, n: int, delta: float) -> float:
    """One-sided p-value of "the difference, gained - lost, is delta or more"; small where it lies far below.

    The counts of n episodes may be fractions, as in a clustered sample. The p-value of "delta or less" is that of the
    mirrored table: `below(lost, gained, n, -delta)`.
    """
    rates = _nuisance(gained + lost, n, delta)
    if not rates.size:
        return BEYOND
    seen = float(statistic(gained, lost, n, delta))
    chance = _chance(rates, n, delta, lambda g: _fewest(g, n, delta, seen))
    return min(1.0, float(chance.max()) + BEYOND)


def region(rates: np.ndarray, n: int, delta: float, fewest: np.ndarray) -> np.ndarray:
    """Chance, at each rate of losses, of at least `fewest[g]` losses and g gains, if the true difference is delta."""
    return _chance(rates, n, delta, lambda g: fewest[g])


def _nuisance(changed: float, n: int, delta: float) -> np.ndarray:
    """The rates of losses to try: those that `changed` episodes leave possible. Empty if delta is not possible."""
    low = float(betaincinv(changed, n - changed + 1, BEYOND / 2)) if changed > 0 else 0.0
    high = float(betaincinv(changed + 1, n - changed, 1 - BEYOND / 2)) if changed < n else 1.0
    low, high = max((low - delta) / 2, 0.0, -delta), min((high - delta) / 2, (1 - delta) / 2)
    if low > high:
        return np.array([])
    first, last = (math.asin(math.sqrt(rate)) for rate in (low, min(high, 1.0)))  # even steps in standard errors
    return np.clip(np.sin(np.linspace(first, last, POINTS)) ** 2, low, high)


def _fewest(gained: np.ndarray, n: int, delta: float, seen: float) -> np.ndarray:
    """For each count of gains [G], the fewest losses whose statistic is `seen` or less; else n - gained + 1."""
    low, high = np.zeros(len(gained), int), n - gained + 1
    while (low < high).any():  # the statistic falls with every loss
        middle = (low + high) // 2
        reached = statistic(gained, np.minimum(middle, n - gained), n, delta) <= seen + 1e-9 * max(1.0, abs(seen))
        open_ = low < high
        high = np.where(open_ & reached, middle, high)
        low = np.where(open_ & ~reached, middle + 1, low)
    return low


def _chance(rates: np.ndarray, n: int, delta: float, fewest: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    gain = np.clip(rates + delta, 0.0, 1.0)
    ends = [_quantile(n, float(gain.min()), -1), _quantile(n, float(gain.max()), 1)]
    gained = np.arange(ends[0], ends[1] + 1)
    need = fewest(gained)
    left = n - gained
    share = np.clip(rates / np.maximum(1 - gain, 1e-300), 0.0, 1.0)[:, None]  # losses among those not gained
    inside = (need > 0) & (need <= left)
    tail = betainc(np.where(inside, need, 1), np.where(inside, left - need + 1, 1), share)
    tail = np.where(inside, tail, np.where(need <= 0, 1.0, 0.0))
    log = gammaln(n + 1) - gammaln(gained + 1) - gammaln(left + 1)
    mass = np.exp(log + xlogy(gained, gain[:, None]) + xlog1py(left, -gain[:, None]))
    return np.asarray((mass * tail).sum(axis=1))


def _quantile(n: int, rate: float, side: int) -> int:
    """A bound that a binomial count exceeds, on one side, with a chance below `MASS` (Bernstein)."""
    reach = -np.log(MASS)
    away = reach / 3 + np.sqrt(reach * reach / 9 + 2 * reach * n * rate * (1 - rate))
    return int(np.clip(round(n * rate + side * away), 0, n))
