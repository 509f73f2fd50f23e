"""Motions that the scripted experts of robosuite and LIBERO share: grasp, carry, retreat. A Panda arm under OSC_POSE.

A motion looks at the simulator alone and returns one action. It has no memory: its action makes sense from any state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

METRES = 0.05  # change of the controller's goal for an action of 1
RADIANS = 0.5
GAIN = 2.2  # gain of the position error
TURN = 1.0  # gain of the rotation error
SPIN = 0.5  # largest rotation action; faster ones saturate the wrist, which moves the hand aside
HOME = np.array([0.0, 1.0, 0.0])  # the axis between the fingers at the start
OPEN, CLOSE = -1.0, 1.0
UP, DOWN = np.array([0.0, 0.0, 1.0]), np.array([0.0, 0.0, -1.0])


@dataclass(frozen=True)
class Thing:
    """A graspable object as a box in the world.

    centre [3] and half [3] extents along its own axes, in metres; axes [3, 3], one per column
    """

    centre: np.ndarray
    half: np.ndarray
    axes: np.ndarray

    @property
    def reach(self) -> np.ndarray:
        """Half extents [3] along the world's axes."""
        return np.asarray(np.abs(self.axes) @ self.half)


def grasp(world: Any, thing: Thing, avoid: Thing | None = None, slack: float = 0.014) -> np.ndarray:
    """The [7] action that grasps `thing` from above, clear of `avoid`.

    slack  metres by which the hand may be aside when it is all the way down
    """
    hand, turn = palm(world)
    axis = _finger_axis(thing, turn[:, 0], avoid)
    top = thing.centre[2] + thing.reach[2]
    goal = np.array([*thing.centre[:2], max(thing.centre[2], top - 0.035)])
    error = goal - hand
    off = np.linalg.norm(error[:2])
    skew = np.arccos(np.clip(turn[:, 0] @ axis, -1.0, 1.0))
    closing = 1.8 if shut(world) > -0.8 and _gap(world) < 0.079 else 1.0
    if off < 0.016 * closing and abs(error[2]) < 0.014 * closing and skew < 0.2 * closing:
        return _action(world, goal, axis, CLOSE)
    rise = np.clip(2.0 * (max(off, 0.06 * skew) - slack), 0.0, top + 0.04 - goal[2])
    return _action(world, goal + rise * UP, axis, OPEN)


def retreat(world: Any) -> np.ndarray:
    """The [7] action that opens the hand and goes straight up."""
    hand, turn = palm(world)
    return _action(world, hand + 0.06 * UP, _level(turn[:, 0]), OPEN)


def move(world: Any, thing: Thing, goal: np.ndarray, grip: float) -> np.ndarray:
    """The [7] action that carries the centre of `thing`, which is held, to `goal` [3]."""
    hand, turn = palm(world)
    return _action(world, hand + goal - thing.centre, _level(turn[:, 0]), grip)


def _action(world: Any, goal: np.ndarray, axis: np.ndarray, grip: float) -> np.ndarray:
    """The [7] action towards hand position `goal` [3], pointing down, fingers along `axis` [3]."""
    hand, turn = palm(world)
    want = np.stack([axis, np.cross(DOWN, axis), DOWN], axis=1)
    move = GAIN * (goal - hand) / METRES
    move[:2] /= max(1.0, np.abs(move[:2]).max())
    spin = TURN * _rotation(want @ turn.T) / RADIANS
    spin /= max(1.0, np.abs(spin).max() / SPIN)
    return np.asarray(np.clip([*move, *spin, grip], -1.0, 1.0))


def _finger_axis(thing: Thing, now: np.ndarray, avoid: Thing | None) -> np.ndarray:
    """The level direction [3] to close along: across two faces the hand can span, near to `now`."""
    sides = [i for i in range(3) if thing.half[i] < 0.037 and abs(thing.axes[2, i]) < 0.5]
    round_ = np.ptp(np.sort(thing.half)[:2]) < 0.0005 and np.ptp(thing.half) > 0.012
    if round_ and len(sides) == 2 and thing.half.min() > 0.024:
        return HOME  # an upright can looks the same from all sides
    axes = [_level(thing.axes[:, i]) for i in sides] or [HOME]
    score = []
    for axis in (sign * a for a in axes for sign in (1.0, -1.0)):
        value = 0.7 * axis @ _level(now) + 0.3 * axis @ HOME
        if avoid is not None:
            value -= np.clip(1.0 - _clearance(thing, axis, avoid) / 0.01, 0.0, 2.0)
        score.append((value, tuple(axis)))
    return np.array(max(score)[1])


def _clearance(thing: Thing, axis: np.ndarray, other: Thing) -> float:
    """Metres between `other` and two open fingers around `thing`, seen from above; negative inside."""
    side = np.cross(DOWN, axis)
    along = np.array([-0.06, -0.04, 0.04, 0.06])[:, None, None] * axis
    across = np.array([-0.011, 0.0, 0.011])[:, None] * side
    spots = thing.centre + (along + across).reshape(-1, 3)
    gap = np.abs((spots - other.centre) @ other.axes) - other.half
    level = np.abs(other.axes[2]) < 0.7
    return float(gap[:, level].max(axis=1).min())


def thing_box(world: Any, item: Any) -> Thing:
    """The box around a robosuite object's first collision geometry."""
    model, data = world.sim.model._model, world.sim.data._data
    geom = world.sim.model.geom_name2id(item.contact_geoms[0])
    axes = data.geom_xmat[geom].reshape(3, 3)
    centre = data.geom_xpos[geom] + axes @ model.geom_aabb[geom, :3]
    return Thing(centre, model.geom_aabb[geom, 3:].copy(), axes.copy())


def palm(world: Any) -> tuple[np.ndarray, np.ndarray]:
    """Position [3] and axes [3, 3] of the point between the fingertips."""
    site = world.robots[0].eef_site_id
    data = world.sim.data
    return np.array(data.site_xpos[site]), np.array(data.site_xmat[site]).reshape(3, 3)


def held(world: Any, item: Any) -> bool:
    """Whether both fingers touch the object."""
    parts = world.robots[0].gripper.important_geoms
    return all(world.check_contact(parts[side], item) for side in ("left_finger", "right_finger"))


def shut(world: Any) -> float:
    """The commanded position of the gripper: -1 open .. 1 shut."""
    return float(world.robots[0].gripper.current_action[-1])


def _gap(world: Any) -> float:
    """Distance between the fingers in metres."""
    left, right = world.sim.data.qpos[world.robots[0]._ref_gripper_joint_pos_indexes]
    return float(left - right)


def _level(axis: np.ndarray) -> np.ndarray:
    """The horizontal unit vector [3] along `axis`."""
    flat = np.array([axis[0], axis[1], 0.0])
    size = np.linalg.norm(flat)
    return flat / size if size > 1e-6 else HOME


def _rotation(turn: np.ndarray) -> np.ndarray:
    """Axis times angle [3] of a rotation matrix [3, 3], the angle in [0, pi]."""
    axis = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
    sine = np.linalg.norm(axis)
    if sine < 1e-8:
        return np.zeros(3)
    return np.asarray(axis / sine * np.arctan2(sine, np.trace(turn) - 1.0))
