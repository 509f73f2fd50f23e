"""Worlds that do not wait: a cube on a conveyor, and a cube that is pushed once.

The cube stands on a carrier, a plate that lies flush with the table. The carrier's motion is kinematic: its position at
each control step is a function of the seed, the task's name, the episode number and the step, and of nothing else.
Friction takes the cube along until the gripper lifts it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np

from vlaprune.bench.robosuite.env import EnvOptions, RobosuiteEnv
from vlaprune.benchmark import Task
from vlaprune.errors import UserError

HZ = 20  # control steps per second
LAST = 400  # steps for which a motion is defined; every episode is shorter
SPEEDS = (0.03, 0.12)  # range of the conveyor's speed, m/s
PUSH_STEPS = 6  # control steps that a push takes
PUSH = (0.05, 0.08)  # how far a push moves the cube, metres
PUSHED_AT = (2, 16)  # first and last step at which a push may begin
RISE, THICK = 0.001, 0.01  # the carrier's top above the table, and half its thickness, metres
CUBE = 0.021  # half the cube's side, metres
MASS = "10000"  # kg; so heavy that contact does not change the carrier's motion
SLOW, FAST = np.array([0.2, 0.35, 0.9]), np.array([0.95, 0.6, 0.1])  # the belt's colour at the ends of SPEEDS


@dataclass(frozen=True)
class Motion:
    """The motion of the carrier in one episode.

    start     [2] x and y of the cube at step 0, in metres from the table's middle
    velocity  [steps, 2] m/s during each control step; the carrier stands still after the last
    colour    [3] of the belt, each 0..1; a policy that sees one picture cannot see speed, so the belt's colour shows it
    """

    start: np.ndarray
    velocity: np.ndarray
    colour: np.ndarray

    def at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Displacement [2] in metres at the beginning of a control step, and the velocity [2] in m/s during it."""
        velocity = self.velocity[step] if step < len(self.velocity) else np.zeros(2)
        return self.velocity[:step].sum(0) / HZ, velocity


def motion(task: str, seed: int, episode: int) -> Motion:
    """The motion of `task` in an episode; UserError for a task that does not move."""
    rng = np.random.default_rng([seed, zlib.crc32(task.encode()), episode])
    if task == "LiftConveyor":
        return _conveyor(rng)
    if task == "LiftPushed":
        return _push(rng)
    raise UserError(f"no motion for task {task!r}")


def _conveyor(rng: np.random.Generator) -> Motion:
    """A constant velocity along y; the start is so far ahead that the cube passes the arm's middle."""
    speed = rng.uniform(*SPEEDS)
    start = np.array([rng.uniform(-0.03, 0.03), rng.uniform(-0.18, -0.08)])
    share = (speed - SPEEDS[0]) / (SPEEDS[1] - SPEEDS[0])
    return Motion(start, np.tile([0.0, speed], (LAST, 1)), SLOW + share * (FAST - SLOW))


def _push(rng: np.random.Generator) -> Motion:
    """Rest, then a short motion in any level direction, then rest."""
    start = rng.uniform(-0.03, 0.03, 2)
    begin = int(rng.integers(PUSHED_AT[0], PUSHED_AT[1] + 1))
    angle, length = rng.uniform(0.0, 2 * np.pi), rng.uniform(*PUSH)
    bump = np.sin(np.pi * (np.arange(PUSH_STEPS) + 0.5) / PUSH_STEPS)
    velocity = np.zeros((begin + PUSH_STEPS, 2))
    velocity[begin:] = length * HZ * (bump / bump.sum())[:, None] * [np.cos(angle), np.sin(angle)]
    return Motion(start, velocity, np.full(3, 0.5))


