"""robosuite tabletop tasks (Panda arm, OSC_POSE, 20 Hz) as a benchmark that renders on a CPU.

These are this project's own conditions, not an official protocol: 128 x 128 images without shadows,
reflections or multisampling, and step limits of about 1.6 times what the scripted experts need.
Episode ids 0 .. 49 are held out for evaluation; training uses ids from 1000 on. Every id >= 0 is legal.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from vlaprune.bench import remote
from vlaprune.bench.mujoco import stress
from vlaprune.bench.mujoco.gl import PACKAGES, draws_with, quiet, starting
from vlaprune.bench.mujoco.panda import INTERFACE
from vlaprune.bench.robosuite import expert as experts
from vlaprune.bench.robosuite.env import EnvOptions, RobosuiteEnv, seeded
from vlaprune.bench.robosuite.moving import LAST, MovingEnv, add_carrier
from vlaprune.benchmark import Finding, Interface, Task, hold_still
from vlaprune.errors import UserError, install_command

TRAIN_EPISODE = 1000  # first episode id that evaluation never uses
TASKS = (
    Task("Lift", "lift the red cube", 40, 50),
    Task("Stack", "stack the red cube on the green cube", 110, 50),
    Task("PickPlaceCan", "put the can in its bin", 135, 50),
    Task("PickPlaceMilk", "put the milk in its bin", 100, 50),
    Task("PickPlaceCereal", "put the cereal in its bin", 140, 50),
)
MOVING = (
    Task("LiftConveyor", "lift the red cube", 40, 200),
    Task("LiftPushed", "lift the red cube", 40, 200),
)


@dataclass(frozen=True)
class Robosuite:
    """Single-arm robosuite tasks.

    names     which tasks, in this order; None for all
    image     side of the square images in pixels
    stress    what is perturbed, one of `stress.KINDS`; None for nothing
    severity  severity of the perturbation, 1 to 5
    renderer  "egl" or "osmesa"; MUJOCO_GL, where it is set, must say the same. A process has one
    seed      seed of the initial states; another seed is another benchmark
    worker    open each environment in a separate process
    """

    names: Sequence[str] | None = None
    image: int = 128
    stress: str | None = None
    severity: int = 3
    renderer: str = "egl"
    seed: int = 0
    worker: bool = True
    every: ClassVar[Sequence[Task]] = TASKS
    name: str = field(default="robosuite", init=False)
    robot: str | None = field(default=None, init=False)
    interface: Interface = field(default=INTERFACE, init=False)
    control_hz: float = field(default=20.0, init=False)
    margin: float = field(default=0.05, init=False)
    protocol: str = field(default="vlaprune", init=False)

    def __post_init__(self) -> None:
        """Refuses unknown task names and renderers before anything is started."""
        known = {task.name for task in self.every}
        if unknown := [name for name in self.names or () if name not in known]:
            raise UserError(f"no {self.name} tasks {unknown}; there are {sorted(known)}")
        if self.seed < 0 or self.image < 1:
            raise UserError(f"{self.name} seed={self.seed} image={self.image}; use 0 or more, and 1 or more")
        stress.check(self.stress, self.severity)
        if self.renderer not in PACKAGES:
            raise UserError(f"renderer {self.renderer!r} is not one of {sorted(PACKAGES)}")

    def tasks(self) -> Sequence[Task]:
        """The chosen tasks, in order."""
        by_name = {task.name: task for task in self.every}
        return tuple(self.every if self.names is None else (by_name[name] for name in self.names))

    def hold(self, last: np.ndarray | None) -> np.ndarray:
        """An action without motion; before the first action the fingers stay where the reset put them."""
        return hold_still(last, start=0.0)

    @contextmanager
    def open(self, task: Task) -> Iterator[Any]:
        """Starts robosuite for one task (about 3 s): a `RobosuiteEnv` here or in a worker."""
        if self.worker:
            with remote.opened(replace(self, worker=False), task) as far:
                yield far
            return
        env = self._start(task)
        try:
            yield env
        finally:
            env.close()

    def findings(self) -> Iterator[Finding]:
        """Whether the packages robosuite and mujoco are installed."""
        for package in ("robosuite", "mujoco"):
            there = importlib.util.find_spec(package) is not None
            yield Finding(package, "is there" if there else f"is not installed; {install_command('sim')}", ok=there)

    def expert(self, env: RobosuiteEnv) -> Callable[[], np.ndarray]:
        """A function that returns the scripted expert's [7] action for the present state of `env`."""
        return experts.expert(env.task.name, env.world)

    def _start(self, task: Task) -> RobosuiteEnv:
        """The open environment, or UserError that says what to install."""
        if any(importlib.util.find_spec(module) is None for module in ("robosuite", "mujoco")):
            raise UserError(f"robosuite is not installed; {install_command('sim')}")
        gl = draws_with(self.renderer)
        with starting(gl):
            import mujoco  # noqa: F401  (loads OpenGL)
        with quiet():
            return self._env(task, EnvOptions(gl, self.seed, self.image, self.stress, self.severity))

    def _env(self, task: Task, options: EnvOptions) -> RobosuiteEnv:
        """The environment of a task."""
        return RobosuiteEnv(_world(task.name, options.seed), task, options)


@dataclass(frozen=True)
class MovingRobosuite(Robosuite):
    """Lift, with a cube that moves while the policy computes (`moving.py`). One option more than `Robosuite`.

    max_steps  control steps to lift the cube in: 40 leave no time for a second try, 100 do
    """

    max_steps: int = 40
    every: ClassVar[Sequence[Task]] = MOVING
    name: str = field(default="robosuite_moving", init=False)

    def __post_init__(self) -> None:
        """Checks the options as `Robosuite` does. UserError if no motion is defined for `max_steps`."""
        super().__post_init__()
        if not 1 <= self.max_steps <= LAST:
            raise UserError(f"max_steps={self.max_steps}; use 1 to {LAST}")

    def tasks(self) -> Sequence[Task]:
        """The chosen tasks, in order, with the chosen number of steps."""
        return tuple(replace(task, max_steps=self.max_steps) for task in super().tasks())

    def _env(self, task: Task, options: EnvOptions) -> RobosuiteEnv:
        """The environment of a task, with a carrier under the cube."""
        world = _world("Lift", options.seed)
        with seeded(options.seed, task.name):  # the cube's size is drawn again
            add_carrier(world, belt=task.name == "LiftConveyor")
        return MovingEnv(world, task, options)


def _world(name: str, seed: int) -> Any:
    """The robosuite environment; seeded, because it draws the size of Lift's cube when it is built."""
    import robosuite

    with seeded(seed, name):
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
