"""The official episodes of SIMPLER (arXiv:2405.05941) as data: every option that its scripts give the simulator.

Source: simpler-env/SimplerEnv@4ab7178:scripts/{rt1,octo}_*.sh, evaluation/argparse.py and maniskill2_evaluator.py.
Episode numbers follow from the nesting below. Variant Aggregation leaves out the two camera variants, as upstream's
tools/calc_metrics_evaluation_videos.py does. Needs no simulator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product

import numpy as np

Option = str | bool


@dataclass(frozen=True)
class Start:
    """One official episode.

    env      environment id of ManiSkill2
    scene    name of its stage
    robot    robot id, here with the camera that the policy looks through
    base     x, y of the robot in metres
    yaw      yaw of the robot in radians
    thing    x, y of the object in metres; or a number in the environment's own list of arrangements
    overlay  background picture behind robot and objects (Visual Matching), or None (Variant Aggregation)
    build    further options of the environment
    """

    env: str
    scene: str
    robot: str
    base: tuple[float, float]
    yaw: float = 0.0
    thing: tuple[float, float] | int = (0.0, 0.0)
    overlay: str | None = None
    build: Mapping[str, Option] = field(default_factory=dict)

    @property
    def quat(self) -> list[float]:
        """The robot's rotation [4] (w first): half a turn, then `yaw`."""
        return [-math.sin(self.yaw / 2), 0.0, 0.0, math.cos(self.yaw / 2)]


@dataclass(frozen=True)
class Robot:
    """The fixed settings of a robot in SIMPLER: control mode, control and physics rate in Hz, the policy's camera."""

    control: str
    hz: int
    physics_hz: int
    camera: str


GOOGLE = Robot(
    "arm_pd_ee_delta_pose_align_interpolate_by_planner_gripper_pd_joint_target_delta_pos_interpolate_by_planner",
    3,
    513,
    "overhead_camera",
)
WIDOWX = Robot("arm_pd_ee_target_delta_pose_align2_gripper_pd_joint_pos", 5, 500, "3rd_view_camera")

URDFS = (
    "None",
    "recolor_tabletop_visual_matching_1",
    "recolor_tabletop_visual_matching_2",
    "recolor_cabinet_visual_matching_1",
)
ORIENTATIONS = ("lr_switch", "upright", "laid_vertically")
COUNTER = "google_pick_coke_can_1_v4"
BACKGROUNDS = (f"{COUNTER}_alt_background", f"{COUNTER}_alt_background_2")
TABLES = ("Baked_sc1_staging_objaverse_cabinet1_h870", "Baked_sc1_staging_objaverse_cabinet2_h870")
PLAIN: dict[str, Option] = {}
LIT: list[dict[str, Option]] = [{"slightly_darker_lighting": True}, {"slightly_brighter_lighting": True}]
DRAWERS = [
    f"{verb}{drawer}DrawerCustomInScene-v0" for verb in ("Open", "Close") for drawer in ("Top", "Middle", "Bottom")
]
POSES = {
    "a0": (0.644, -0.179, -0.03),
    "a1": (0.765, -0.182, -0.02),
    "a2": (0.889, -0.203, -0.06),
    "b0": (0.652, 0.009, 0.0),
    "b1": (0.752, 0.009, 0.0),
    "b2": (0.851, 0.035, 0.0),
    "c0": (0.665, 0.224, 0.0),
    "c1": (0.765, 0.222, -0.025),
    "c2": (0.865, 0.222, -0.025),
}
RECOLOURED: dict[str, Option] = {
    "station_name": "mk_station_recolor",
    "light_mode": "simple",
    "disable_bad_material": True,
}
TRACED: dict[str, Option] = {"shader_dir": "rt"}  # ray tracing: every drawer task


def _line(low: float, high: float, count: int) -> list[float]:
    return [float(v) for v in np.linspace(low, high, count)]


CAN = list(product(_line(-0.35, -0.12, 5), _line(-0.02, 0.42, 5)))
APPLE = list(product(_line(-0.08, -0.02, 3), _line(-0.02, 0.08, 3)))
AISLE = _line(-0.2, 0.2, 3)


def can_vm() -> list[Start]:
    """Pick coke can, Visual Matching: 4 arm textures x 3 orientations x 25 places."""
    start = _can(COUNTER, overlay="google_coke_can_real_eval_1.png")
    return [s for urdf in URDFS for s in _lying(start, {"urdf_version": urdf})]


def can_va() -> list[Start]:
    """Pick coke can, Variant Aggregation: 9 variants x 3 orientations x 25 places."""
    base = _can(COUNTER)
    crowded = replace(base, env="GraspSingleOpenedCokeCanDistractorInScene-v0")
    variants: list[tuple[Start, dict[str, Option]]] = [
        (base, PLAIN),
        *((_can(scene), PLAIN) for scene in TABLES),
        (crowded, PLAIN),  # "less", the environment's default
        (crowded, {"distractor_config": "more"}),
        *((_can(scene), PLAIN) for scene in BACKGROUNDS),
        *((base, light) for light in LIT),
    ]
    return [s for start, build in variants for s in _lying(start, build)]


def near_vm() -> list[Start]:
    """Move near, Visual Matching: 4 arm textures x 60 arrangements."""
    start = _near("MoveNearGoogleBakedTexInScene-v0", COUNTER, "google_move_near_real_eval_1.png")
    return [replace(start, build={"urdf_version": urdf}, thing=k) for urdf in URDFS for k in range(60)]


