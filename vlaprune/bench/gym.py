"""Adapts environments with gymnasium's `reset`, `step` and `render` to ours. gymnasium itself is not imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from vlaprune.benchmark import Observation
from vlaprune.errors import UserError

Seen = tuple[Mapping[str, np.ndarray], np.ndarray | None]  # camera -> [h, w, 3] uint8, and the state [s] or None


class GymLike(Protocol):
    """The methods of an environment that are called; gymnasium.Env has them."""

    def reset(self, *, seed: int) -> tuple[Any, Mapping[str, Any]]:
        """Returns the first observation and further information. The seed alone must decide them."""

    def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, Mapping[str, Any]]:
        """Applies an action; returns observation, reward, terminated, truncated, further information."""

    def render(self) -> Any:
        """A picture [h, w, 3] uint8."""

    def close(self) -> None:
        """Frees the simulator."""


@dataclass
class GymEnv:
    """One open task of a benchmark (`vlaprune.benchmark.Env`) in a gymnasium environment.

    env          the environment; its action space takes what the model emits
    instruction  instruction for the policy
    read         returns pictures by camera, and the state, from gymnasium's last observation and the environment. It
                 must change nothing and may be called several times a step
    success      key of the information of a step that says whether the task is achieved
    first_seed   episode e is reset with seed first_seed + e
    """

    env: GymLike
    instruction: str
    read: Callable[[Any, GymLike], Seen]
    success: str = "is_success"
    first_seed: int = 0
    _last: Any = field(default=None, init=False, repr=False)
    _ended: bool = field(default=False, init=False, repr=False)  # terminated or truncated
    _success: Any = field(default=False, init=False, repr=False)  # result of the last step

    def reset(self, episode: int) -> None:
        """Puts the environment into initial state `episode`."""
        self._ended, self._success = False, False
        self._last, _ = self.env.reset(seed=self.first_seed + episode)

    def observe(self) -> Observation:
        """The present observation for the policy."""
        images, state = self.read(self._last, self.env)
        return Observation(images, None if state is None else np.asarray(state, np.float64), self.instruction)

    def step(self, action: np.ndarray) -> bool:
        """Applies one action; True while the task is achieved. UserError if the environment does not say.

        An environment that has ended (terminated or truncated) is not stepped again: its last result stays.
        The numbers 0 and 1, which some environments return, count as False and True. Anything else is returned as it
        is, for the gate (`vlaprune.bench.gate`) to refuse.
        """
        if self._ended:
            return bool(self._success)
        self._last, _, terminated, truncated, info = self.env.step(np.asarray(action, np.float32))
        self._ended = bool(terminated or truncated)
        if self.success not in info:
            raise UserError(
                f"this environment's step information has {sorted(info)}, not {self.success!r}; "
                "name the key that tells success: GymEnv(..., success=KEY)"
            )
        said = info[self.success]
        success: bool = bool(said) if np.isscalar(said) and said in (0, 1) else said
        self._success = success
        return success
