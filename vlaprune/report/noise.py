"""The A/A noise of a table: how often the baseline alone, run again, ends an episode differently."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vlaprune.errors import UserError
from vlaprune.records import Header, Run, differences, without
from vlaprune.stats.noise import lines, same_method
from vlaprune.stats.paired import aa_noise
from vlaprune.stats.rates import Interval


@dataclass(frozen=True)
class Noise:
    """The repeat of the baseline that differs most: rate of episodes that end differently, interval, words."""

    rate: float
    interval: Interval
    told: str

    def units(self, share: float) -> float:
        """A share of episodes in units of the noise; NaN if the repeats changed nothing."""
        return share / self.rate if self.rate else math.nan

    def hides(self, share: float) -> bool:
        """Whether a method that ends this share of episodes differently is a tie: a repeat alone may do as much."""
        return share <= self.interval.high


def measure_noise(repeats: Sequence[Run], baseline: Run) -> Noise:
    """Measures the noise. UserError if the runs are no repeats of the baseline."""
    for run in repeats:
        if differ := differences(_kind(baseline), _kind(run)):
            raise UserError(f"{run.folder} is no repeat of {baseline.folder}: {differ}")
    if not same_method(repeats):
        raise UserError(f"noise needs the baseline at least twice, got {len(repeats)} run")
    told = lines(repeats)[1:]
    found = []
    for other, line in zip(repeats[1:], told, strict=True):
        both = [key for key in repeats[0].episodes if key in other.episodes]
        then, now = ({key: run.episodes[key].success for key in both} for run in (repeats[0], other))
        found.append(Noise(*aa_noise(then, now), line))
    return max(found, key=lambda one: (one.rate, one.interval.high))


def _kind(run: Run) -> Header:
    """The settings that a repeat must share with the baseline: all but kernel and renderer."""
    same = without(run.header, "kernel").identity
    return Header({**same, "bench": {k: v for k, v in same["bench"].items() if k != "renderer"}}, {}, {})
