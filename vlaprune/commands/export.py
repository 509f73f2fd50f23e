"""`vlaprune export`: recorded runs for other tools."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    """Writes the files. UserError if there is no run."""
    parser = argparse.ArgumentParser(
        prog="vlaprune export",
        description="Writes recorded runs as evaluation logs of Inspect (one JSON a run) or as a dataset folder for "
        "the Hugging Face hub (a row an episode, a row a model call).",
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders that hold some")
    parser.add_argument("--to", choices=("inspect", "hub"), required=True)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    args = parser.parse_args(argv)
    from vlaprune import report
    from vlaprune.report import export

    runs = report.find(args.runs)
    if args.to == "hub":
        print(*export.hub_folder(runs, args.output), sep="\n")
        return 0
    args.output.mkdir(parents=True, exist_ok=True)
    for number, run in enumerate(runs):
        path = args.output / f"{number:03d}-{run.folder.name}.json"
        path.write_text(json.dumps(export.inspect_log(run, runs), indent=1, default=dict) + "\n")
        print(path)
    return 0
