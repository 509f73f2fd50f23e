"""One robosuite task, open: what `vlaprune.bench.robosuite.benchmark` gives to a run."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlaprune.bench.mujoco.gl import starting
from vlaprune.bench.mujoco.panda import CAMERAS
from vlaprune.bench.mujoco.stress import Stress, background
from vlaprune.bench.robosuite import expert
from vlaprune.benchmark import Observation, Task, check_action
from vlaprune.errors import UserError


@dataclass(frozen=True)
class Snapshot:
    """Everything that decides what an open environment does next.

    physics     [n] float64, MuJoCo's integration state with the solver's warm start
    controller  the arm controller's own numbers, copied
    gripper     [2] commanded finger positions in [-1, 1]
    """

    physics: np.ndarray
    controller: dict[str, Any]
    gripper: np.ndarray


@dataclass(frozen=True)
class EnvOptions:
    """How a world is drawn, seeded and perturbed: `seed`, `image`, `stress` and `severity` as in `Robosuite`."""

    gl: str
    seed: int
    image: int
    stress: str | None = None
    severity: int = 3


class RobosuiteEnv:
    """The open environment of one robosuite task; made by `Robosuite.open`.

    world  the robosuite environment itself; scripted experts read the simulator's state from it
    """

    def __init__(self, world: Any, task: Task, options: EnvOptions) -> None:
        """Wraps `world`."""
        import mujoco

        self.world, self.task, self.seed = world, task, options.seed
        self._mujoco = mujoco
        self._model, self._data = world.sim.model._model, world.sim.data._data
        self._spec = int(mujoco.mjtState.mjSTATE_INTEGRATION)
        self._model.vis.quality.offsamples = 0
        with starting(options.gl):
            self._renderer = mujoco.Renderer(self._model, options.image, options.image)
        flags = self._renderer.scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._look = mujoco.MjvOption()
        self._look.geomgroup[0] = 0  # group 0 is collision geometry, group 1 what one should see
        around = background(self._model)
        self._stress = Stress(options.stress, options.severity, self._model, CAMERAS["primary"], around)
        self._episode, self._steps = 0, 0
        for name in world.observation_names:  # robosuite would sample these 25 times a step, unused
            world.modify_observable(name, "enabled", False)

    def reset(self, episode: int) -> None:
        """Puts the world into initial state `episode` (any integer >= 0)."""
        if episode < 0:
            raise UserError(f"episode {episode} is negative")
        gripper = self.world.robots[0].gripper
        gripper.current_action = np.zeros(gripper.dof)  # robosuite would keep it
        self._episode, self._steps = episode, 0
        self._stress.prepare(episode)
        with seeded(self.seed, self.task.name, episode):
            self.world.reset()
        self._stress.start(self.world.robots[0], self._data, episode)
        self._data.qacc_warmstart[:] = 0  # depends on how often robosuite called forward so far
        self.world.sim.forward()

    def observe(self) -> Observation:
        """Renders each camera [h, w, 3] and reads the state [8] (metres, radians, metres)."""
        images = {}
        for number, (name, camera) in enumerate(CAMERAS.items()):
            self._renderer.update_scene(self._data, camera, self._look)
            images[name] = self._stress.picture(self._renderer.render(), self._episode, self._steps, number)
        return Observation(images, self._state(), self.task.instruction)

    def step(self, action: np.ndarray) -> bool:
        """Applies one [7] action, clipped to [-1, 1]; True while robosuite's own predicate holds."""
        self.world.step(np.clip(check_action(action, 7), -1.0, 1.0))
        self._steps += 1
        self.world.sim.forward()  # poses and contacts then belong to the state, not to 2 ms before it
        return bool(self.world._check_success())

    def hand(self) -> np.ndarray:
        """The position of the gripper, [3] in metres."""
        return np.copy(self._data.site_xpos[self.world.robots[0].eef_site_id])

    def hint(self) -> np.ndarray:
        """Positions of up to two objects of the task: x and y from the hand, in metres; [4] float32, NaN for none.

        Privileged: for training, never for a policy that acts.
        """
        hand = self.hand()[:2]
        out = np.full((2, 2), np.nan, np.float32)
        for row, place in zip(out, expert.places(self.task.name, self.world), strict=False):
            row[:] = place[:2] - hand
        return out.ravel()

    def snapshot(self) -> Snapshot:
        """A copy of the present state, for `restore` of this environment."""
        physics = np.empty(self._mujoco.mj_stateSize(self._model, self._spec))
        self._mujoco.mj_getState(self._model, self._data, physics, self._spec)
        robot = self.world.robots[0]
        numbers = {k: np.copy(v) for k, v in vars(robot.controller).items() if isinstance(v, np.ndarray)}
        numbers["new_update"] = robot.controller.new_update
        return Snapshot(physics, numbers, np.copy(robot.gripper.current_action))

    def restore(self, snapshot: Snapshot) -> None:
        """Returns to `snapshot`; from there the same actions give the same bits."""
        self._mujoco.mj_setState(self._model, self._data, snapshot.physics, self._spec)
        self.world.sim.forward()
        # forward overwrites the solver's warm start, so the state is set again
        self._mujoco.mj_setState(self._model, self._data, snapshot.physics, self._spec)
        robot = self.world.robots[0]
        for key, value in snapshot.controller.items():
            setattr(robot.controller, key, np.copy(value) if isinstance(value, np.ndarray) else value)
        robot.gripper.current_action = np.copy(snapshot.gripper)

    def close(self) -> None:
        """Frees the renderer and the simulator."""
        self._renderer.close()
        self.world.close()

    def _state(self) -> np.ndarray:
        """Gripper position 3, axis-angle 3 and finger positions 2, as one [8] array."""
        robot = self.world.robots[0]
        quat = np.empty(4)
        self._mujoco.mju_mat2Quat(quat, self._data.site_xmat[robot.eef_site_id])
        fingers = self._data.qpos[robot._ref_gripper_joint_pos_indexes]
        return np.concatenate([self.hand(), axis_angle(quat), fingers])


def axis_angle(quat: np.ndarray) -> np.ndarray:
    """Axis times angle [3] of a quaternion [4] (w first), continuous around the top-down gripper.

    The gripper that points down is a half turn about (1, 1, 0), just where the usual angle in [0, pi] flips
    its axis. Here the quaternion's sign is the one nearer to that pose and the angle runs over [0, 2 pi), so
    a jump needs a half turn away from top-down.
    """
    quat = quat if quat[1] + quat[2] >= 0 else -quat
    sine = np.linalg.norm(quat[1:])
    if sine < 1e-9:
        return np.zeros(3)
    return np.asarray(quat[1:] / sine * (2.0 * np.arctan2(sine, quat[0])))


@contextmanager
def seeded(seed: int, name: str, *rest: int) -> Iterator[None]:
    """Seeds numpy's global generator, which robosuite draws from, inside the context."""
    before = np.random.get_state()
    np.random.seed(np.random.SeedSequence([seed, zlib.crc32(name.encode()), *rest]).generate_state(8))
    try:
        yield
    finally:
        np.random.set_state(before)
