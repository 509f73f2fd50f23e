"""Calibration before a run: what some methods must know of the model in its world, measured over dense episodes."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vlaprune.bench.episodes import Episodes, Outcome
from vlaprune.benchmark import Benchmark, Observation, Task
from vlaprune.policy import Policy, episode_seed
from vlaprune.pruner import Calibrated, Probe, Pruner

CALLS = 100  # measured at least
FILE = "calibration.json"  # in a run's folder


def calibrated(
    make: Callable[[], Pruner],
    policy: Callable[[Callable[[], Pruner]], Policy],
    bench: Benchmark,
    folder: Path,
    seed: int,
) -> Callable[[], Pruner]:
    """Returns `make`, or for a method that lacks its calibration, one whose methods read it from the run's folder.

    Where the folder has none, it is measured over dense episodes first. `policy` joins the model with a method. Says on
    the terminal which calibration is used.
    """
    method = make()
    path = folder / FILE
    if not isinstance(method, Calibrated):
        return make
    name = type(method).__name__
    if method.calibration is not None:
        print(f"{name} uses the calibration {method.calibration}", flush=True)
        return make
    with _alone(folder):
        if not path.is_file():
            probe = method.probe()
            episodes = measure(policy(lambda: probe), probe, bench, seed)
            probe.save(path)
            calls = f"{probe.calls} calls of {episodes} dense episodes of {bench.name}"
            print(f"{name} was calibrated on {calls}", flush=True)
    print(f"{name} uses the calibration {path}", flush=True)
    return with_calibration(make, path)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lets one of several processes that share a run measure while others wait; without file locks, each measures."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".calibration.lock").open("w") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def with_calibration(make: Callable[[], Pruner], path: Path) -> Callable[[], Pruner]:
    """Returns `make` changed so that its methods read their calibration from `path`."""

    def ready() -> Pruner:
        method = make()
        assert isinstance(method, Calibrated)
        method.calibration = str(path)
        return method

    return ready


def measure(policy: Policy, probe: Probe, bench: Benchmark, seed: int) -> int:
    """Plays episode 0 of every task, then episode 1, ..., until CALLS are measured; returns how many it played."""
    played = 0
    tasks = bench.tasks()
    for episode in range(max(task.episodes for task in tasks)):
        for task in tasks:
            if episode < task.episodes:
                play(policy, bench, task, episode, seed)
                played += 1
        if probe.calls >= CALLS:
            break
    return played


def play(policy: Policy, bench: Benchmark, task: Task, episode: int, seed: int) -> None:
    """Plays one episode; nothing is recorded."""
    with bench.open(task) as env:
        policy.reset(0, episode_seed(seed, task.name, episode))
        course = Episodes(env, task, bench.interface)
        now: Observation | Outcome = course.start(episode)
        while isinstance(now, Observation):
            now = course.advance(policy.act({0: now})[0])
