"""The robosuite benchmark: repeatable, read-only to look at, solvable, and demonstrations of it."""

import subprocess
import sys
import zlib
from importlib.util import find_spec

import numpy as np
import pytest

from vlaprune.bench.mujoco.gl import draws_with
from vlaprune.bench.robosuite import benchmark as robosuite
from vlaprune.bench.robosuite.benchmark import MOVING, TASKS, MovingRobosuite, Robosuite
from vlaprune.bench.robosuite.env import axis_angle
from vlaprune.benchmark import Benchmark
from vlaprune.errors import UserError
from vlaprune.training import demos

BENCH = Robosuite(worker=False)
ALL = [(bench, task) for bench in (BENCH, MovingRobosuite(worker=False)) for task in bench.tasks()]
# not importorskip: mujoco chooses its renderer when it is imported, and that is for `open` to decide
needs_robosuite = pytest.mark.skipif(find_spec("robosuite") is None, reason="robosuite is not installed")
FINGERPRINT = """
from tests.test_robosuite import BENCH, TASKS, fingerprint
with BENCH.open(TASKS[1]) as env:
    print(fingerprint(env, 3))
"""


@pytest.fixture(scope="module", params=ALL, ids=lambda world: world[1].name)
def env(request):
    bench, task = request.param
    with bench.open(task) as env:
        yield env


@pytest.fixture(scope="module")
def stack():
    with BENCH.open(TASKS[1]) as env:
        yield env


def pixels(env):
    return b"".join(image.tobytes() for image in env.observe().images.values())


def fingerprint(env, episode, steps=12):
    """First frame, a trajectory under fixed random actions, and the last frame, as one number."""
    env.reset(episode)
    seen = [pixels(env), env.observe().state.tobytes()]
    for action in np.random.default_rng(episode).uniform(-1, 1, (steps, 7)):
        env.step(action)
        seen.append(env.snapshot().physics.tobytes())
    return zlib.crc32(b"".join([*seen, pixels(env)]))


def test_tasks_need_no_simulator_and_can_be_chosen():
    assert [task.name for task in Robosuite(names=["Stack", "Lift"]).tasks()] == ["Stack", "Lift"]
    assert all(task.episodes in (50, 200) and task.terminate_on_success for _, task in ALL)
    bench: Benchmark = BENCH
    assert bench.interface.state == "eef_pos3_axisangle3_gripper2"
    with pytest.raises(ValueError, match="Fold"):
        Robosuite(names=["Fold"])
    with pytest.raises(ValueError, match="glfw"):
        Robosuite(renderer="glfw")
    assert {task.max_steps for task in MovingRobosuite(max_steps=100).tasks()} == {100}
    with pytest.raises(ValueError, match="max_steps=401; use 1 to 400"):
        MovingRobosuite(max_steps=401)


@pytest.mark.parametrize("bench", [Robosuite, MovingRobosuite])
def test_five_points_are_no_worse_on_robosuite(bench):
    assert bench().margin == 0.05


@needs_robosuite
def test_episode_alone_decides(env):
    first = fingerprint(env, 3)
    for episode, steps in ((1040, 17), (4, 5)):
        assert fingerprint(env, episode, steps) != first
    assert fingerprint(env, 3) == first


@needs_robosuite
def test_another_process_agrees(stack):
    fingerprint(stack, 8, 20)
    out = subprocess.run([sys.executable, "-c", FINGERPRINT], capture_output=True, text=True, check=True)
    assert int(out.stdout.split()[-1]) == fingerprint(stack, 3)


@needs_robosuite
def test_a_worker_agrees_in_another_order(stack):
    task = TASKS[1]
    found = {}
    for episode in (5, 3):
        stack.reset(episode)
        found[episode] = stack.step(np.full(7, 0.2)), pixels(stack), stack.observe().state.tobytes()
    with Robosuite(worker=True).open(task) as far:
        for episode in (3, 5):
            far.reset(episode)
            assert (far.step(np.full(7, 0.2)), pixels(far), far.observe().state.tobytes()) == found[episode]


@needs_robosuite
def test_global_random_state_is_left_alone(stack):
    np.random.seed(5)
    expected = np.random.rand()
    np.random.seed(5)
    stack.reset(0)
    assert np.random.rand() == expected


