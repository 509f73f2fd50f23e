"""`vlaprune demo`: one small comparison from episodes to a page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from vlaprune import cli


def main(argv: Sequence[str]) -> int:
    """Runs dense, FastV and random, then makes the table and the page."""
    parser = argparse.ArgumentParser(
        prog="vlaprune demo",
        description="Dense, FastV and random on a simulated robot (robosuite, ten minutes on a CPU), with a table and "
        "a page. The same command goes on where it stopped.",
    )
    parser.add_argument("--toy", action="store_true", help="on the test double instead: seconds, no simulator")
    parser.add_argument("--output", type=Path, help="folder (default: results/runs/demo, with --toy results/runs/toy)")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="as for vlaprune eval, such as episodes=5")
    args = parser.parse_args(argv)
    folder = args.output or Path("results/runs") / ("toy" if args.toy else "demo")
    where = ["model=toy", "bench=toy"] if args.toy else ["model=tiny", "bench=robosuite"]
    both = find_spec("hydra_plugins.hydra_joblib_launcher") if find_spec("hydra_plugins") else None
    side_by_side = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"] if both and not args.toy else []
    run = f"output={folder}/${{hydra:runtime.choices.method}}"
    command = ["-m", *where, "method=dense,fastv,random", "episodes=10", "logger=csv", run, *side_by_side]
    sys.argv = ["vlaprune eval", *command, *args.settings]
    cli.evaluate()
    page = folder / "report.html"
    shared = ["--untimed"] if side_by_side else []
    sys.argv = ["vlaprune report", str(folder), "--output", str(folder), "--html", str(page), *shared]
    cli.report()
    return 0
