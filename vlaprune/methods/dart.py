"""DART: drop the tokens that repeat a few pivots; no attention is needed.

Wen et al., "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More",
arXiv:2502.11494; authors' code ZichenWen1/DART was not read, the rule is taken from third-party ports.

Differences: pivots are the tokens of largest L1 norm of hidden states (the ports: of key states, which no method can
read here); text pivots come from the instruction; visual pivots are served first and the budget is met exactly (the
ports round each pivot's share down); one pool for all cameras.
"""

from dataclasses import dataclass

import torch

from vlaprune.errors import UserError
from vlaprune.methods.shared.scoring import cosine
from vlaprune.pruner import Budget, ModelInfo, Plan, PruneContext, Pruner, Selection, top


@dataclass
class DART(Pruner):
    """Keeps a few pivots, and for each pivot its share of the tokens least similar to it.

    layer        tokens go on entry to this layer
    keep         fraction or number that go on, visual pivots included
    pivots       visual pivots
    text_pivots  words that also serve as pivots
    """

    layer: int = 2
    keep: float = 0.25
    pivots: int = 4
    text_pivots: int = 4

    def __post_init__(self) -> None:
        """Raises UserError if `keep` is no budget or there are too few pivots."""
        self.budget = Budget(self.keep)
        if self.pivots < 1 or self.text_pivots < 0:
            raise UserError(f"dart pivots={self.pivots}, text_pivots={self.text_pivots}; use at least 1 and 0")

    def plan(self, info: ModelInfo) -> Plan:
        """Acts before one layer; reads no attention."""
        return Plan((self.layer,), budget={self.layer: self.budget})

    def select(self, context: PruneContext) -> Selection:
        """Keeps the pivots, then the tokens least similar to each pivot in turn, none twice."""
        count = self.budget.count(context.total)
        chosen = top(context.visual.float().abs().sum(1), min(self.pivots, count))
        words = top(context.text.float().abs().sum(1), min(self.text_pivots, context.text.shape[0]))
        pivots = torch.cat((context.visual[chosen], context.text[words]))
        context.charge(pivots.shape[0], *context.visual.shape)
        unlike = -cosine(context.visual, pivots).nan_to_num(2.0)
        unlike[chosen] = float("-inf")
        room = count - chosen.shape[0]
        share = -(-room // unlike.shape[1])
        picks = [chosen]
        for pivot in range(unlike.shape[1]):
            more = top(unlike[:, pivot], min(share, room))
            unlike[more] = float("-inf")
            room -= more.shape[0]
            picks.append(more)
        return Selection(torch.cat(picks))
