"""SIMPLER without a simulator: its official episodes, its files, its interpreter, what counts as achieved.

No test opens a simulator: its assets are on GitHub and the hub alone, out of reach of our CI (docs/simpler.md, Tests).
"""

import hashlib
import json
import math
import os
import sys
from collections import Counter
from itertools import product

import numpy as np
import pytest

from vlaprune.bench.simpler.benchmark import Simpler, SuccessWrapper
from vlaprune.bench.simpler.files import Interpreter, device, fingerprint, missing, needed
from vlaprune.bench.simpler.grid import GOOGLE, SUITES, WIDOWX
from vlaprune.bench.simpler.worlds import _state
from vlaprune.benchmark import axis_angle
from vlaprune.errors import UserError

COUNTS = {
    "google_vm": {"pick_coke_can": 300, "move_near": 240, "drawer": 216, "put_in_drawer": 108},
    "google_va": {"pick_coke_can": 675, "move_near": 480, "drawer": 378, "put_in_drawer": 189},
    "widowx": dict.fromkeys(["spoon_on_towel", "carrot_on_plate", "stack_cube", "eggplant_in_basket"], 24),
}
# SHA-256, first 16 digits, of the sorted lines that SimplerEnv@4ab7178's shell scripts give main_inference.py, written
# as `line` does, without the camera variants: run with a stub in place of python, one checkpoint each
OFFICIAL = {
    ("google_vm", "pick_coke_can"): "f185848eaa7680eb",
    ("google_vm", "move_near"): "5811e4ec9ba83167",
    ("google_vm", "drawer"): "daf12036b5ff55aa",
    ("google_vm", "put_in_drawer"): "97e662f8683376ad",
    ("google_va", "pick_coke_can"): "ebe3b99cd5c2024d",
    ("google_va", "move_near"): "e8fdedfa6712d1ba",
    ("google_va", "drawer"): "574b56c866180b95",
    ("google_va", "put_in_drawer"): "47d24deadaa1ff67",
    ("widowx", None): "d6bf7f0c4574e93a",
}
CELLS = [(suite, task) for suite, tasks in COUNTS.items() for task in tasks]


def starts(suite, task):
    return SUITES[suite][task].starts()


def line(suite, task, start):
    """All that an official episode is, rounded to micrometres."""
    robot = WIDOWX if suite == "widowx" else GOOGLE
    number = isinstance(start.thing, int)
    thing = ["id", start.thing] if number else ["xy", *(round(v, 6) for v in start.thing)]
    where = [*(round(v, 6) for v in start.base), [round(q, 6) + 0.0 for q in start.quat], thing]
    rates = [robot.hz, robot.physics_hz, SUITES[suite][task].limit]
    build = sorted([key, value] for key, value in start.build.items())
    return json.dumps([start.env, start.scene, start.robot, *rates, start.overlay, *where, build])


@pytest.mark.parametrize(("suite", "task"), CELLS)
def test_grid_has_the_official_number_of_episodes_and_no_two_alike(suite, task):
    lines = [line(suite, task, s) for s in starts(suite, task)]
    assert len(lines) == len(set(lines)) == COUNTS[suite][task]
    bench = Simpler(suite)
    assert {t.name: t.episodes for t in bench.tasks()} == COUNTS[suite]


@pytest.mark.parametrize(("suite", "task"), OFFICIAL)
def test_grid_is_what_the_official_scripts_run(suite, task):
    tasks = [task] if task else list(COUNTS[suite])
    lines = sorted(line(suite, t, s) for t in tasks for s in starts(suite, t))
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == OFFICIAL[suite, task]


def test_grid_totals_are_the_papers():
    assert [sum(COUNTS[s].values()) for s in COUNTS] == [864, 1722, 96]


def test_grid_of_cans_covers_places_orientations_and_arms_alike():
    cans = starts("google_vm", "pick_coke_can")
    places = {(round(x, 4), round(y, 4)) for x, y in (s.thing for s in cans)}
    assert places == set(product([-0.35, -0.2925, -0.235, -0.1775, -0.12], [-0.02, 0.09, 0.2, 0.31, 0.42]))
    seen = Counter((s.build["urdf_version"], *(k for k in s.build if k != "urdf_version")) for s in cans)
    assert len(seen) == 12 and set(seen.values()) == {25}
    assert {s.base for s in cans} == {(0.35, 0.20)} and {s.yaw for s in cans} == {0.0}
    assert {s.overlay for s in cans} == {"google_coke_can_real_eval_1.png"}


def test_grid_of_drawers_pairs_each_pose_with_its_own_picture():
    drawers = starts("google_vm", "drawer")
    poses = {(s.overlay, *s.base, s.yaw) for s in drawers}
    assert len(poses) == 9 and ("open_drawer_a2.png", 0.889, -0.203, -0.06) in poses
    assert Counter(s.env[: s.env.index("Drawer")] for s in drawers) == dict.fromkeys(
        [v + d for v in ("Open", "Close") for d in ("Top", "Middle", "Bottom")], 36
    )
    assert all(s.build["shader_dir"] == "rt" for s in drawers)
    assert {s.overlay[12:14] for s in starts("google_vm", "put_in_drawer")} == {"a0", "b0", "c0"}