class MovingEnv(RobosuiteEnv):
    """robosuite's Lift with a carrier under the cube."""

    def __init__(self, world: Any, task: Task, options: EnvOptions) -> None:
        """Wraps `world`, which `add_carrier` has changed."""
        super().__init__(world, task, options)
        self._carrier = [world.sim.model.joint_name2id(f"carrier_{axis}") for axis in "xy"]
        self._belt = world.sim.model.geom_name2id("belt")
        self._cube = world.cube.joints[0]

    def reset(self, episode: int) -> None:
        """Puts the world into initial state `episode` (any integer >= 0)."""
        super().reset(episode)
        self._motion = motion(self.task.name, self.seed, episode)
        self._model.geom_rgba[self._belt, :3] = self._motion.colour
        self._carry(0)
        pose = self.world.sim.data.get_joint_qpos(self._cube)
        pose[:2] = self._motion.start
        pose[2] = self.world.table_offset[2] + RISE + CUBE
        self.world.sim.data.set_joint_qpos(self._cube, pose)
        self.world.sim.data.set_joint_qvel(self._cube, [*self._motion.at(0)[1], 0.0, 0.0, 0.0, 0.0])
        self.world.sim.forward()

    def step(self, action: np.ndarray) -> bool:
        """Applies one [7] action, as in `RobosuiteEnv.step`, while the carrier moves."""
        self._carry(self._step())
        return super().step(action)

    def hint(self) -> np.ndarray:
        """Positions of the cube now and in 0.4 s: x and y from the hand in metres; [4] float32."""
        out = super().hint()
        out[2:] = out[:2] + 0.4 * self._motion.at(self._step())[1]
        return out

    def _step(self) -> int:
        """The control step that comes next; the simulator's clock is part of its state, so `restore` sets it back."""
        return round(self._data.time * HZ)

    def _carry(self, step: int) -> None:
        """Puts the carrier where it is at the beginning of a control step."""
        place, velocity = self._motion.at(step)
        for joint, x, v in zip(self._carrier, place, velocity, strict=True):
            self._data.qpos[self._model.jnt_qposadr[joint]] = x
            self._data.qvel[self._model.jnt_dofadr[joint]] = v


def add_carrier(world: Any, belt: bool) -> None:
    """Adds the carrier to the open robosuite world `world`, and a visible belt if `belt`."""
    world.set_xml_processor(lambda xml: _with_carrier(xml, world.table_offset[2], belt))
    world.hard_reset = True
    world.reset()
    world.hard_reset = False


def _with_carrier(xml: str, height: float, belt: bool) -> str:
    """The MJCF model `xml` with a carrier whose top is `RISE` above the table's `height`, both in metres."""
    root = ElementTree.fromstring(xml)
    for name in ("cube_g0", "cube_g0_vis"):
        root.find(f".//geom[@name='{name}']").set("size", f"{CUBE} {CUBE} {CUBE}")  # type: ignore[union-attr]
    body = ElementTree.SubElement(_child(root, "worldbody"), "body", name="carrier", pos=f"0 0 {height + RISE - THICK}")
    for axis, direction in (("x", "1 0 0"), ("y", "0 1 0")):
        ElementTree.SubElement(body, "joint", name=f"carrier_{axis}", type="slide", axis=direction)
    ElementTree.SubElement(
        body,
        "geom",
        name="carrier",
        type="box",
        size=f"0.2 0.45 {THICK}",
        mass=MASS,
        group="0",
        friction="4 0.005 0.0001",
    )
    ElementTree.SubElement(
        _child(root, "worldbody"),
        "geom",
        name="belt",
        type="box",
        pos=f"0 0 {height}",
        size=f"0.09 0.4 {RISE}",
        contype="0",
        conaffinity="0",
        group="1",
        rgba=f"0.5 0.5 0.5 {float(belt)}",
    )
    ElementTree.SubElement(_child(root, "contact"), "exclude", body1="table", body2="carrier")
    return ElementTree.tostring(root, encoding="unicode")


def _child(root: ElementTree.Element, name: str) -> ElementTree.Element:
    """The section `name` of a model; created if there is none."""
    found = root.find(name)
    return ElementTree.SubElement(root, name) if found is None else found
