"""What stands between a model and a robot: rotation, gripper, ensemble, re-plan rate and delay. numpy only.

Sources: openvla/openvla@c8f03f4:experiments/robot/robot_utils.py (LIBERO's gripper);
DelinQu/SimplerEnv-OpenVLA@ccfe380:simpler_env/policies/openvla/openvla_model.py (rotation, WidowX, sticky gripper);
microsoft/CogACT@b174a1b:sim_cogact/{cogact_policy,adaptive_ensemble}.py (its own sticky gripper, adaptive ensemble).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vlaprune.benchmark import Gripper, Interface, axis_angle
from vlaprune.delay import Delay, Guide, Timeline, soft_mask
from vlaprune.errors import UserError

ROTATIONS = ("axis_angle", "euler_xyz", "quat_xyzw")
# rule -> what it reads and what comes out, as Interface.gripper has it
GRIPPERS: dict[str, tuple[Gripper, Gripper]] = {
    "sign": ("zero_one", "close_positive"),
    "binary": ("zero_one", "open_positive"),
    "sticky": ("zero_one", "close_delta"),
    "latched": ("zero_one", "close_delta"),
    "flip": ("close_positive", "open_positive"),
    "push": ("close_positive", "close_delta"),
}
STICKY = ("sticky", "latched")


@dataclass(frozen=True)
class Control:
    """How the chunks of one model become actions of one robot. The default changes nothing.

    rotation  form of the rotation in the robot's training data: axis_angle, euler_xyz or quat_xyzw, which becomes
              axis-angle. None changes nothing
    gripper   from 0 (closes) .. 1 (opens)
                sign     LIBERO: -sign(2g - 1), -1 opens, +1 closes
                binary   WidowX: +1 above a half opens, -1 closes
                sticky   Google robot, OpenVLA: the change since the last action; one above 0.5 is repeated
                latched  Google robot, CogACT: the change since the last action at which a repetition began
              from -1 (opens) .. +1 (closes)
                flip     WidowX: the sign changes
                push     Google robot: the value is used as a change, so the fingers continue to move
    hold      number of actions for which sticky and latched repeat a change, including the first
    ensemble  number of chunks that are averaged for each action, with one model call per action; 0 for none
    alpha     weight of the cosine between an older prediction and the newest in that average
    execute   actions executed per model call; None for the whole chunk

    While the robot holds (delay.py), the benchmark gives the action in the conventions of the robot. The control does
    not convert it, and the steps of a sticky or latched change are not counted.

    Errors: UserError for options that do not exist or contradict each other.
    """

    rotation: str | None = None
    gripper: str | None = None
    hold: int = 0
    ensemble: int = 0
    alpha: float = 0.1
    execute: int | None = None

    def __post_init__(self) -> None:
        """Raises UserError for options that do not exist or contradict each other."""
        for key, known in (("rotation", ROTATIONS), ("gripper", tuple(GRIPPERS))):
            if getattr(self, key) not in (None, *known):
                raise UserError(f"control {key}={getattr(self, key)}; use one of {', '.join(known)}, or null")
        if (self.hold > 0) != (self.gripper in STICKY):
            raise UserError(f"control hold={self.hold} with gripper={self.gripper}; {' and '.join(STICKY)} need hold")
        if self.ensemble < 0 or (self.ensemble and self.execute not in (None, 1)):
            raise UserError(f"control ensemble={self.ensemble} with execute={self.execute}; an ensemble executes 1")
        if self.execute is not None and self.execute < 1:
            raise UserError(f"execute={self.execute}; use at least 1")

    def output_interface(self, model: Interface) -> Interface:
        """What the robot receives when `model` goes through this control. UserError where the two do not fit."""
        out = model
        if self.rotation is not None:
            if model.rotation not in ("as_trained", self.rotation):
                raise UserError(f"rotation {model.rotation} goes through a control that reads {self.rotation}")
            out = replace(out, rotation="axis_angle")
        if self.gripper is not None:
            reads, writes = GRIPPERS[self.gripper]
            if model.gripper != reads:
                raise UserError(f"gripper {model.gripper} goes through control {self.gripper}, which reads {reads}")
            out = replace(out, gripper=writes)
        return out

    def actions_per_call(self, chunk: int, model: str = "the model") -> int:
        """Actions executed per call of a model that plans `chunk`. UserError where it plans fewer than are needed."""
        execute = 1 if self.ensemble else self.execute or chunk
        if max(execute, self.ensemble) > chunk:
            raise UserError(f"execute={execute}, ensemble={self.ensemble}; {model} plans 1..{chunk} actions a call")
        return execute


def as_model_actions(actions: np.ndarray, world: Gripper, model: Gripper) -> np.ndarray:
    """Converts demonstrated actions [..., A] to those that a model is to emit. UserError where the grippers do not fit.

    From -1 (opens) .. +1 (closes) to 0 (closes) .. 1 (opens): clipped to 0 .. 1, then turned, as in
    moojink/openvla-oft@213c5ff:prismatic/vla/datasets/rlds/oxe/transforms.py (libero_dataset_transform).
    """
    if world == model:
        return actions
    if (world, model) != ("close_positive", "zero_one"):
        raise UserError(f"actions with gripper {world} cannot teach a model with gripper {model}")
    return np.concatenate((actions[..., :-1], 1 - actions[..., -1:].clip(0, 1)), -1)


class Controller:
    """Applies a control in one slot. It keeps the gripper state and the chunks of the episode.

    delay  what the robot does during a model call; None for a world that waits
    """

    def __init__(self, control: Control, delay: Delay | None = None) -> None:
        self.control = control
        self.delay = delay
        self.timeline = Timeline("wait" if delay is None else delay.mode, max(1, control.ensemble))
        self.reset()

    def reset(self) -> None:
        """Starts a new episode."""
        self.timeline.reset()
        self.executed: list[np.ndarray] = []
        self.forget()

    def forget(self) -> None:
        """Forgets older chunks and the gripper's course, because a new instruction begins."""
        self.timeline.forget()
        self._chunks: dict[int, np.ndarray] = {}
        self._before: float | None = None
        self._held = 0.0
        self._left = 0

    def actions(self, chunk: np.ndarray, late: int = 0) -> np.ndarray:
        """The [n, A] actions to execute before the next look, from a [chunk, A] as the model emits it.

        late  control steps after which the chunk arrives; the robot holds or goes on with older chunks until then
        """
        number = self.timeline.calls
        execute = self.control.actions_per_call(len(chunk))
        self._chunks[number] = chunk
        steps = self.timeline.call(late, execute, len(chunk))
        out = np.stack([self._execute(step.rows) for step in steps])
        self._chunks = {n: c for n, c in self._chunks.items() if n > number - self.timeline.depth}
        return out

    def guide(self) -> Guide | None:
        """What the next chunk must go on from; None without delay, and where there is nothing to go on from."""
        rest = self.timeline.rest
        late = self.timeline.longest
        if self.delay is None or rest is None or not late:
            return None
        call, first = rest
        chunk = self._chunks[call]
        previous = np.zeros_like(chunk)
        previous[: len(chunk) - first] = chunk[first:]
        return Guide(previous, soft_mask(len(chunk), late, len(chunk) - first), self.delay.beta)

    def _execute(self, rows: tuple[tuple[int, int], ...]) -> np.ndarray:
        """The [A] action of one control step."""
        if rows:
            action = self._action([self._chunks[call][index] for call, index in rows])
        else:
            assert self.delay is not None  # a world that waits never leaves a step without an action
            action = self.delay.hold(self.executed[-1] if self.executed else None)
        self.executed.append(action)
        return action

    def _action(self, planned: Sequence[np.ndarray]) -> np.ndarray:
        """One [A] action from the m that were planned for the same step, each [A], the newest first."""
        control = self.control
        out = self._mean(np.stack(planned)) if control.ensemble else planned[0]
        if control.rotation is not None:
            hand, turn, gripper = np.split(out, [3, -1])
            out = np.concatenate([hand, _turn(control.rotation, turn), gripper])
        if control.gripper is not None:
            out = np.array(out)
            out[-1] = self._gripper(out[-1])
        return out

    def _mean(self, now: np.ndarray) -> np.ndarray:
        """The mean of the actions `now` [m, A], each weighted by exp(alpha * its cosine with the newest, now[0])."""
        cosine = now @ now[0] / (np.linalg.norm(now, axis=1) * np.linalg.norm(now[0]) + 1e-7)
        weight = np.exp(self.control.alpha * cosine)
        return weight / weight.sum() @ now

    def _gripper(self, opening: float) -> float:
        match self.control.gripper:
            case "sign":
                return float(-np.sign(2 * opening - 1))
            case "binary":
                return 1.0 if opening > 0.5 else -1.0
            case "flip":
                return -opening
            case "push":
                return opening
        return self._sticky(opening)

    def _sticky(self, opening: float) -> float:
        change = 0.0 if self._before is None else self._before - opening
        begins = abs(change) > 0.5 and not self._left
        if self._before is None or begins or self.control.gripper == "sticky":
            self._before = opening
        if begins:
            self._held = change
            self._left = self.control.hold
        if not self._left:
            return change
        self._left -= 1
        return self._held


def euler_quat(euler: np.ndarray) -> np.ndarray:
    """The quaternion [4] (w last) of roll, pitch, yaw [3]: turns about fixed x, then y, then z."""
    (cr, cp, cy), (sr, sp, sy) = np.cos(euler / 2), np.sin(euler / 2)
    return np.array(
        [
            sr * cp * cy - cr * sp * sy,
            cr * sp * cy + sr * cp * sy,
            cr * cp * sy - sr * sp * cy,
            cr * cp * cy + sr * sp * sy,
        ]
    )


def _turn(rotation: str, numbers: np.ndarray) -> np.ndarray:
    if rotation == "axis_angle":
        return numbers
    return axis_angle(numbers if rotation == "quat_xyzw" else euler_quat(numbers))
