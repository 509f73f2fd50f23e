"""Statistics of an audit, on paired episodes: an exact test against controls, and a share with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from vlaprune.errors import UserError
from vlaprune.stats.rates import Interval


def exchangeable(one: Sequence[bool], others: Sequence[Sequence[bool]]) -> float:
    """Return the exact two-sided p-value of "one is another draw of the others".

    one     success of each episode
    others  for each episode, success in each of the m controls

    If it is, then in an episode with s successes among these m + 1 arms, `one` has a success with chance s / (m + 1),
    independently of other episodes. So its total is Poisson binomial. The p-value is twice the smaller tail. With one
    control this is McNemar's exact test.
    """
    if len(one) != len(others) or not others or not others[0]:
        raise UserError(f"{len(one)} episodes of one arm, {len(others)} of its controls; give the same, with controls")
    chance = np.ones(1)
    for own, rest in zip(one, others, strict=True):
        p = (own + sum(rest)) / (1 + len(rest))
        chance = np.convolve(chance, [1 - p, p])
    total = sum(map(bool, one))
    return float(min(1.0, 2 * min(chance[: total + 1].sum(), chance[total:].sum())))


def normal_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The normal interval of a mean over episodes, as `share` has it. Too narrow if few values are not zero."""
    every = np.array(values, float)
    half = float(norm.ppf((1 + confidence) / 2) * every.std(ddof=1) / math.sqrt(len(every)))
    return Interval(float(every.mean()) - half, float(every.mean()) + half)


@dataclass(frozen=True)
class Share:
    """A ratio of two mean differences over the same episodes; the interval is None if no finite interval exists."""

    value: float
    interval: Interval | None


def share(gained: Sequence[float], lost: Sequence[float], confidence: float = 0.95) -> Share:
    """Return mean(gained) / mean(lost) with Fieller's interval for paired means (Fieller 1954).

    Both are differences of the same episodes, such as method - random and dense - random.
    """
    a, b, n = np.array(gained, float), np.array(lost, float), len(gained)
    if n != len(lost) or n < 2:
        raise UserError(f"a share needs two episodes and the same ones, got {n} and {len(lost)}")
    top, bottom = float(a.mean()), float(b.mean())
    value = top / bottom if bottom else math.nan
    (aa, ab), (_, bb) = np.cov(a, b) / n * float(norm.ppf((1 + confidence) / 2)) ** 2
    square, half, constant = bottom**2 - bb, top * bottom - ab, top**2 - aa
    inside = half**2 - square * constant
    if square <= 0 or inside < 0 or not aa:  # the loss may be 0, or every gain is the same: any share fits
        return Share(value, None)
    root = math.sqrt(inside)
    return Share(value, Interval((half - root) / square, (half + root) / square))
