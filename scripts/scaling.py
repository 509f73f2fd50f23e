"""How rollouts scale: worlds side by side, opening, the cost of a worker, robosuite. Prints a Markdown table.

    python scripts/scaling.py [--only NAME ...] [--repeats N] [--output docs/scaling.md]

Everything is a ratio of two times of one run on one machine, the least of `repeats` each, because other processes only
ever make a time longer. Each process computes and renders on one thread, unless a row says otherwise. With --output the
table replaces the one between the two marks of that file.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vlaprune.bench.episodes import Episodes
from vlaprune.bench.sleeping import Sleeping
from vlaprune.bench.toy import Toy as ToyBench
from vlaprune.benchmark import Benchmark, Observation
from vlaprune.control import Control
from vlaprune.evaluation.recorder import Recorder
from vlaprune.evaluation.rollout import RolloutConfig, Shard, rollout
from vlaprune.methods.dense import Dense
from vlaprune.models.toy import Toy
from vlaprune.policy import VLA, Policy
from vlaprune.records import Header, read
from vlaprune.session import Session

THREADS = ("OMP_NUM_THREADS", "LP_NUM_THREADS")  # of torch and numpy; of Mesa's renderer
JITTER = 0.3
BEGIN, END = "<!-- measured -->\n", "<!-- /measured -->\n"
GL = os.environ.get("MUJOCO_GL", "egl")


class Timed(Toy):
    """The toy model; a call takes `seconds`, whatever its size."""

    def __init__(self, seconds: float, chunk: int = 4) -> None:
        super().__init__(chunk=chunk)
        self.seconds = seconds
        self.spans: list[tuple[float, float]] = []  # of calls: begin, end

    def predict(self, observations: Sequence[Observation], sessions: Sequence[Session]) -> Sequence[Tensor]:
        """The toy's chunks, after the rest of the time."""
        began = time.perf_counter()
        chunks = super().predict(observations, sessions)
        time.sleep(max(0.0, self.seconds - (time.perf_counter() - began)))
        self.spans.append((began, time.perf_counter()))
        return chunks

    def busy(self) -> float:
        """The share of time in calls, from the first call to the end of the last."""
        return sum(end - began for began, end in self.spans) / (self.spans[-1][1] - self.spans[0][0])


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for a run."""
    folder = Path(tempfile.mkdtemp())
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def played(
    bench: Benchmark, model: VLA, slots: int, episodes: int, execute: int, max_batch: int | None = None
) -> tuple[float, float]:
    """Seconds of a run of so many episodes of each task, from its first episode's start on, and with the opening."""
    tasks = {task.name: episodes for task in bench.tasks()}
    with scratch() as folder:
        recorder = Recorder(folder, Header({}, {}, tasks), say=lambda text: None)
        policy = Policy(model, Dense, slots, Control(execute=execute))
        began = time.time()
        try:
            rollout(policy, bench, recorder, Shard(), RolloutConfig(7, 600.0, max_batch=max_batch))
        finally:
            recorder.close()
        done = read(folder).episodes.values()
    assert len(done) == sum(tasks.values())
    first = min(record.ended - record.seconds for record in done)
    return max(record.ended for record in done) - first, time.time() - began


def least(repeats: int, take: Callable[[], float]) -> float:
    """The least of several times."""
    return min(take() for _ in range(repeats))


def sleeping(repeats: int) -> Iterator[tuple[str, str, str]]:
    """A world of 10 ms a step and 20 ms a look, 48 episodes of 12 steps."""
    one = least(1, lambda: played(Sleeping(step=0.01, look=0.02, steps=12, worker=False), Toy(), 1, 24, 4)[0])
    many = least(repeats, lambda: played(Sleeping(step=0.01, look=0.02, steps=12), Toy(), 8, 24, 4)[0])
    yield "sleeping world, 8 slots against 1 (10 ms a step, 20 ms a look, 48 episodes)", ratio(one, many), ">= 6.5x"


