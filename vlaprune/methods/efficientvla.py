"""EfficientVLA-T: a few key tokens, then some by task relevance and some by difference from the key tokens.

arXiv:2506.10100 (NeurIPS 2025), section on task-relevance and diversity-driven pruning; no public code was found. Only
the token part of the paper: neither layers are dropped nor the action expert cached, so its tables do not carry over.

Differences: the min-max scaling of relevance is left out, it does not change the ranking; one budget for all cameras
together (the paper's model has one). Read from notes of the paper: `key` 4 to 8 and 56 or 112 of 256 tokens kept.
Inferred: `layer` (the notes say early) and `alpha`, whose published value was not found.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from vlaprune.errors import UserError
from vlaprune.methods.shared.scoring import check_range
from vlaprune.pruner import Budget, ModelInfo, Plan, PruneContext, Pruner, Selection, top
from vlaprune.trace import QueryGroup


@dataclass
class EfficientVLA(Pruner):
    """Keeps relevant and diverse tokens. Relevance is the instruction's attention at layer - 1, mean over heads.

    layer  tokens go on entry to this layer
    keep   fraction or number of the visual tokens that go on (0.4375 is 112 of 256, 0.21875 is 56)
    key    how many of the most relevant are the key set
    alpha  share of the tokens beyond the key set that is taken by relevance; the others by diversity
    """

    layer: int = 2
    keep: float = 0.4375
    key: int = 8
    alpha: float = 0.5

    def __post_init__(self) -> None:
        """Raises UserError for a parameter out of range."""
        self.budget = Budget(self.keep)
        check_range("efficientvla alpha", self.alpha, 0, 1)
        if self.layer < 1 or self.key < 1:
            raise UserError(f"efficientvla layer={self.layer} key={self.key}; use 1 or more of each")

    def plan(self, info: ModelInfo) -> Plan:
        """Acts before one layer; reads the instruction's rows of the layer before it."""
        return Plan((self.layer,), {self.layer - 1: QueryGroup.TEXT}, {self.layer: self.budget})

    def select(self, context: PruneContext) -> Selection:
        """Keeps the key set, then relevant tokens, then diverse tokens, each from those not yet chosen."""
        count = self.budget.count(context.total)
        key = min(self.key, count)
        relevant = key + int(self.alpha * (count - key) + 1e-9)
        score = context.attention(self.layer - 1, QueryGroup.TEXT).mean(dim=(0, 1))
        chosen = top(score, relevant)
        context.charge(key, *context.visual.shape)
        unit = F.normalize(context.visual.float(), dim=-1)
        distance = 1 - (unit @ unit[top(score, key)].T).max(dim=1).values
        distance = distance.nan_to_num(nan=-1.0).index_fill(0, chosen, float("-inf"))
        return Selection(torch.cat((chosen, top(distance, count - relevant))))
