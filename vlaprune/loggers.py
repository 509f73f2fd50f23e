"""Sinks that the recorder feeds: CSV and wandb. Both can be rebuilt from the journal; neither can end a run."""

from __future__ import annotations

import csv
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlaprune.records import EpisodeRecord, Header, StepRecord

STAGES = ("vision", "projector", "prompt", "decode", "head", "method")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def flat(record: EpisodeRecord) -> dict[str, Any]:
    """One episode as one row: counts, and means over its model calls.

    kept         visual tokens computed, mean over layers; kept_layers the same at each layer, joined by "|"
    gflops_*     10^9 FLOPs a call by stage; ms_* milliseconds a call, empty where the device was shared
    """
    calls: Sequence[StepRecord] = record.calls
    row: dict[str, Any] = {
        "task": record.task,
        "episode": record.episode,
        "success": int(record.success),
        "steps": record.steps,
        "calls": len(calls),
        "visual": calls[0].total,
        "kept": _mean([_mean(c.visual) for c in calls]),
        "kept_layers": "|".join(f"{_mean(layer):g}" for layer in zip(*(c.visual for c in calls), strict=True)),
        "gflops": _mean([sum(c.flops.values()) for c in calls]) / 1e9,
    }
    row |= {f"gflops_{s}": _mean([c.flops.get(s, 0.0) for c in calls]) / 1e9 for s in STAGES}
    timed = [c.ms for c in calls if c.ms]
    row["ms"] = _mean([sum(ms.values()) for ms in timed]) if timed else ""
    row |= {f"ms_{s}": _mean([ms.get(s, 0.0) for ms in timed]) if timed else "" for s in (*STAGES, "other")}
    return row


class CSV:
    """episodes.csv in the run's folder, one row per episode, written anew from the journal when a run opens."""

    def open(self, header: Header, folder: Path, done: Sequence[EpisodeRecord]) -> None:
        """Writes what is there."""
        self._path = folder / f"episodes{header.provenance.get('shard', '')}.csv"
        self._path.unlink(missing_ok=True)
        for record in done:
            self.episode(record)

    def episode(self, record: EpisodeRecord) -> None:
        """Appends a row."""
        row = flat(record)
        new = not self._path.exists()
        with self._path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)

    def close(self) -> None:
        """Nothing is open."""


class Wandb:
    """A wandb run named after the folder; offline unless `mode` (or WANDB_MODE) says otherwise, so it needs no account.

    A run that is resumed goes on under the same id.
    """

    def __init__(self, project: str = "vlaprune", mode: str = "offline") -> None:
        self.project, self.mode = project, mode

    def open(self, header: Header, folder: Path, done: Sequence[EpisodeRecord]) -> None:
        """Starts wandb; RuntimeError where it is not installed."""
        os.environ.setdefault("WANDB_SILENT", "true")
        try:
            import wandb
        except ImportError:
            raise RuntimeError("wandb is not installed; pip install wandb, or use logger=csv") from None
        name = folder / f"wandb-id{header.provenance.get('shard', '')}"
        if not name.is_file():
            name.write_text(secrets.token_hex(4))
        self._run = wandb.init(
            project=self.project,
            mode=self.mode,  # type: ignore[arg-type]
            id=name.read_text(),
            resume="allow",
            dir=folder,
            name="/".join(folder.parts[-3:]),
            config={**header.identity, "provenance": dict(header.provenance)},
        )
        self._won = [r.success for r in done]

    def episode(self, record: EpisodeRecord) -> None:
        """Logs one episode and the success rate so far."""
        self._won.append(record.success)
        row = {k: v for k, v in flat(record).items() if v != ""}
        self._run.log({**row, "success_rate": _mean(self._won), "episodes": len(self._won)})

    def close(self) -> None:
        """Writes the summary and ends the wandb run."""
        self._run.summary.update({"success_rate": _mean(self._won), "episodes": len(self._won)})
        self._run.finish()
