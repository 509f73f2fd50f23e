"""Holds the front that `vlaprune tune` finds against the whole grid. `make tune` runs both and calls it.

    python scripts/tune_grid.py --runs results/runs/tune --output results/tune

Reads `RUNS/race` (the race goes on there, if it has not ended) and `RUNS/grid`, every setting on all episodes. Writes
fastv.md, fastv.csv and fastv.svg. Costs are GFLOPs a call, because they are the same on every machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from vlaprune.api.tune import Tuned, tune
from vlaprune.errors import UserError
from vlaprune.records import Run, differences, read, without
from vlaprune.report.plots import front
from vlaprune.report.runs import find
from vlaprune.report.sources import sources
from vlaprune.stats.markdown import table
from vlaprune.stats.paired import pair, tango
from vlaprune.stats.racing import Entrant
from vlaprune.stats.rates import wilson

SETTINGS = [
    *("model=tiny", "model.weights=robosuite-first", "bench=robosuite", "method=fastv", "episodes=25"),
    *("method.layer=1,2,3,4", "method.keep=0.5,0.25,0.125"),
]
NOTES = (
    "race: successes of the episodes that the race ran, dense's aside; differences: Tango's interval, on all episodes",
    "the grid's front is picked on the very episodes that are counted, so its success is a little too high",
)


def wins(run: Run) -> dict[tuple[str, int], bool]:
    """Success of each episode."""
    return {key: record.success for key, record in run.episodes.items()}


def folder(entrant: Entrant) -> str:
    """Where a setting's run lies, below the race's folder and the grid's."""
    return entrant.name.replace(" ", ",")


def rows(found: Tuned, grid: Mapping[str, Run], dense: Run) -> pd.DataFrame:
    """A row for each setting, the cheapest first: what the race saw of it, and what all episodes say."""
    standings, chosen = {s.entrant.name: s for s in found.standings}, {s.entrant.name for s in found.front}
    out = []
    for one in sorted(found.entrants, key=lambda e: (e.cost, e.name)):
        run, race = wins(grid[one.name]), standings.get(one.name)
        pairs, interval = pair(wins(dense), run), wilson(sum(run.values()), len(run))
        held = tango(pairs)
        out.append(
            {
                "setting": one.name,
                "cost": one.cost,
                "strays": one.prior,
                "raced": len(race.success) if race else 0,
                "raced_success": sum(race.success.values()) if race else 0,
                "out": race.out if race else "not run",
                "tuned": one.name in chosen,
                "success": sum(run.values()),
                "episodes": len(run),
                "low": interval.low,
                "high": interval.high,
                "difference": pairs.difference,
                "difference_low": held.low,
                "difference_high": held.high,
            }
        )
    table = pd.DataFrame(out)
    best = front(-table["cost"].to_numpy(float), table["success"].to_numpy(float))
    return table.assign(best=[i in best for i in range(len(table))])


def shortfalls(rows: pd.DataFrame, grid: Mapping[str, Run]) -> list[list[str]]:
    """Each setting on the grid's front beside the race's best that costs no more: difference on the same episodes."""
    out = []
    for best in rows[rows["best"]].itertuples():
        own = rows[rows["tuned"] & (rows["cost"] <= best.cost)]
        line = [best.setting, f"{best.cost:.3f}", f"{100 * best.success / best.episodes:.1f}"]
        if own.empty:
            out.append([*line, "none as cheap", "", ""])
            continue
        other = own.sort_values("cost").iloc[-1]
        pairs = pair(wins(grid[best.setting]), wins(grid[other["setting"]]))
        held = tango(pairs)
        said = f"{100 * pairs.difference:+.1f} [{100 * held.low:+.1f}, {100 * held.high:+.1f}]"
        out.append([*line, other["setting"], f"{100 * other['success'] / other['episodes']:.1f}", said])
    return out


