"""Demonstrations for behaviour cloning: what an expert would do from the states that a policy gets into."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vlaprune.benchmark import Observation

FRAMES = ("images", "state", "labels")
FACTS = ("task", "episode", "success", "steps", "noise")


@dataclass(frozen=True)
class Job:
    """One episode to record: task name, episode id, standard deviation of the noise on the arm's actions."""

    task: str
    episode: int
    noise: float


def plan(tasks: Iterable[str], episodes: Iterable[int], noises: Sequence[float]) -> list[Job]:
    """Jobs with the tasks interleaved, so that an early stop has some of each, and the noises in turn."""
    names = list(tasks)
    return [Job(n, e, noises[(e + i) % len(noises)]) for e in episodes for i, n in enumerate(names)]


def record(
    bench: Any,
    env: Any,
    job: Job,
    out_dir: str | Path,
    *,
    every: int = 3,
    chunk: int = 8,
    policy: Callable[[Observation], np.ndarray] | None = None,
    beta: float = 0.0,
) -> bool:
    """Runs one episode in the open `env` and writes it to `out_dir`; True if it ended in success.

    Every `every` steps, from a random first one, it keeps images [cameras, h, w, 3], state [s] and the
    label [chunk, actions]: the expert's own next actions from there, rolled out without noise. With a
    `policy`, its [k, actions] chunks are executed, save that with probability `beta` the expert takes a turn
    of `chunk` steps; without one the expert acts throughout. A file that exists is left as it is.
    """
    path = Path(out_dir) / f"{job.task}_{job.episode:06d}.npz"
    if path.exists():
        return bool(_read(path, "success")["success"])
    rng = np.random.default_rng([job.episode, 7])
    env.reset(job.episode)
    expert = bench.expert(env)
    frames: list[tuple[np.ndarray, ...]] = []
    turn: list[np.ndarray | None] = []  # actions to come; None is the expert's
    phase, step, done = int(rng.integers(every)), 0, False
    while step < env.task.limit and not done:
        if step % every == phase:
            look = env.observe()
            pixels = np.stack([look.images[camera] for camera in bench.interface.cameras])
            frames.append((pixels, look.state, _ahead(env, expert, chunk)))
        if not turn:
            teach = policy is None or rng.random() < beta
            turn = [None] * chunk if teach else list(policy(env.observe()))
        action = turn.pop(0)
        action = np.array(expert() if action is None else action, dtype=np.float64)
        action[:-1] += job.noise * rng.standard_normal(action.size - 1)
        done, step = env.step(action), step + 1
    _write(path, frames, dict(zip(FACTS, (job.task, job.episode, done, step, job.noise), strict=True)))
    return done


def collect(
    bench: Any, jobs: Sequence[Job], out_dir: str | Path, *, workers: int = 2, every: int = 3, chunk: int = 8
) -> dict[str, float]:
    """Records `jobs` in `workers` processes, skipping what is there; returns each task's success rate."""
    Path(out_dir).mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        shares = [
            pool.submit(_share, bench, jobs[worker::workers], out_dir, every, chunk, worker)
            for worker in range(workers)
        ]
        won = [result for share in shares for result in share.result()]
    return {name: float(np.mean([w for n, w in won if n == name])) for name in sorted({n for n, _ in won})}


def load(folder: str | Path) -> dict[str, np.ndarray]:
    """Every frame in a folder, one row each, in the order of the file names.

    images [n, cameras, h, w, 3] uint8, state [n, s] and labels [n, chunk, actions] float32, and of the
    episode that it is from: task, episode, success, steps, noise [n]. Memory holds the images only once.
    """
    paths = sorted(Path(folder).glob("*.npz"))
    if not paths:
        raise ValueError(f"{folder} holds no demonstrations")
    facts = [_read(path, "state", *FACTS) for path in paths]
    counts = [len(fact["state"]) for fact in facts]
    out = {key: np.repeat([fact[key] for fact in facts], counts) for key in FACTS}
    ends = np.cumsum(counts)
    for path, count, end in zip(paths, counts, ends, strict=True):
        for key, part in _read(path, *FRAMES).items():
            if key not in out:
                out[key] = np.empty((ends[-1], *part.shape[1:]), part.dtype)
            out[key][end - count : end] = part
    return out


def _ahead(env: Any, expert: Callable[[], np.ndarray], chunk: int) -> np.ndarray:
    """The expert's next actions [chunk, actions] without noise; `env` is afterwards as it was."""
    now = env.snapshot()
    actions = []
    for _ in range(chunk):
        actions.append(expert())
        env.step(actions[-1])
    env.restore(now)
    return np.stack(actions)


def _write(path: Path, frames: list[tuple[np.ndarray, ...]], facts: dict[str, Any]) -> None:
    """One uncompressed .npz, complete or not there at all."""
    images, state, labels = (np.stack(part) for part in zip(*frames, strict=True))
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with open(part, "wb") as file:
        np.savez(file, images=images, state=np.float32(state), labels=np.float32(labels), **facts)
    os.replace(part, path)


def _read(path: Path, *keys: str) -> dict[str, np.ndarray]:
    """Some arrays of one file, or ValueError that names it."""
    try:
        with np.load(path) as data:
            return {key: data[key] for key in keys}
    except Exception as error:  # zipfile, zlib, numpy and the OS each have their own for a broken file
        raise ValueError(f"{path} is not a whole demonstration ({error}); delete it") from error


def _share(
    bench: Any, jobs: Sequence[Job], out_dir: str | Path, every: int, chunk: int, worker: int
) -> list[tuple[str, bool]]:
    """What one process does of `collect`: one environment per task, opened when first needed."""
    tasks = {task.name: task for task in bench.tasks()}
    envs: dict[str, Any] = {}
    won = []
    with ExitStack() as stack:
        for job in tqdm(jobs, desc=f"worker {worker}", unit="episode", position=worker, mininterval=5.0):
            if job.task not in envs:
                envs[job.task] = stack.enter_context(bench.open(tasks[job.task]))
            won.append((job.task, record(bench, envs[job.task], job, out_dir, every=every, chunk=chunk)))
    return won
