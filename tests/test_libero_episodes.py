"""LIBERO's episodes, in a world of blocks (libero_blocks.py): as OpenVLA's evaluation has them, the same every time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import libero_blocks
import numpy as np
import pytest

from vlaprune.bench.libero.benchmark import Libero
from vlaprune.bench.libero.env import TRAIN_EPISODE
from vlaprune.testing import check_benchmark
from vlaprune.training import demos

ACTIONS = np.random.default_rng(0).uniform(-1, 1, (6, 7))
OFFICIAL = """
import sys
from pathlib import Path
import numpy as np
from vlaprune.bench.libero.files import import_libero, initial_states, package
suite, task, assets, out = sys.argv[1:]
import_libero(Path(assets))
from libero.libero.envs import OffScreenRenderEnv
from robosuite.utils.transform_utils import quat2axisangle
env = OffScreenRenderEnv(
    bddl_file_name=str(package() / "bddl_files" / suite / f"{task}.bddl"), camera_heights=96, camera_widths=96
)
env.seed(0)
found = {}
for episode in range(2):
    env.reset()
    look = env.set_init_state(initial_states(suite, task)[episode])
    for action in [[0, 0, 0, 0, 0, 0, -1]] * 10 + np.random.default_rng(0).uniform(-1, 1, (6, 7)).tolist():
        look, _, done, _ = env.step(action)
    found |= {
        f"primary{episode}": look["agentview_image"][::-1, ::-1],
        f"wrist{episode}": look["robot0_eye_in_hand_image"][::-1, ::-1],
        f"state{episode}": np.concatenate(
            (look["robot0_eef_pos"], quat2axisangle(look["robot0_eef_quat"]), look["robot0_gripper_qpos"])
        ),
        f"physics{episode}": env.get_sim_state(),
        f"fixtures{episode}": env.sim.model.body_pos.copy(),
    }
np.savez(out, **found)
"""


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    return libero_blocks.write(tmp_path_factory.mktemp("assets"))


def bench(blocks, suite, **options):
    options = {"image": 64, "fast": True, "worker": False} | options
    return Libero(suite=suite, only=[libero_blocks.TASKS[suite]], assets=blocks, **options)


def seen(env, episode):
    """Every picture and bit of state of an episode under the fixed actions."""
    env.reset(episode)
    out = []
    for action in ACTIONS:
        env.step(action)
        look = env.observe()
        out += [*(look.images[c].tobytes() for c in sorted(look.images)), look.state.tobytes()]
    return [*out, env.call("state_bits") if hasattr(env, "call") else env.state_bits()]


@pytest.mark.parametrize("suite", libero_blocks.TASKS)
def test_laws_of_a_benchmark_hold_in_every_suite(blocks, suite):
    check_benchmark(bench(blocks, suite), steps=2)


def test_an_episode_is_that_of_openvlas_evaluation_to_the_last_pixel(blocks, tmp_path):
    """Against LIBERO's own environment, which renders at every step and builds the world anew at every reset."""
    ours = bench(blocks, "libero_goal", image=96, fast=False)
    (task,) = ours.tasks()
    out = tmp_path / "official.npz"
    subprocess.run(
        [sys.executable, "-c", OFFICIAL, "libero_goal", task.name, blocks, out],
        check=True,
        env=environment(MUJOCO_GL="egl"),
        capture_output=True,
    )
    official = np.load(out)
    assert not np.array_equal(official["fixtures0"], official["fixtures1"])  # they move with every reset
    with ours.open(task) as env:
        for episode in (1, 0):  # in another order, and without building the world anew
            env.reset(episode)
            for action in ACTIONS:
                env.step(action)
            look = env.observe()
            np.testing.assert_array_equal(env.world.sim.model.body_pos, official[f"fixtures{episode}"])
            np.testing.assert_allclose(
                env.world.sim.get_state().flatten(), official[f"physics{episode}"], rtol=0, atol=1e-10
            )
            np.testing.assert_allclose(look.state, official[f"state{episode}"], rtol=0, atol=1e-10)
            for camera in ("primary", "wrist"):
                np.testing.assert_array_equal(look.images[camera], official[f"{camera}{episode}"])


def test_another_process_and_another_order_give_the_same_bits(blocks):
    here, there = (bench(blocks, "libero_goal", worker=worker) for worker in (False, True))
    (task,) = here.tasks()
    order = (2, 0, TRAIN_EPISODE + 3)
    with here.open(task) as env:
        found = {episode: seen(env, episode) for episode in order}
    with there.open(task) as env:
        again = {episode: seen(env, episode) for episode in reversed(order)}
    assert found == again and found[0] != found[2]


def test_episodes_outside_the_protocol_are_refused(blocks):
    ours = bench(blocks, "libero_object")
    with ours.open(ours.tasks()[0]) as env:
        for episode in (-1, 50, TRAIN_EPISODE - 1):
            with pytest.raises(ValueError, match=rf"episode {episode}; LIBERO has 0..49, ours begin at 1000"):
                env.reset(episode)
        with pytest.raises(ValueError, match="7 finite numbers"):
            env.step(np.zeros(6))


def test_an_episode_is_solved_by_the_expert_and_shown_to_learners(blocks, tmp_path):
    ours = bench(blocks, "libero_object")
    (task,) = ours.tasks()
    assert demos.record(ours, task, [0], tmp_path, every=8, chunk=4, rewind=False) == [True]
    shown = demos.load(tmp_path)
    n = len(shown["state"])
    assert shown["labels"].shape == (n, 4, 7) and shown["hints"].shape == (n, 4)
    assert 60 < shown["steps"][0] < task.max_steps
    np.testing.assert_allclose(shown["hints"][-1][:2], 0, atol=0.05)  # at the end the object is in the hand,
    np.testing.assert_allclose(shown["hints"][-1][2:], 0, atol=0.05)  # over the basket


def test_the_command_line_runs_an_episode_to_its_end(blocks, tmp_path):
    script = Path(sys.executable).with_name("vlaprune-eval")
    command = f"{script} bench=libero bench.suite=libero_object bench.only=[0] model=tiny model.weights=random"
    more = f"method=fastv episodes=1 logger=csv bench.image=128 bench.assets={blocks} output={tmp_path}"
    subprocess.run([*command.split(), *more.split()], check=True, capture_output=True, env=environment())
    (journal,) = tmp_path.glob("*.jsonl")
    *_, record = (json.loads(line) for line in journal.read_text().splitlines())
    header = json.loads(journal.read_text().splitlines()[0])
    assert str(blocks) not in json.dumps(header["identity"]) and "files" in json.dumps(header)
    assert record["steps"] == 280 and record["success"] is False


def environment(**more):
    return os.environ | {"PYTHONPATH": ":".join(p for p in sys.path if p)} | more