def drawn(rows: pd.DataFrame, dense: float, path: Path) -> None:
    """Success of every setting on all episodes against its cost; what the race chose is filled."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    ax = figure.add_subplot()
    ax.axhline(100 * dense, color="#555555", lw=1, ls=(0, (4, 3)), label="dense")
    rate = 100 * rows["success"] / rows["episodes"]
    for tuned, colour, label in ((False, "#9aa0a6", "the grid"), (True, "#1a5fa8", "front of the race")):
        own = rows["tuned"] == tuned
        error = [rate[own] - 100 * rows["low"][own], 100 * rows["high"][own] - rate[own]]
        ax.errorbar(
            rows["cost"][own], rate[own], error, fmt="o", color=colour, lw=1.2, ms=7, label=label, zorder=2 + tuned
        )
    best = rows[rows["best"]]
    ax.step(
        best["cost"],
        100 * best["success"] / best["episodes"],
        where="post",
        color="#111111",
        lw=1,
        label="front of the grid",
    )
    ax.set_xlabel("GFLOPs a call")
    ax.set_ylabel("success, %")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="lower right")
    figure.savefig(path, metadata={"Date": None})


def markdown(found: Tuned, rows: pd.DataFrame, grid: Mapping[str, Run], dense: Run) -> str:
    """The page."""
    played, whole = found.episodes
    body: list[Sequence[str]] = []
    for r in rows.itertuples():
        raced = f"{r.raced_success}/{r.raced}" if r.raced else ""
        said = "on the front" if r.tuned else r.out
        rate = f"{100 * r.success / r.episodes:.1f} [{100 * r.low:.1f}, {100 * r.high:.1f}]"
        ends = f"{100 * r.difference:+.1f} [{100 * r.difference_low:+.1f}, {100 * r.difference_high:+.1f}]"
        cells = [r.setting, f"{r.cost:.3f}", f"{r.strays:.3f}", raced, said, rate, ends, "yes" if r.best else ""]
        body.append(cells)
    heads = ["setting", "GFLOPs/call", "strays (rmse)", "race", "what the race says"]
    heads += ["success on all episodes, %", "difference to dense", "grid's front"]
    beside = [
        "on the grid's front",
        "GFLOPs",
        "success, %",
        "the race's best that costs no more",
        "success, %",
        "difference",
    ]
    made = sources([dense, *grid.values()])
    return (
        "\n\n".join(
            [
                "# The front of `vlaprune tune` beside the whole grid",
                f"FastV on robosuite with `model=tiny`: {len(rows)} settings. The race ran {played} episodes of the "
                f"{whole} that the grid has ({100 * played / whole:.0f} %). Intervals are at 95 %.",
                "![Success against GFLOPs, the race's front filled](fastv.svg)",
                table(beside, shortfalls(rows, grid)),
                table(heads, body),
                "\n".join(f"- {line}" for line in (*NOTES, *made)),
            ]
        )
        + "\n"
    )


def main() -> None:
    """Reads, writes, prints."""
    parser = argparse.ArgumentParser(description="The front of vlaprune tune beside the whole grid.")
    parser.add_argument("--runs", type=Path, default=Path("results/runs/tune"))
    parser.add_argument("--output", type=Path, default=Path("results/tune"))
    args = parser.parse_args()
    try:
        text = held(args.runs, args.output)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(text)


def held(runs: Path, output: Path) -> str:
    """Writes the page beside its table and figure; gives its text. UserError where the grid is not whole."""
    whole = {run.folder.name: run for run in find([runs / "grid"])}
    found = tune(SETTINGS, runs / "race", cost="gflops")
    dense = read(runs / "race" / "dense")
    if absent := sorted(set(map(folder, found.entrants)) - whole.keys()):
        raise UserError(f"{runs / 'grid'} lacks {', '.join(absent)}; make tune runs them")
    grid = {one.name: whole[folder(one)] for one in found.entrants}
    for run in grid.values():
        if differing := differences(*(without(r.header, "method") for r in (dense, run))):
            raise UserError(f"{run.folder} is another run than {dense.folder} ({differing}); run the grid anew")
        if run.missing:
            raise UserError(f"{run.folder} lacks {len(run.missing)} episodes; make tune goes on")
    seen = rows(found, grid, dense)
    output.mkdir(parents=True, exist_ok=True)
    drawn(seen, found.dense[1], output / "fastv.svg")
    seen.to_csv(output / "fastv.csv", index=False)
    text = markdown(found, seen, grid, dense)
    (output / "fastv.md").write_text(text)
    return text


if __name__ == "__main__":
    main()