def test_grid_of_variants_has_no_overlay_and_equal_cells():
    for task, cells in (("pick_coke_can", 9), ("move_near", 8), ("drawer", 7), ("put_in_drawer", 7)):
        variants = Counter()
        for start in starts("google_va", task):
            assert start.overlay is None
            kept = {k: v for k, v in start.build.items() if k not in ("lr_switch", "upright", "laid_vertically")}
            group = "Distractor" if "Distractor" in start.env else ""
            variants[start.scene, group, json.dumps(kept, sort_keys=True)] += 1
        assert len(variants) == cells and len(set(variants.values())) == 1


def test_grid_of_the_widowx_numbers_its_arrangements():
    for task in COUNTS["widowx"]:
        assert [s.thing for s in starts("widowx", task)] == list(range(24))
    eggplant = starts("widowx", "eggplant_in_basket")[0]
    assert (eggplant.robot, eggplant.base, eggplant.scene) == (
        "widowx_sink_camera_setup",
        (0.127, 0.06),
        "bridge_table_1_v2",
    )
    assert [t.max_steps for t in Simpler("widowx").tasks()] == [60, 60, 60, 120]


def test_grid_rotations_are_a_half_turn_and_the_yaw():
    for start in starts("google_vm", "drawer"):
        w, x, y, z = start.quat
        turn = axis_angle(np.array([x, y, z, w]))
        assert np.allclose(turn, [0, 0, math.pi + start.yaw]) and math.isclose(w * w + z * z, 1.0)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"suite": "bridge"}, r"bench.suite=bridge; use one of google_vm, google_va, widowx"),
        ({"backend": "ms4"}, r"bench.backend=ms4; use one of ms2, ms3"),
        ({"backend": "ms3"}, r"ms3 has no google_vm; use bench.suite=widowx"),
        ({"names": ["pick_pepsi"]}, r"no tasks \['pick_pepsi'\] in google_vm; there are pick_coke_can"),
        ({"success": "once"}, r"bench.success=once; use one of last, any, stop"),
        ({"limit": 0}, r"bench.limit=0; use at least 1 step"),
    ],
)
def test_options_that_do_not_exist_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        Simpler(**options)


def test_what_a_suite_says_of_its_robot():
    google, widowx = Simpler("google_va"), Simpler("widowx", "ms3")
    assert (google.robot, google.control_hz, google.interface.gripper) == ("google_robot", 3.0, "close_delta")
    assert (widowx.robot, widowx.control_hz, widowx.interface.gripper) == ("widowx", 5.0, "open_positive")
    assert google.name != widowx.name and not any(t.terminate_on_success for t in google.tasks())
    assert all(
        t.terminate_on_success and t.max_steps == 120 for t in Simpler("widowx", success="stop", limit=120).tasks()
    )


@pytest.mark.parametrize(("suite", "backend"), [*((suite, "ms2") for suite in SUITES), ("widowx", "ms3")])
def test_five_points_are_no_worse_on_simpler(suite, backend):
    assert Simpler(suite, backend).margin == 0.05


class Course:
    """A world that is achieved at some steps."""

    observe = state_bits = close = None

    def reset(self, episode):
        self.steps = iter([False, True, False, False])

    def step(self, action):
        return next(self.steps)


@pytest.mark.parametrize(("ever", "said"), [(False, [False, True, False, False]), (True, [False, True, True, True])])
def test_the_last_step_decides_or_any(ever, said):
    env = SuccessWrapper(Course(), ever)
    for _ in range(2):
        env.reset(0)
        assert [env.step(None) for _ in range(4)] == said


def test_a_hands_state_reads_quaternion_and_fingers():
    half = 0.5**0.5
    joints, angles = ["waist", "left_finger", "right_finger"], [9.0, 0.01, 0.02]
    for sign in (1, -1):
        state = _state(np.array([1.0, 2.0, 3.0]), sign * np.array([half, 0, 0, half]), joints, np.array(angles))
        assert np.allclose(state, [1, 2, 3, 0, 0, math.pi / 2, 0.01, 0.02])


# -- files ------------------------------------------------------------------------------------------------------------


