"""Scripted experts for the robosuite tasks: closed-loop, from privileged state, with no memory.

Every call looks at the simulator alone and decides afresh (reach, close, carry, release, retreat), so the
action makes sense from any state a policy may get into, as relabelling its own episodes needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from vlaprune.bench.mujoco.motions import CLOSE, OPEN, UP, grasp, held, move, retreat, shut, thing_box
from vlaprune.errors import UserError

WALL = 0.90  # height of the bins' walls, metres
NEARER = np.array([-0.025, -0.045, 0.0])  # from a bin's middle to where the arm reaches easily
LEAD = 0.12  # seconds by which the arm lags behind a moving goal
FENCE = -0.01  # y where the walls between the two bins begin, metres


def expert(name: str, world: Any) -> Callable[[], np.ndarray]:
    """The expert of task `name` for the open robosuite environment `world`; each call gives [7]."""
    if name == "Lift":
        return lambda: _lift(world)
    if name in ("LiftConveyor", "LiftPushed"):
        return lambda: _lift_moving(world)
    if name == "Stack":
        return lambda: _stack(world)
    if name.startswith("PickPlace"):
        return lambda: _pick_place(world)
    raise UserError(f"no expert for task {name!r}")


def places(name: str, world: Any) -> list[np.ndarray]:
    """Positions of the things of task `name`, [3] each in metres: the object to move first, then its target."""
    if name.startswith("Lift"):
        return [thing_box(world, world.cube).centre]
    things = {"Stack": ("cubeA", "cubeB")}.get(name)
    items = [getattr(world, t) for t in things] if things else [world.objects[world.object_id]]
    return [thing_box(world, item).centre for item in items]


def _lift(world: Any) -> np.ndarray:
    """The [7] action now: grasp the cube, then go up."""
    cube = thing_box(world, world.cube)
    if not held(world, world.cube):
        return grasp(world, cube)
    return move(world, cube, np.array([*cube.centre[:2], 0.90]), CLOSE)


def _lift_moving(world: Any) -> np.ndarray:
    """The action of `_lift`, with the hand ahead of the cube by the lag of the arm behind its goal."""
    cube = thing_box(world, world.cube)
    if held(world, world.cube):
        return move(world, cube, np.array([*cube.centre[:2], 0.90]), CLOSE)
    velocity = world.sim.data.get_joint_qvel(world.cube.joints[0])[:2]
    ahead = LEAD * np.clip(velocity, -0.3, 0.3)
    return grasp(world, replace(cube, centre=cube.centre + np.array([*ahead, 0.0])))


def _stack(world: Any) -> np.ndarray:
    """The [7] action now: grasp the red cube, move over the green one, go down, let go, go up."""
    red, green = thing_box(world, world.cubeA), thing_box(world, world.cubeB)
    place = green.centre + (green.reach[2] + red.reach[2]) * UP
    off = np.linalg.norm((red.centre - place)[:2])
    above = red.centre[2] - place[2]
    there = off < 0.02 and abs(above) < 0.015
    if not held(world, world.cubeA):
        if there:
            return retreat(world)
        return grasp(world, red, avoid=green)
    loose = 2.0 if shut(world) < 0.5 else 1.0
    if off < 0.009 * loose and above < 0.006 * loose:
        return move(world, red, red.centre, OPEN)
    clear = place[2] + 0.035
    goal = np.array([*place[:2], place[2] + np.clip(1.5 * (off - 0.008), -0.002, 0.035)])
    if off > 0.03 and red.centre[2] < clear - 0.02:  # rise before it can hit the green cube
        near = np.clip((off - 0.075) / 0.05, 0.0, 1.0)
        goal[:2] = red.centre[:2] + near * (place - red.centre)[:2]
    return move(world, red, goal, CLOSE)


def _pick_place(world: Any) -> np.ndarray:
    """The [7] action now: grasp the object, move over the walls, go low into its bin, let go, go up."""
    item = world.objects[world.object_id]
    thing = thing_box(world, item)
    place = world.target_bin_placements[world.object_id]
    inside = (np.abs(thing.centre - place)[:2] < [0.095, 0.12]).all()
    bottom = thing.centre[2] - thing.reach[2]
    if not held(world, item):
        if inside and bottom < WALL + 0.05:
            return retreat(world)
        return grasp(world, thing)
    place = place + NEARER
    off = np.abs((thing.centre - place)[:2]).max()
    over = WALL + 0.025 + thing.reach[2]
    low = np.array([*place[:2], over - 0.09])
    loose = 1.6 if shut(world) < 0.8 else 1.0
    if off < 0.035 * loose and bottom < WALL - 0.005 + 0.03 * (loose > 1.0):
        return move(world, thing, low, OPEN)  # the fingers need five steps to let go
    goal = np.array([*place[:2], over])
    goal[2] -= np.clip(2.5 * (0.07 - off), 0.0, 0.09)
    lack = over - 0.015 - thing.centre[2]
    if lack > 0 and off > 0.07:  # climb before the wall
        fence = FENCE - thing.reach[1] - thing.centre[1]
        go = np.clip((fence - 1.2 * lack) / 0.04, 0.0, 1.0)
        goal[:2] = thing.centre[:2] + go * (place - thing.centre)[:2]
    return move(world, thing, goal, CLOSE)
