"""How a robot moved in one episode, from the actions that it executed and from where its hand was. numpy only.

Actions are [n, A]: translation 3, rotation A - 4, gripper 1, in the benchmark's own units, which for changes are often
shares of a largest step. So numbers of commands compare runs of one benchmark, not two benchmarks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

GROUPS = {"hand": slice(0, 3), "turn": slice(3, -1)}
SIDE = 0.5  # a gripper command beyond this, on either side, says open or close


def motion(
    actions: np.ndarray, hz: float, frame: Literal["delta", "absolute"], hands: Sequence[Sequence[float]] = ()
) -> dict[str, float]:
    """Measures the motion of one episode from its executed actions [n, A], `hz` control steps a second.

    world_seconds  of the world's time: n / hz
    path_hand      length of the commanded path of the hand
    path_turn      the same of its rotation
    jerk_hand      root mean square of the third difference of that path times hz^3; 0 where fewer than four are known
    jerk_turn      the same of the rotation
    flips          how often the gripper's command goes over to the other side
    path_real      length in metres of the path of the hand itself; this and the next only where `hands` tells it
    jerk_real      root mean square jerk of the hand itself, m/s^3

    frame  `delta` where actions are changes, so that their sum is the path; `absolute` where they are targets
    hands  [n + 1, 3] where the hand was, in metres; empty where that is not known
    """
    out = {"world_seconds": len(actions) / hz}
    for name, axes in GROUPS.items():
        moves = actions[:, axes]
        path = np.cumsum(np.vstack((np.zeros_like(moves[:1]), moves)), 0) if frame == "delta" else moves
        out |= _path(path, hz, name)
    sides = np.sign(actions[:, -1]) * (np.abs(actions[:, -1]) > SIDE)
    sides = sides[sides != 0]
    out["flips"] = float((sides[1:] != sides[:-1]).sum())
    return out | _path(np.asarray(hands), hz, "real") if len(hands) else out


def _path(path: np.ndarray, hz: float, name: str) -> dict[str, float]:
    """The length and the RMS jerk of a path [n, axes], under the names of `motion`."""
    third = np.diff(path, 3, axis=0) * hz**3
    return {
        f"path_{name}": float(np.linalg.norm(np.diff(path, axis=0), axis=1).sum()),
        f"jerk_{name}": float(np.sqrt((third**2).sum(1).mean())) if len(third) else 0.0,
    }
