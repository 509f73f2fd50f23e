"""Episodes that a method lost or gained against the baseline, and their videos."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

from vlaprune.records import Run, film_name
from vlaprune.report.runs import Arm, Comparison, Key
from vlaprune.report.tables import pairs, shared_episodes
from vlaprune.stats import paired as stats


@dataclass(frozen=True)
class Flip:
    """One episode that the method and the baseline ended differently, with steps and videos (None if not filmed)."""

    task: str
    episode: int
    steps: tuple[int, int]  # (baseline, method); so are the videos
    videos: tuple[Path | None, Path | None]


@dataclass(frozen=True)
class Flips:
    """The 2x2 table of an arm against the baseline, and the episodes off its diagonal."""

    arm: Arm
    pairs: stats.Pairs
    lost: tuple[Flip, ...]
    gained: tuple[Flip, ...]


@dataclass(frozen=True)
class Video:
    """Where the page finds a video: embedded under `key`, or at `link` beside the page."""

    key: str
    link: str
    embedded: bool


def flips(comparison: Comparison) -> list[Flips]:
    """The flips of every arm that shares episodes with the baseline."""
    base, out = comparison.baseline, []
    for arm in comparison.others if base else ():
        assert base is not None
        if keys := shared_episodes(arm, base):
            lost, gained = (_episodes(arm, base, keys, won) for won in (False, True))
            out.append(Flips(arm, pairs(arm, base, keys), lost, gained))
    return out


def _episodes(arm: Arm, base: Arm, keys: Sequence[Key], won: bool) -> tuple[Flip, ...]:
    out = []
    tasks = list(dict.fromkeys(task for task, _, _ in keys))
    for key in sorted(keys, key=lambda k: (tasks.index(k[0]), k[1], str(k[2]))):
        ours, theirs = arm.episodes[key], base.episodes[key]
        if ours.success == won != theirs.success:
            films = (video(run_of(base, key), *key[:2]), video(run_of(arm, key), *key[:2]))
            out.append(Flip(*key[:2], (theirs.steps, ours.steps), films))
    return tuple(out)


def run_of(arm: Arm, key: Key) -> Run:
    """The run that an episode comes from."""
    return arm.runs[arm.seeds.index(key[2])]


def video(run: Run, task: str, episode: int) -> Path | None:
    """The film of an episode in its run's folder, if there is one."""
    path = run.folder / film_name(task, episode)
    return path if path.is_file() else None


def place_videos(
    found: Sequence[Flips], page: Path, budget: int, others: Iterable[Path] = ()
) -> tuple[dict[Path, Video], dict[str, str]]:
    """Decides where every video goes: in the page while `budget` bytes (as base64) last, else as a link.

    Lost episodes come before gained ones, methods in turn, then `others`. Returns the places by path, and the embedded
    files as base64 by key.
    """
    lost, gained = (chain.from_iterable(zip_longest(*(getattr(f, kind) for f in found))) for kind in ("lost", "gained"))
    sets = [[p for p in flip.videos if p is not None] for flip in chain(lost, gained) if flip is not None]
    places: dict[Path, Video] = {}
    held: dict[str, str] = {}
    for group in chain(sets, ([path] for path in others)):
        new = [p for p in group if p not in places]
        size = sum(4 * ((p.stat().st_size + 2) // 3) for p in new)  # size as base64
        fits = size <= budget
        budget -= size if fits else 0
        for path in new:
            key = f"v{len(places)}"
            link = Path(os.path.relpath(path.resolve(), page.resolve().parent)).as_posix()
            places[path] = Video(key, link, fits)
            if fits:
                held[key] = base64.b64encode(path.read_bytes()).decode()
    return places, held
