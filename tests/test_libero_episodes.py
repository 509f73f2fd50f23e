"""LIBERO's episodes, with its own assets: as OpenVLA's evaluation has them, the same every time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vlaprune.bench.libero.benchmark import Libero
from vlaprune.bench.libero.env import TRAIN_EPISODE
from vlaprune.testing import check_benchmark
from vlaprune.training import cloning, demos

ACTIONS = np.random.default_rng(0).uniform(-1, 1, (3, 7))
OFFICIAL = """
import sys
from pathlib import Path
import numpy as np
from libero.libero import benchmark, get_libero_path
from libero.libero.envs import OffScreenRenderEnv
from robosuite.utils.transform_utils import quat2axisangle
name, number, out, seed, side = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
suite = benchmark.get_benchmark_dict()[name]()
task = suite.get_task(number)
problem = Path(get_libero_path("bddl_files")) / task.problem_folder / task.bddl_file
env = OffScreenRenderEnv(bddl_file_name=str(problem), camera_heights=side, camera_widths=side)
if seed < 1000:  # openvla and openpi seed once, and go on
    env.seed(seed)
    env.reset()
else:  # lerobot seeds every episode with 1000 and its number
    env.reset()
    env.seed(seed + 1)
first = env.sim.model.body_pos.copy()
env.reset()
look = env.set_init_state(suite.get_task_init_states(number)[1])
for action in [[0, 0, 0, 0, 0, 0, -1]] * 10 + np.random.default_rng(0).uniform(-1, 1, (3, 7)).tolist():
    look, _, done, _ = env.step(action)
np.savez(
    out,
    language=task.language,
    primary=look["agentview_image"][::-1, ::-1],
    wrist=look["robot0_eye_in_hand_image"][::-1, ::-1],
    state=np.concatenate(
        (look["robot0_eef_pos"], quat2axisangle(look["robot0_eef_quat"]), look["robot0_gripper_qpos"])
    ),
    physics=env.get_sim_state(),
    fixtures=env.sim.model.body_pos,
    moved=not np.array_equal(first, env.sim.model.body_pos),
)
"""


def bench(suite, number, **options):
    return Libero(suite=suite, only=[number], **({"image": 64, "fast": True, "worker": False} | options))


def seen(env, episode):
    """Every picture and bit of state of an episode under the fixed actions."""
    env.reset(episode)
    out = []
    for action in ACTIONS:
        env.step(action)
        look = env.observe()
        out += [*(look.images[c].tobytes() for c in sorted(look.images)), look.state.tobytes()]
    return [*out, env.call("state_bits") if hasattr(env, "call") else env.state_bits()]


def test_laws_of_a_benchmark_hold():
    check_benchmark(bench("libero_object", 3), steps=2)


# A bowl on the stove, which is placed relative to where a reset puts the stove; a burner that lights up; no fixture.
@pytest.mark.parametrize(
    "suite, number, protocol, seed, side",
    [
        ("libero_spatial", 7, "openvla", 0, 256),
        ("libero_object_swap", 0, "openvla", 0, 256),
        ("libero_goal", 7, "openpi", 7, 256),
        ("libero_goal", 8, "lerobot", 1000, 360),
    ],
)
def test_an_episode_is_that_of_the_authors_evaluation_to_the_last_pixel(suite, number, protocol, seed, side, tmp_path):
    """The second, against LIBERO's own environment, which renders at every step and builds all anew at every reset."""
    ours = bench(suite, number, protocol=protocol, image=None, fast=False)
    (task,) = ours.tasks()
    out = tmp_path / "official.npz"
    subprocess.run(
        [sys.executable, "-c", OFFICIAL, suite, str(number), out, str(seed), str(side)],
        check=True,
        env=environment(MUJOCO_GL="egl"),
        capture_output=True,
    )
    official = np.load(out)
    assert official["moved"] != suite.startswith("libero_object")  # a reset draws fixtures anew, where there are any
    assert task.instruction == official["language"]
    with ours.open(task) as env:  # without building the world anew, and without a first episode
        env.reset(1)
        for action in ACTIONS:
            env.step(action)
        look = env.observe()
        np.testing.assert_array_equal(env.world.sim.model.body_pos, official["fixtures"])
        np.testing.assert_allclose(env.world.sim.get_state().flatten(), official["physics"], rtol=0, atol=1e-10)
        np.testing.assert_allclose(look.state, official["state"], rtol=0, atol=1e-10)
        for camera in ("primary", "wrist"):
            np.testing.assert_array_equal(look.images[camera], official[camera])


def test_another_process_and_another_order_give_the_same_bits():
    """And an own episode is as a model just compiled would have it, whatever reset was before."""
    here, there = (bench("libero_spatial", 4, worker=worker) for worker in (False, True))
    (task,) = here.tasks()
    order = (2, 0, TRAIN_EPISODE + 3)
    with here.open(task) as env:
        found = {episode: seen(env, episode) for episode in order}
    with there.open(task) as env:
        again = {episode: seen(env, episode) for episode in reversed(order)}
    assert found == again and found[0] != found[2]


@pytest.mark.parametrize("suite, number", [("libero_object", 0), ("libero_spatial", 4)])
def test_an_own_episode_is_solved_by_the_expert_and_shown_to_learners(suite, number, tmp_path):
    """Out of a drawer too. Demonstrations begin where evaluation never does."""
    ours = bench(suite, number)
    (task,) = ours.tasks()
    plan = cloning.Teaching(episodes=1, first=0, rewind=False, workers=1)
    with pytest.raises(ValueError, match=r"teaching.first=0 begins with initial states that pick_up_.* is evaluated"):
        cloning.record_demonstrations(ours, plan, tmp_path, 4, "")
    assert demos.record(ours, task, [TRAIN_EPISODE], tmp_path, every=8, chunk=4, rewind=False) == [True]
    shown = demos.load(tmp_path)
    n = len(shown["state"])
    assert shown["labels"].shape == (n, 4, 7) and shown["hints"].shape == (n, 4)
    assert 40 < shown["steps"][0] < task.max_steps
    np.testing.assert_allclose(shown["hints"][-1], 0, atol=0.08)  # at the end the object is in the hand, over its place
    with ours.open(task) as env:
        for episode in (-1, 50, TRAIN_EPISODE - 1):
            with pytest.raises(ValueError, match=rf"episode {episode}; LIBERO has 0..49, ours begin at 1000"):
                env.reset(episode)
        with pytest.raises(ValueError, match="7 finite numbers"):
            env.step(np.zeros(6))


@pytest.mark.parametrize("suite, number", [("libero_spatial_swap", 2)])
def test_the_command_line_runs_an_episode_to_its_end(suite, number, tmp_path):
    script = Path(sys.executable).with_name("vlaprune-eval")
    command = f"{script} bench=libero bench.suite={suite} bench.only=[{number}] model=tiny method=fastv"
    more = f"episodes=1 logger=csv output={tmp_path}"
    subprocess.run([*command.split(), *more.split()], check=True, capture_output=True, env=environment())
    (journal,) = tmp_path.glob("*.jsonl")
    *_, record = (json.loads(line) for line in journal.read_text().splitlines())
    header = json.loads(journal.read_text().splitlines()[0])
    assert header["provenance"]["prompt"] == "file name" and "files" in header["provenance"]["assets"]
    assert record["success"] or record["steps"] == 220


def environment(**more):
    return os.environ | {"PYTHONPATH": ":".join(p for p in sys.path if p)} | more
