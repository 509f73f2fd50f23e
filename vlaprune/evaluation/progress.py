"""How far a run is, and how far the arms of a sweep are: one line each, drawn by the process that started them."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vlaprune.errors import UserError
from vlaprune.evaluation.lock import pid_here, process_ended, this_process
from vlaprune.files import replacing
from vlaprune.records import EpisodeRecord

SWEEP = "VLAPRUNE_SWEEP"  # environment variable: the folder in which the jobs of a sweep say how far they are
OWNER = "VLAPRUNE_SWEEP_OWNER"  # environment variable: host and number of the process that started them
SAID = "said.log"
QUIET = 300.0  # seconds between two statuses where nobody looks on a terminal


@dataclass(frozen=True)
class RunStatus:
    """How far one run is.

    begun     episodes that were there when it started
    seconds   since then
    ended     whether it is over
    error     why, if that was not as planned
    code      the exit code that it leads to
    baseline  the folder of the run it is held against, if one was named
    """

    label: str
    folder: str = ""
    asked: int = 0
    done: int = 0
    won: int = 0
    begun: int = 0
    baseline: str = ""
    seconds: float = 0.0
    ended: bool = False
    error: str = ""
    code: int = 0

    @property
    def rate(self) -> str:
        """Success so far with its 95 % Wilson interval."""
        if not self.done:
            return "no episode yet"
        from vlaprune.stats.rates import wilson  # scipy: every command imports this module, few need it

        interval = wilson(self.won, self.done)
        rate = self.won / self.done
        return f"{self.won}/{self.done} = {100 * rate:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"

    @property
    def line(self) -> str:
        """The run in one line: label, success, what is left."""
        fresh = self.done - self.begun
        left = self.error or ("done" if self.ended else "")
        if not left:
            seconds = self.seconds / fresh * (self.asked - self.done) if fresh else 0.0
            left = f"{self.done}/{self.asked} episodes" + (f", {_clock(seconds)} left" if fresh else "")
        return f"{self.label:<40} {self.rate:<34} {left}"


def _clock(seconds: float) -> str:
    minutes = round(seconds) // 60
    hours = int(seconds // 3600)
    return f"{hours}:{minutes % 60:02d}:{round(seconds) % 60:02d}"


def _folder() -> Path | None:
    """Where the board of this sweep looks; None without one, or where it is on another machine."""
    folder = Path(os.environ.get(SWEEP, ""))
    return folder if SWEEP in os.environ and folder.is_dir() else None


def claim(folder: Path, shard: str, job: SweepJob) -> None:
    """Reserves a run's folder for one job of a sweep. UserError where another job of the sweep has it already."""
    board = _folder()
    if board is None:
        return
    mark = board / f"{zlib.crc32(f'{folder.resolve()} {shard}'.encode())}.claim"
    try:
        with mark.open("x") as file:
            file.write(str(job.number))
    except FileExistsError:
        if (other := mark.read_text()) != str(job.number):
            raise UserError(
                f"jobs {other} and {job.number} of this sweep write to the same folder, {folder}; its name does not "
                f"say {job.choices!r}: set output= so that it does"
            ) from None


@dataclass(frozen=True)
class SweepJob:
    """One job of a sweep: its number, and what makes it different, as on the command line."""

    number: int
    choices: str

    @property
    def place(self) -> Path | None:
        """The file in which the job says how far it is; None where no board is looking."""
        folder = _folder()
        return folder and folder / f"{self.number}.json"

    def fail(self, error: str, code: int = 2) -> bool:
        """Says that the job failed; returns False where no board is looking."""
        if self.place is None:
            return False
        known = self.place.is_file()
        status = RunStatus(**json.loads(self.place.read_text())) if known else RunStatus(self.choices)
        _post(self.place, replace(status, ended=True, error=error, code=code))
        return True


class Bar:
    """Watches one run: a bar on the terminal, or, inside a sweep, a line of the sweep's board."""

    def __init__(self, status: RunStatus, job: SweepJob | None = None) -> None:
        from tqdm import tqdm

        if job is not None and job.choices:
            status = replace(status, label=f"{status.label} {job.choices}")
        self.status = status
        self._began = time.monotonic()
        self._place = job.place if job is not None else None
        self._bar: Any = None
        if self._place is None:
            self._bar = tqdm(
                total=status.asked, initial=status.done, desc=status.label, unit="episode", postfix=status.rate
            )
        self._tell()

    def on_call(self, task: str, episode: int, trace: object) -> None:
        """Does nothing: a bar counts episodes."""

    def on_episode(self, task: str, episode: int, record: EpisodeRecord | None) -> None:
        """Counts a finished episode."""
        if record is None:
            return
        old = self.status
        self.status = replace(
            old, done=old.done + 1, won=old.won + record.success, seconds=time.monotonic() - self._began
        )
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self.status.rate}, {task}", refresh=False)
            self._bar.update()
        self._tell()

    def show(self, status: RunStatus) -> None:
        """Shows how far the run is, from a status that other processes gave."""
        fresh = status.done - self.status.done
        self.status = replace(status, label=self.status.label)
        if self._bar is not None and fresh:
            self._bar.set_postfix_str(self.status.rate, refresh=False)
            self._bar.update(fresh)
        self._tell()

    def close(self, whole: bool = True) -> None:
        """Ends the bar of a run that is over; not `whole` where an error follows, which the job then reports."""
        self.status = replace(self.status, ended=whole)
        if self._bar is not None:
            self._bar.close()
        self._tell()

    def _tell(self) -> None:
        if self._place is not None:
            _post(self._place, self.status)


