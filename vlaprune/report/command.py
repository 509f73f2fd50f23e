"""The command vlaprune-report: prints a table, writes it to files, and makes a page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vlaprune.errors import UserError
from vlaprune.report import audits, conditions, delay, suites
from vlaprune.report.runs import compare, find
from vlaprune.report.tables import tabulate
from vlaprune.report.text import below, terminal, write
from vlaprune.stats.markdown import TERMINAL

STUDIES = {  # other reports than the table of methods -> their options
    "audit": ("partial",),
    "conditions": ("baseline", "partial", "wide"),
    "suites": ("baseline", "partial", "mixed", "criteria", "timed", "untimed", "wide"),
    "delay": ("baseline", "partial"),
}
ALWAYS = ("runs", "output", "name", *STUDIES)


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    out = argparse.ArgumentParser(prog="vlaprune-report", description="Side-by-side tables from recorded runs.")
    out.add_argument("runs", nargs="+", type=Path, help="run folders, or folders that hold some")
    out.add_argument("--baseline", default="dense", help="label of the arm that others are paired with")
    out.add_argument("--tasks", action="store_true", help="one row per task as well")
    out.add_argument("--wide", action="store_true", help="every column, however long the lines become")
    out.add_argument(
        "--columns",
        type=lambda text: text.split(","),
        default=[],
        metavar="A,B",
        help="these columns of --wide",
    )
    times = out.add_mutually_exclusive_group()
    times.add_argument("--untimed", action="store_true", help="no milliseconds")
    times.add_argument("--timed", action="store_true", help="milliseconds even of runs that shared their machine")
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
    study = out.add_mutually_exclusive_group()
    study.add_argument(
        "--audit", action="store_true", help="what criteria are worth (experiment=audit); NAME.{md,csv,html}"
    )
    study.add_argument(
        "--conditions",
        action="store_true",
        help="runs under several perturbations (experiment=stress): method by perturbation; NAME.{csv,md,html}",
    )
    study.add_argument(
        "--suites",
        action="store_true",
        help="runs on several suites or benchmarks: method by suite, and the mean; NAME.{csv,md,tex,html}",
    )
    study.add_argument(
        "--delay",
        action="store_true",
        help="runs of worlds that do not wait (experiment=delay): success by delay, break-even; NAME.{md,csv,html}",
    )
    out.add_argument("--html", type=Path, metavar="FILE", help="one page with charts and episodes as well")
    out.add_argument(
        "--videos", type=float, default=20, metavar="MB", help="megabytes of films in the page; others are linked"
    )
    out.add_argument("--output", type=Path, default=Path("results/tables"), help="folder for NAME.{csv,md,tex}")
    out.add_argument("--name", help="name of the files (default: table, or that of the study)")
    return out


def _study(args: argparse.Namespace) -> str | None:
    """The name of the report that was asked for; None for the table. UserError for an option that it does not have."""
    study = next((name for name in STUDIES if getattr(args, name)), None)
    if study is None:
        return None
    for name, given in vars(args).items():
        if name not in (*ALWAYS, *STUDIES[study]) and given != parser().get_default(name):
            known = ", ".join(f"--{option}" for option in STUDIES[study])
            raise UserError(f"--{name} does nothing with --{study}; leave it out (it has {known})")
    return study


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the files, prints the table and its notes, and the paths."""
    args = parser().parse_args(arguments)
    try:
        text, paths = _made(args)
    except OSError as error:
        file = error.filename
        raise UserError(f"{file}: {error.strerror}; name another place with --output or --html") from error
    print(text, end="\n\n")
    print(*paths, sep="\n", flush=True)


def _made(args: argparse.Namespace) -> tuple[str, list[Path]]:
    """The text of the report and the paths of its files, which are written before anything is printed."""
    study = _study(args)
    named = args.name or study or "table"
    if Path(named).name != named:
        raise UserError(f"--name {named} is no name of a file; leave the folder to --output")
    if not 0 <= args.videos < float("inf"):
        raise UserError(f"--videos {args.videos:g}; use megabytes of films, 0 for none")
    if args.videos != parser().get_default("videos") and not study and not args.html:
        raise UserError(f"--videos {args.videos:g} does nothing without --html; add --html FILE, or leave it out")
    if args.delay:
        late = delay.table(find(args.runs), args.baseline, args.partial)
        return delay.markdown(late), delay.write(late, args.output, named)
    if args.audit:
        audited = audits.study(find(args.runs), args.partial)
        return audits.markdown(audited), audits.write(audited, args.output, named)
    if args.conditions:
        rows = conditions.table(find(args.runs), args.baseline, args.partial)
        told = conditions.terminal(rows, None if args.wide else TERMINAL)
        return told, conditions.write(rows, args.output, named)
    if args.suites:
        beside = find(args.criteria) if args.criteria else []
        every = suites.study(find(args.runs), args.baseline, args.partial, args.mixed, beside, args.timed, args.untimed)
        told = suites.terminal(every, None if args.wide else TERMINAL)
        return told, suites.write(every, args.output, named)
    comparison = compare(find(args.runs), args.baseline, args.partial, args.mixed)
    if args.noise:
        comparison = comparison.with_noise(find(args.noise))
    if args.criteria:
        comparison = audits.beside(comparison, find(args.criteria), args.partial)
    table = tabulate(comparison, args.tasks, args.timed, args.untimed)
    paths = [*write(table, args.output, named)]
    if args.html:
        from vlaprune.report import page  # imports matplotlib, so only on demand

        room = int(1e6 * args.videos)
        text = page.page(comparison, args.html, timed=args.timed, untimed=args.untimed, videos=room)
        paths.append(page.write(text, args.html))
    return f"{terminal(table, args.wide, args.columns)}\n\n{below(table)}", paths
