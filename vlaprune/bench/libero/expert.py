"""A scripted expert for LIBERO's pick-and-place tasks: closed-loop, from privileged state, with no memory.

It knows `in` (a basket) and `on` (a plate) goals of one object. A too wide object is taken by its rim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from vlaprune.bench.mujoco.motions import CLOSE, OPEN, UP, Thing, grasp, held, move, palm, retreat, shut
from vlaprune.errors import UserError

SPAN = 0.037  # half of what the hand can close around, metres
RIM = 0.014  # how deep the fingers go below a rim, metres
MARGIN = 0.02  # clearance between a carried object and what it passes over, metres
AHEAD = 0.05  # how far ahead on the way the ground counts, metres
BESIDE = 0.01  # and how far around the object, metres
SAFE = 0.004  # clearance from which a hand hits nothing, metres
REACH = 0.25  # farthest that a hand at an object's rim can reach, metres
YAWS = np.radians([0, 25, -25, 50, -50])  # turn of the finger axis at a rim, from the world's y axis
CORNERS = np.array(list(product((-1.0, 1.0), repeat=3)))
# The open Panda hand around the point between its fingertips: along the finger axis, across it, and up, in metres.
FINGERS = [(side * along, across, up) for side, along in product((-1, 1), (0.032, 0.05, 0.068)) for across in
           (-0.011, 0.011) for up in (-0.012, 0.02, 0.049)]  # fmt: skip
BETWEEN = list(product((-0.024, -0.016, 0.016, 0.024), (-0.011, 0.011), (-0.012, 0.0)))
PALM = [p for p in product((-0.104, -0.052, 0.0, 0.052, 0.104), (-0.032, 0.0, 0.032), (0.026, 0.08))]
HAND = np.array(FINGERS + BETWEEN + PALM)


@dataclass(frozen=True)
class Job:
    """One object to bring somewhere: `relation` is `in` or `on`, as in the goal.

    others  geometries [n] of everything but the robot and the object
    """

    world: Any
    relation: str
    name: str
    target: str
    others: np.ndarray


def expert(world: Any) -> Callable[[], np.ndarray]:
    """The expert for the open LIBERO environment `world`; each call gives [7]. UserError for unknown goals."""
    goals = world.parsed_problem["goal_state"]
    if len(goals) != 1 or len(goals[0]) != 3 or goals[0][1] not in world.objects_dict:
        raise UserError(f"no expert for the goal {goals}; it knows one object in a basket or on a plate")
    relation, name, target = goals[0]
    job = Job(world, relation, name, target.removesuffix("_contain_region"), _others(world, name))
    return lambda: _act(job)


def places(world: Any) -> list[np.ndarray]:
    """Positions of the object to move and of its target, [3] each in metres."""
    return [np.array(world.sim.data.body_xpos[world.obj_body_id[name]]) for name in world.obj_of_interest[:2]]


def box(world: Any, name: str) -> Thing:
    """The box, along the object's own axes, around all of its collision geometry."""
    data = world.sim.data._data
    body = world.obj_body_id[name]
    axes, origin = data.xmat[body].reshape(3, 3).copy(), data.xpos[body]
    geoms = np.array([world.sim.model.geom_name2id(g) for g in world.get_object(name).contact_geoms])
    centres, halves, turns = _boxes(world, geoms)
    spots = centres[:, None] + (CORNERS * halves[:, None]) @ turns.transpose(0, 2, 1)
    corners = (spots.reshape(-1, 3) - origin) @ axes
    low, high = corners.min(0), corners.max(0)
    return Thing(origin + axes @ ((low + high) / 2), (high - low) / 2, axes)


def _act(job: Job) -> np.ndarray:
    """The [7] action now: grasp, lift, move over the target, go down, let go, go up."""
    world, item, thing = job.world, job.world.get_object(job.name), box(job.world, job.name)
    base = box(world, job.target)
    inside = job.relation == "in"
    off = float(np.linalg.norm((thing.centre - base.centre)[:2]))
    bottom, top = thing.centre[2] - thing.reach[2], base.centre[2] + base.reach[2]
    if not held(world, item):
        if off < (0.06 if inside else 0.025) and bottom < top + (0.02 if inside else 0.01):
            return retreat(world)
        return _grasp(job, thing, base)
    loose = 1.6 if shut(world) < 0.8 else 1.0
    release = top - 0.03 if inside else top + 0.004
    if off < 0.02 * loose and bottom < release + 0.012 * loose:
        return move(world, thing, thing.centre, OPEN)
    lift = thing.centre[2] - bottom
    clear = top + 0.025 + lift
    goal = np.array([*base.centre[:2], clear])
    if off < 0.03:
        goal[2] = release + lift + np.clip(2.5 * (off - 0.012), 0.0, clear - release - lift)
        return move(world, thing, goal, CLOSE)
    near = max(base.reach[:2]) + max(thing.reach[:2]) + 0.02
    lack = clear - 0.012 - thing.centre[2]
    part = np.clip((off - near - 1.2 * lack) / 0.04, 0.0, 1.0) if lack > 0 else 1.0  # rise before the target's edge
    over = _ground(job, thing, base) + MARGIN + lift
    part = min(part, np.clip(1.0 - (over - 0.01 - thing.centre[2]) / MARGIN, 0.0, 1.0))  # and above all on the way
    goal[2] = max(goal[2], over)
    goal[:2] = thing.centre[:2] + part * (base.centre - thing.centre)[:2]
    return move(world, thing, goal, CLOSE)


