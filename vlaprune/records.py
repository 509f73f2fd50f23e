"""The journal: one JSON line per finished episode, the source of truth for resume and for every table. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

STAGES = ("vision", "projector", "prompt", "decode", "head", "method")  # of a model call


@dataclass(frozen=True)
class StepRecord:
    """One model call.

    rows, columns  tokens computed, and attended to, at each layer of the prompt pass
    total          V, the visual tokens that came from the projector
    visual         visual tokens computed at each layer
    decoded        decode passes after the prompt
    flops          by stage: vision, projector, prompt, decode, head, method (attention rows read); 2 per
                   multiply-accumulate
    ms             milliseconds by stage, the same names and "other"; of the whole packed call where `packed` > 1
    packed         sequences in the model call that this one was part of; 1 where it was alone
    cold           why the time is not that of a steady state: "compile", "capture" or "allocate"; empty where it is
    first_rows     where the method asked for a second pass of the prompt, tokens computed at each layer of the first;
                   rows, columns and visual are then those of the second, flops and ms those of both
    delay          where the world did not wait: ms, and in control steps late, held, stale, dropped (delay.Waited)
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    total: int
    visual: tuple[int, ...]
    decoded: int
    flops: Mapping[str, float]
    ms: Mapping[str, float]
    packed: int = 1
    cold: str = ""
    first_rows: tuple[int, ...] = ()
    delay: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EpisodeRecord:
    """One finished attempt at a task; `episode` alone decides its initial state.

    ended    when it was over, seconds since 1970; seconds  how long it took on the wall clock. No part of the outcome:
             records that differ only in them are equal
    motion   how the robot moved, see evaluation/motion.py; empty in journals from before it was recorded
    """

    task: str
    episode: int
    success: bool
    steps: int
    calls: tuple[StepRecord, ...]
    ended: float = field(default=0.0, compare=False)
    seconds: float = field(default=0.0, compare=False)
    motion: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Header:
    """What a run is: everything that must be equal for its episodes to stand in one table row.

    identity    what decides the numbers: model, method, bench, seed, execute (resolved configuration)
    provenance  what is good to know and may differ when a run is resumed: command, commit, versions, hardware (device,
                cpu, cores, threads), host, boot (the same until the host restarts), pid, started (seconds since 1970),
                load (processes ready to run, mean of the last minute), device_users (processes on the GPU, this one
                included; null where unknown), video, slots, shard
    tasks       task name -> number of episodes asked for
    """

    identity: Mapping[str, Any]
    provenance: Mapping[str, Any]
    tasks: Mapping[str, int]


def film_name(task: str, episode: int) -> str:
    """Where, below a run's folder, the film of an episode is."""
    plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in task.lower())
    return f"videos/{plain}-{episode:04d}.mp4"


class Sink(Protocol):
    """CSV, wandb, or a third party's logger. It may fail; the run goes on and says so once."""

    def open(self, header: Header, folder: Path, done: Sequence[EpisodeRecord]) -> None:
        """A run begins or goes on; `done` are the episodes that the journal already holds."""

    def episode(self, record: EpisodeRecord) -> None:
        """An episode is finished and journalled."""

    def close(self) -> None:
        """The run is over."""


