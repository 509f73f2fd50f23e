"""LIBERO: 130 tasks of a Panda arm in MuJoCo, under the protocols of the published numbers."""

from vlaprune.bench.libero.benchmark import Libero

__all__ = ["Libero"]
