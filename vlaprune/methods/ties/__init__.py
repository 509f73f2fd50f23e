"""TIES (arXiv 2603.24941): rank agreement of attention across layers decides what to trust."""

from vlaprune.methods.ties.ties import TIES

__all__ = ["TIES"]
