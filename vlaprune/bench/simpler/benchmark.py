"""SIMPLER (arXiv:2405.05941): real robots' evaluations in simulation, to SimplerEnv's own protocol.

Two simulators, never in one table: `ms2` (SimplerEnv's ManiSkill2_real2sim, which every published number is from) has
all tasks; `ms3` (mani-skill 3) has the four WidowX tasks with other physics, another judgement of contact and the
eggplant in other places, so its numbers are no SIMPLER scores. Either runs in a worker, one process per open task.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vlaprune.bench import remote
from vlaprune.bench.simpler.files import PACKAGE, VARIABLE, Interpreter, device, fingerprint, missing
from vlaprune.bench.simpler.grid import GOOGLE, SUITES, WIDOWX, Start
from vlaprune.bench.simpler.worlds import ManiSkill2, ManiSkill3
from vlaprune.benchmark import Finding, Gripper, Interface, Task, hold_still
from vlaprune.errors import UserError

SUCCESS = ("last", "any", "stop")
ANSWER = 1800.0  # seconds to open: ray tracing on a CPU takes ten minutes to begin; time_limit stops a run earlier


class SuccessWrapper:
    """A world with the rule that says when an episode counts as achieved."""

    def __init__(self, world: ManiSkill2 | ManiSkill3, ever: bool) -> None:
        """`ever`: an episode that was achieved once stays achieved."""
        self._world, self._ever = world, ever
        self._achieved = False
        self.observe, self.state_bits, self.close = world.observe, world.state_bits, world.close

    def reset(self, episode: int) -> None:
        """Puts the world into initial state `episode`."""
        self._achieved = False
        self._world.reset(episode)

    def step(self, action: np.ndarray) -> bool:
        """Applies one [7] action; True while the episode counts as achieved."""
        now = self._world.step(action)
        self._achieved = now or (self._ever and self._achieved)
        return self._achieved


@dataclass(frozen=True)
class Simpler:
    """One robot and setting of SIMPLER.

    suite       google_vm (Visual Matching), google_va (Variant Aggregation) or widowx
    backend     ms2 or ms3
    names       which tasks, in this order; None for all
    python      interpreter that has the simulator; None for this one
    assets      folder of its assets; None for the simulator's own
    raytracing  whether the drawer tasks are ray traced, as officially; without, their numbers are no SIMPLER scores
    success     last: the last step decides (official); any: some step; stop: the first success ends the episode
    limit       steps instead of the official 60 to 200 (CogACT's bridge script: 120); None for those
    worker      whether `open` starts a process of its own; it must for ms3 with more than one task
    """

    suite: str = "google_vm"
    backend: str = "ms2"
    names: Sequence[str] | None = None
    python: str | None = None
    assets: str | None = None
    raytracing: bool = True
    success: str = "last"
    limit: int | None = None
    worker: bool = True

    def __post_init__(self) -> None:
        """Raises UserError for options that do not exist, before anything is started."""
        known = {"suite": tuple(SUITES), "backend": tuple(PACKAGE), "success": SUCCESS}
        for key, allowed in known.items():
            if getattr(self, key) not in allowed:
                raise UserError(f"bench.{key}={getattr(self, key)}; use one of {', '.join(allowed)}")
        if self.backend == "ms3" and self.suite != "widowx":
            raise UserError(f"backend ms3 has no {self.suite}; use bench.suite=widowx, or bench.backend=ms2")
        if unknown := [name for name in self.names or () if name not in SUITES[self.suite]]:
            raise UserError(f"no tasks {unknown} in {self.suite}; there are {', '.join(SUITES[self.suite])}")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"bench.limit={self.limit}; use at least 1 step, or null for the official number")

    @property
    def name(self) -> str:
        """The name of the benchmark, with the backend: simpler-ms2 or simpler-ms3."""
        return f"simpler-{self.backend}"

    @property
    def robot(self) -> str | None:
        """The robot: widowx or google_robot."""
        return "widowx" if self.suite == "widowx" else "google_robot"

    @property
    def interface(self) -> Interface:
        """The conventions: axis-angle changes; gripper changes (Google robot) or positions, open at +1 (WidowX)."""
        gripper: Gripper = "open_positive" if self.robot == "widowx" else "close_delta"
        return Interface("axis_angle", gripper, "delta", ("primary",), "eef_pos3_axisangle3_gripper2")

    @property
    def control_hz(self) -> float:
        """Actions per second."""
        return float((WIDOWX if self.robot == "widowx" else GOOGLE).hz)

    def hold(self, last: np.ndarray | None) -> np.ndarray:
        """An action without motion: zero for the Google robot; WidowX' gripper keeps its last command (first: open)."""
        return hold_still(last, start=1.0) if self.robot == "widowx" else np.zeros(7)

    @property
    def margin(self) -> float:
        """The loss of success that counts as no worse, as a share of episodes."""
        return 0.05

    @property
    def protocol(self) -> str:
        """The protocol: SimplerEnv's, or that of mani-skill 3, whose numbers are no SIMPLER scores."""
        return "simpler" if self.backend == "ms2" else "simpler-ms3"

    def tasks(self) -> Sequence[Task]:
        """The tasks: rows of the papers' tables, whose average is the unweighted mean over tasks."""
        rows = SUITES[self.suite]
        return tuple(
            Task(n, rows[n].instruction, self.limit or rows[n].limit, len(rows[n].starts()), self.success == "stop")
            for n in (rows if self.names is None else self.names)
        )

    def starts(self, task: Task) -> Sequence[Start]:
        """The official episodes of a task, by number."""
        return SUITES[self.suite][task.name].starts()

    def open(self, task: Task) -> AbstractContextManager[Any]:
        """Starts the simulator for one task: 10 to 20 s on a CPU. UserError if something is missing."""
        if self.worker:
            return remote.opened(replace(self, worker=False), task, self.python, answering=ANSWER)
        return self._here(task)

    def ready(self) -> None:
        """Raises UserError for the first thing that is in the way of a run; starts no simulator."""
        for finding in self.findings():
            if not finding.ok:
                raise UserError(f"bench {self.name}: {finding.about}: {finding.said}")

    def findings(self) -> Iterator[Finding]:
        """The interpreter, its packages, the asset files of each task, and the device that renders."""
        about = f"python {self.python or 'of vlaprune'}"
        try:
            there = Interpreter.inspect(self.python)
        except UserError as error:
            yield Finding(about, f"{error}; give bench.python the path of an interpreter", ok=False)
            return
        wrong = list(there.conflicts(self.backend))
        yield from (Finding(about, said, ok=False) for said in wrong)
        if there.folders[PACKAGE[self.backend]] is None:
            return
        if not wrong:
            yield Finding(about, ", ".join(f"{name} {said}" for name, said in there.versions.items() if said))
        yield from (self._files(task, there) for task in self.tasks())
        try:
            yield Finding("renderer", device(self.python, self.backend))
        except UserError as error:
            yield Finding("renderer", str(error), ok=False)

    def _files(self, task: Task, there: Interpreter) -> Finding:
        root = there.assets(self.backend, self.assets)
        gone = missing(root, self.starts(task), self.backend)
        more = f" and {len(gone) - 2} more" if len(gone) > 2 else ""
        said = f"{root} lacks {', '.join(gone[:2])}{more}; get them as docs/simpler.md says, or bench.assets=PATH"
        return Finding(f"assets of {task.name}", said if gone else f"complete in {root}", ok=not gone)

    def identity(self) -> dict[str, Any]:
        """The settings that decide numbers: the options except paths, and a digest of the assets."""
        assets = Interpreter.inspect(self.python).assets(self.backend, self.assets)
        digest = fingerprint(assets, [s for task in self.tasks() for s in self.starts(task)], self.backend)
        kept = ("suite", "backend", "names", "raytracing", "success", "limit")
        return {"label": f"{self.name} {self.suite}", **{key: getattr(self, key) for key in kept}, "assets": digest}

    def provenance(self) -> dict[str, Any]:
        """Versions in the simulator's interpreter, and the device that it renders with."""
        return {"simulator": Interpreter.inspect(self.python).versions, "renderer": device(self.python, self.backend)}

    @contextmanager
    def _here(self, task: Task) -> Iterator[SuccessWrapper]:
        """The world in this process, after a check of the packages and files that it needs."""
        there = Interpreter.inspect(None)
        files = self._files(task, there)
        for said in (*there.conflicts(self.backend), *([] if files.ok else [files.said])):
            raise UserError(f"bench {self.name}: {said}")
        assets = there.assets(self.backend, self.assets)
        os.environ[VARIABLE[self.backend]] = str(assets)  # read when the simulator is first imported
        if self.backend == "ms2":
            world: Any = ManiSkill2(self.starts(task), task.max_steps, self.raytracing, assets)
        else:
            world = ManiSkill3(self.starts(task), task.max_steps)
        env = SuccessWrapper(world, self.success == "any")
        try:
            yield env
        finally:
            env.close()
