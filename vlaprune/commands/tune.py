"""`vlaprune tune`: races the settings of a method to find the best ones with a quarter of the grid's episodes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    """Runs the race, prints its table and writes it beside the runs."""
    parser = argparse.ArgumentParser(
        prog="vlaprune tune",
        description="Which settings of a method are worth their milliseconds: every setting is replayed on recorded "
        "observations, then the promising ones run paired episodes until it is seen who is worse. The same command "
        "goes on where it stopped.",
        epilog="vlaprune tune model=tiny bench=robosuite method=fastv method.layer=1,2,3 method.keep=0.5,0.25,0.125 "
        "episodes=25",
    )
    said = "as for vlaprune eval; method.KEY=A,B,C for several"
    parser.add_argument("settings", nargs="+", metavar="KEY=VALUE", help=said)
    parser.add_argument("--output", type=Path, default=Path("results/runs/tune"), help="folder (results/runs/tune)")
    parser.add_argument("--share", type=float, default=0.25, help="of the grid's episodes that may be run (0.25)")
    parser.add_argument("--batch", type=int, default=5, help="episodes of every task between two looks (5)")
    parser.add_argument("--record", type=int, default=1, help="dense episodes of every task that are replayed (1)")
    parser.add_argument("--cost", choices=("ms", "gflops"), default="ms", help="what a setting costs (ms)")
    args = parser.parse_args(argv)
    from vlaprune.api.tune import tune

    found = tune(args.settings, args.output, args.share, args.batch, args.record, args.cost)
    text = found.markdown()
    (args.output / "tune.md").write_text(text + "\n")
    print(text, args.output / "tune.md", sep="\n\n")
    return 0