@needs_robosuite
def test_observation(stack):
    stack.reset(0)
    seen = stack.observe()
    assert tuple(seen.images) == BENCH.interface.cameras
    assert all(i.shape == (128, 128, 3) and i.dtype == np.uint8 for i in seen.images.values())
    assert seen.state.shape == (8,) and 0.9 < seen.state[2] < 1.1
    assert seen.instruction == "stack the red cube on the green cube"
    np.testing.assert_array_equal(stack.hand(), seen.state[:3])
    view = seen.images["primary"].astype(int)
    assert view[:16].mean() < view[64:].mean() - 20  # upright: the dark wall is above, the table below


@needs_robosuite
def test_looking_changes_nothing(env):
    env.reset(1)
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 7))
    for action in actions:
        env.step(action)
        before = env.snapshot().physics
        assert pixels(env) == pixels(env)
        np.testing.assert_array_equal(env.snapshot().physics, before)
    looked = env.snapshot().physics
    env.reset(1)
    for action in actions:
        env.step(action)
    np.testing.assert_array_equal(env.snapshot().physics, looked)


@needs_robosuite
def test_restore_is_exact(env):
    env.reset(2)
    expert = BENCH.expert(env)
    for _ in range(14):
        env.step(expert())
    there, frame = env.snapshot(), pixels(env)
    after = []
    for _ in range(2):
        for _ in range(10):
            env.step(expert())
        after.append(env.snapshot().physics)
        env.restore(there)
        assert pixels(env) == frame
    np.testing.assert_array_equal(after[0], after[1])


@needs_robosuite
def test_expert_solves(env):
    """Both episodes; where the cube moves, three of four: a cube may be pushed out of the grip."""

    def solved(episode):
        env.reset(episode)
        expert = BENCH.expert(env)
        return any(env.step(expert()) for _ in range(env.task.max_steps))

    episodes, least = (4, 3) if env.task in MOVING else (2, 2)
    assert sum(map(solved, range(episodes))) >= least


@needs_robosuite
def test_actions_are_checked_and_clipped(stack):
    stack.reset(0)
    for bad in (np.zeros(6), np.full(7, np.nan)):
        with pytest.raises(ValueError, match="7 finite numbers"):
            stack.step(bad)
    with pytest.raises(ValueError, match="negative"):
        stack.reset(-1)
    stack.reset(0)
    stack.step(np.full(7, 9.0))
    far = stack.snapshot().physics
    stack.reset(0)
    stack.step(np.ones(7))
    np.testing.assert_array_equal(stack.snapshot().physics, far)


def test_axis_angle_does_not_jump_at_the_half_turn():
    def down(angle):  # a turn about (1, 1, 0) by `angle`
        half = angle / 2
        return np.array([np.cos(half), np.sin(half) / 2**0.5, np.sin(half) / 2**0.5, 0.0])

    below, above = axis_angle(down(np.pi - 1e-3)), axis_angle(-down(np.pi + 1e-3))
    np.testing.assert_allclose(below, above, atol=3e-3)
    np.testing.assert_allclose(np.linalg.norm(below), np.pi - 1e-3)


def test_missing_simulator_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(robosuite.importlib.util, "find_spec", lambda name: None)
    expected = r"robosuite is not installed; pip install .*\[sim\]'"
    with pytest.raises(UserError, match=expected), BENCH.open(TASKS[0]):
        pass


@needs_robosuite
def test_demonstrations(tmp_path):
    task = TASKS[0]
    assert demos.record(BENCH, task, [1000], tmp_path, every=5, chunk=4) == [True]
    data = demos.load(tmp_path)
    n = len(data["state"])
    assert data["images"].shape == (n, 2, 128, 128, 3) and data["labels"].shape == (n, 4, 7)
    assert set(data["task"]) == {"Lift"} and data["success"].all()
    np.testing.assert_array_less(np.abs(data["labels"]), 1.0 + 1e-6)

    still = demos.record(BENCH, task, [1001], tmp_path, every=20, chunk=2, policy=lambda look: np.zeros((4, 7)))
    assert still == [False]
    (path := tmp_path / "Lift_001001.npz").write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"Lift_001001.npz is not a whole demonstration .*; delete it"):
        demos.load(tmp_path)


def test_a_process_that_draws_otherwise_is_refused(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    assert draws_with("egl") == "egl"
    with pytest.raises(UserError, match=r"bench.renderer=osmesa, but this process draws with MUJOCO_GL=egl"):
        draws_with("osmesa")
