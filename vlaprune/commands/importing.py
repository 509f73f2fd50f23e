"""`vlaprune import`: results of another harness as a run that a report can pair with."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    """Writes a run folder. UserError if nothing can be paired."""
    parser = argparse.ArgumentParser(
        prog="vlaprune import",
        description="Writes vla-eval's results as a run that `vlaprune report --mixed` pairs by task and episode. "
        "Success, steps and seconds are known; tokens, FLOPs and milliseconds are left empty, and every table marks "
        "the row as without proof of pruning.",
        epilog="example: vlaprune import results/LIBERO_aggregate.json --like results/runs/libero/oft/fastv --output "
        "results/runs/libero/vla-eval, then vlaprune report results/runs/libero --mixed --baseline vla-eval",
    )
    parser.add_argument("results", type=Path, help="NAME_aggregate.json of vla-eval")
    parser.add_argument(
        "--like", type=Path, required=True, metavar="RUN", help="the run whose episodes it is paired with"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder of the new run")
    parser.add_argument("--name", default="vla-eval", help="what tables call it (default: vla-eval)")
    parser.add_argument(
        "--task", action="append", default=[], metavar="THEIRS=OURS", help="a task of another name, as often as needed"
    )
    args = parser.parse_args(argv)
    print(_written(args))
    return 0


def _written(args: argparse.Namespace) -> str:
    """Writes the run; returns the text to print about it."""
    from vlaprune.evaluation.loggers import CSV
    from vlaprune.evaluation.recorder import Recorder
    from vlaprune.interop import results
    from vlaprune.records import read

    found, like = results.load(args.results), read(args.like)
    told = dict(text.partition("=")[::2] for text in args.task)
    header, records = results.recorded(found, like, args.name, told)
    recorder = Recorder(args.output, header, [CSV()])
    for record in records:
        if not recorder.has(record.task, record.episode):
            recorder.write(record)
    recorder.close()
    both = sum((r.task, r.episode) in like.episodes for r in records)
    raised = f"; {len(found.failed)} raised there and are missing here" if found.failed else ""
    return f"{len(records)} episodes in {args.output}/journal.jsonl, {both} of them also in {args.like}{raised}"
