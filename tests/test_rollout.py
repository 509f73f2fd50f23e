"""Episodes: how they end, how they are shared out, and that nothing is lost whatever breaks in the middle."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from doubles import Bench, Scripted, Slow, outcomes, play

from vlaprune.api.evaluation import evaluate
from vlaprune.bench.episodes import Episodes
from vlaprune.benchmark import Interface, Observation, Task
from vlaprune.config.provenance import provenance
from vlaprune.errors import UserError
from vlaprune.evaluation.pool import watchdog
from vlaprune.evaluation.recorder import Recorder
from vlaprune.evaluation.rollout import Shard
from vlaprune.methods.random import Random
from vlaprune.models.toy import Toy
from vlaprune.policy import episode_seed
from vlaprune.pruner import Plan
from vlaprune.records import read
from vlaprune.report.machines import SLACK, shared

TESTS = Path(__file__).parent
KEYS = {(t, e) for t in ("reach-red", "reach-blue") for e in range(3)}


def lines(folder, kind):
    journal = (Path(folder) / "journal.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, journal) if record["kind"] == kind]


GONE = RuntimeError("the simulator is gone")


def raising(episodes, error=GONE, task="reach-red", after=0):
    """Trouble in some episodes of a task."""

    def trouble(name, episode, steps):
        if name == task and episode in episodes and steps >= after:
            raise error

    return Bench(trouble)


class Counter:
    """A world without pictures that notes what it is asked and succeeds at given steps."""

    def __init__(self, wins):
        self.wins, self.log = wins, []

    def reset(self, episode):
        self.log.append(f"reset {episode}")
        self.steps = 0

    def observe(self):
        self.log.append("look")
        return Observation({}, None, "count")

    def step(self, action):
        self.log.append(float(action[0]))
        self.steps += 1
        return self.steps in self.wins


def run_episode(wins, limit, execute, stop=True):
    world, calls = Counter(wins), 0
    episodes = Episodes(world, Task("t", "do it", limit, 1, stop), Interface("any", "any", "delta", (), None))
    now = episodes.start(5)
    while isinstance(now, Observation):
        now = episodes.advance(np.arange(execute)[:, None] + 10 * calls)
        calls += 1
    return now, world.log


def test_an_episode_looks_once_per_call_and_executes_what_it_is_sent():
    outcome, log = run_episode(wins={5}, limit=9, execute=2)
    assert outcome[:2] == (True, 5)
    assert log == ["reset 5", "look", 0, 1, "look", 10, 11, "look", 20]


@pytest.mark.parametrize(
    ("wins", "stop", "outcome"),
    [
        ({3}, True, (True, 3)),
        ({7}, True, (True, 7)),  # in the very last step
        ({8}, True, (False, 7)),  # too late
        (set(), True, (False, 7)),
        ({3}, False, (False, 7)),  # achieved and lost again: the last step decides
        ({3, 7}, False, (True, 7)),
    ],
)
@pytest.mark.parametrize("execute", [1, 3, 4])
def test_how_an_episode_ends(wins, stop, outcome, execute):
    assert run_episode(wins, 7, execute, stop)[0][:2] == outcome


def test_toy_solves_the_toy_world_and_a_limit_ends_an_episode(tmp_path):
    run = play(tmp_path / "a")
    assert run.episodes.keys() == KEYS and not run.missing and not run.errors
    assert all(r.success and r.steps <= 12 and len(r.calls) == -(-r.steps // 4) for r in run.episodes.values())
    short = play(tmp_path / "b", Bench(limit=1))
    assert all(r.steps == 1 for r in short.episodes.values()) and not all(r.success for r in short.episodes.values())
    full = play(tmp_path / "c", Bench(limit=9, stop=False))
    assert all(r.success and r.steps == 9 for r in full.episodes.values())


@pytest.mark.parametrize("execute", [1, 3, 4])
def test_calls_follow_from_steps_and_execute(tmp_path, execute):
    run = play(tmp_path, execute=execute)
    assert all(len(r.calls) == -(-r.steps // execute) for r in run.episodes.values())


def test_only_missing_episodes_run(tmp_path):
    ran = []
    bench = Bench(lambda task, episode, steps: ran.append((task, episode)))
    play(tmp_path, bench, episodes=2)
    ran.clear()
    play(tmp_path, bench, episodes=2)
    assert not ran
    run = play(tmp_path, bench, episodes=3)
    assert set(ran) == {("reach-red", 2), ("reach-blue", 2)} and run.episodes.keys() == KEYS
    assert outcomes(run) == outcomes(play(tmp_path / "at-once"))


@pytest.mark.parametrize("slots", [2, 5])
def test_slots_give_the_same_records(tmp_path, slots):
    one, many = (outcomes(play(tmp_path / str(n), make=Random, slots=n)) for n in (1, slots))
    assert one == many


def test_the_union_of_shards_is_the_full_run(tmp_path):
    for index in (2, 0, 1):
        play(tmp_path / "shards", make=Random, shard=Shard(index, 3))
    assert outcomes(read(tmp_path / "shards")) == outcomes(play(tmp_path / "one", make=Random))
    assert len(list((tmp_path / "shards").glob("journal-*-of-3.jsonl"))) == 3


def seeds(run):
    """What `run(make)` hands to a method to draw from, over all its calls."""
    met = set()
    run(make=lambda: Scripted(Plan((0,)), lambda context: met.add(context.seed)))
    return met


@pytest.mark.parametrize("slots", [1, 2])
def test_a_method_draws_from_the_runs_seed_the_task_and_the_episode(tmp_path, slots):
    seven, eight = (seeds(partial(play, tmp_path / str(n), seed=n, slots=slots)) for n in (7, 8))
    assert seven == {episode_seed(7, *key) for key in KEYS} and eight == {episode_seed(8, *key) for key in KEYS}
    assert len(seven | eight) == 2 * len(KEYS)


def test_the_seed_that_a_user_asks_for_is_what_a_method_draws_from(tmp_path):
    def run(make):
        evaluate("toy", make, "toy", seed=8, episodes=3, output=tmp_path)

    assert seeds(run) == {episode_seed(8, *key) for key in KEYS}


def here(folder, header, *rest):
    """A recorder that says of the machine what a command says, but for its load."""
    told = header.provenance | provenance("cpu") | {"load": 0.0}
    return Recorder(folder, replace(header, provenance=told), *rest)


def slow(folder):
    return play(folder, Slow(0.05), episodes=1, recorder=here)


def test_a_record_says_when_its_episode_ran_and_for_how_long(tmp_path):
    began = time.time()
    records = slow(tmp_path).episodes.values()
    over = time.time()
    for record in records:
        assert record.seconds >= 0.05 * record.steps
        assert began - SLACK < record.ended - record.seconds and record.ended <= over
    assert sum(record.seconds for record in records) <= over - began + SLACK


def test_two_runs_at_one_time_on_one_machine_are_told_by_what_they_recorded(tmp_path):
    with ThreadPoolExecutor(2) as both:
        one, other = both.map(slow, [tmp_path / "one", tmp_path / "other"])
    assert "ran on one machine at the same time" in shared([one, other])
    assert shared([one, slow(tmp_path / "after")]) == ""


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("episodes", [0, 1, 5, 20])
def test_shards_tile_the_episodes(count, episodes):
    assert sorted(e for i in range(count) for e in Shard(i, count).of(episodes)) == list(range(episodes))


@pytest.mark.parametrize(("index", "count"), [(1, 1), (-1, 2), (2, 2), (0, 0)])
def test_a_shard_that_does_not_exist_is_refused(index, count):
    with pytest.raises(ValueError, match=f"shard.index={index} of shard.count={count}"):
        Shard(index, count)


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("after", [0, 1])
def test_an_episode_that_raises_is_isolated_noted_and_run_again_next_time(tmp_path, slots, after):
    said = []
    bench = raising({0}, after=after)
    run = play(tmp_path / "a", bench, slots=slots, execute=1, say=said.append)
    assert set(run.missing) == {("reach-red", 0)} == KEYS - run.episodes.keys()  # missing, not a failure
    errors = lines(tmp_path / "a", "error")
    for error in errors:
        assert error["task"] == "reach-red" and error["episode"] == 0
        assert error["error"] == "RuntimeError: the simulator is gone" and "in trouble" in error["traceback"]
    assert len(errors) == len(said) == 2  # once more at the end
    assert "it will be run again" in said[0] and "the same command runs it again" in said[1]
    assert slots > 1 or bench.opened == 4  # one world per task, a fresh one after the trouble, one to try again
    again = play(tmp_path / "a", execute=1)
    assert sum(r.attempts == 3 for r in again.episodes.values()) == 1  # two in the first process, one now
    assert outcomes(again) == outcomes(play(tmp_path / "b", execute=1))


@pytest.mark.parametrize("slots", [1, 2])
def test_an_episode_that_raises_once_is_run_again_in_the_same_run(tmp_path, slots):
    tried = []

    def trouble(task, episode, steps):
        if (task, episode) == ("reach-red", 1) and not tried:
            tried.append(steps)
            raise GONE

    run = play(tmp_path / "a", Bench(trouble), make=Random, slots=slots, say=lambda text: None)
    assert len(run.errors) == 1 and not run.missing
    assert {key: r.attempts for key, r in run.episodes.items() if r.attempts > 1} == {("reach-red", 1): 2}
    assert outcomes(run) == outcomes(play(tmp_path / "b", make=Random))


def test_an_environment_that_hangs_is_given_up_after_the_time_limit(tmp_path):
    def hang(task, episode, steps):
        if (task, episode) == ("reach-blue", 0):
            time.sleep(30)

    began = time.perf_counter()
    run = play(tmp_path, Bench(hang), time_limit=0.3)
    assert time.perf_counter() - began < 15
    assert run.missing == [("reach-blue", 0)]
    assert lines(tmp_path, "error")[0]["error"] == "TimeoutError: no answer within 0.3 s (time_limit)"
    assert not play(tmp_path).missing


class Stuck(Bench):
    """A simulator that does not come up, from the `good`-th opening on."""

    def __init__(self, good=0, **kwargs):
        super().__init__(**kwargs)
        self.good = good

    @contextmanager
    def open(self, task):
        if self.opened >= self.good:
            self.opened += 1
            time.sleep(30)
        with super().open(task) as world:
            yield world


def test_a_simulator_that_does_not_come_up_is_given_up_after_the_time_limit(tmp_path):
    began = time.perf_counter()
    with pytest.raises(TimeoutError, match=r"opening the simulator of reach-red: no answer within 0.2 s") as error:
        play(tmp_path, Stuck(), time_limit=0.2)
    assert time.perf_counter() - began < 15 and "\n" not in str(error.value)
    assert not lines(tmp_path, "error") and not lines(tmp_path, "episode")


def test_a_simulator_that_does_not_come_up_again_after_trouble_is_trouble(tmp_path):
    def trouble(task, episode, steps):
        if (task, episode) == ("reach-blue", 1):
            raise GONE

    run = play(tmp_path, Stuck(good=2, trouble=trouble), time_limit=0.2, say=lambda text: None)
    assert run.missing == [("reach-blue", 1), ("reach-blue", 2)]
    kinds = [line["error"].split(":")[0] for line in lines(tmp_path, "error")]
    assert kinds == ["RuntimeError", *["TimeoutError"] * 3]  # the last two are second attempts


def test_what_a_simulator_raises_when_it_is_first_opened_ends_the_run(tmp_path):
    class Absent(Bench):
        def open(self, task):
            raise UserError("not installed; pip install it")

    with pytest.raises(UserError, match=r"^not installed; pip install it$"):
        play(tmp_path, Absent())


class Onlooker:
    """Notes what it is shown."""

    def __init__(self):
        self.log = []

    def on_call(self, task, episode, trace):
        self.log.append((task, episode, trace.step))

    def on_episode(self, task, episode, record):
        self.log.append((task, episode, None if record is None else record.success))


@pytest.mark.parametrize("slots", [1, 2])
def test_a_watcher_sees_every_call_and_every_end_and_changes_nothing(tmp_path, slots):
    eye = Onlooker()
    run = play(tmp_path / "a", raising({0}, after=1), slots=slots, execute=1, watchers=[eye], say=lambda text: None)
    assert outcomes(run) == outcomes(play(tmp_path / "b", raising({0}, after=1), execute=1, say=lambda text: None))
    for (task, episode), record in run.episodes.items():
        own = [what for t, e, what in eye.log if (t, e) == (task, episode)]
        assert own == [*range(len(record.calls)), record.success]
    assert [what for t, e, what in eye.log if (t, e) == ("reach-red", 0)] == [0, 1, None] * 2


def test_the_watchdog_puts_back_what_it_found():
    before = signal.getsignal(signal.SIGALRM)
    with watchdog(5.0):
        assert signal.getsignal(signal.SIGALRM) is not before
    assert signal.getsignal(signal.SIGALRM) is before and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    with watchdog(0):
        assert signal.getsignal(signal.SIGALRM) is before


@pytest.mark.parametrize("slots", [1, 3])
def test_a_run_in_which_everything_raises_is_given_up_in_one_line(tmp_path, slots):
    """Though each of its episodes still shows a first picture."""
    bench = raising(range(20))
    with pytest.raises(
        UserError, match=r"5 episodes of reach-red raised one after the other; .* same command"
    ) as error:
        play(tmp_path, bench, episodes=20, slots=slots, say=lambda text: None)
    assert "\n" not in str(error.value)
    assert len(lines(tmp_path, "error")) == 5
    assert all(line["task"] == "reach-blue" for line in lines(tmp_path, "episode"))


def test_raises_now_and_then_do_not_end_a_run(tmp_path):
    run = play(tmp_path, raising({0, 1, 2, 3, 5, 6, 7, 8}), episodes=10, say=lambda text: None)
    assert 2 * len(run.missing) == len(run.errors) == 16 and len(run.episodes) == 12


class Broken(Toy):
    """Emits a number that is none, from the second call on."""

    calls = 0

    def predict(self, observations, sessions):
        self.calls += 1
        chunks = super().predict(observations, sessions)
        return [torch.full_like(c, float("nan")) if self.calls > 2 else c for c in chunks]


def test_actions_that_are_not_finite_end_the_run_but_lose_nothing(tmp_path):
    with pytest.raises(ValueError, match="toy emitted actions that are not finite; check its weights") as error:
        play(tmp_path / "a", model=Broken())
    assert "\n" not in str(error.value)
    assert lines(tmp_path / "a", "episode") and not lines(tmp_path / "a", "error")
    assert outcomes(play(tmp_path / "a")) == outcomes(play(tmp_path / "b"))


def test_a_world_refuses_actions_that_are_none():
    with Bench().open(Bench().tasks()[0]) as world:
        world.reset(0)
        for bad in (np.full(7, np.nan), np.full(7, np.inf), np.zeros(6), np.zeros((1, 7))):
            with pytest.raises(ValueError, match="not 7 finite numbers; the policy is at fault"):
                world.step(bad)


class Failing:
    """A sink that raises in the hooks it is told to."""

    def __init__(self, *hooks):
        self.hooks, self.called = hooks, []

    def _do(self, hook):
        self.called.append(hook)
        if hook in self.hooks:
            raise ConnectionError(f"no network in {hook}")

    def open(self, header, folder, done):
        self._do("open")

    def episode(self, record):
        self._do("episode")

    def close(self):
        self._do("close")


@pytest.mark.parametrize("hook", ["open", "episode", "close"])
def test_a_sink_that_fails_is_said_once_and_ends_nothing(tmp_path, hook):
    said, broken, sound = [], Failing(hook), Failing()
    run = play(tmp_path, sinks=[broken, sound], say=said.append)
    assert run.episodes.keys() == KEYS
    assert (
        len(said) == 1
        and f"logger Failing failed and is switched off: ConnectionError: no network in {hook}" in said[0]
    )
    assert broken.called[-1] == hook and broken.called.count(hook) == 1  # never called again
    assert sound.called == ["open", *["episode"] * 6, "close"]


def test_ctrl_c_ends_at_once_and_the_next_run_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        play(tmp_path / "a", raising({1}, KeyboardInterrupt(), task="reach-blue"))
    assert len(lines(tmp_path / "a", "episode")) == 4 and not lines(tmp_path / "a", "error")
    assert outcomes(play(tmp_path / "a")) == outcomes(play(tmp_path / "b"))


def test_a_killed_run_goes_on_to_the_result_of_an_uninterrupted_one(tmp_path, monkeypatch):
    """kill -9 in the middle of vlaprune-eval, then the same command."""
    from vlaprune import cli

    command = [
        "model=toy",
        "method=random",
        "bench=toy",
        "logger=csv",
        "bench._target_=doubles.Slow",
        "episodes=5",
        "execute=2",
    ]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), "OMP_NUM_THREADS": "1"}
    argv = [
        sys.executable,
        "-c",
        "from vlaprune.cli import evaluate; evaluate()",
        *command,
        f"output={tmp_path}/killed",
    ]
    journal = tmp_path / "killed" / "journal.jsonl"
    with subprocess.Popen(argv, env=env, stderr=subprocess.DEVNULL, cwd=tmp_path) as process:
        until = time.monotonic() + 60
        while time.monotonic() < until and not (journal.is_file() and journal.read_bytes().count(b"\n") >= 4):
            time.sleep(0.02)
        process.kill()
    kept = read(journal.parent)
    assert process.returncode == -signal.SIGKILL and 3 <= len(kept.episodes) < 10
    with journal.open("ab") as file:
        file.write(b'{"kind":"episode","task":"reach-r')  # as if killed while writing
    resumed = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert resumed.returncode == 0, resumed.stderr
    after = journal.read_bytes()
    assert all(json.loads(line) for line in after.splitlines())
    monkeypatch.setattr(sys, "argv", ["vlaprune-eval", *command, f"output={tmp_path}/whole"])
    cli.evaluate()
    assert outcomes(read(journal.parent)) == outcomes(read(tmp_path / "whole"))
    assert len(lines(journal.parent, "episode")) == 10  # none was run twice
