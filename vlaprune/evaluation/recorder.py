"""Writes the journal: one JSON line per finished episode, on disk before the next episode starts. No torch."""

from __future__ import annotations

import errno
import os
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vlaprune.errors import UserError
from vlaprune.evaluation.lock import locked
from vlaprune.records import SCHEMA, EpisodeRecord, Header, Sink, encode, recorded, written


class Recorder:
    """Appends one JSON line per finished episode to the journal and passes it to the sinks.

    A run that stopped continues after its last episode. If an episode raises, its traceback is recorded; it does not
    count as a failure and is run once more, now or when the run is continued. A line is on disk before the next episode
    starts; an incomplete last line is removed.

    Errors: UserError if the folder holds a run with another identity, or another process is writing this journal.
    """

    def __init__(
        self,
        folder: Path | str,
        header: Header,
        sinks: Sequence[Sink] = (),
        shard: str = "",
        say: Callable[[str], None] = print,
    ) -> None:
        self.folder = Path(folder)
        self.header = header
        self.say = say
        self.raised: Counter[tuple[str, int]] = Counter()  # attempts that did, of each episode
        path = self.folder / f"journal{shard}.jsonl"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            new = not path.exists()
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise UserError(f"cannot write to {path}: {error.strerror}; choose another output=") from None
        self._stack = ExitStack()
        self._stack.callback(self._file.close)
        try:
            self._stack.enter_context(locked(self._file, path))
        except Exception:
            self._stack.close()
            raise
        try:
            self._alone(path, shard)
            old = recorded(self.folder, header)  # after the lock, so that nothing is written in between
        except Exception:
            if new and not path.stat().st_size:  # nobody else's: the lock is ours
                path.unlink()
            self._stack.close()
            raise
        whole = path.read_bytes().rfind(b"\n") + 1
        if whole < path.stat().st_size:
            os.truncate(path, whole)
        self._done: dict[tuple[str, int], EpisodeRecord] = dict(old.episodes) if old else {}
        self._before = Counter((e["task"], e["episode"]) for e in (old.errors if old else ()))
        self._append({"kind": "header", "schema": SCHEMA, **asdict(header)})
        ours = written(path) if shard else self._done.keys()  # a shard's sinks get what this shard wrote
        self._sinks = list(sinks)
        self._feed(lambda sink: sink.open(header, self.folder, [r for key, r in self._done.items() if key in ours]))

    def _alone(self, path: Path, shard: str) -> None:
        """Raises UserError where a process with another number of shards writes to this folder at this moment."""
        count = shard.rpartition("-of-")[2]
        for other in sorted(self.folder.glob("journal*.jsonl")):
            if other != path and other.stem.rpartition("-of-")[2] != (count or other.stem):
                with other.open("ab", buffering=0) as file, locked(file, other, "use its shard.count", shared=True):
                    pass

    def _append(self, line: Mapping[str, Any]) -> None:
        size = os.fstat(self._file.fileno()).st_size
        try:
            data = encode(line)
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as error:
            os.ftruncate(self._file.fileno(), size)
            raise UserError(
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

    @property
    def more(self) -> int:
        """Finished episodes that the folder holds beyond what this run asks for."""
        return len(self._done) - len(self.done())

    @contextmanager
    def attempt(self, task: str, episode: int) -> Iterator[None]:
        """Notes an exception of the block as an error line and goes on; Ctrl-C and errors of the disk pass."""
        try:
            yield
        except Exception as error:
            self.raised[task, episode] += 1
            self._append(
                {
                    "kind": "error",
                    "task": task,
                    "episode": episode,
                    "error": f"{type(error).__name__}: {error}",
                    "traceback": traceback.format_exc(),
                }
            )
            then = "it will be run again" if self.raised[task, episode] == 1 else "the same command runs it again"
            self.say(
                f"{task} episode {episode} raised {type(error).__name__}: {error}; noted in {self._file.name}, {then}"
            )

    def write(self, record: EpisodeRecord) -> None:
        """Journals one finished episode, then tells the sinks."""
        key = record.task, record.episode
        record = replace(record, attempts=1 + self._before[key] + self.raised[key])
        self._append({"kind": "episode", **asdict(record)})
        self._done[key] = record
        self._feed(lambda sink: sink.episode(record))

    def stop(self, why: Mapping[str, Any]) -> None:
        """Notes that a rule ended the run; it is complete by that rule."""
        self._append({"kind": "stop", **why})

    def close(self) -> None:
        """Closes the sinks and the journal."""
        self._feed(lambda sink: sink.close())
        self._stack.close()

    def _feed(self, call: Callable[[Sink], None]) -> None:
        """Calls every sink; one that raises is dropped and named once, and the journal has it all."""
        for sink in list(self._sinks):
            try:
                call(sink)
            except Exception as error:
                self._sinks.remove(sink)
                self.say(
                    f"logger {type(sink).__name__} failed and is switched off: {type(error).__name__}: {error}; "
                    "nothing is lost, the journal goes on"
                )
