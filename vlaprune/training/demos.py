"""Demonstrations for behaviour cloning: the actions of an expert from the states that a policy visits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from contextlib import nullcontext
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from vlaprune.bench.worker import die_with
from vlaprune.benchmark import Observation, SupportsHint, SupportsSnapshot, Task, in_process
from vlaprune.errors import UserError
from vlaprune.files import replacing

FRAMES = ("images", "state", "labels", "hints")
FACTS = ("task", "episode", "success", "steps", "noise")
MADE = "made"  # key: how an episode was recorded; missing in files of early versions
IN = ", in "  # text before the world in it; files of 0.1.0 do not name their world
Policy = Callable[[Observation], np.ndarray]


class DemoJob(NamedTuple):
    """One episode to record, with the standard deviation of the noise on the arm's actions."""

    task: str
    episode: int
    noise: float


class Style(NamedTuple):
    """How episodes are recorded: `every`, `chunk`, `rewind`, `beta`, `by` and `world` as in `record`."""

    every: int = 3
    chunk: int = 8
    rewind: bool = True
    beta: float = 0.0
    by: str = "the expert"
    world: str = ""

    def made(self, noise: float) -> str:
        """The text in an episode's file that says how it was recorded."""
        how = f"every {self.every}, chunk {self.chunk}, rewind {self.rewind}, beta {self.beta:g}, noise {noise:g}"
        return f"{how}, by {self.by}" + (f"{IN}{self.world}" if self.world else "")


STYLE = Style()


def record(
    bench: Any,
    task: Task,
    episodes: Iterable[int],
    out_dir: str | Path,
    *,
    noise: float = 0.0,
    every: int = 3,
    chunk: int = 8,
    policy: Policy | None = None,
    beta: float = 0.0,
    rewind: bool = True,
    by: str = "the expert",
    world: str = "",
) -> list[bool]:
    """Records episodes of one task, one .npz file each, and returns which ended in success.

    Every `every` steps, from a random first one, a file keeps images [cameras, h, w, 3], state [s], the label
    [chunk, actions] and the hint [h]. The label is the expert's next actions from there, rolled out without noise; with
    `rewind=False`, for environments that cannot go back, it is what the expert would have done at each of the states
    that came next. With a `policy`, its [k, actions] chunks are executed, but with probability `beta` the expert acts
    for `chunk` steps; without a policy the expert always acts. A file that exists is left as it is; UserError if it was
    recorded in another way, not by `by`, or in another `world` (the identity of the benchmark as text; empty if not
    needed).
    """
    style = Style(every, chunk, rewind, beta, by, world)
    bench = in_process(bench)
    with bench.open(task) as env:
        _check(bench, env, style)
        return [_episode(bench, env, task, DemoJob(task.name, e, noise), out_dir, style, policy) for e in episodes]


