"""Runs chosen episodes of a recorded run again, to film them; the journal is not touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from vlaprune.errors import UserError
from vlaprune.records import EpisodeRecord, Run


def chosen(run: Run, only: str | Sequence[str]) -> set[tuple[str, int]]:
    """Recorded episodes named as ["Lift:3", "Stack:7"], or all `lost` ones. UserError for one that is not there."""
    if isinstance(only, str) or not isinstance(only, Sequence):
        if only != "lost":
            raise UserError(f"only={only}; use lost, or a list such as only=[{next(iter(run.episodes))[0]}:0]")
        return {key for key, record in run.episodes.items() if not record.success}
    keys = set()
    for name in only:
        task, _, number = str(name).rpartition(":")
        if not number.isdecimal() or (task, int(number)) not in run.episodes:
            raise UserError(f"only={name}; {run.folder} holds no such episode, write TASK:NUMBER of one it holds")
        keys.add((task, int(number)))
    return keys


class Rerun:
    """Stands in for the journal in a rollout: the chosen episodes are missing, and nothing is written.

    Each outcome is held against the recorded one.
    """

    def __init__(self, run: Run, wanted: set[tuple[str, int]], say: Callable[[str], None] = print) -> None:
        self.folder = run.folder
        self.header = run.header
        self._run = run
        self._wanted = wanted
        self._say = say
        self.other: list[str] = []

    def has(self, task: str, episode: int) -> bool:
        """Whether this episode was not chosen."""
        return (task, episode) not in self._wanted

    @contextmanager
    def attempt(self, task: str, episode: int) -> Iterator[None]:
        """Says what the world raises and goes on."""
        try:
            yield
        except Exception as error:
            self.other.append(f"{task} {episode}")
            self._say(f"{task} episode {episode} raised {type(error).__name__}: {error}")

    def as_recorded(self, record: EpisodeRecord) -> bool:
        """Whether an episode ended as the journal has it: a film of it then shows what the journal tells."""
        return record.ending == self._recorded(record).ending

    def write(self, record: EpisodeRecord) -> None:
        """Says how an episode ended beside the recorded one."""
        name = f"{record.task} {record.episode}"
        if self.as_recorded(record):
            self.other = [other for other in self.other if other != name]  # it had raised before
            self._say(f"{name}: {record.ending}, as recorded")
            return
        self.other.append(name)
        self._say(f"{name}: {record.ending}, but {self._recorded(record).ending} as recorded; no film of it")

    def _recorded(self, record: EpisodeRecord) -> EpisodeRecord:
        return self._run.episodes[record.task, record.episode]
