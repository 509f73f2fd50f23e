"""Which small faults the tests notice: a table by module from what mutmut left in `mutants`, and the survivors.

    python scripts/mutants.py [--output results/mutants.md]
    python scripts/mutants.py --draw 20

The score is the share of mutants, among those tried, that a test or a time limit stopped. A mutant that no test
reaches counts as survived. All mutants take hours, so `--draw` names a random part of each module's, the same ones on
every day; of a part the score has an interval (Wilson, 95 %), and that of all modules weighs each by its mutants.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vlaprune.stats.rates import Interval, wilson

NOTICED = ("killed", "timeout", "segfault", "caught by type check")


class Mutant(NamedTuple):
    """One small fault: its module, its name, and what became of it; None while it has not been tried."""

    module: str
    name: str
    status: str | None

    @property
    def noticed(self) -> bool:
        """Whether a test or a time limit stopped it."""
        return self.status in NOTICED


def mutants(folder: Path) -> list[Mutant]:
    """All mutants that mutmut made."""
    from mutmut.stats import status_by_exit_code

    out = []
    for meta in sorted(folder.rglob("*.py.meta")):
        module = ".".join(meta.relative_to(folder).with_suffix("").with_suffix("").parts)
        codes = json.loads(meta.read_text())["exit_code_by_key"]
        out += [Mutant(module, n, None if code is None else status_by_exit_code[code]) for n, code in codes.items()]
    return out


def table(made: Sequence[Mutant]) -> list[str]:
    """A row of each module of which mutants were tried, and one of all of these modules."""
    lines = ["| module | mutants | tried | noticed | survived | no test | score, % |", "|---|---|---|---|---|---|---|"]
    modules = {m.module: [other for other in made if other.module == m.module] for m in made if m.status is not None}
    whole = [mutant for own in modules.values() for mutant in own]
    rate = variance = 0.0
    for module, own in modules.items():
        tried = [m for m in own if m.status is not None]
        noticed, weight = sum(m.noticed for m in tried), len(own) / len(whole)
        lines.append(_row(module, own, noticed / len(tried), wilson(noticed, len(tried))))
        rate += weight * noticed / len(tried)
        left = 1 - len(tried) / len(own)
        variance += left * weight**2 * noticed * (len(tried) - noticed) / len(tried) ** 3
    spread = 1.96 * math.sqrt(variance)
    return [*lines, _row("all", whole, rate, Interval(max(0.0, rate - spread), min(1.0, rate + spread)))]


def _row(name: str, own: Sequence[Mutant], rate: float, bounds: Interval) -> str:
    tried = [m for m in own if m.status is not None]
    noticed, unseen = sum(m.noticed for m in tried), sum(m.status == "no tests" for m in tried)
    part = f" [{100 * bounds.low:.1f}, {100 * bounds.high:.1f}]" if len(tried) < len(own) else ""
    counts = f"{len(own)} | {len(tried)} | {noticed} | {len(tried) - noticed - unseen} | {unseen}"
    return f"| `{name}` | {counts} | {100 * rate:.1f}{part} |"


def drawn(folder: Path, most: int) -> list[str]:
    """Names of up to `most` mutants of each module, at random but the same ones every time."""
    names = []
    for meta in sorted(folder.rglob("*.py.meta")):
        own = sorted(json.loads(meta.read_text())["exit_code_by_key"])
        names += random.Random(len(own)).sample(own, min(most, len(own)))
    return names


def main() -> None:
    """Prints, writes."""
    parser = argparse.ArgumentParser(description="Which small faults the tests notice.")
    parser.add_argument("--output", type=Path, default=Path("results/mutants.md"))
    parser.add_argument(
        "--draw", type=int, metavar="N", help="print the names of N mutants of each module, and no more"
    )
    args = parser.parse_args()
    if args.draw:
        print("\n".join(drawn(Path("mutants"), args.draw)))
        return
    made = mutants(Path("mutants"))
    if not any(m.status for m in made):
        raise SystemExit("mutants/ holds no results; run: make mutants ONLY='vlaprune.stats.*'")
    lines = ["# Mutants", "", "Made by `make mutants` (mutmut): small faults put into the code one at a time.", ""]
    lines += [*table(made), "", "Survivors (`mutmut show NAME` shows one):", ""]
    lines += [f"- `{m.name}`" for m in made if m.status not in (None, "no tests") and not m.noticed]
    args.output.write_text("\n".join(lines) + "\n")
    print("\n".join(table(made)))


if __name__ == "__main__":
    main()
