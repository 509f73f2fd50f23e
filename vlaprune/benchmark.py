"""The world's side of the contract: observations, conventions, tasks, environments. numpy only."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np

from vlaprune.errors import UserError

B = TypeVar("B")
Gripper = Literal["close_positive", "open_positive", "zero_one", "close_delta", "any"]


@dataclass(frozen=True)
class Observation:
    """What a policy sees once.

    images       camera name -> [h, w, 3] uint8, upright
    state        [s] float64 proprioception, or None where the benchmark has none
    instruction  what to do, in words
    """

    images: Mapping[str, np.ndarray]
    state: np.ndarray | None
    instruction: str


@dataclass(frozen=True)
class Interface:
    """Conventions that a model and a benchmark must share before they are joined.

    rotation  how the three or four rotation numbers of an action are to be read; a model that has seen robots with
              several says "as_trained", and a control (control.py) says which
    gripper   which sign or value of the last action number closes the gripper: zero_one closes at 0; close_delta moves
              the gripper on, positive closes further
    frame     whether an action moves the hand by, or to, what it says
    cameras   names of the images that a model reads, in its order, or that a world offers
    state     layout of `Observation.state`, e.g. "eef_pos3_axisangle3_gripper2"; None for no state

    A world in which nothing turns or grips says `any`.
    """

    rotation: Literal["axis_angle", "euler_xyz", "quat_xyzw", "as_trained", "any"]
    gripper: Gripper
    frame: Literal["delta", "absolute"]
    cameras: tuple[str, ...]
    state: str | None

    def __post_init__(self) -> None:
        """Makes a tuple of a YAML list of cameras, so that equal interfaces compare equal."""
        object.__setattr__(self, "cameras", tuple(self.cameras))

    @property
    def state_size(self) -> int:
        """How many numbers the state has; 0 for none."""
        return state_size(self.state)

    def check(self, world: Interface) -> None:
        """Raises UserError that names every mismatch between this model and `world` at once.

        What the model wants must be offered: cameras and a state that it does not read may be there.
        """
        offered = {
            "rotation": world.rotation in (self.rotation, "any"),
            "gripper": world.gripper in (self.gripper, "any"),
            "frame": self.frame == world.frame,
            "cameras": set(self.cameras) <= set(world.cameras),
            "state": self.state in (None, world.state),
        }
        wrong = [
            f"{name} {getattr(self, name)} vs {getattr(world, name)}" for name, fits in offered.items() if not fits
        ]
        if wrong:
            raise UserError("; ".join(wrong))


@runtime_checkable
class HasInterface(Protocol):
    """A model or a benchmark; not a model server, which tells its conventions when it is asked."""

    interface: Interface


def state_size(layout: str | None) -> int:
    """How many numbers a state has by the layout's name: eef_pos3_axisangle3_gripper2 has 8; 0 for None."""
    return sum(int(n) for n in re.findall(r"\d+(?=_|$)", layout or ""))


@dataclass(frozen=True)
class Task:
    """One thing to do, judged by the simulator.

    name                  unique within the benchmark; part of every record
    instruction           given to the policy with every observation
    max_steps             control steps after which an attempt ends
    episodes              how many initial states the official protocol has; ids are 0 .. episodes - 1
    terminate_on_success  end at the first success; if False (SIMPLER) the last step decides
    """

    name: str
    instruction: str
    max_steps: int
    episodes: int
    terminate_on_success: bool = True


class Env(Protocol):
    """One task whose simulator is open.

    Observing is separate from stepping, because rendering costs time: a policy that executes eight
    actions a call observes once.
    """

    def reset(self, episode: int) -> None:
        """Puts the world into initial state `episode`; nothing else, no counter, decides it."""

    def observe(self) -> Observation:
        """Renders and returns what the policy may see now. Changes nothing."""

    def step(self, action: np.ndarray) -> bool:
        """Applies one [action_dim] action for one control period; True while the task is achieved."""


@dataclass(frozen=True)
class Finding:
    """One line of vlaprune-doctor.

    about  what was looked at
    said   what was found and, where it is wrong, after a semicolon what to do about it
    ok     whether nothing is wrong
    """

    about: str
    said: str
    ok: bool = True

    def line(self, needed: bool) -> str:
        """The printed line: `ok`, `PROBLEM`, or for a problem that is not `needed` `missing`, then what was found."""
        mark = "ok" if self.ok else "PROBLEM" if needed else "missing"
        return f"  {mark:8}{self.about}: {self.said}"


