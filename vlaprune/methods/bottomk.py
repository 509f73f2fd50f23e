"""BottomK: keep the visual tokens that get the least attention. The control of TIES, arXiv:2603.24941, figure 3.

FastV (arXiv:2403.06764) with its score turned round: if this does not hurt, attention is no measure of worth. The query
row, one pool for all cameras and the layer are FastV's here; what TIES used for its figure is not published (inferred).
"""

from dataclasses import dataclass

from torch import Tensor

from vlaprune.errors import UserError
from vlaprune.pruner import Budget, ModelInfo, Plan, PruneContext, Scored, Selection
from vlaprune.trace import QueryGroup


@dataclass
class BottomK(Scored):
    """layer: tokens go on entry to it, by the last token's attention one layer before. keep: fraction or number."""

    layer: int = 3
    keep: float = 0.25

    def __post_init__(self) -> None:
        """UserError for what is no budget, or layer 0."""
        self.budget = Budget(self.keep)
        if self.layer < 1:
            raise UserError(f"bottomk layer={self.layer}; use 1 or more, it reads the layer before")

    def plan(self, info: ModelInfo) -> Plan:
        """One layer; the last row of the layer before it."""
        return Plan((self.layer,), {self.layer - 1: QueryGroup.LAST}, {self.layer: self.budget})

    def score(self, context: PruneContext) -> Tensor:
        """[n] attention that each token gets, below 0."""
        return -context.attention(self.layer - 1, QueryGroup.LAST).mean(dim=(0, 1))

    def select(self, context: PruneContext) -> Selection:
        """The least attended tokens."""
        return Selection.top(self.score(context), self.budget, of=context.total)