def _post(place: Path, status: RunStatus) -> None:
    with replacing(place) as part:
        part.write_text(json.dumps(asdict(status)))


def detach_from_board() -> None:
    """Makes this run no job of a sweep: no board looks at it."""
    os.environ.pop(SWEEP, None)


def end_with_the_sweep() -> None:
    """Ends this process within a second or two after the one that started the sweep was killed.

    Journals stay whole: at most the episode under way is lost. On another machine nothing is watched.
    """
    owner = pid_here(os.environ.get(OWNER, ""))
    watched = any(thread.name == OWNER for thread in threading.enumerate())
    if _folder() is not None and owner not in (None, os.getpid()) and not watched:
        threading.Thread(target=_follow, args=(owner,), name=OWNER, daemon=True).start()


def _follow(owner: int) -> None:
    while not process_ended(owner):
        time.sleep(1.0)
    os._exit(1)


def say(text: str) -> None:
    """Prints a line; inside a sweep the board prints it, above its own lines."""
    from tqdm import tqdm

    folder = _folder()
    if folder is None:
        tqdm.write(text)
        return
    with (folder / SAID).open("a") as file:
        file.write(text + "\n")


def once(text: str) -> None:
    """Says a line once in a sweep, for the first job that has it to say."""
    folder = _folder()
    if folder is not None:
        try:
            (folder / f"{zlib.crc32(text.encode())}.once").touch(exist_ok=False)
        except FileExistsError:
            return
    say(text)


class Board:
    """Shows the statuses of a sweep's jobs, whether they run in this process or in others on this machine.

    A terminal gets one line per job, redrawn every second. Other output gets a line when a job ends, and from time to
    time a line for each job.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vlaprune-sweep-"))
        os.environ[SWEEP] = str(self.folder)
        os.environ[OWNER] = this_process()
        self._stop = threading.Event()
        self._drawn = 0  # lines on the terminal
        self._read = 0  # characters of what the jobs said
        self._ended: set[str] = set()
        self._next = time.monotonic() + QUIET
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def statuses(self) -> Sequence[RunStatus]:
        """The statuses of all jobs that have started, in their order."""
        files = sorted(self.folder.glob("*.json"), key=lambda p: int(p.stem))
        return [RunStatus(**json.loads(p.read_text())) for p in files]

    def close(self) -> Sequence[RunStatus]:
        """Draws the last statuses once more, returns them and cleans up."""
        self._stop.set()
        self._thread.join()
        self._draw()
        statuses = self.statuses()
        for status in statuses if sys.stderr.isatty() else ():
            if len(status.line) >= shutil.get_terminal_size().columns and status.error:
                print(f"{status.label}: {status.error}", file=sys.stderr)  # its line above was cut
        detach_from_board()
        shutil.rmtree(self.folder, ignore_errors=True)
        return statuses

    def _watch(self) -> None:
        while SWEEP in os.environ and not self._stop.wait(1.0):
            self._draw()

    def _draw(self) -> None:
        news = self._news()
        statuses = self.statuses()
        if not news and not statuses:
            return
        if sys.stderr.isatty():
            width, height = shutil.get_terminal_size()
            shown = [s.line[: width - 1] for s in statuses][2 - height :]
            up = f"\x1b[{self._drawn}F" if self._drawn else ""
            self._drawn = len(shown)
        else:
            shown = [s.line for s in statuses if self._due(s)]
            up = ""
            self._next = time.monotonic() + QUIET if time.monotonic() > self._next else self._next
        clear = "\x1b[J" if up else ""
        sys.stderr.write(up + clear + "".join(f"{line}\n" for line in [*news, *shown]))
        sys.stderr.flush()

    def _due(self, status: RunStatus) -> bool:
        """Whether a line is due where nobody looks on a terminal."""
        key = status.label + status.folder
        due = key not in self._ended and (status.ended or time.monotonic() > self._next)
        self._ended |= {key} if status.ended else set()
        return due

    def _news(self) -> list[str]:
        """What the jobs have said since the last time."""
        place = self.folder / SAID
        text = place.read_text()[self._read :] if place.is_file() else ""
        whole = text.rfind("\n") + 1
        self._read += whole
        return text[:whole].splitlines()