def collect(
    bench: Any, plan: Sequence[DemoJob], out_dir: str | Path, workers: int = 2, style: Style = STYLE
) -> dict[str, float]:
    """Records `plan` in processes, as `record` does; returns each task's success rate.

    A process has one environment open at a time, which may take a gigabyte of memory for meshes and textures. Episodes
    of one task that stand one after the other in the plan share it, so a plan should list many of them in a row; at
    most a `workers`-th of the plan is for one process alone.
    """
    most, files = -(-len(plan) // workers), planned(plan, out_dir)
    rows = [list(jobs) for _, jobs in groupby(plan, key=lambda job: job.task)]
    shares = [row[i : i + most] for row in rows for i in range(0, len(row), most)]
    won: list[tuple[str, bool]] = []
    executor = ProcessPoolExecutor(workers, get_context("spawn"), initializer=die_with, initargs=(os.getpid(),))
    with executor as pool, tqdm(total=len(plan), unit="episode") as bar:
        waiting = {pool.submit(_share, bench, share, out_dir, style) for share in shares}
        while waiting:
            done, waiting = wait(waiting, timeout=5, return_when=FIRST_EXCEPTION)
            bar.update(sum(path.exists() for path in files) - bar.n)
            try:
                won += [one for share in done for one in share.result()]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return {name: float(np.mean([w for n, w in won if n == name])) for name in sorted({n for n, _ in won})}


def planned(plan: Iterable[DemoJob], out_dir: str | Path) -> list[Path]:
    """The files of the episodes of a plan, in the order of their names."""
    return sorted(_path(out_dir, job) for job in plan)


def load(*places: str | Path) -> dict[str, np.ndarray]:
    """Every frame in some folders or files, one row each: in the order given, in a folder in that of the file names.

    Arrays: images [n, cameras, h, w, 3] uint8, state [n, s] and labels [n, chunk, actions] float32; and of the frame's
    episode: task, episode, success, steps, noise [n]. Memory holds the images only once.
    UserError for a folder without demonstrations, or a damaged file.
    """
    paths = []
    for place in map(Path, places):
        if not (found := sorted(place.glob("*.npz")) if place.is_dir() else [p for p in (place,) if p.is_file()]):
            raise UserError(f"{place} holds no demonstrations")
        paths += found
    facts = [_read(path, "state", *FACTS) for path in paths]
    counts = [len(fact["state"]) for fact in facts]
    out = {key: np.repeat([fact[key] for fact in facts], counts) for key in FACTS}
    for path, count, end in zip(paths, counts, np.cumsum(counts), strict=True):
        for key, part in _read(path, *FRAMES).items():
            out.setdefault(key, np.empty((sum(counts), *part.shape[1:]), part.dtype))
            out[key][end - count : end] = part
    return out


def _check(bench: Any, env: Any, style: Style) -> None:
    """Raises UserError if an environment lacks a method that demonstrations need."""
    if not isinstance(env, SupportsHint):
        raise UserError(f"bench {bench.name} does not tell where its objects are; add `hint()` to its environment")
    if style.rewind and not isinstance(env, SupportsSnapshot):
        raise UserError(f"bench {bench.name} cannot go back to an earlier state; set teaching.rewind=false")


def _episode(
    bench: Any, env: Any, task: Task, job: DemoJob, out_dir: str | Path, style: Style, policy: Policy | None
) -> bool:
    """Records one episode in the open `env`, unless its file exists. Returns whether it ended in success."""
    name, episode, noise = job
    path = _path(out_dir, job)
    if path.exists():
        return recorded(path, style, noise)
    rng = np.random.default_rng([episode, 7])
    env.reset(episode)
    expert = bench.expert(env)
    frames: list[tuple[np.ndarray, ...]] = []
    told: list[np.ndarray] = []  # the expert's actions, one per step
    turn: list[np.ndarray | None] = []  # actions to execute next; None: ask the expert
    phase, step, done = int(rng.integers(style.every)), 0, False
    while step < task.max_steps and not done:
        if step % style.every == phase:
            look = env.observe()
            pixels = np.stack([look.images[camera] for camera in bench.interface.cameras])
            label = _ahead(env, expert, style.chunk) if style.rewind else np.empty(0)
            frames.append((pixels, look.state.astype(np.float32), label, env.hint()))
        if not turn:
            turn = [None] * style.chunk if policy is None or rng.random() < style.beta else list(policy(env.observe()))
        now = turn.pop(0)
        told.append(expert())
        action = np.array(told[-1] if now is None else now, dtype=np.float64)
        action[:-1] += noise * rng.standard_normal(action.size - 1)
        done, step = env.step(action), step + 1
    if not frames:
        raise UserError(
            f"episode {episode} of {name} ended after {step} steps, before its first frame; lower teaching.every "
            f"(now {style.every})"
        )
    arrays = dict(zip(FRAMES, (np.stack(part) for part in zip(*frames, strict=True)), strict=True))
    if not style.rewind:
        arrays["labels"] = _visited(env, expert, told, style, phase, len(frames))
    _write(path, arrays | dict(zip(FACTS, (name, episode, done, step, noise), strict=True)) | {MADE: style.made(noise)})
    return done


def recorded(path: Path, style: Style, noise: float = 0.0) -> bool:
    """Whether a recorded episode ended in success. UserError if it was recorded in another way than `style` says."""
    said, how = _read(path, "success", known=[MADE]), style.made(noise)
    made = str(said.get(MADE, how))
    if made != (how if IN in made else how.partition(IN)[0]):
        raise UserError(
            f"{path} was recorded with {made}, now it is {how}; use the same settings or another data=, or remove "
            f"{path.parent}"
        )
    return bool(said["success"])


def _path(out_dir: str | Path, job: DemoJob) -> Path:
    """The file of an episode."""
    return Path(out_dir) / f"{job.task}_{job.episode:06d}.npz"


def _visited(
    env: Any, expert: Callable[[], np.ndarray], told: list[np.ndarray], style: Style, phase: int, frames: int
) -> np.ndarray:
    """Labels [frames, chunk, actions] from the expert's action at each step; the episode goes on for the last ones."""
    for _ in range(style.chunk):
        told.append(expert())
        env.step(told[-1])
    starts = phase + style.every * np.arange(frames)
    return np.asarray(told, np.float32)[starts[:, None] + np.arange(style.chunk)]


def _ahead(env: Any, expert: Callable[[], np.ndarray], chunk: int) -> np.ndarray:
    """The expert's next actions [chunk, actions] without noise; `env` is restored afterwards."""
    now = env.snapshot()
    actions = []
    for _ in range(chunk):
        actions.append(expert())
        env.step(actions[-1])
    env.restore(now)
    return np.stack(actions).astype(np.float32)


def _write(path: Path, data: dict[str, Any]) -> None:
    """Writes one uncompressed .npz, whole or not at all."""
    with replacing(path) as part, open(part, "wb") as file:
        np.savez(file, **data)


def _read(path: Path, *keys: str, known: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The arrays `keys` of one file, and those of `known` that it has. A UserError names a damaged file."""
    try:
        with np.load(path) as data:
            return {key: data[key] for key in (*keys, *(k for k in known if k in data.files))}
    except Exception as error:  # zipfile, zlib, numpy and the OS raise different errors for a broken file
        raise UserError(f"{path} is not a whole demonstration ({error}); delete it") from error


def _share(bench: Any, jobs: Sequence[DemoJob], out_dir: str | Path, style: Style) -> list[tuple[str, bool]]:
    """The part of `collect` that one process records at a time: episodes of one task, in one environment."""
    bench = in_process(bench)
    task = next(task for task in bench.tasks() if task.name == jobs[0].task)
    missing = not all(_path(out_dir, job).exists() for job in jobs)
    with bench.open(task) if missing else nullcontext() as env:
        if missing:
            _check(bench, env, style)
        return [(task.name, _episode(bench, env, task, job, out_dir, style, None)) for job in jobs]
