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


def mde(n: int, discordance: float, power: float = 0.8, alpha: float = 0.05) -> float:
    """Return the smallest loss, a positive proportion, that exact McNemar on n pairs shows, or inf.

    discordance  rate of pairs that disagree; a larger loss raises it to the loss itself
    """
    if n < 1 or not 0 <= discordance <= 1:
        raise UserError(f"no detectable difference for n = {n}, discordance = {discordance}")

    def missing(loss: float) -> float:
        rate = max(discordance, loss)
        return mcnemar_power(n, (rate + loss) / 2, (rate - loss) / 2, alpha) - power

    return float(brentq(missing, 1e-9, 1.0, xtol=1e-5)) if missing(1.0) >= 0 else math.inf


def power_line(episodes: int, tasks: int, discordance: float = 0.05) -> str:
    """Return a line on the loss that a run can show, if all its episodes on all tasks are independent."""
    losses = [100 * mde(n, discordance) for n in (episodes * tasks, episodes)]
    pooled, one = (f"a loss of about {x:.1f} points" if math.isfinite(x) else "no loss of any size" for x in losses)
    line = f"with {episodes} episodes per task on {tasks} tasks you can see {pooled} (pooled), {one} (one task): "
    line += "power 0.8, alpha 0.05, "
    return line + f"if {100 * discordance:g} % of episodes, or the loss if larger, end differently"
