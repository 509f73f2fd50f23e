"""Random: the control that every method must beat. Uniform without replacement, drawn anew at every call.

All cameras are one pool: few tokens may all fall on one of them. `uniform` is the control with a share for each camera.

A draw is a function of (run seed, task, episode, call) alone, so it is the same on every machine and in every order.
"""

from dataclasses import dataclass

import torch

from vlaprune.methods.shared.selecting import random_subset, stands_for
from vlaprune.pruner import Budget, ModelInfo, Plan, PruneContext, Pruner, Selection


@dataclass
class Random(Pruner):
    """Keeps random tokens.

    layer         tokens are dropped on entry to this layer
    keep          fraction or number of the visual tokens that are kept
    proportional  a kept token's key counts for as many tokens as there are for each that is kept (as in ToMe)
    """

    layer: int = 0
    keep: float = 0.25
    proportional: bool = False

    def __post_init__(self) -> None:
        """Raises UserError if `keep` is no budget."""
        self.budget = Budget(self.keep)

    def plan(self, info: ModelInfo) -> Plan:
        """Acts before one layer; reads no attention."""
        return Plan((self.layer,), budget={self.layer: self.budget})

    def select(self, context: PruneContext) -> Selection:
        """Keeps as many tokens as the budget allows, at random. Drawn on the CPU, so that a GPU draws the same."""
        rows = torch.arange(context.alive.shape[0], device=context.alive.device)
        picks = random_subset(rows, self.budget.count(context.total), context.call_seed)
        return Selection(picks, multiplicity=stands_for(picks, len(rows)) if self.proportional else None)