class Benchmark(Protocol):
    """A named, fixed list of tasks. What it may also offer are the protocols `Supports...` below.

    robot     whose controls (control.py) a model's chunks go through, e.g. "libero"; None where they are taken as they
              are
    margin    the loss of success, as a share of episodes, below which a method counts as no worse
    protocol  whose rules of evaluation these are: initial states, steps, pictures, e.g. "openvla"
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def robot(self) -> str | None: ...  # noqa: D102

    @property
    def interface(self) -> Interface: ...  # noqa: D102

    @property
    def control_hz(self) -> float: ...  # noqa: D102

    @property
    def margin(self) -> float: ...  # noqa: D102

    @property
    def protocol(self) -> str: ...  # noqa: D102

    def tasks(self) -> Sequence[Task]:
        """Every task, in the order in which they are run. Needs no simulator."""

    def open(self, task: Task) -> AbstractContextManager[Env]:
        """Starts the simulator for one task; leaving the context closes it."""


@runtime_checkable
class Isolated(Protocol):
    """A benchmark, a dataclass, whose environments run in processes of their own if `worker`."""

    worker: bool


def what_is_seen(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a benchmark's identity that decides what its observations show: without what it scores."""
    return {key: value for key, value in identity.items() if key not in ("only", "names", "margin", "renderer")}


def in_process(bench: B) -> B:
    """The benchmark with environments in this very process: for those who look into the simulator, as experts do."""
    return replace(bench, worker=False) if isinstance(bench, Isolated) else bench  # type: ignore[type-var]


@runtime_checkable
class SupportsHold(Protocol):
    """A benchmark that says what its robot does while it has no action; every mode of delay but `wait` asks."""

    def hold(self, last: np.ndarray | None) -> np.ndarray:
        """The [A] action that keeps the robot where it is and leaves the gripper as last commanded.

        last  the last action [A] that was executed; None before the first of an episode
        """


def hold_still(last: np.ndarray | None, start: float, size: int = 7) -> np.ndarray:
    """The action that holds a robot whose actions are changes: no motion, and the gripper's last command again.

    start  the gripper's command before the first action
    """
    out = np.zeros(size)
    out[-1] = start if last is None else last[-1]
    return out


@runtime_checkable
class SupportsReady(Protocol):
    """A benchmark whose packages and files can be looked for without starting a simulator."""

    def ready(self) -> None:
        """Raises UserError in one line for the first thing that is missing."""


@runtime_checkable
class SupportsFindings(Protocol):
    """A benchmark that tells vlaprune-doctor what it needs."""

    def findings(self) -> Iterable[Finding]:
        """One finding for each package or file that is needed. Starts no simulator."""


@runtime_checkable
class SupportsIdentity(Protocol):
    """A benchmark that knows better than its options what decides its numbers."""

    def identity(self) -> Mapping[str, Any]:
        """What decides the numbers: options, and digests of files; recorded in place of the options."""


@runtime_checkable
class SupportsProvenance(Protocol):
    """A benchmark whose simulator has versions of its own."""

    def provenance(self) -> Mapping[str, Any]:
        """What is good to know of the simulator; recorded, and may differ when a run is resumed."""


@runtime_checkable
class SupportsExpert(Protocol):
    """A benchmark with scripted experts, from which vlaprune-train makes demonstrations."""

    def expert(self, env: Any) -> Callable[[], np.ndarray]:
        """A function that returns the expert's [action_dim] action for the present state of an open environment."""


@runtime_checkable
class SupportsHint(Env, Protocol):
    """An environment that tells a learner where the objects are. vlaprune-train needs it."""

    def hint(self) -> np.ndarray:
        """Positions [h] of the objects in metres."""


@runtime_checkable
class SupportsHand(Env, Protocol):
    """An environment that tells where the hand really is; recorded after every step, never shown to a policy."""

    def hand(self) -> np.ndarray:
        """The hand's present position [3] in metres."""


@runtime_checkable
class SupportsSnapshot(Env, Protocol):
    """An environment that can go back to an earlier state. vlaprune-train needs it where teaching.rewind is on."""

    def snapshot(self) -> Any:
        """The present state, for `restore`."""

    def restore(self, snapshot: Any) -> None:
        """Goes back to a state that `snapshot` gave."""


def check_action(action: np.ndarray, size: int) -> np.ndarray:
    """The action as float64, or UserError where its shape is wrong or a number is not finite."""
    action = np.asarray(action, dtype=np.float64)
    if action.shape != (size,) or not np.isfinite(action).all():
        raise UserError(f"action {action} is not {size} finite numbers; the policy is at fault")
    return action


def axis_angle(quat: np.ndarray) -> np.ndarray:
    """The rotation vector [3], axis times angle in rad, of a unit quaternion [4] (w last).

    The angle is in [0, 2 pi]. The sign of the quaternion is kept, so q and -q give different vectors, as in OpenVLA's
    openvla/openvla@c8f03f4:experiments/robot/libero/libero_utils.py (from robosuite).
    """
    sine = np.linalg.norm(quat[:3])
    if sine < 1e-12:
        return np.zeros(3)
    return np.asarray(quat[:3] / sine * (2.0 * np.arctan2(sine, quat[3])))
