"""robosuite tabletop tasks (Panda arm, OSC_POSE, 20 Hz) as a benchmark that renders on a CPU.

These are this project's own conditions, not an official protocol: 128 x 128 images without shadows,
reflections or multisampling, and step limits of about 1.6 times what the scripted experts need.
Episode ids 0 .. 49 are held out for evaluation; training uses ids from 1000 on. Every id >= 0 is legal.
"""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vlaprune.bench import remote
from vlaprune.bench.mujoco import stress
from vlaprune.bench.mujoco.gl import PACKAGES, draws_with, quiet
from vlaprune.bench.robosuite import expert as experts
from vlaprune.benchmark import Interface, Observation, Task, check_action

TRAIN_EPISODE = 1000  # first episode id that evaluation never uses
TASKS = (
    Task("Lift", "lift the red cube", 40, 50),
    Task("Stack", "stack the red cube on the green cube", 110, 50),
    Task("PickPlaceCan", "put the can in its bin", 135, 50),
    Task("PickPlaceMilk", "put the milk in its bin", 100, 50),
    Task("PickPlaceCereal", "put the cereal in its bin", 140, 50),
)
CAMERAS = {"primary": "agentview", "wrist": "robot0_eye_in_hand"}
INTERFACE = Interface(
    rotation="axis_angle",
    gripper="close_positive",
    frame="delta",
    cameras=tuple(CAMERAS),
    state="eef_pos3_axisangle3_gripper2",
)


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


class RobosuiteEnv:
    """One robosuite task, open; made by `Robosuite.open`.

    world  the robosuite environment itself, for experts that may look at privileged state
    """

    def __init__(self, world: Any, task: Task, settings: Robosuite) -> None:
        """Wraps `world`; `settings` say picture size, seed and perturbation."""
        import mujoco

        self.world, self.task, self.seed = world, task, settings.seed
        self._mujoco = mujoco
        self._model, self._data = world.sim.model._model, world.sim.data._data
        self._spec = int(mujoco.mjtState.mjSTATE_INTEGRATION)
        self._model.vis.quality.offsamples = 0
        self._renderer = mujoco.Renderer(self._model, settings.image, settings.image)
        flags = self._renderer.scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._look = mujoco.MjvOption()
        self._look.geomgroup[0] = 0  # group 0 is collision geometry, group 1 what one should see
        around = stress.background(self._model)
        self._stress = stress.Stress(settings.stress, settings.severity, self._model, CAMERAS["primary"], around)
        self._episode, self._steps = 0, 0
        for name in world.observation_names:  # robosuite would sample these 25 times a step for nobody
            world.modify_observable(name, "enabled", False)

    def reset(self, episode: int) -> None:
        """Puts the world into initial state `episode` (any integer >= 0)."""
        if episode < 0:
            raise ValueError(f"episode {episode} is negative")
        gripper = self.world.robots[0].gripper
        gripper.current_action = np.zeros(gripper.dof)  # robosuite would carry it over
        self._episode, self._steps = episode, 0
        self._stress.prepare(episode)
        with _seeded(self.seed, self.task.name, episode):
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

    def hint(self) -> np.ndarray:
        """Where the task's objects are: x and y from the hand, in metres, of up to two; [4] float32, NaN for none.

        Privileged: for training, never for a policy that acts.
        """
        hand = self._data.site_xpos[self.world.robots[0].eef_site_id][:2]
        out = np.full((2, 2), np.nan, np.float32)
        for row, place in zip(out, experts.places(self.task.name, self.world), strict=False):
            row[:] = place[:2] - hand
        return out.ravel()

    def snapshot(self) -> Snapshot:
        """A copy of the present state, to be given to `restore` of this same environment."""
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
        return np.concatenate([self._data.site_xpos[robot.eef_site_id], axis_angle(quat), fingers])


@dataclass(frozen=True)
class Robosuite:
    """Single-arm robosuite tasks.

    names     which tasks, in this order; None for all
    image     side of the square images in pixels
    stress    what is perturbed, one of `stress.KINDS`; None for nothing
    severity  of the perturbation, 1 to 5
    renderer  "egl" or "osmesa"; MUJOCO_GL, where it is set, must say the same. A process has one
    seed      of the initial states; another seed is another benchmark
    worker    each environment in a process of its own
    """

    names: Sequence[str] | None = None
    image: int = 128
    stress: str | None = None
    severity: int = 3
    renderer: str = "egl"
    seed: int = 0
    worker: bool = False
    name: str = field(default="robosuite", init=False)
    robot: str | None = field(default=None, init=False)
    interface: Interface = field(default=INTERFACE, init=False)
    control_hz: float = field(default=20.0, init=False)

    def __post_init__(self) -> None:
        """Refuses unknown task names and renderers before anything is started."""
        known = {task.name for task in TASKS}
        if unknown := [name for name in self.names or () if name not in known]:
            raise ValueError(f"no robosuite tasks {unknown}; there are {sorted(known)}")
        stress.check(self.stress, self.severity)
        if self.renderer not in PACKAGES:
            raise ValueError(f"renderer {self.renderer!r} is not one of {sorted(PACKAGES)}")

    def tasks(self) -> Sequence[Task]:
        """The chosen tasks, in order."""
        by_name = {task.name: task for task in TASKS}
        return tuple(TASKS if self.names is None else (by_name[name] for name in self.names))

    @contextmanager
    def open(self, task: Task) -> Iterator[Any]:
        """Starts robosuite for one task (about 3 s): a `RobosuiteEnv`, or the same in a worker."""
        if self.worker:
            with remote.opened(replace(self, worker=False), task) as far:
                yield far
            return
        env = self._start(task)
        try:
            yield env
        finally:
            env.close()

    def expert(self, env: RobosuiteEnv) -> Callable[[], np.ndarray]:
        """A function that returns the scripted expert's [7] action for the present state of `env`."""
        return experts.expert(env.task.name, env.world)

    def _start(self, task: Task) -> RobosuiteEnv:
        """The open environment, or RuntimeError that says what to install."""
        if any(importlib.util.find_spec(module) is None for module in ("robosuite", "mujoco")):
            raise RuntimeError("robosuite is not installed; pip install 'vlaprune[sim]'")
        gl = draws_with(self.renderer)
        try:
            with quiet():
                return RobosuiteEnv(_world(task.name, self.seed), task, self)
        except Exception as error:  # OpenGL's bindings fail in as many ways as there are platforms
            need = f"on Debian, apt install {PACKAGES.get(gl, 'its libraries')}"
            raise RuntimeError(f"renderer {gl} cannot start ({error}); {need}") from error


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


def _world(name: str, seed: int) -> Any:
    """The robosuite environment; seeded, because it draws the size of Lift's cube when it is built."""
    import robosuite

    with _seeded(seed, name):
        return robosuite.make(
            name,
            robots="Panda",
            controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            use_object_obs=False,
            control_freq=20,
            ignore_done=True,
            hard_reset=False,
        )


@contextmanager
def _seeded(seed: int, name: str, *rest: int) -> Iterator[None]:
    """Seeds numpy's global generator, which robosuite draws from; outside it is as it was."""
    before = np.random.get_state()
    np.random.seed(np.random.SeedSequence([seed, zlib.crc32(name.encode()), *rest]).generate_state(8))
    try:
        yield
    finally:
        np.random.set_state(before)
