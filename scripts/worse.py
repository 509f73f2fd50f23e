"""Which true loss a run may expect to be called "worse", and which to differ from zero: power 80 %, one method alone.

    python scripts/worse.py [n ...]      default 20 200 500 2000

5 % of the episodes end otherwise by chance, half of them lost; the loss comes on top. "Worse" by drawing 1,000 tables
for each loss, in steps of half a point.
"""

from __future__ import annotations

import sys

import numpy as np

from vlaprune.stats import paired, power

MARGINS = (0.02, 0.05)
CHANGES, DRAWS, POWER = 0.05, 1000, 0.8


def called_worse(n: int, margin: float, loss: float, seed: int = 0) -> float:
    """Share of drawn tables of n episodes in which a method with this true loss is called worse."""
    lost, gained = CHANGES / 2 + loss, CHANGES / 2
    tables = np.random.default_rng(seed).multinomial(n, [lost, gained, 1 - lost - gained], DRAWS)
    kinds, counts = np.unique(tables[:, :2], axis=0, return_counts=True)
    worse = [_worse(int(a), int(b), n, margin) for a, b in kinds]
    return float(counts[worse].sum() / DRAWS)


def _worse(lost: int, gained: int, n: int, margin: float) -> bool:
    ours = [False] * lost + [True] * (n - lost)
    dense = [True] * lost + [False] * gained + [True] * (n - lost - gained)
    pairs = paired.pair(dict(enumerate(dense)), dict(enumerate(ours)))
    return paired.verdict(pairs, margin).decision == "worse"


def main() -> None:
    """Prints a line for each n."""
    print(f"{'n':>5}  {'not zero':>8}  " + "  ".join(f"worse, margin {100 * m:g}" for m in MARGINS))
    for n in map(int, sys.argv[1:] or (20, 200, 500, 2000)):
        found = []
        for margin in MARGINS:
            losses = np.arange(margin, 0.9, 0.005)
            found.append(next((x for x in losses if called_worse(n, margin, float(x)) >= POWER), float("nan")))
        told = "  ".join(f"{100 * x:>14.1f} " for x in found)
        print(f"{n:>5}  {100 * power.mde(n, CHANGES):>8.1f}  {told}", flush=True)


if __name__ == "__main__":
    main()
