"""Intervals of medians, and whether a measured speed-up is possible. numpy only."""

from __future__ import annotations

import numpy as np


def median_interval(values: np.ndarray, seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of a median."""
    rng = np.random.default_rng(seed)
    medians = np.median(rng.choice(values, (draws, len(values))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(high)


def impossible(speedup: float, flops_cut: float, tolerance: float = 0.1) -> bool:
    """Whether a speed-up is more than the share of FLOPs saved allows, even if all time were spent computing.

    Then the times do not measure the method but cold calls, other load on the machine, or a slow baseline.
    """
    return speedup > (1 + tolerance) * max(1.0, 1 / max(1e-9, 1 - flops_cut))
