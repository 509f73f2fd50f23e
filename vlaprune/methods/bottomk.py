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
    """Keeps the visual tokens that the last prompt token attends to least, one layer before `layer`.

    layer  tokens are dropped on entry to this layer
    keep   fraction or number of the visual tokens that are kept
    """

    layer: int = 3
    keep: float = 0.25

    def __post_init__(self) -> None:
        """Raises UserError if `keep` is no budget or `layer` is 0."""
        self.budget = Budget(self.keep)
        if self.layer < 1:
            raise UserError(f"bottomk layer={self.layer}; use 1 or more, it reads the layer before")

    def plan(self, info: ModelInfo) -> Plan:
        """Acts before one layer; reads the last row's attention in the layer before it."""
        return Plan((self.layer,), {self.layer - 1: QueryGroup.LAST}, {self.layer: self.budget})

    def score(self, context: PruneContext) -> Tensor:
        """[n] the negative of the attention that each token gets."""
        return -context.attention(self.layer - 1, QueryGroup.LAST).mean(dim=(0, 1))

    def select(self, context: PruneContext) -> Selection:
        """Keeps the least attended tokens."""
        return Selection.top(self.score(context), self.budget, of=context.total)
