"""robosuite: Lift, Stack and PickPlace with a Panda arm."""

from vlaprune.bench.robosuite.benchmark import Robosuite

__all__ = ["Robosuite"]