def near_va() -> list[Start]:
    """Move near, Variant Aggregation: 8 variants x 60 arrangements."""
    options: list[tuple[str, dict[str, Option]]] = [
        (COUNTER, PLAIN),
        (COUNTER, {"no_distractor": True}),
        *((scene, PLAIN) for scene in BACKGROUNDS),
        *((COUNTER, light) for light in LIT),
        *((scene, PLAIN) for scene in TABLES),
    ]
    starts = [replace(_near("MoveNearGoogleInScene-v0", scene), build=build) for scene, build in options]
    return [replace(start, thing=k) for start in starts for k in range(60)]


def drawer_vm() -> list[Start]:
    """Open and close drawer, Visual Matching: 4 arm textures x 6 drawers x 9 robot poses."""
    return [_posed(env, p, (0.0, 0.0), {"urdf_version": u}) for u in reversed(URDFS) for env in DRAWERS for p in POSES]


def drawer_va() -> list[Start]:
    """Open and close drawer, Variant Aggregation: 7 variants x 6 drawers x 9 robot places."""
    places = list(product(_line(0.65, 0.85, 3), AISLE))
    return [_room(env, place, (0.0, 0.0), *v) for v in _rooms() for env in DRAWERS for place in places]


def put_vm() -> list[Start]:
    """Put apple in drawer, Visual Matching: 4 arm textures x 3 robot poses x 9 places."""
    return [
        _posed(
            "PlaceIntoClosedTopDrawerCustomInScene-v0", pose, xy, {"urdf_version": urdf, "model_ids": "baked_apple_v2"}
        )
        for urdf in reversed(URDFS)
        for pose in ("a0", "b0", "c0")
        for xy in APPLE
    ]


def put_va() -> list[Start]:
    """Put apple in drawer, Variant Aggregation: 7 variants x 3 robot places x 9 places."""
    return [
        _room("PlaceIntoClosedTopDrawerCustomInScene-v0", (0.65, y), xy, scene, {**build, "model_ids": "apple"})
        for scene, build in _rooms()
        for y in AISLE
        for xy in APPLE
    ]


def widowx(env: str) -> list[Start]:
    """A WidowX task: 24 arrangements."""
    if env == "PutEggplantInBasketScene-v0":
        start = Start(env, "bridge_table_1_v2", "widowx_sink_camera_setup", (0.127, 0.06), overlay="bridge_sink.png")
    else:
        start = Start(env, "bridge_table_1_v1", "widowx", (0.147, 0.028), overlay="bridge_real_eval_1.png")
    return [replace(start, thing=k) for k in range(24)]


@dataclass(frozen=True)
class Official:
    """A row of the papers' tables: instruction, steps allowed, and episodes."""

    instruction: str
    limit: int
    starts: Callable[[], Sequence[Start]]


def _google(*starts: Callable[[], Sequence[Start]]) -> dict[str, Official]:
    rows = {
        "pick_coke_can": ("pick coke can", 80),
        "move_near": ("move A near B", 80),
        "drawer": ("open or close a drawer", 113),
        "put_in_drawer": ("open top drawer, then place apple into top drawer", 200),
    }
    return {name: Official(*row, of) for (name, row), of in zip(rows.items(), starts, strict=True)}


ON_TABLES = (
    ("spoon_on_towel", "put the spoon on the towel", 60, "PutSpoonOnTableClothInScene-v0"),
    ("carrot_on_plate", "put carrot on plate", 60, "PutCarrotOnPlateInScene-v0"),
    ("stack_cube", "stack the green block on the yellow block", 60, "StackGreenCubeOnYellowCubeBakedTexInScene-v0"),
    ("eggplant_in_basket", "put eggplant into yellow basket", 120, "PutEggplantInBasketScene-v0"),
)
SUITES = {
    "google_vm": _google(can_vm, near_vm, drawer_vm, put_vm),
    "google_va": _google(can_va, near_va, drawer_va, put_va),
    "widowx": {name: Official(said, limit, partial(widowx, env)) for name, said, limit, env in ON_TABLES},
}


def _can(scene: str, overlay: str | None = None) -> Start:
    return Start("GraspSingleOpenedCokeCanInScene-v0", scene, "google_robot_static", (0.35, 0.20), overlay=overlay)


def _lying(start: Start, build: Mapping[str, Option]) -> list[Start]:
    return [replace(start, build={o: True, **build}, thing=xy) for o in ORIENTATIONS for xy in CAN]


def _near(env: str, scene: str, overlay: str | None = None) -> Start:
    return Start(env, scene, "google_robot_static", (0.35, 0.21), -0.09, overlay=overlay)


def _posed(env: str, pose: str, thing: tuple[float, float], build: Mapping[str, Option]) -> Start:
    x, y, yaw = POSES[pose]
    options = {**TRACED, **RECOLOURED, **build}
    return Start(env, "dummy_drawer", "google_robot_static", (x, y), yaw, thing, f"open_drawer_{pose}.png", options)


def _rooms() -> list[tuple[str, dict[str, Option]]]:
    flat = "frl_apartment_stage_simple"
    return [
        (flat, {}),
        ("modern_bedroom_no_roof", {}),
        ("modern_office_no_roof", {}),
        (flat, {"light_mode": "brighter"}),
        (flat, {"light_mode": "darker"}),
        (flat, {"station_name": "mk_station2"}),
        (flat, {"station_name": "mk_station3"}),
    ]


def _room(
    env: str, base: tuple[float, float], thing: tuple[float, float], scene: str, build: Mapping[str, Option]
) -> Start:
    return Start(env, scene, "google_robot_static", base, 0.0, thing, None, {**TRACED, **build})
