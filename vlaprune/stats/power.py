"""The loss that a number of paired episodes can show: power of exact McNemar, printed before a run starts."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom

from vlaprune.errors import UserError


def mcnemar_power(n: int, lost: float, gained: float, alpha: float = 0.05) -> float:
    """Return the chance that n pairs at these true rates make exact McNemar call a loss."""
    counts = np.arange(n + 1)  # number of discordant pairs
    limit = binom.ppf(alpha / 2, counts, 0.5)
    limit -= binom.cdf(limit, counts, 0.5) > alpha / 2
    called = binom.cdf(limit, counts, gained / (lost + gained))
    return float(np.sum(binom.pmf(counts, n, lost + gained) * called))


def mde(n: int, flips: float, power: float = 0.8, alpha: float = 0.05) -> float:
    """Return the smallest loss, a positive proportion, that exact McNemar on n pairs shows, or inf.

    flips  share of pairs that differ by chance, half of them lost and half gained; the loss comes on top
    """
    if n < 1 or not 0 <= flips <= 1:
        raise UserError(f"no detectable difference for n = {n}, flips = {flips}")

    def missing(loss: float) -> float:
        return mcnemar_power(n, flips / 2 + loss, flips / 2, alpha) - power

    most = 1 - flips  # a larger loss leaves no room for the flips
    return float(brentq(missing, 1e-9, most, xtol=1e-5)) if most > 1e-9 and missing(most) >= 0 else math.inf


def power_line(episodes: int, tasks: int, flips: float = 0.05) -> str:
    """Return a line on the loss that a run can show, if all its episodes on all tasks are independent."""
    losses = [100 * mde(n, flips) for n in (episodes * tasks, episodes)]
    pooled, one = (f"a loss of about {x:.1f} points" if math.isfinite(x) else "no loss of any size" for x in losses)
    line = f"with {episodes} episodes per task on {tasks} tasks you can see {pooled} (pooled), {one} (one task): "
    line += "power 0.8, alpha 0.05, "
    return (
        line + f"if {100 * flips:g} % of episodes end differently by chance, both ways alike, and the loss comes on top"
    )
