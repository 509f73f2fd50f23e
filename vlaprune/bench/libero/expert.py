"""A scripted expert for LIBERO's pick-and-place tasks: closed-loop, from privileged state, with no memory.

It knows `in` (a basket) and `on` (a plate) goals of one object. What is too wide for the hand is taken by its rim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vlaprune.bench.mujoco.motions import CLOSE, OPEN, UP, Thing, grasp, held, move, retreat, shut

SPAN = 0.037  # half of what the hand can close around, metres
RIM = 0.014  # how deep the fingers go below a rim


def expert(world: Any) -> Callable[[], np.ndarray]:
    """The expert for the open LIBERO environment `world`; each call gives [7]. ValueError for unknown goals."""
    goals = world.parsed_problem["goal_state"]
    if len(goals) != 1 or len(goals[0]) != 3 or goals[0][1] not in world.objects_dict:
        raise ValueError(f"no expert for the goal {goals}; it knows one object in a basket or on a plate")
    return lambda: _act(world, *goals[0])


def places(world: Any) -> list[np.ndarray]:
    """Where what is to be moved is, and what it goes onto, [3] each in metres."""
    return [np.array(world.sim.data.body_xpos[world.obj_body_id[name]]) for name in world.obj_of_interest[:2]]


def box(world: Any, name: str) -> Thing:
    """The box, along the object's own axes, around all of its collision geometry."""
    model, data = world.sim.model._model, world.sim.data._data
    body = world.obj_body_id[name]
    axes, origin = data.xmat[body].reshape(3, 3).copy(), data.xpos[body]
    signs = np.array(np.meshgrid(*[[-1.0, 1.0]] * 3)).reshape(3, 8).T
    corners = []
    for geom in map(world.sim.model.geom_name2id, world.get_object(name).contact_geoms):
        middle, half = model.geom_aabb[geom, :3], model.geom_aabb[geom, 3:]
        spots = data.geom_xpos[geom] + (middle + signs * half) @ data.geom_xmat[geom].reshape(3, 3).T
        corners.append((spots - origin) @ axes)
    low, high = np.min(np.concatenate(corners), 0), np.max(np.concatenate(corners), 0)
    return Thing(origin + axes @ ((low + high) / 2), (high - low) / 2, axes)


def _act(world: Any, relation: str, name: str, target: str) -> np.ndarray:
    """Grasp, lift, over the target, down, let go, up."""
    item, thing = world.get_object(name), box(world, name)
    base = box(world, target.removesuffix("_contain_region"))
    inside = relation == "in"
    off = float(np.linalg.norm((thing.centre - base.centre)[:2]))
    bottom, top = thing.centre[2] - thing.reach[2], base.centre[2] + base.reach[2]
    if not held(world, item):
        if off < (0.06 if inside else 0.025) and bottom < top + (0.02 if inside else 0.01):
            return retreat(world, thing)
        return grasp(world, _handle(world, name, thing), _neighbour(world, name, thing))
    loose = 1.6 if shut(world) < 0.8 else 1.0
    release = top - 0.03 if inside else top + 0.004
    if off < (0.02 if inside else 0.012) * loose and bottom < release + 0.012 * loose:
        return move(world, thing, thing.centre, OPEN)
    lift = thing.centre[2] - bottom
    clear = top + 0.025 + lift
    goal = np.array([*base.centre[:2], clear])
    if off < 0.03:
        goal[2] = release + lift + np.clip(2.5 * (off - 0.012), 0.0, clear - release - lift)
    near = max(base.reach[:2]) + max(thing.reach[:2]) + 0.02
    lack = clear - 0.012 - thing.centre[2]
    if lack > 0 and off > 0.03:  # rise before the target's edge
        part = np.clip((off - near - 1.2 * lack) / 0.04, 0.0, 1.0)
        goal[:2] = thing.centre[:2] + part * (base.centre - thing.centre)[:2]
    return move(world, thing, goal, CLOSE)


def _handle(world: Any, name: str, thing: Thing) -> Thing:
    """What the fingers close around: the object itself, or the freest spot of its rim where it is too wide."""
    level = sorted(range(3), key=lambda i: abs(thing.axes[2, i]))[:2]
    if any(thing.half[i] < SPAN for i in level):
        low = thing.centre[2] - thing.reach[2]
        lift = max(0.0, low + 0.012 - thing.centre[2])  # the fingertips must not press the ground
        return Thing(thing.centre + lift * UP, thing.half, thing.axes)
    radius, top = max(thing.half[i] for i in level) - 0.003, thing.centre[2] + thing.reach[2]
    others = [box(world, other) for other in world.objects_dict if other != name]
    side = np.array([0.0, radius, 0.0])
    best = max((1.0, -1.0), key=lambda sign: min(_apart(thing.centre + sign * side, o) for o in others))
    spot = np.array([thing.centre[0], thing.centre[1] + best * radius, top - RIM])
    return Thing(spot, np.array([0.05, 0.003, RIM]), np.eye(3))


def _neighbour(world: Any, name: str, thing: Thing) -> Thing | None:
    """The nearest other object, if a finger could touch it."""
    others = [box(world, other) for other in world.objects_dict if other != name]
    nearest = min(others, key=lambda other: _apart(thing.centre, other))
    return nearest if _apart(thing.centre, nearest) < 0.12 else None


def _apart(spot: np.ndarray, other: Thing) -> float:
    """Level distance in metres from a spot to the outline of a thing."""
    return float(np.linalg.norm(np.maximum(np.abs(spot - other.centre)[:2] - other.reach[:2], 0.0)))
