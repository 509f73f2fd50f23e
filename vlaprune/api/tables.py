"""Recorded runs as DataFrames: a row per episode, or a row per method with its verdict. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from vlaprune.records import Run, episode_row

if TYPE_CHECKING:
    import pandas as pd

Runs = str | Path | Run | Iterable[str | Path | Run]


def load_runs(runs: Runs) -> pd.DataFrame:
    """Every recorded episode as one row.

    runs  a run, a folder with runs in or below it, or several of these

    Columns: run (its folder), model, method (the label that tables show), bench, seed; then the columns of
    `vlaprune.records.episode_row` (task, episode, success, steps, calls, visual, kept, gflops, ms, ...), ended (seconds
    since 1970) and seconds. The episode number fixes the initial state: pair runs by task and episode.

    Errors: UserError for a folder without a run or a damaged journal.
    """
    import pandas as pd

    from vlaprune import report

    found = _read(runs)
    headers = [run.header for run in found]
    rows = [
        {
            "run": str(run.folder),
            "model": str(run.header.identity["model"]["name"]),
            "method": report.label(run.header, headers),
            "bench": str(run.header.identity["bench"]["name"]),
            "seed": run.header.identity["seed"],
            **episode_row(record),
            "ended": record.ended,
            "seconds": record.seconds,
        }
        for run in found
        for record in run.episodes.values()
    ]
    table = pd.DataFrame(rows)
    return table.assign(success=table["success"].astype(bool)) if rows else table


def compare(
    runs: Runs,
    *,
    baseline: str = "dense",
    by_task: bool = False,
    partial: bool = False,
    mixed: bool = False,
    timed: bool = False,
) -> pd.DataFrame:
    """The table of verdicts: a row per method, paired with the baseline on the same episodes.

    runs      a run, a folder with runs in or below it, or several of these
    baseline  label of the run that the others are compared with
    by_task   also a row for each task
    partial   accept runs with episodes missing
    mixed     accept runs of other protocols, weights or episodes
    timed     keep milliseconds even where the runs shared their machine

    The columns are described at `vlaprune.report.tabulate`; `verdict` is "no worse", "worse" or "undecided", and
    `attrs["notes"]` holds the footnotes. `vlaprune.report.markdown(table)` is the table as text.

    Errors: UserError if the runs do not fit into one table.
    """
    from vlaprune import report

    return report.tabulate(report.compare(_read(runs), baseline, partial, mixed), by_task, timed)


def _read(runs: Runs) -> list[Run]:
    """The runs, read from their folders where needed."""
    from vlaprune import report

    several = [runs] if isinstance(runs, (str, Path, Run)) else list(runs)
    out: list[Run] = []
    for one in several:
        out += [one] if isinstance(one, Run) else report.find([Path(one)])
    return out
