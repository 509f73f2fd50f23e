"""One demonstrated episode, and the frames it makes: no-ops dropped, whole chunks only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vlaprune.errors import UserError

STATE, ACTION = 8, 7  # state: hand's position and axis-angle, two fingers; action: hand's move and turn, gripper


@dataclass(frozen=True, eq=False)
class Episode:
    """One episode of LIBERO from a file.

    instruction  the instruction in words
    state        [n, 8] position and axis-angle of the hand, two finger joints
    actions      [n, 7]; the gripper goes from -1 (opens) to +1 (closes)
    read_images  images [k, cameras, h, w, 3] uint8 of the steps [k], third person first, as a policy sees them
    source       names of file and episode, for errors
    """

    instruction: str
    state: np.ndarray
    actions: np.ndarray
    read_images: Callable[[np.ndarray], np.ndarray]
    source: str

    def __post_init__(self) -> None:
        """Raises UserError for arrays of other shapes, and for numbers that are not finite."""
        steps = len(self.actions)
        if self.state.shape != (steps, STATE) or self.actions.shape != (steps, ACTION):
            raise UserError(
                f"{self.source} has state {self.state.shape} and actions {self.actions.shape}; "
                f"expected [n, {STATE}] and [n, {ACTION}]"
            )
        if not (np.isfinite(self.state).all() and np.isfinite(self.actions).all()):
            raise UserError(f"{self.source} has numbers that are not finite; it is damaged: download it again")

    def frames(self, chunk: int, every: int = 1) -> dict[str, np.ndarray]:
        """images, state and labels [m, chunk, 7] of every `every`-th moving step at which a whole chunk can begin."""
        steps = moving(self.actions)
        starts = np.arange(0, len(steps) - chunk + 1, every)
        labels = self.actions[steps[starts[:, None] + np.arange(chunk)]]
        return {
            "images": self.read_images(steps[starts]),
            "state": self.state[steps[starts]].astype(np.float32),
            "labels": labels.astype(np.float32),
        }


def moving(actions: np.ndarray, least: float = 1e-4) -> np.ndarray:
    """[m] the steps of actions [n, 7] that are not no-ops: the arm moves, or the gripper changes.

    The gripper is compared with that of the last action kept. Source: openvla/openvla@c8f03f4:
    experiments/robot/libero/regenerate_libero_dataset.py (is_noop).
    """
    kept: list[int] = []
    for step, action in enumerate(actions):
        still = np.linalg.norm(action[:-1]) < least
        if not (still and (not kept or action[-1] == actions[kept[-1], -1])):
            kept.append(step)
    return np.array(kept, dtype=int)
