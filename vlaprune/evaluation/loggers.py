"""Sinks that the recorder feeds: CSV and wandb. Both can be rebuilt from the journal; neither can end a run."""

from __future__ import annotations

import csv
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlaprune.errors import UserError
from vlaprune.files import replacing
from vlaprune.records import (
    UNPROVED,
    EpisodeRecord,
    Header,
    StepRecord,
    differences,
    episode_row,
    film_name,
    mean,
    read,
    without,
)
from vlaprune.stats.anytime import said
from vlaprune.stats.paired import pair, verdict
from vlaprune.stats.rates import wilson


class CSV:
    """episodes.csv in the run's folder, one row per episode, written anew from the journal when a run opens."""

    def open(self, header: Header, folder: Path, done: Sequence[EpisodeRecord]) -> None:
        """Writes a new file with the episodes of `done`."""
        self._path = folder / f"episodes{header.provenance.get('shard', '')}.csv"
        self._path.unlink(missing_ok=True)
        for record in done:
            self.episode(record)

    def episode(self, record: EpisodeRecord) -> None:
        """Appends the row of an episode."""
        row = episode_row(record)
        new = not self._path.exists()
        with self._path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)

    def close(self) -> None:
        """Does nothing: no file is open."""


class Wandb:
    """A wandb run named after the folder; offline unless `mode` (or WANDB_MODE) says otherwise, so it needs no account.

    Its id is kept in the run's folder: a run that was killed and continued is the same wandb run. Its steps count the
    model calls of all episodes and continue, too. `wandb sync FOLDER/wandb/offline-run-*` uploads what was written
    offline.

    calls  log tokens, FLOPs and milliseconds of every model call, not of episodes only
    """

    def __init__(self, project: str = "vlaprune", mode: str = "offline", calls: bool = True) -> None:
        self.project = project
        self.mode = mode
        self.calls = calls

    def open(self, header: Header, folder: Path, done: Sequence[EpisodeRecord]) -> None:
        """Starts wandb and tells it all recorded episodes once more; UserError where it is not installed.

        A run that was killed may have journalled what wandb never got. Steps that wandb has are dropped by wandb.
        """
        os.environ.setdefault("WANDB_SILENT", "true")
        try:
            import wandb
        except ImportError:
            raise UserError("wandb is not installed; pip install wandb, or use logger=csv") from None
        self._wandb = wandb
        self._folder = folder
        self._header = header
        names = [str(header.identity[part]["name"]) for part in ("model", "method", "bench")]
        self._run = wandb.init(
            project=self.project,
            mode=self.mode,  # type: ignore[arg-type]
            id=_identity(folder / f"wandb-id{header.provenance.get('shard', '')}"),
            resume="allow",
            dir=folder,
            name="/".join(folder.parts[-3:]),
            group=f"{names[0]} on {names[2]}",
            tags=[*names, f"seed {header.identity.get('seed')}", *([] if header.proved else [UNPROVED])],
            config={**header.identity, "tasks": dict(header.tasks), "provenance": dict(header.provenance)},
            settings=wandb.Settings(console="off"),
        )
        self._run.define_metric("call/*", step_metric="calls", summary="none")
        self._run.define_metric("episode/*", step_metric="episodes", summary="none")
        self._records: list[EpisodeRecord] = []
        self._rows: list[dict[str, Any]] = []
        self._calls = 0
        for record in done:
            self.episode(record)

    def episode(self, record: EpisodeRecord) -> None:
        """Logs the calls of an episode, then the episode, the success rate so far and the film if there is one."""
        self._records.append(record)
        self._rows.append(episode_row(record))
        for call in record.calls[:-1]:
            if self.calls:
                self._run.log(self._call(call), step=self._calls)
            self._calls += 1
        row = {f"episode/{k}": v for k, v in self._rows[-1].items() if v != "" and k != "kept_layers"}
        film = self._folder / film_name(record.task, record.episode)
        if film.is_file():
            row[f"film/{record.task}"] = self._wandb.Video(str(film), format="mp4")
        self._run.log({**self._call(record.calls[-1]), **row, **self._standing()}, step=self._calls)
        self._calls += 1

    def close(self) -> None:
        """Writes the summary and a table of all episodes, and ends the wandb run."""
        if self._rows:
            columns: list[Any] = list(self._rows[0])
            data: list[list[Any]] = [[None if row[c] == "" else row[c] for c in columns] for row in self._rows]
            table = self._wandb.Table(columns=columns, data=data)
            self._run.log({"table": table}, step=self._calls - 1)
            self._run.summary.update(self._standing() | self._means() | self._against())
        self._run.finish()

    def _means(self) -> dict[str, float]:
        """Means over all model calls (milliseconds over steady ones), and each task's success rate."""
        calls = [call for record in self._records for call in record.calls]
        steady = [sum(call.ms.values()) for call in calls if call.steady]
        out: dict[str, float] = {"episodes_repeated": sum(record.attempts > 1 for record in self._records)}
        if self._header.proved:
            out["call/kept"] = mean([mean(call.visual) for call in calls])
            out["call/visual"] = mean([call.total for call in calls])
            out["call/gflops"] = mean([sum(call.flops.values()) for call in calls]) / 1e9
        if steady:
            out["call/ms"] = mean(steady)
        for task in self._header.tasks:
            successes = [float(record.success) for record in self._records if record.task == task]
            if successes:
                out[f"task/{task}/success_rate"] = mean(successes)
        return out

    def _against(self) -> dict[str, Any]:
        """Lost and gained episodes and the verdict, where a baseline was named."""
        journals = any(self._folder.glob("journal*.jsonl"))
        if journals and (ended := read(self._folder).stopped):
            told = {"verdict": f"stopped: {ended['verdict']}", "verdict_words": said(ended)}
            return {"lost": ended["lost"], "gained": ended["gained"], **told}
        named = self._header.provenance.get("baseline")
        if not named:
            return {}
        run = read(Path(named))
        if differing := differences(*(without(h, "method") for h in (run.header, self._header))):
            why = f"{named} is no baseline of this run: it differs in {differing}"
            return {"verdict": "none", "verdict_words": why}
        base = {key: record.success for key, record in run.episodes.items()}
        ours = {(r.task, r.episode): r.success for r in self._records}
        both = base.keys() & ours.keys()
        if not both:
            return {}
        pairs = pair({key: base[key] for key in both}, {key: ours[key] for key in both})
        result = verdict(pairs, float(self._header.identity["bench"]["margin"]))
        return {"lost": pairs.lost, "gained": pairs.gained, "verdict": result.decision, "verdict_words": result.words}

    def _call(self, call: StepRecord) -> dict[str, Any]:
        row: dict[str, Any] = {"calls": self._calls}
        if call.counted:
            row |= {"call/kept": mean(call.visual), "call/visual": call.total}
            row["call/gflops"] = sum(call.flops.values()) / 1e9
        return row | ({"call/ms": sum(call.ms.values())} if call.steady else {})

    def _standing(self) -> dict[str, float]:
        won = sum(row["success"] for row in self._rows)
        n = len(self._rows)
        interval = wilson(won, n)
        return {"episodes": n, "success_rate": won / n, "success_low": interval.low, "success_high": interval.high}


def _identity(path: Path) -> str:
    """The id in a file; a new one is made and written there if there is none."""
    if not path.is_file() or not path.read_text():
        with replacing(path) as part:
            part.write_text(secrets.token_hex(6))
    return path.read_text()
