"""The rate of wrong verdicts, by enumeration over all tables of n paired episodes and over rates of losses."""

from __future__ import annotations

import math

import numpy as np

from vlaprune.stats import exact
from vlaprune.stats.paired import Pairs, against


def boundary(n: int, margin: float, alpha: float = 0.05, side: int = 1) -> np.ndarray:
    """[n + 1] the fewest lost episodes that give the verdict "worse", for each number of gained ones (side 1).

    Side -1 is the mirror image: the fewest gained episodes that give "no worse", for each number of lost ones.
    """

    def decided(few: int, many: int) -> bool:
        lost, gained = (many, few) if side > 0 else (few, many)
        if (gained - lost) / n < -margin if side < 0 else (gained - lost) / n >= -margin:
            return False
        return against(Pairs(n - lost - gained, lost, gained, 0), margin) <= alpha

    fewest, at = [], 0
    for few in range(n + 1):
        at = min(max(at, 0), n - few + 1)
        while at > 0 and decided(few, at - 1):
            at -= 1
        while at <= n - few and not decided(few, at):
            at += 1
        fewest.append(at)
    return np.array(fewest)


def worst(n: int, margin: float, side: int = 1, points: int = 400) -> tuple[float, float]:
    """The largest rate of a wrong verdict if the true difference is on the margin, and the rate of losses there."""
    delta = -side * margin  # for side -1 gained and lost are exchanged
    low, high = (math.asin(math.sqrt(rate)) for rate in (max(0.0, -delta), (1 - delta) / 2))
    rates = np.sin(np.linspace(low, high, points)) ** 2
    chance = exact.region(rates, n, delta, boundary(n, margin, side=side))
    i = int(chance.argmax())
    return float(chance[i]), float(rates[i] if side > 0 else rates[i] + delta)
