"""Rank correlations. numpy and scipy only."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata


def rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's correlation of the last axes; NaN where one of them is the same throughout."""
    ranks = (rankdata(x, axis=-1) for x in (a, b))
    x, y = (r - r.mean(-1, keepdims=True) for r in ranks)
    norm = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return np.asarray((x * y).sum(-1) / np.where(norm > 0, norm, np.nan))


def partial_rank(a: np.ndarray, b: np.ndarray, given: np.ndarray) -> float:
    """Rank correlation of a and b [n] that `given` [n] does not explain; NaN where it explains one of them."""
    ab, ac, bc = (float(rank_correlation(x, y)) for x, y in ((a, b), (a, given), (b, given)))
    rest = (1 - ac * ac) * (1 - bc * bc)
    return float((ab - ac * bc) / np.sqrt(rest)) if rest > 1e-9 else float("nan")