def _grasp(job: Job, thing: Thing, base: Thing) -> np.ndarray:
    """The [7] action that grasps the object, or its rim if it is too wide."""
    level = sorted(range(3), key=lambda i: abs(thing.axes[2, i]))[:2]
    if any(thing.half[i] < SPAN for i in level):
        low = thing.centre[2] - thing.reach[2]
        lift = max(0.0, low + 0.012 - thing.centre[2])  # the fingertips must not press the ground
        handle = Thing(thing.centre + lift * UP, thing.half, thing.axes)
        return grasp(job.world, handle, _neighbour(job.world, job.name, thing))
    return grasp(job.world, _rim(job, thing, base, max(thing.half[i] for i in level) - 0.003), slack=0.006)


def _rim(job: Job, thing: Thing, base: Thing, radius: float) -> Thing:
    """The best spot of a rim: clear of other things, little turning, towards the target, near the hand."""
    centres, halves, turns = _boxes(job.world, job.others)
    near = np.linalg.norm(centres - thing.centre, axis=1) - np.linalg.norm(halves, axis=1) < REACH
    boxes = (centres[near], halves[near], turns[near])
    hand, _ = palm(job.world)
    ahead = (base.centre - thing.centre)[:2] / np.linalg.norm((base.centre - thing.centre)[:2])
    found = []
    for yaw, side in product(YAWS, (1.0, -1.0)):
        along = np.array([-np.sin(yaw), np.cos(yaw), 0.0])
        axes = np.stack([np.cross(along, UP), along, UP], axis=1)
        spot = thing.centre + side * radius * along
        spot[2] = thing.centre[2] + thing.reach[2] - RIM
        points = spot + HAND @ np.stack([along, axes[:, 0], UP])
        free = _clearance(points, boxes)
        score = (
            -np.clip(1.0 - free / SAFE, 0.0, 1.0)
            - 2.0 * (free < 0)
            - 0.6 * abs(yaw)
            + 0.15 * side * (along[:2] @ ahead)
        )
        found.append((score - float(np.linalg.norm((hand - spot)[:2])), tuple(spot), axes))
    _, best, axes = max(found, key=lambda f: f[:2])
    return Thing(np.array(best), np.array([0.05, 0.003, RIM]), axes)


def _ground(job: Job, thing: Thing, base: Thing) -> float:
    """The height in metres of the highest thing below an object, or soon below it on its way to `base`."""
    centres, halves, axes = _boxes(job.world, job.others)
    reach = np.einsum("nij,nj->ni", np.abs(axes), halves)
    way = AHEAD * (base.centre - thing.centre)[:2] / np.linalg.norm((base.centre - thing.centre)[:2])
    gap = np.abs(centres[:, :2] - thing.centre[:2] - way / 2) - np.abs(way) / 2 - reach[:, :2] - thing.reach[:2]
    below = (gap < BESIDE).all(axis=1) & ~np.isin(job.others, _geoms(job.world, job.target))
    return float((centres + reach)[below, 2].max(initial=0.0))


def _others(world: Any, name: str) -> np.ndarray:
    """The collision geometries [n], except those of the robot and of the object `name`."""
    model = world.sim.model._model
    robot = np.array([model.body(b).name.startswith(("robot0", "gripper0", "mount0")) for b in range(model.nbody)])
    solid = (model.geom_contype | model.geom_conaffinity) > 0
    return np.setdiff1d(np.flatnonzero(solid & ~robot[model.geom_bodyid]), _geoms(world, name))


def _geoms(world: Any, name: str) -> np.ndarray:
    """The collision geometries [n] of an object."""
    return np.array([world.sim.model.geom_name2id(g) for g in world.get_object(name).contact_geoms])


def _boxes(world: Any, geoms: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes around geometries: centres [n, 3], half extents [n, 3] along their own axes [n, 3, 3]."""
    model, data = world.sim.model._model, world.sim.data._data
    axes = data.geom_xmat[geoms].reshape(-1, 3, 3)
    middles, halves = model.geom_aabb[geoms, :3], model.geom_aabb[geoms, 3:]
    return data.geom_xpos[geoms] + np.einsum("nij,nj->ni", axes, middles), halves, axes


def _clearance(points: np.ndarray, boxes: tuple[np.ndarray, np.ndarray, np.ndarray]) -> float:
    """Metres between points [m, 3] and the nearest box, negative inside; less than the true distance at corners."""
    centres, halves, axes = boxes
    local = np.abs((points - centres[:, None]) @ axes) - halves[:, None]
    return float(local.max(axis=-1).min())


def _neighbour(world: Any, name: str, thing: Thing) -> Thing | None:
    """The nearest other object, if a finger could touch it."""
    others = [box(world, other) for other in world.objects_dict if other != name]
    nearest = min(others, key=lambda other: _apart(thing.centre, other))
    return nearest if _apart(thing.centre, nearest) < 0.12 else None


def _apart(spot: np.ndarray, other: Thing) -> float:
    """Level distance in metres from a spot to the outline of a thing."""
    return float(np.linalg.norm(np.maximum(np.abs(spot - other.centre)[:2] - other.reach[:2], 0.0)))