def busy(repeats: int) -> Iterator[tuple[str, str, str]]:
    """A world of LIBERO's times (12 ms a step, 60 ms a look, chunks of 8) and calls of 30 ms.

    Smaller calls (max_batch) are more of them, and the device pauses less.
    JITTER makes chunks vary by a standard deviation of 7 %.
    """
    model = Timed(0.03, chunk=8)
    one = played(Sleeping(step=0.012, look=0.06, steps=80), model, 1, 1, 8)[0] / 2
    share = "device busy >= 90 %"
    for slots, episodes, jitter, largest, goal in (
        (14, 56, 0.0, None, ">= 11x"),
        (28, 112, 0.0, None, ""),
        (28, 112, 0.0, 4, share),
        (28, 224, JITTER, None, ""),
        (28, 224, JITTER, 4, share),
        (48, 96, 0.0, None, ""),
    ):
        bench = Sleeping(step=0.012, look=0.06, steps=80, jitter=jitter)
        best = (float("inf"), 0.0)
        for _ in range(repeats):
            model.spans.clear()
            took = played(bench, model, slots, episodes, 8, largest)[0]
            best = min(best, (took, model.busy()))
        found = f"{one / (best[0] / (2 * episodes)):.1f}x, device busy {100 * best[1]:.0f} %"
        varied = " that vary by 7 %" if jitter else ""
        most = f" with max_batch={largest}" if largest else ""
        what = f"sleeping world of LIBERO's times{varied}, calls of 30 ms{most}"
        yield f"{what}, {slots} slots against 1, {2 * episodes} episodes", found, goal


def opening(repeats: int) -> Iterator[tuple[str, str, str]]:
    """Starting robosuite simulators side by side."""
    if find_spec("robosuite") is None:
        return
    from vlaprune.bench.robosuite import Robosuite

    bench = Robosuite(names=["Lift"], renderer=GL)

    def start(count: int) -> float:
        began = time.perf_counter()
        with ExitStack() as stack:
            envs = [stack.enter_context(bench.open(bench.tasks()[0])) for _ in range(count)]
            for env in envs:
                while not env.up():
                    pass
            return time.perf_counter() - began

    one, eight = least(repeats, lambda: start(1)), least(repeats, lambda: start(8))
    yield "start of 8 robosuite simulators against 1", f"{eight / one:.1f}x the time ({one:.1f} s)", "<= 4.5x"


def overhead(repeats: int) -> Iterator[tuple[str, str, str]]:
    """What a worker adds to a step of the toy world: chunks of 8, one message each."""
    task, actions = ToyBench().tasks()[0], np.zeros((8, 7))
    bench = Sleeping(step=0.0, look=0.0, steps=10**6)
    with bench.open(task) as far, ToyBench().open(task) as near:
        episodes = Episodes(near, bench.tasks()[0], bench.interface)
        episodes.start(0)
        far.call("start", 0)

        def there() -> float:
            began = time.perf_counter()
            for _ in range(50):
                far.call("advance", actions.tolist())
            return (time.perf_counter() - began) / 50

        def here() -> float:
            began = time.perf_counter()
            for _ in range(50):
                episodes.advance(actions)
            return (time.perf_counter() - began) / 50

        extra = 1e3 * (least(20 * repeats, there) - least(20 * repeats, here)) / len(actions)
    yield "a worker's overhead a step, chunks of 8 and a look of 64 px", f"{extra:.3f} ms", "<= 0.1 ms"


def robosuite(repeats: int) -> Iterator[tuple[str, str, str]]:
    """Robosuite and the tiny policy: 2 slots with workers against 1 slot in process."""
    if find_spec("robosuite") is None:
        return
    from vlaprune.bench.robosuite import Robosuite
    from vlaprune.models.tiny import Tiny

    model = Tiny(device="cpu")

    def take(slots: int, worker: bool) -> float:
        return played(Robosuite(names=["Lift"], renderer=GL, worker=worker), model, slots, 12, 8)[0]

    many, one = least(repeats, lambda: take(2, True)), least(repeats, lambda: take(1, False))
    yield "robosuite, tiny: 2 slots with workers against 1 slot in process, 12 episodes", ratio(one, many), ">= 1.7x"


