"""LIBERO's protocol as far as no simulator is needed: its episodes, what is read, what is said where it lacks."""

import os
import pickle
import runpy
import subprocess
import sys
import zipfile
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from vlaprune import config
from vlaprune.bench.libero import benchmark as libero
from vlaprune.bench.libero import files
from vlaprune.bench.libero.benchmark import Libero
from vlaprune.bench.libero.env import axis_angle
from vlaprune.models.tiny import tokenize

SUITES = tuple(files.LIMITS)


def saved(path, value):
    """A file like those of torch.save, with any pickle inside."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(value, protocol=2))


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
    assert {(t.max_steps, t.episodes, t.terminate_on_success) for t in found} == {(limit, 50, True)}
    assert sum(t.episodes for t in found) == 50 * tasks


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
    for suite in SUITES:
        assert [t.name for t in Libero(suite=suite).tasks()] == theirs[suite]


def test_grid_of_initial_states():
    sizes = Counter()
    for suite in SUITES:
        for task in files.suite(suite):
            states = files.initial_states(suite, task.name)
            assert states.shape[0] == 50 and states.dtype == np.float64 and np.isfinite(states).all()
            assert len(np.unique(states, axis=0)) > 1
            sizes[suite] += len(states)
    assert sizes == {s: 50 * len(files.suite(s)) for s in SUITES} and sizes.total() == 6500


def test_tasks_can_be_chosen_and_mistakes_are_named():
    assert [t.name for t in Libero(only=[2, 0]).tasks()] == [files.suite("libero_spatial")[i].name for i in (2, 0)]
    with pytest.raises(ValueError, match=r"suite=libero_100; LIBERO has libero_spatial, .*libero_90"):
        Libero(suite="libero_100")
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

    saved(folder / "trap.pruned_init", Trap())
    with pytest.raises(pickle.UnpicklingError, match="print has no place among initial states"):
        files.initial_states("libero_goal", "trap")
    saved(folder / "few.pruned_init", np.zeros((49, 92)))
    with pytest.raises(ValueError, match="does not hold 50 initial states"):
        files.initial_states("libero_goal", "few")
    saved(folder / "good.pruned_init", np.arange(100.0).reshape(50, 2))
    assert np.array_equal(files.initial_states("libero_goal", "good"), np.arange(100.0).reshape(50, 2))
    with pytest.raises(RuntimeError, match=r"missing.pruned_init cannot be read .*pip install"):
        files.initial_states("libero_goal", "missing")


def test_what_is_missing_is_one_line_with_the_command(tmp_path, monkeypatch):
    task = Libero().tasks()[0]
    with pytest.raises(RuntimeError, match=rf"not in {tmp_path}; get them .*: hf download lerobot/libero-assets"):
        files.assets(str(tmp_path))
    wrong = Libero(mujoco="3.8.1", worker=False)
    with pytest.raises(RuntimeError, match=r"mujoco is 3.3.2, .*say bench.mujoco=3.3.2"), wrong.open(task):
        pass
    findings = {f.about: f for f in replace(wrong, assets=str(tmp_path)).findings()}
    assert [f.ok for f in findings.values()] == [False, False, True]
    monkeypatch.setattr(libero.importlib.util, "find_spec", lambda name: None)
    with (
        pytest.raises(RuntimeError, match=r"LIBERO is not installed; pip install 'vlaprune\[libero\]'"),
        wrong.open(task),
    ):
        pass


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


def test_assets_are_told_apart_in_the_journal(tmp_path):
    for number in (1, 2):
        folder = tmp_path / str(number)
        for place in files.FOLDERS:
            (folder / place).mkdir(parents=True)
        (folder / "scenes" / "a.xml").write_text("x" * number)
    assert files.assets(os.path.relpath(tmp_path / "1")) == (tmp_path / "1").resolve()
    one, two = (Libero(assets=str(tmp_path / n)).provenance() for n in "12")
    assert one["assets"] != two["assets"] and one["assets"].endswith("1 files, 0 MB")
    assert one["simulator"] == {"hf-libero": "0.1.4"}


def test_tiny_asks_for_its_own_pictures_and_weights_and_others_get_the_protocols():
    def look(*overrides):
        cfg, _ = config.composed(["bench=libero", *overrides])
        bench = config.make(cfg.bench)
        return bench, config.model_node(cfg, bench)

    for suite in ("libero_object", "libero_spatial"):
        bench, node = look("model=tiny", f"bench.suite={suite}")
        assert (bench.image, bench.fast, bench.worker) == (128, True, True)
        assert (node.weights, node.text, list(node.cameras)) == (suite, 20, list(bench.interface.cameras))
    assert look("model=tiny", "model.weights=random")[1].weights == "random"
    bench, _ = look("model=toy")
    assert (bench.image, bench.fast) == (256, False)
    for task in (*files.suite("libero_object"), *files.suite("libero_spatial")):
        assert 1 not in tokenize(task.instruction, 20), f"a word of {task.instruction!r} is unknown to model=tiny"
