"""The journal: one JSON line per finished episode, the source of truth for resume and for every table. No torch."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class StepRecord:
    """One model call.

    rows, columns  tokens computed, and attended to, at each layer of the prompt pass
    total          V, the visual tokens that came from the projector
    visual         visual tokens computed at each layer
    decoded        decode passes after the prompt
    flops          by stage: vision, projector, prompt, decode, head, method (attention rows read); 2 per
                   multiply-accumulate
    ms             by stage, the same names and "other"; empty where the device was shared by several sequences
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    total: int
    visual: tuple[int, ...]
    decoded: int
    flops: Mapping[str, float]
    ms: Mapping[str, float]


@dataclass(frozen=True)
class EpisodeRecord:
    """One finished attempt at a task; `episode` alone decides its initial state."""

    task: str
    episode: int
    success: bool
    steps: int
    calls: tuple[StepRecord, ...]


@dataclass(frozen=True)
class Header:
    """What a run is: everything that must be equal for its episodes to stand in one table row.

    identity    what decides the numbers: model, method, bench, seed, execute (resolved configuration)
    provenance  what is good to know: versions, hardware, git commit, command; may differ when a run is resumed
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
    tuples = ("rows", "columns", "visual")
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


class Recorder:
    """Appends one JSON line per finished episode and feeds the sinks.

    A run that stopped goes on where it stopped. An episode that raised is noted with its traceback, is not a failure,
    and is run again next time. The line is on disk before the next episode starts; a torn last line is cut off.

    Errors: ValueError if the folder holds a run with another identity, or another process is writing this journal.
    """

    def __init__(
        self,
        folder: Path | str,
        header: Header,
        sinks: Sequence[Sink] = (),
        shard: str = "",
        say: Callable[[str], None] = print,
    ) -> None:
        self.folder, self.header, self.say = Path(folder), header, say
        self.folder.mkdir(parents=True, exist_ok=True)
        self.raised = 0
        done: dict[tuple[str, int], EpisodeRecord] = {}
        if old := recorded(self.folder, header):
            done = old.episodes
        self._done = dict(done)
        self._file = self._open(self.folder / f"journal{shard}.jsonl")
        self._append({"kind": "header", **asdict(header)})
        self._sinks = list(sinks)
        asked = [r for key, r in done.items() if key[1] < header.tasks.get(key[0], 0)]
        self._feed(lambda sink: sink.open(header, self.folder, asked))

    @staticmethod
    def _open(path: Path) -> FileIO:
        file = path.open("ab", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{path} is being written by another process; wait for it or use shard.index") from None
        whole = path.read_bytes().rfind(b"\n") + 1
        if whole < path.stat().st_size:
            os.truncate(path, whole)
        return file

    def _append(self, line: Mapping[str, Any]) -> None:
        size = os.fstat(self._file.fileno()).st_size
        try:
            data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as error:
            os.ftruncate(self._file.fileno(), size)
            raise OSError(
                f"cannot write {self._file.name}: {error.strerror}; free some space and run the same command again, "
                "finished episodes are kept"
            ) from error

    def has(self, task: str, episode: int) -> bool:
        """Whether the journal holds this episode."""
        return (task, episode) in self._done

    def done(self, task: str | None = None) -> list[EpisodeRecord]:
        """The finished episodes that this run asks for, of one task or of all."""
        wanted = self.header.tasks
        return [r for (t, e), r in self._done.items() if task in (None, t) and e < wanted.get(t, 0)]

    @contextmanager
    def attempt(self, task: str, episode: int) -> Iterator[None]:
        """Notes an exception of the world or the policy as an error line and goes on; disk errors and Ctrl-C pass."""
        try:
            yield
        except Exception as error:
            self.raised += 1
            self._append(
                {
                    "kind": "error",
                    "task": task,
                    "episode": episode,
                    "error": f"{type(error).__name__}: {error}",
                    "traceback": traceback.format_exc(),
                }
            )
            self.say(
                f"{task} episode {episode} raised {type(error).__name__}: {error}; "
                f"noted in {self._file.name}, it will be run again"
            )

    def write(self, record: EpisodeRecord) -> None:
        """Journals one finished episode, then tells the sinks."""
        self._append({"kind": "episode", **asdict(record)})
        self._done[record.task, record.episode] = record
        self._feed(lambda sink: sink.episode(record))

    def stop(self, why: Mapping[str, Any]) -> None:
        """Notes that a rule ended the run; it is complete by that rule."""
        self._append({"kind": "stop", **why})

    def close(self) -> None:
        """Closes the sinks and the journal."""
        self._feed(lambda sink: sink.close())
        self._file.close()

    def _feed(self, call: Callable[[Sink], None]) -> None:
        """A sink that raises is dropped and named once; the journal has it all."""
        for sink in list(self._sinks):
            try:
                call(sink)
            except Exception as error:
                self._sinks.remove(sink)
                self.say(
                    f"logger {type(sink).__name__} failed and is switched off: {type(error).__name__}: {error}; "
                    "nothing is lost, the journal goes on"
                )
