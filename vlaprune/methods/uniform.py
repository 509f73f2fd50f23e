"""Uniform: an even stride through each camera's tokens. The control that spends nothing on choosing."""

from dataclasses import dataclass

import torch

from vlaprune.methods.shared.selecting import even_strides, split_budget, stands_for
from vlaprune.pruner import Budget, ModelInfo, Plan, PruneContext, Pruner, Selection


@dataclass
class Uniform(Pruner):
    """Keeps an even stride through each camera's tokens.

    layer         tokens are dropped on entry to this layer
    keep          fraction or number of the visual tokens that are kept, shared over the cameras in proportion
    proportional  a kept token's key counts for as many tokens as its camera has for each that it keeps (as in ToMe)
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
        """Keeps token number floor((i + 1/2) n / k) of each camera, for i from 0 to k - 1, in raster order."""
        rows, views = torch.arange(context.total, device=context.alive.device), context.layout.views
        counts = split_budget(self.budget.count(context.total), context.layout.sizes)
        each = [even_strides(rows[v.tokens.start : v.tokens.stop], k) for v, k in zip(views, counts, strict=True)]
        if not self.proportional:
            return Selection(torch.cat(each))
        shares = [stands_for(k, n) for k, n in zip(each, context.layout.sizes, strict=True)]
        return Selection(torch.cat(each), multiplicity=torch.cat(shares))
