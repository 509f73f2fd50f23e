"""robosuite: Lift, Stack and PickPlace with a Panda arm, and a cube that moves."""

from vlaprune.bench.robosuite.benchmark import MovingRobosuite, Robosuite

__all__ = ["MovingRobosuite", "Robosuite"]
