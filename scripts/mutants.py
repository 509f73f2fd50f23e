"""Which small faults the tests notice: a table by module from what mutmut left in `mutants`, and the survivors.

    python scripts/mutants.py [--output results/mutants.md]

The score is the share of mutants, among those tried, that a test or a time limit stopped. A mutant that no test
reaches counts as survived.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

NOTICED = ("killed", "timeout", "segfault", "caught by type check")


def tried(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Module, name and status of each mutant that has been tried."""
    from mutmut.stats import status_by_exit_code

    for meta in sorted(folder.rglob("*.py.meta")):
        module = ".".join(meta.relative_to(folder).with_suffix("").with_suffix("").parts)
        for name, code in json.loads(meta.read_text())["exit_code_by_key"].items():
            if code is not None:
                yield module, name, status_by_exit_code[code]


def table(mutants: Sequence[tuple[str, str, str]]) -> list[str]:
    """A row of each module and one of all."""
    lines = ["| module | mutants tried | noticed | survived | no test | score |", "|---|---|---|---|---|---|"]
    modules = sorted({module for module, _, _ in mutants})
    for module in (*modules, "all"):
        found = Counter(status for of, _, status in mutants if module in (of, "all"))
        total, noticed = found.total(), sum(found[status] for status in NOTICED)
        rest = f"{total - noticed - found['no tests']} | {found['no tests']}"
        lines.append(f"| `{module}` | {total} | {noticed} | {rest} | {100 * noticed / total:.1f} % |")
    return lines


def main() -> None:
    """Prints, writes."""
    parser = argparse.ArgumentParser(description="Which small faults the tests notice.")
    parser.add_argument("--output", type=Path, default=Path("results/mutants.md"))
    args = parser.parse_args()
    mutants = list(tried(Path("mutants")))
    if not mutants:
        raise SystemExit("mutants/ holds no results; run: make mutants ONLY='vlaprune.stats.*'")
    lines = ["# Mutants", "", "Made by `make mutants` (mutmut): small faults put into the code one at a time.", ""]
    lines += [*table(mutants), "", "Survivors (`mutmut show NAME` shows one):", ""]
    lines += [f"- `{name}`" for _, name, status in mutants if status not in (*NOTICED, "no tests")]
    args.output.write_text("\n".join(lines) + "\n")
    print("\n".join(table(mutants)))


if __name__ == "__main__":
    main()
