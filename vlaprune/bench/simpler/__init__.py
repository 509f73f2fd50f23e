"""SIMPLER: the official episodes of the Google robot and the WidowX."""

from vlaprune.bench.simpler.benchmark import Simpler

__all__ = ["Simpler"]
