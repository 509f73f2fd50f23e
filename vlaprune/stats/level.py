"""How often a verdict is wrong, by enumeration: every table of n paired episodes, every rate of changes."""

from __future__ import annotations

import math

import numpy as np

from vlaprune.stats import exact
from vlaprune.stats.paired import Pairs, against


def boundary(n: int, margin: float, alpha: float = 0.05, side: int = 1) -> np.ndarray:
    """[n + 1] the fewest lost episodes, beside so many gained, that are "worse" (side 1).

    Side -1 mirrors it: the fewest gained, beside so many lost, that are "no worse".
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
    """The largest rate of that wrong verdict where the truth is on the margin, and the rate of losses it is at."""
    delta = -side * margin  # as the side sees it: side -1 has gained and lost exchanged
    low, high = (math.asin(math.sqrt(rate)) for rate in (max(0.0, -delta), (1 - delta) / 2))
    rates = np.sin(np.linspace(low, high, points)) ** 2
    chance = exact.region(rates, n, delta, boundary(n, margin, side=side))
    i = int(chance.argmax())
    return float(chance[i]), float(rates[i] if side > 0 else rates[i] + delta)
