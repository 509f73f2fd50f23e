"""Rank correlations. numpy and scipy only."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata


def rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation along the last axis; NaN if one of the two is constant."""
    ranks = (rankdata(x, axis=-1) for x in (a, b))
    x, y = (r - r.mean(-1, keepdims=True) for r in ranks)
    norm = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return np.asarray((x * y).sum(-1) / np.where(norm > 0, norm, np.nan))


def partial_rank(a: np.ndarray, b: np.ndarray, given: np.ndarray) -> float:
    """Partial rank correlation of a and b [n] given `given` [n]; NaN if that explains one of them fully."""
    ab, ac, bc = (float(rank_correlation(x, y)) for x, y in ((a, b), (a, given), (b, given)))
    rest = (1 - ac * ac) * (1 - bc * bc)
    return float((ab - ac * bc) / np.sqrt(rest)) if rest > 1e-9 else float("nan")
