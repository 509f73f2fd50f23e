"""The rules of evaluation on LIBERO that published numbers follow. Numbers compare only under one protocol.

Settling (ten steps), the rotation of pictures by 180 degrees, the state vector and the initial states are the same in
all three. Sources: openvla/openvla@c8f03f4 and moojink/openvla-oft@213c5ff (experiments/robot/libero/
run_libero_eval.py); openpi@15a9616 (examples/libero/main.py); lerobot@7427f31 (envs/libero.py, envs/configs.py,
configs/eval.py, scripts/lerobot_eval.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

LIMITS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}


@dataclass(frozen=True)
class Rules:
    """The rules of one protocol.

    image    side of the pictures that are rendered, pixels; a model resizes them as it was trained
    seed     seed of the generator that places fixtures (cabinet, stove, rack)
    anew     seed the generator for every episode, with `seed` plus its number; else once, when the environment is made,
             and resets go on drawing from it
    longer   suite -> step limit, where it differs from LIMITS
    """

    image: int
    seed: int
    anew: bool = False
    longer: Mapping[str, int] = field(default_factory=dict)

    def max_steps(self, suite: str) -> int:
        """Steps after which an attempt ends, the settling steps not counted."""
        return self.longer.get(suite, LIMITS[suite])


PROTOCOLS = {
    "openvla": Rules(256, 0),
    "openpi": Rules(256, 7),
    "lerobot": Rules(360, 1000, anew=True, longer={"libero_spatial": 280}),
}
