"""The command vlaprune-report: tables on the terminal and in files, one page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vlaprune.report import audits, conditions, delay, suites
from vlaprune.report.runs import compare, find
from vlaprune.report.tables import tabulate, without_times
from vlaprune.report.text import below, terminal, write
from vlaprune.stats.markdown import TERMINAL


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    out = argparse.ArgumentParser(prog="vlaprune-report", description="Side-by-side tables from recorded runs.")
    out.add_argument("runs", nargs="+", type=Path, help="run folders, or folders that hold some")
    out.add_argument("--baseline", default="dense", help="label of the arm that others are paired with")
    out.add_argument(
        "--audit", action="store_true", help="what criteria are worth (experiment=audit); NAME.{md,csv,html}"
    )
    out.add_argument("--tasks", action="store_true", help="one row per task as well")
    out.add_argument("--wide", action="store_true", help="every column, however long the lines become")
    out.add_argument(
        "--columns",
        type=lambda text: text.split(","),
        default=[],
        metavar="A,B",
        help="these columns of --wide",
    )
    out.add_argument("--untimed", action="store_true", help="no milliseconds")
    out.add_argument("--timed", action="store_true", help="milliseconds even of runs that shared their machine")
    out.add_argument("--partial", action="store_true", help="show runs with episodes missing, marked with *")
    out.add_argument(
        "--mixed", action="store_true", help="show runs of other protocols, weights, seeds or episodes, marked with †"
    )
    out.add_argument(
        "--noise",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="runs of the baseline again (experiment=aa): how often a repeat alone ends an episode otherwise",
    )
    out.add_argument(
        "--criteria",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="audits (experiment=audit) of methods in the table: whether each chooses better than chance",
    )
    out.add_argument(
        "--conditions",
        action="store_true",
        help="runs under several perturbations (experiment=stress): method by perturbation; NAME.{csv,md,html}",
    )
    out.add_argument(
        "--suites",
        action="store_true",
        help="runs on several suites or benchmarks: method by suite, and the mean; NAME.{csv,md,tex,html}",
    )
    out.add_argument(
        "--delay",
        action="store_true",
        help="runs of worlds that do not wait (experiment=delay): success by delay, break-even; NAME.{md,csv,html}",
    )
    out.add_argument("--html", type=Path, metavar="FILE", help="one page with charts and episodes as well")
    out.add_argument(
        "--videos", type=float, default=20, metavar="MB", help="megabytes of films in the page; others are linked"
    )
    out.add_argument("--output", type=Path, default=Path("results/tables"), help="folder for NAME.{csv,md,tex}")
    out.add_argument("--name", default="table", help="name of the files (default: table)")
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the files, prints the table and its notes, and the paths."""
    args = parser().parse_args(arguments)
    text, paths = _made(args)
    print(text, end="\n\n")
    print(*paths, sep="\n", flush=True)


def _made(args: argparse.Namespace) -> tuple[str, list[Path]]:
    """The text of what was asked for, and its files, which are written before anything is printed."""
    named = None if args.name == "table" else args.name
    if args.delay:
        late = delay.table(find(args.runs), args.baseline, args.partial)
        return delay.markdown(late), delay.write(late, args.output, named or "delay")
    if args.audit:
        study = audits.study(find(args.runs), args.partial)
        return audits.markdown(study), audits.write(study, args.output, named or "audit")
    if args.conditions:
        rows = conditions.table(find(args.runs), args.baseline, args.partial)
        told = conditions.terminal(rows, None if args.wide else TERMINAL)
        return told, conditions.write(rows, args.output, named or "conditions")
    if args.suites:
        audited = find(args.criteria) if args.criteria else []
        every = suites.study(find(args.runs), args.baseline, args.partial, args.mixed, audited, args.timed)
        every = suites.untimed(every) if args.untimed else every
        told = suites.terminal(every, None if args.wide else TERMINAL)
        return told, suites.write(every, args.output, named or "suites")
    comparison = compare(find(args.runs), args.baseline, args.partial, args.mixed)
    if args.noise:
        comparison = comparison.with_noise(find(args.noise))
    if args.criteria:
        comparison = audits.beside(comparison, find(args.criteria))
    table = tabulate(comparison, args.tasks, args.timed)
    if args.untimed:
        table = without_times(table)
    paths = [*write(table, args.output, args.name)]
    if args.html:
        from vlaprune.report import page  # draws: loaded where it is wanted

        room = int(1e6 * args.videos)
        text = page.page(comparison, args.html, timed=args.timed, untimed=args.untimed, videos=room)
        paths.append(page.write(text, args.html))
    return f"{terminal(table, args.wide, args.columns)}\n\n{below(table)}", paths
