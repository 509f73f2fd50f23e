"""`vlaprune watch`: the progress of the runs below some folders, read from their journals."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from vlaprune.errors import UserError
from vlaprune.records import Run, read

STALE = 600.0  # seconds without a new episode after which a run counts as stalled


def folders(paths: Iterable[Path]) -> list[Path]:
    """Folders with a journal, in or below the given ones."""
    return sorted({p.parent for path in paths for p in path.glob("**/journal*.jsonl")})


def line(run: Run, name: str, now: float) -> str:
    """The line of one run: name, episodes, success with its 95 % Wilson interval, and its state."""
    from vlaprune.stats.rates import wilson

    asked, done = sum(run.header.tasks.values()), len(run.episodes)
    won = sum(e.success for e in run.episodes.values())
    rate = "no episode yet"
    if done:
        found = wilson(won, done)
        rate = f"{100 * won / done:5.1f} % [{100 * found.low:.1f}, {100 * found.high:.1f}]"
    raised = f", {len(run.errors)} raised" if run.errors else ""
    return f"{name:<44} {f'{done}/{asked}':>9}  {rate:<22} {state(run, now)}{raised}"


def state(run: Run, now: float) -> str:
    """The state of a run in words: done, why it stopped, the time left at the present pace, or how long it stalls."""
    if run.stopped:
        return f"stopped early: {run.stopped['verdict']}"
    if not run.missing:
        return "done"
    ended = sorted(e.ended for e in run.episodes.values() if e.ended)[-20:]
    if len(ended) < 2:
        return "running"
    if now - ended[-1] > STALE + 3 * (ended[-1] - ended[0]) / len(ended):
        return f"no new episode for {clock(now - ended[-1])}"
    return f"{clock((ended[-1] - ended[0]) / (len(ended) - 1) * len(run.missing))} left"


def clock(seconds: float) -> str:
    """Formats seconds as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class Board:
    """The state of all watched runs. It reads a journal again only after it has changed."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self._known: dict[Path, tuple[float, Run]] = {}

    def lines(self, now: float) -> Iterator[str]:
        """A line for each run, including finished ones."""
        for folder in folders(self.paths):
            changed = max(p.stat().st_mtime for p in folder.glob("journal*.jsonl"))
            if folder not in self._known or self._known[folder][0] < changed:
                try:
                    self._known[folder] = changed, read(folder)
                except UserError as error:
                    yield f"{folder}: {error}"
                    continue
            yield line(self._known[folder][1], self._name(folder), now)

    @property
    def over(self) -> bool:
        """Whether every run that was read has all its episodes, or was stopped."""
        return bool(self._known) and all(r.stopped or not r.missing for _, r in self._known.values())

    def _name(self, folder: Path) -> str:
        """The path of a run's folder below the folder named on the command line."""
        for path in self.paths:
            if folder.is_relative_to(path):
                return str(folder.relative_to(path) if folder != path else folder)
        return str(folder)


def main(argv: Sequence[str]) -> int:
    """Shows the board until every run is over; only once if the output is no terminal."""
    parser = argparse.ArgumentParser(
        prog="vlaprune watch", description="Shows the progress of the runs below some folders until they are over."
    )
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("results/runs")], help="default: results/runs")
    parser.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="time between two looks")
    parser.add_argument("--once", action="store_true", help="print the state and stop")
    args = parser.parse_args(argv)
    if not args.every > 0:
        parser.error(f"--every {args.every:g}; use a number of seconds above 0")
    if not folders(args.folders):
        print(
            f"{', '.join(map(str, args.folders))}: no run; name a folder that vlaprune eval writes to", file=sys.stderr
        )
        return 2
    board, drawn = Board(args.folders), 0
    try:
        while True:
            shown = list(board.lines(time.time()))
            print("\x1b[F\x1b[K" * drawn + "\n".join(shown), flush=True)
            if args.once or board.over or not sys.stdout.isatty():
                return 0
            drawn = len(shown)
            time.sleep(args.every)
    except KeyboardInterrupt:
        return 130