def furnish(root, suite, backend, tasks=None):
    """Puts an empty file wherever one is needed, the last of each choice."""
    for task in tasks or COUNTS[suite]:
        for files in {f for s in starts(suite, task) for f in needed(s, backend)}:
            path = root / files[-1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
    return root


@pytest.mark.parametrize(("suite", "backend"), [("google_vm", "ms2"), ("google_va", "ms2"), ("widowx", "ms3")])
def test_each_file_of_a_task_is_missed(tmp_path, suite, backend):
    everything = {t: sorted({f for s in starts(suite, t) for f in needed(s, backend)}) for t in COUNTS[suite]}
    furnish(tmp_path, suite, backend)
    for task, files in everything.items():
        assert not missing(tmp_path, starts(suite, task), backend)
        for choices in files:
            (tmp_path / choices[-1]).rename(tmp_path / "away")
            (gone,) = missing(tmp_path, starts(suite, task), backend)
            assert gone.startswith(choices[0])
            (tmp_path / "away").rename(tmp_path / choices[-1])


def test_textures_and_meshes_that_files_name_are_missed_too(tmp_path):
    furnish(tmp_path, "widowx", "ms2", ["carrot_on_plate"])
    furnish(tmp_path, "google_vm", "ms2", ["drawer"])
    carrot, plate = (
        tmp_path / "custom/models" / m for m in ("bridge_carrot_generated_modified", "bridge_plate_objaverse_larger")
    )
    (carrot / "textured.dae").write_text(
        "<surface><init_from>image_id</init_from></surface><init_from>skin.png</init_from>"
    )
    (plate / "textured.obj").write_text("mtllib paint.mtl\n")
    (plate / "collision.obj").write_text("mtllib never_read.mtl\n")
    (plate / "paint.mtl").write_text("newmtl a\nmap_Kd -s 1 1 1 wood.jpg\n")
    (tmp_path / "custom/mk_station_recolor.urdf").write_text('<mesh filename="models/stone_tabletop.glb"/>')
    assert [os.path.basename(m) for m in missing(tmp_path, starts("widowx", "carrot_on_plate"), "ms2")] == [
        "skin.png",
        "wood.jpg",
    ]
    assert missing(tmp_path, starts("google_vm", "drawer"), "ms2") == ["custom/models/stone_tabletop.glb"]
    (carrot / "skin.png").write_text("")
    (plate / "wood.jpg").write_text("")
    assert not missing(tmp_path, starts("widowx", "carrot_on_plate"), "ms2")
    whole = fingerprint(tmp_path, starts("widowx", "carrot_on_plate"), "ms2")
    (plate / "never_read.mtl").write_text("newmtl b\n")
    assert fingerprint(tmp_path, starts("widowx", "carrot_on_plate"), "ms2") == whole
    (plate / "wood.jpg").write_text("a stand-in")
    assert fingerprint(tmp_path, starts("widowx", "carrot_on_plate"), "ms2") != whole


# -- interpreters -----------------------------------------------------------------------------------------------------


def there(numpy="1.26.4", gymnasium="0.29.1", pkg_resources="x", simulator="x"):
    folders = {"pkg_resources": pkg_resources, "mani_skill2_real2sim": simulator, "mani_skill": simulator}
    return Interpreter({"numpy": numpy, "gymnasium": gymnasium}, folders)


def test_what_breaks_the_old_simulator_is_named_with_its_remedy():
    assert not list(there().conflicts("ms2"))
    cases = {
        "numpy<2": there(numpy="2.4.6"),
        "gymnasium<1": there(gymnasium="1.4.0"),
        "setuptools<81": there(pkg_resources=None),
        "bench.python=PATH": there(simulator=None),
    }
    for remedy, interpreter in cases.items():
        (said,) = interpreter.conflicts("ms2")
        assert remedy in said
    assert not list(there(numpy="2.4.6", gymnasium="1.4.0", pkg_resources=None).conflicts("ms3"))


def test_a_run_without_the_simulator_is_refused_in_one_line_before_it_starts():
    for backend in ("ms2", "ms3"):
        with pytest.raises(UserError, match=r"it lacks mani_skill\w*, the simulator; install it .*bench.python=PATH"):
            Simpler("widowx", backend).ready()
    with pytest.raises(UserError, match=r"python /no/such: bench.python=/no/such does not answer as a Python"):
        Simpler(python="/no/such").ready()


def test_a_simulator_that_cannot_draw_is_said_in_one_line(tmp_path):
    for complaint in ("import sys; sys.exit('a long story\\nno suitable device')", "import os; os.abort()"):
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{complaint}"\n')
        python.chmod(0o755)
        with pytest.raises(UserError, match=r"^SAPIEN cannot draw \((no suitable device|exit code -6)\); it needs"):
            device(str(python), "ms2")


def test_incomplete_assets_are_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(Interpreter, "inspect", classmethod(lambda cls, python: there()))
    monkeypatch.setattr("vlaprune.bench.simpler.benchmark.device", lambda python, backend: "a device")
    furnish(tmp_path, "google_vm", "ms2")
    bench = Simpler(assets=str(tmp_path))
    bench.ready()
    whole = bench.identity()
    assert whole["label"] == "simpler-ms2 google_vm" and whole["raytracing"] is True and "python" not in whole
    (tmp_path / "real_inpainting/open_drawer_b0.png").write_text("another picture")
    assert bench.identity()["assets"] != whole["assets"]
    (tmp_path / "real_inpainting/open_drawer_b1.png").unlink()
    with pytest.raises(UserError, match=r"assets of drawer: .* lacks real_inpainting/open_drawer_b1.png; get them"):
        bench.ready()
    Simpler(assets=str(tmp_path), names=["move_near"]).ready()
    (tmp_path / "custom/models/orange/collision.obj").unlink()
    assert [f.about for f in bench.findings() if not f.ok] == ["assets of move_near", "assets of drawer"]
