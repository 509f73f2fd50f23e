"""An environment in gymnasium's form is a benchmark, as docs/your-benchmark.md shows."""

import re
from pathlib import Path

import numpy as np
import pytest

from vlaprune.bench.gate import check_bool
from vlaprune.bench.gym import GymEnv
from vlaprune.testing import check_benchmark

GUIDE = Path(__file__).parents[1] / "docs" / "your-benchmark.md"


class Saying:
    """Says the same of success in every step, in gymnasium's form."""

    def __init__(self, said):
        self.said = said

    def step(self, action):
        return None, 0.0, False, False, {"is_success": self.said}


class Pushing:
    """A point in the plane, in gymnasium's form."""

    def reset(self, *, seed):
        self.rng = np.random.default_rng(seed)
        self.at = self.rng.uniform(-1, 1, 2)
        return {"agent_pos": self.at.copy()}, {}

    def step(self, action):
        self.at = self.at + 0.1 * action[:2]
        return {"agent_pos": self.at.copy()}, 0.0, False, False, {"is_success": bool(np.abs(self.at).max() < 0.1)}

    def render(self):
        image = np.zeros((32, 32, 3), np.uint8)
        image[tuple(((self.at.clip(-1, 1) + 1) * 15).astype(int))] = 255
        return image

    def close(self):
        self.closed = True


def test_the_guides_benchmark_keeps_the_laws():
    opened = []
    names = {"make_env": lambda: opened.append(Pushing()) or opened[-1]}
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.S)
    exec(code, names)
    check_benchmark(names["PushT"]())
    assert opened and all(env.closed for env in opened)
    assert len(code.strip().splitlines()) <= 21


def test_success_is_what_the_environment_says():
    env = GymEnv(Pushing(), "push", lambda seen, env: ({"main": env.render()}, seen["agent_pos"]))
    env.reset(0)
    at = env.observe().state
    assert env.step(np.r_[-at / 0.1, np.zeros(5)]) and np.abs(env.observe().state).max() < 1e-6
    assert not env.step(np.full(7, 5.0))


@pytest.mark.parametrize("how", ["terminated", "truncated"])
@pytest.mark.parametrize("won", [True, False])
def test_an_environment_that_has_ended_is_not_stepped_again(how, won):
    """What it would say later is of no episode."""

    class Ending(Pushing):
        steps = 0

        def step(self, action):
            self.steps += 1
            ended = self.steps == 2
            return None, 0.0, how == "terminated" and ended, how == "truncated" and ended, {"is_success": won == ended}

    env = GymEnv(Ending(), "push", lambda seen, env: ({}, None))
    for _ in range(2):
        env.reset(0)
        env.env.steps = 0
        assert [env.step(np.zeros(7)) for _ in range(5)] == [not won, won, won, won, won] and env.env.steps == 2


def test_an_environment_that_does_not_tell_success_is_refused_with_its_keys():
    env = GymEnv(Pushing(), "push", lambda seen, env: ({}, None), success="success")
    env.reset(0)
    with pytest.raises(ValueError, match="is_success"):
        env.step(np.zeros(7))


@pytest.mark.parametrize("said", [None, "True", 0.5, float("nan"), (True,), [], np.array([True, False])])
def test_what_is_no_truth_value_reaches_the_gate_and_is_refused(said):
    answer = GymEnv(Saying(said), "push", lambda seen, env: ({}, None)).step(np.zeros(7))
    with pytest.raises(ValueError, match="True or False is needed"):
        check_bool(answer)


@pytest.mark.parametrize("kind", [bool, np.bool_, int, float, np.float32, np.array])
@pytest.mark.parametrize("truth", [True, False])
def test_a_truth_value_may_be_the_number_0_or_1(kind, truth):
    answer = GymEnv(Saying(kind(truth)), "push", lambda seen, env: ({}, None)).step(np.zeros(7))
    assert check_bool(answer) is truth