@dataclass
class Run:
    """A recorded run as read back from its folder.

    stopped  why and when a rule ended it early (`anytime`), unless more episodes were run since; else None
    """

    folder: Path
    header: Header
    episodes: dict[tuple[str, int], EpisodeRecord] = field(default_factory=dict)
    errors: list[Mapping[str, Any]] = field(default_factory=list)
    stopped: Mapping[str, Any] | None = None

    @property
    def missing(self) -> list[tuple[str, int]]:
        """Episodes that were asked for and are not there."""
        asked = ((task, i) for task, count in self.header.tasks.items() for i in range(count))
        return [key for key in asked if key not in self.episodes]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a journal. A torn last line (killed while writing) is left out; other damage raises."""
    whole = path.read_bytes().split(b"\n")[:-1]  # what no newline ends was never finished
    for number, line in enumerate(whole, 1):
        try:
            if line:
                yield json.loads(line)
        except ValueError:
            raise ValueError(f"{path} line {number} is damaged; delete that line and run again to redo it") from None


def read(folder: Path | str) -> Run:
    """Reads every journal of a run (one per shard). ValueError where they do not belong together or none is there."""
    folder = Path(folder)
    run: Run | None = None
    for path in sorted(folder.glob("journal*.jsonl")):
        for line in _lines(path):
            kind = line.pop("kind")
            if kind == "header":
                header = Header(**line)
                if run is not None and run.header.identity != header.identity:
                    raise ValueError(f"{folder} mixes two runs: {differences(run.header, header)}")
                if run is None:
                    run = Run(folder, header)
                elif sum(header.tasks.values()) > sum(run.header.tasks.values()):
                    run.header = header
            elif run is None:
                raise ValueError(f"{path} has no header line; it is no journal of vlaprune")
            elif kind == "episode":
                record = _episode(line)
                run.episodes.setdefault((record.task, record.episode), record)
                run.stopped = None
            elif kind == "stop":
                run.stopped = line
            else:
                run.errors.append(line)
    if run is None:
        raise ValueError(f"{folder} holds no run; a run's folder has a journal.jsonl")
    return run


def _episode(line: dict[str, Any]) -> EpisodeRecord:
    tuples = ("rows", "columns", "visual", "first_rows")
    calls: list[dict[str, Any]] = [{k: tuple(v) if k in tuples else v for k, v in c.items()} for c in line.pop("calls")]
    return EpisodeRecord(**line, calls=tuple(StepRecord(**call) for call in calls))


def differences(old: Header, new: Header) -> str:
    """The settings in which two headers differ, as "key old -> new"."""
    a, b = _flat(old.identity), _flat(new.identity)
    return ", ".join(f"{k} {a.get(k)} -> {b.get(k)}" for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return out


def recorded(folder: Path, header: Header) -> Run | None:
    """The run that a folder already holds, if it holds one. ValueError where it is another run than `header` says."""
    if not any(True for path in folder.glob("journal*.jsonl") for _ in _lines(path)):
        return None
    old, plain = read(folder), json.loads(json.dumps(dict(header.identity)))
    if old.header.identity != plain:
        raise ValueError(
            f"{folder} holds another run ({differences(old.header, Header(plain, {}, {}))}); "
            "choose another output=, or delete that folder"
        )
    return old


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean; NaN for no values."""
    return sum(values) / len(values) if values else float("nan")


def episode_row(record: EpisodeRecord) -> dict[str, Any]:
    """One episode as one row: counts, and means over its model calls.

    kept         visual tokens computed, mean over layers; kept_layers the same at each layer, joined by "|"
    gflops_*     10^9 FLOPs a call by stage
    ms_*         milliseconds a call, mean over the calls that were neither packed nor cold; empty where there is none
    """
    calls: Sequence[StepRecord] = record.calls
    row: dict[str, Any] = {
        "task": record.task,
        "episode": record.episode,
        "success": int(record.success),
        "steps": record.steps,
        "calls": len(calls),
        "visual": calls[0].total,
        "kept": mean([mean(c.visual) for c in calls]),
        "kept_layers": "|".join(f"{mean(layer):g}" for layer in zip(*(c.visual for c in calls), strict=True)),
        "gflops": mean([sum(c.flops.values()) for c in calls]) / 1e9,
    }
    row |= {f"gflops_{s}": mean([c.flops.get(s, 0.0) for c in calls]) / 1e9 for s in STAGES}
    timed = [c.ms for c in calls if c.ms and c.packed == 1 and not c.cold]
    row["ms"] = mean([sum(ms.values()) for ms in timed]) if timed else ""
    row |= {f"ms_{s}": mean([ms.get(s, 0.0) for ms in timed]) if timed else "" for s in (*STAGES, "other")}
    return row