def libero(repeats: int) -> Iterator[tuple[str, str, str]]:
    """LIBERO: episodes of 64 steps in two workers, chunks of 8, against LIBERO's own environment, the same actions."""
    if find_spec("libero") is None:
        return
    from vlaprune.bench.libero import Libero

    bench = Libero(suite="libero_spatial", only=[0], renderer=GL)
    chunks = np.random.default_rng(0).uniform(-0.5, 0.5, (8, 8, 7))
    with ExitStack() as stack:
        envs = [stack.enter_context(bench.open(bench.tasks()[0])) for _ in range(2)]

        def both() -> float:
            began = time.perf_counter()
            for verb, said in [("start", 0), *(("advance", chunk.tolist()) for chunk in chunks)]:
                for env in envs:
                    env.begin(verb, said)
                for env in envs:
                    env.finish()
            return (time.perf_counter() - began) / len(envs)

        both()
        fast = least(repeats, both)
    name, actions = bench.tasks()[0].name, chunks.reshape(-1, 7)
    what = "LIBERO libero_spatial, 64 steps: 2 slots against upstream's loop, the same actions"
    yield what, ratio(least(repeats, lambda: upstream(name, actions, "1")), fast), ">= 11x"
    many = least(repeats, lambda: upstream(name, actions, str(os.cpu_count())))
    yield f"{what}, upstream rendering on all cores", ratio(many, fast), ""


def upstream(name: str, actions: np.ndarray, threads: str) -> float:
    """Seconds of `official` in a process of its own whose renderer has so many threads."""
    before, os.environ["LP_NUM_THREADS"] = os.environ["LP_NUM_THREADS"], threads
    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return pool.submit(official, name, actions).result()
    finally:
        os.environ["LP_NUM_THREADS"] = before


def official(name: str, actions: np.ndarray) -> float:
    """Seconds of an episode as upstream runs it: both cameras of 256 px rendered after every step."""
    from libero.libero import benchmark, get_libero_path
    from libero.libero.envs import OffScreenRenderEnv

    suite = benchmark.get_benchmark_dict()["libero_spatial"]()
    number = suite.get_task_names().index(name)
    task = suite.get_task(number)
    problem = Path(get_libero_path("bddl_files")) / task.problem_folder / task.bddl_file
    env = OffScreenRenderEnv(bddl_file_name=str(problem), camera_heights=256, camera_widths=256)
    env.reset()
    state = suite.get_task_init_states(number)[0]
    began = time.perf_counter()
    env.reset()
    env.set_init_state(state)
    for action in [*[np.array([0, 0, 0, 0, 0, 0, -1.0])] * 10, *actions]:
        env.step(action)
    took = time.perf_counter() - began
    env.close()
    return took


def ratio(slow: float, fast: float) -> str:
    """How many times faster."""
    return f"{slow / fast:.2f}x"


PARTS: dict[str, Callable[[int], Iterator[tuple[str, str, str]]]] = {
    "sleeping": sleeping,
    "busy": busy,
    "overhead": overhead,
    "opening": opening,
    "robosuite": robosuite,
    "libero": libero,
}


def hardware() -> str:
    """Processor, cores, memory pressure and versions, in a line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    return (
        f"{name}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} as it began, "
        f"Python {platform.python_version()}, torch {torch.__version__}, MUJOCO_GL={GL}"
    )


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description="How rollouts scale on this machine.")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.update(dict.fromkeys(THREADS, "1"))  # the simulators inherit it
    machine = hardware()
    head = f"{machine}; {time.strftime('%Y-%m-%d')}; the least of {args.repeats} times each.\n"
    lines = [head, "| measure | measured | goal |", "|---|---|---|"]
    print(*lines, sep="\n", flush=True)
    for name in args.only:
        for row in PARTS[name](args.repeats):
            lines.append(f"| {' | '.join(row)} |")
            print(lines[-1], flush=True)
    if args.output is not None:
        text = args.output.read_text()
        head, rest = text.split(BEGIN)
        args.output.write_text(head + BEGIN + "\n".join(lines) + "\n" + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
    sys.exit(0)
