"""Simulators in workers side by side: what is gained, what may not change, and what happens when one of them breaks."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from doubles import outcomes, play
from troubled import Dying

from vlaprune.bench import remote
from vlaprune.bench.episodes import Outcome
from vlaprune.bench.sleeping import Sleeping
from vlaprune.benchmark import Observation
from vlaprune.methods.random import Random
from vlaprune.models.toy import Toy

QUIET = {"say": lambda text: None}


def test_worlds_in_workers_run_side_by_side(tmp_path):
    """12 episodes of 12 steps of 20 ms: 2.9 s one after the other."""
    seen = {}
    for slots in (1, 6):
        bench = Sleeping(step=0.02, look=0.02, steps=12, worker=slots > 1)
        play(tmp_path / str(slots), bench, slots=slots, episodes=6)
        lines = map(json.loads, (tmp_path / str(slots) / "journal.jsonl").read_text().splitlines())
        ended = sorted(line["ended"] for line in lines if line["kind"] == "episode")
        seen[slots] = ended[-1] - ended[0]  # without the opening
    assert seen[6] < seen[1] / 2


@pytest.mark.parametrize("slots", [2, 5])
def test_alone_computed_the_bits_do_not_depend_on_slots_or_luck(tmp_path, slots):
    from vlaprune.evaluation.recorder import Recorder

    def actions(folder, slots, bench):
        ran = {}

        class Log(Recorder):
            def write(self, record):
                ran[record.task, record.episode] = record
                super().write(record)

        play(folder, bench, make=Random, slots=slots, recorder=Log, deterministic=True)
        return ran

    one = actions(tmp_path / "one", 1, Sleeping(step=0.0, look=0.0, worker=False))
    many = actions(tmp_path / "many", slots, Sleeping(step=0.002, look=0.004, jitter=1.0))
    assert {k: replace(r, calls=()) for k, r in one.items()} == {k: replace(r, calls=()) for k, r in many.items()}
    assert outcomes_of(one) == outcomes_of(many)


def test_a_call_holds_at_most_as_many_observations_as_allowed(tmp_path):
    """Calls of 30 ms beside chunks of 6 ms: observations pile up meanwhile."""

    class Slow(Toy):
        def predict(self, observations, sessions):
            time.sleep(0.03)
            return super().predict(observations, sessions)

    bench = Sleeping(step=0.0, look=0.006)
    runs = {n: play(tmp_path / str(n), bench, model=Slow(), slots=6, episodes=6, max_batch=n) for n in (None, 2)}
    packed = {n: max(c.packed for r in run.episodes.values() for c in r.calls) for n, run in runs.items()}
    assert packed[2] == 2 < packed[None]
    assert outcomes(runs[2]) == outcomes(runs[None])
    with pytest.raises(ValueError, match="max_batch=0; use 1 or more"):
        play(tmp_path / "none", bench, max_batch=0)


def outcomes_of(records):
    return {k: [(c.rows, c.visual, c.flops, c.packed) for c in r.calls] for k, r in records.items()}


def test_opening_overlaps(tmp_path):
    began = time.monotonic()
    play(tmp_path, Sleeping(step=0.0, look=0.0, start=1.0), slots=4, episodes=2)
    assert time.monotonic() - began < 3.5  # 4 s and more one after the other


@pytest.mark.parametrize("how", ["segv", "exit", "stop", "raise", "interrupt", "deaf"])
def test_a_worker_that_breaks_costs_its_episode_alone_and_that_is_run_again(tmp_path, how):
    bench = Dying(how=how, mark=str(tmp_path / "mark"))
    run = play(tmp_path / "a", bench, slots=3, make=Random, time_limit=1.0, **QUIET)
    assert not run.missing and [(e["task"], e["episode"]) for e in run.errors] == [("reach-red", 1)]
    assert {
        "segv": "WorkerDied: worker of dying reach-red, advance: died with signal 11",
        "exit": "RuntimeError: SystemExit: 0",
        "stop": "TimeoutError: worker of dying reach-red, advance: no answer within 1 s (time_limit); killed",
        "raise": "KeyError: 'no such joint'",
        "interrupt": "RuntimeError: KeyboardInterrupt: ",
        "deaf": "TimeoutError: worker of dying reach-red, advance: no answer within 1 s (time_limit); killed",
    }[how] in run.errors[0]["error"]
    assert outcomes(run) == outcomes(play(tmp_path / "b", Sleeping(step=0.0, look=0.0, worker=False), make=Random))


def test_nothing_is_left_running(tmp_path):
    bench = Dying(how="never", mark=str(tmp_path / "mark"), closing=60.0)
    began = time.monotonic()
    play(tmp_path / "a", bench, slots=3, **QUIET)
    assert time.monotonic() - began < 20.0  # a simulator that does not close is killed
    pids = [int(p) for p in (tmp_path / "mark.pids").read_text().split()]
    assert len(pids) >= 3
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_chunk_is_one_message():
    task = Sleeping().tasks()[0]
    with Sleeping(step=0.0, look=0.0).open(task) as env:
        env.begin("start", 0)
        seen = env.finish()
        assert isinstance(seen, Observation)
        env.begin("advance", np.zeros((3, 7)).tolist())
        assert isinstance(env.finish(), Observation)
        env.begin("advance", np.zeros((20, 7)).tolist())
        assert env.finish() == Outcome(False, task.max_steps)


def test_a_worker_ends_with_its_parent(tmp_path):
    """Also one that is deep in native code and never looks at its pipe."""
    import subprocess
    import sys

    code = (
        "import sys, time; from troubled import Dying; from vlaprune.bench import remote\n"
        f"b = Dying(how='deaf', mark={str(tmp_path / 'mark')!r})\n"
        "with b.open(b.tasks()[0]) as env:\n"
        "    env.begin('start', 1); env.finish(); env.begin('advance', [[0.0] * 7] * 4)\n"
        "    print('there', flush=True); time.sleep(60)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    with subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "there\n"
        (pid,) = map(int, (tmp_path / "mark.pids").read_text().split())
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
    until = time.monotonic() + 5.0
    status = Path(f"/proc/{pid}/status")
    while status.exists() and "State:\tZ" not in status.read_text():
        assert time.monotonic() < until, "the worker outlived its parent"
        time.sleep(0.02)


def test_limits_of_a_worker_are_those_of_the_run():
    task = Sleeping().tasks()[0]
    with Sleeping(start=30.0).open(task) as env:
        env.limit(0.3)
        with pytest.raises(TimeoutError, match=r"opening: no answer within 0.3 s \(time_limit\); killed"):
            env.reset(0)
    assert isinstance(remote.WorkerDied("x"), RuntimeError)
