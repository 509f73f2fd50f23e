"""Recorded runs in the forms of other tools: a log of Inspect, a dataset folder of the Hugging Face hub. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vlaprune.records import UNPROVED, EpisodeRecord, Run, episode_row
from vlaprune.report.runs import label
from vlaprune.stats.rates import wilson

CARD = """---
license: other
pretty_name: vlaprune episodes
configs:
- config_name: episodes
  data_files: episodes.jsonl
  default: true
- config_name: calls
  data_files: calls.jsonl
---

# Episodes recorded by vlaprune

`episodes.jsonl` has a row an episode, `calls.jsonl` a row a model call, `runs.json` the settings and
the provenance of each run. The episode's number fixes its initial state: pair rows of two
methods by `bench`, `task` and `episode`. A call's milliseconds are empty where it was `packed` with others or `cold`
(compiled, captured, allocated): the time was not its own.

| model | method | bench | protocol | episodes | success |
|---|---|---|---|---|---|
{rows}
"""


def inspect_log(run: Run, others: Sequence[Run] = ()) -> dict[str, Any]:
    """One run as an evaluation log of Inspect (version 2 of its JSON): an episode is a sample, success its score.

    Token counts, FLOPs and milliseconds of an episode are in the sample's metadata.
    """
    return {
        "version": 2,
        "status": "success" if not run.missing else "started",
        "eval": _setting(run, others),
        "results": _results(run),
        "stats": {
            "started_at": _started(run),
            "completed_at": _time(max((e.ended for e in run.episodes.values()), default=0)),
        },
        "samples": [_sample(e) for e in run.episodes.values()],
    }


def _setting(run: Run, others: Sequence[Run]) -> dict[str, Any]:
    """The settings of a run, as Inspect's `eval`."""
    said, told = run.header.identity, run.header.provenance
    name = f"{said['bench']['name']}"
    return {
        "run_id": run.folder.name,
        "created": _started(run),
        "task": name,
        "task_id": name,
        "task_version": 0,
        "task_args": {"bench": said["bench"], "method": said["method"], "seed": said["seed"]},
        "dataset": {"name": name, "samples": sum(run.header.tasks.values())},
        "model": f"vlaprune/{said['model']['name']}",
        "model_args": {"method": label(run.header, [o.header for o in others])},
        "config": {},
        "packages": {k: v for k, v in (told.get("versions") or {}).items() if v},
        "metadata": {
            "command": told.get("command"),
            "commit": told.get("commit"),
            **({} if run.header.proved else {"pruning": UNPROVED}),
        },
    }


def _results(run: Run) -> dict[str, Any]:
    """The success rate with its Wilson interval, as Inspect's `results`."""
    done, won = len(run.episodes), sum(e.success for e in run.episodes.values())
    rate = wilson(won, done) if done else None
    metrics = {"accuracy": won / done if done else 0.0}
    metrics |= {"wilson_low": rate.low, "wilson_high": rate.high} if rate else {}
    score = {
        "name": "success",
        "scorer": "success",
        "params": {},
        "metrics": {k: {"name": k, "value": v, "params": {}} for k, v in metrics.items()},
    }
    return {"total_samples": sum(run.header.tasks.values()), "completed_samples": done, "scores": [score]}


def _started(run: Run) -> str:
    return _time(run.header.provenance.get("started", 0.0))


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(float(seconds), UTC).isoformat()


def _sample(episode: EpisodeRecord) -> dict[str, Any]:
    """One episode as Inspect's sample."""
    metadata = {k: v for k, v in episode_row(episode).items() if v != ""}
    return {
        "id": f"{episode.task}/{episode.episode}",
        "epoch": 1,
        "input": episode.task,
        "target": "success",
        "scores": {"success": {"value": int(episode.success)}},
        "metadata": metadata,
        "total_time": episode.seconds,
    }


def _names(run: Run, runs: Sequence[Run]) -> dict[str, Any]:
    said = run.header.identity
    return {
        "model": said["model"]["name"],
        "method": label(run.header, [r.header for r in runs]),
        "bench": said["bench"]["name"],
        "seed": said["seed"],
    }


def episodes(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """One row per episode of all runs; empty cells are None."""
    for run in runs:
        for record in run.episodes.values():
            row = {k: None if v == "" else v for k, v in episode_row(record).items()}
            yield _names(run, runs) | row | {"success": record.success, "seconds": record.seconds}


def calls(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """One row per model call of all runs: tokens at each layer, FLOPs and milliseconds by stage.

    The time of a call that was packed or cold is not its own: its milliseconds are None.
    """
    for run in runs:
        for record in run.episodes.values():
            for number, call in enumerate(record.calls):
                sizes = {"visual": call.total, "visual_layers": list(call.visual), "rows": list(call.rows)}
                sizes = sizes if call.counted else dict.fromkeys(sizes)
                spent: dict[str, Any] = {f"flops_{k}": v for k, v in call.flops.items()}
                spent |= {f"ms_{k}": v if call.steady else None for k, v in call.ms.items()}
                which = {"task": record.task, "episode": record.episode, "call": number}
                yield _names(run, runs) | which | {"packed": call.packed, "cold": call.cold} | sizes | spent


def _told(run: Run, method: str) -> str:
    return method if run.header.proved else f"{method} ({UNPROVED})"


def hub_folder(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Writes a dataset folder that `datasets.load_dataset` reads and the hub shows; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        f"| {n['model']} | {_told(run, n['method'])} | {n['bench']} | {n['protocol']} | {len(run.episodes)} | "
        f"{sum(e.success for e in run.episodes.values())} |"
        for run in runs
        for n in [_names(run, runs) | {"protocol": run.header.identity["bench"].get("protocol", "")}]
    ]
    headers = [
        {"identity": r.header.identity, "provenance": r.header.provenance, "tasks": r.header.tasks} for r in runs
    ]
    texts: Mapping[str, str] = {
        "README.md": CARD.format(rows="\n".join(rows)),
        "episodes.jsonl": "".join(json.dumps(row) + "\n" for row in episodes(runs)),
        "calls.jsonl": "".join(json.dumps(row) + "\n" for row in calls(runs)),
        "runs.json": json.dumps(headers, indent=1, default=dict) + "\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    return [folder / name for name in texts]
