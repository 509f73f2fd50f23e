"""Workers: the same world as in process, no model code, and what happens when one dies, hangs or raises."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from troubled import Away, Troubled

from vlaprune import errors
from vlaprune.bench import remote
from vlaprune.bench.toy import Toy
from vlaprune.benchmark import Task
from vlaprune.testing import check_benchmark

TASK = Task("t", "do it", 5, 5)
GO = [0.0] * 7


def test_a_worker_shows_the_same_world():
    check_benchmark(Away())
    task = Toy().tasks()[0]
    with Toy().open(task) as near, Away().open(task) as far:
        for env in (near, far):
            env.reset(3)
        for _ in range(4):
            a, b = near.observe(), far.observe()
            assert a.images.keys() == b.images.keys() and a.instruction == b.instruction
            assert all(np.array_equal(a.images[c], b.images[c]) for c in a.images)
            assert np.array_equal(a.state, b.state) and a.state.dtype == b.state.dtype
            action = np.array([0.1, 1 / 3, 0, 0, 0, 0, 0])
            assert near.step(action) == far.step(action)


def test_a_worker_loads_no_model_code_and_none_of_our_modules_by_their_short_names(tmp_path):
    with remote.opened(Troubled(str(tmp_path / "log")), TASK) as env:
        loaded = env.call("modules")
    assert not {"torch", "transformers", "hydra", "toy", "robosuite"} & set(loaded)


def test_another_interpreter_sees_our_package_and_nothing_beside_it(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "other"], check=True)
    other = tmp_path / "other" / "bin" / "python"
    (site,) = (tmp_path / "other").glob("lib/python*/site-packages")
    (site / "numpy").symlink_to(os.path.dirname(np.__file__))
    (site / "numpy.libs").symlink_to(os.path.dirname(np.__file__) + ".libs")
    check_benchmark(Away(python=str(other)))
    lost = pytest.raises(ValueError, match=r"python=/no/python cannot be started .*; name an interpreter")
    with lost, remote.opened(Toy(), TASK, "/no/python"):
        pass


def test_one_that_dies_is_named_and_the_next_reset_starts_another(tmp_path):
    log = tmp_path / "log"
    with remote.opened(Troubled(str(log)), TASK) as env:
        env.reset(0)
        with pytest.raises(
            remote.WorkerDied, match="troubled t, step: died with signal 11; its last words: the simulator's own"
        ):
            env.step([1.0])
        with pytest.raises(remote.WorkerDied, match="reset starts another"):
            env.step(GO)
        env.reset(1)
        assert env.step([4.0]) is True
    one, two = (line for line in log.read_text().split() if line != "opened")
    assert one != two
    with pytest.raises(ProcessLookupError):
        os.kill(int(two), 0)


def test_one_that_hangs_is_killed(tmp_path):
    log = tmp_path / "log"
    with remote.opened(Troubled(str(log)), TASK, answering=0.5) as env:
        env.reset(0)
        with pytest.raises(TimeoutError, match=r"no answer within 0.5 s \(time_limit\); killed"):
            env.step([2.0])
        with pytest.raises(ProcessLookupError):
            os.kill(int(log.read_text().split()[-1]), 0)


def test_opening_is_watched_and_tried_once_more(tmp_path):
    with remote.opened(Troubled(str(tmp_path / "a"), bad=1), TASK) as env:
        assert env.step(GO) is False
    lost = pytest.raises(remote.WorkerDied, match="opening: died with exit code 3")
    with remote.opened(Troubled(str(tmp_path / "b"), bad=2), TASK) as env, lost:
        env.reset(0)


def test_what_the_user_can_mend_ends_opening_at_once(tmp_path):
    """Another try would lack the same."""
    log = tmp_path / "log"
    lost = pytest.raises(errors.UserError, match=r"^no assets; fetch them")
    with remote.opened(Troubled(str(log), lacks="assets"), TASK) as env, lost:
        env.reset(0)
    assert log.read_text().split() == ["opened"]


def test_what_the_world_raises_is_raised_here_and_the_worker_goes_on(tmp_path):
    with remote.opened(Troubled(str(tmp_path / "log")), TASK) as env:
        with pytest.raises(ValueError, match="no such action") as caught:
            env.step([3.0])
        assert any("in step" in note for note in caught.value.__notes__)
        assert env.step([4.0])
        assert env.observe().images["main"].shape == (4096, 4096)


def test_a_step_costs_little(tmp_path):
    task = Toy().tasks()[0]
    with Away().open(task) as env:
        env.reset(0)
        env.step(GO)
        took = []
        for _ in range(200):
            start = time.perf_counter()
            env.step(GO)
            took.append(time.perf_counter() - start)
    assert np.median(took) < 2e-3  # 0.1 ms on an idle machine
    print(f"median {1e3 * np.median(took):.3f} ms")


def test_a_bug_in_a_simulator_is_told_from_what_the_user_can_mend(tmp_path):
    """By its type, which the worker names: an error of the simulator's own, or a UserError of ours."""
    with remote.opened(Troubled(str(tmp_path / "log")), TASK) as env:
        env.reset(0)
        with pytest.raises(ValueError, match="no such action") as caught:
            env.step([3.0])
    assert not errors.is_user_error(caught.value)
    assert [Path(f.filename).name for f in errors.own_frames(caught.value)] == ["troubled.py"]
    with remote.opened(Toy(), Toy().tasks()[0]) as env:
        env.reset(0)
        with pytest.raises(ValueError, match="the policy is at fault") as caught:
            env.step([np.nan] * 7)
    assert errors.is_user_error(caught.value)
