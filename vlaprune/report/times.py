"""Times of model calls as a table may show them: medians of steady calls, and how many calls they rest on.

A call is steady where it was timed alone (batch 1) and its time is not that of a compilation, a capture or a first
allocation. Temporal methods make dense and pruned calls in turn, so the median is taken among calls of one size (FLOPs
to two digits), and sizes weigh by how often they are called.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from vlaprune.records import StepRecord

STEADY = 20  # steady calls that a speed-up needs, both of the method and of the baseline
COVERED = 0.95  # share of all calls whose size must have been timed


@dataclass(frozen=True)
class Times:
    """Milliseconds of a call and of the method in it (NaN if too few sizes were timed); numbers of calls by kind."""

    ms: float
    method: float
    steady: int
    cold: int
    packed: int
    untimed: int

    @property
    def enough(self) -> bool:
        """Whether there are enough steady calls for a speed-up."""
        return self.steady >= STEADY and not math.isnan(self.ms)

    @property
    def told(self) -> str:
        """The counts in words: "27 steady (1 cold, 4 packed)"."""
        rest = [f"{n} {kind}" for kind in ("cold", "packed", "untimed") if (n := getattr(self, kind))]
        return f"{self.steady} steady" + (f" ({', '.join(rest)})" if rest else "")


def times(calls: Iterable[StepRecord]) -> Times:
    """The times of all calls of an arm."""
    sizes: dict[str, list[StepRecord]] = {}
    often: dict[str, int] = {}
    count = {"steady": 0, "cold": 0, "packed": 0, "untimed": 0}
    for call in calls:
        kind, size = _kind(call), f"{sum(call.flops.values()):.1e}"
        count[kind] += 1
        often[size] = often.get(size, 0) + 1
        if kind == "steady":
            sizes.setdefault(size, []).append(call)
    covered, every = sum(often[size] for size in sizes), sum(often.values())
    if not covered or covered < COVERED * every:
        return Times(math.nan, math.nan, **count)
    weights = {size: often[size] / covered for size in sizes}
    ms = sum(w * _median([sum(c.ms.values()) for c in sizes[size]]) for size, w in weights.items())
    own = sum(w * _median([c.ms.get("method", 0.0) for c in sizes[size]]) for size, w in weights.items())
    return Times(ms, own, **count)


def _kind(call: StepRecord) -> str:
    if not call.ms:
        return "untimed"
    if call.cold:
        return "cold"
    return "packed" if call.packed > 1 else "steady"


def _median(values: Sequence[float]) -> float:
    return float(median(values))
