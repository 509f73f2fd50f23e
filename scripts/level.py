"""How often a verdict is wrong, by enumeration: every table of n paired episodes, every rate of changes.

    python scripts/level.py [n ...]      default 10 24 50 100 200 400

The true difference lies on the margin, where a wrong verdict is most likely; printed is the worst rate over all rates
of lost episodes (400 of them), for "worse" and for "no worse", of one method judged alone at 95 %.
"""

from __future__ import annotations

import sys

from vlaprune.stats.level import worst

MARGINS = (0.01, 0.02, 0.05)


def main() -> None:
    """Prints a line for each n and margin."""
    print(f"{'n':>5} {'margin':>6}  {'wrong worse':>11} {'at lost':>8}  {'wrong no worse':>14} {'at lost':>8}")
    top = 0.0
    for n in map(int, sys.argv[1:] or (10, 24, 50, 100, 200, 400)):
        for margin in MARGINS:
            worse, no_worse = worst(n, margin), worst(n, margin, side=-1)
            top = max(top, worse[0], no_worse[0])
            print(
                f"{n:>5} {100 * margin:>5g}%  {100 * worse[0]:>10.2f}% {worse[1]:>8.4f}  {100 * no_worse[0]:>13.2f}% "
                f"{no_worse[1]:>8.4f}",
                flush=True,
            )
    print(f"largest {100 * top:.2f} %; promised 2.5 % on each side")


if __name__ == "__main__":
    main()
