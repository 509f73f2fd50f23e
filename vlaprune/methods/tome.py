"""ToMe: merge the most similar visual tokens instead of dropping any.

Bolya et al., "Token Merging: Your ViT But Faster", arXiv:2210.09461, section 3; authors' code facebookresearch/ToMe,
`tome/merge.py`, `bipartite_soft_matching`.

Differences: it acts once, before the decoder, on projected features, in as many rounds as the budget needs (theirs: in
every block of the vision tower, on keys); a merged token keeps the position of the token it was merged into; tokens of
several cameras may merge.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlaprune.methods.shared.scoring import cosine
from vlaprune.pruner import Budget, ModelInfo, Plan, PruneContext, Pruner, Selection, ranking


def merge(values: Tensor, sizes: Tensor, rows: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Merges `count` of the even tokens into their most similar odd one, the most similar pairs first.

    Takes values [n, d], sizes [n] and ascending rows [n]; returns these for n - count tokens. count <= n // 2.
    """
    best, partner = cosine(values[0::2], values[1::2]).nan_to_num(float("-inf")).max(1)
    order = ranking(best)
    gone, stay = order[:count], order[count:]
    mass = torch.cat((values * sizes[:, None], sizes[:, None]), 1)
    into = (partner[gone] == torch.arange(sizes.shape[0] // 2, device=sizes.device)[:, None]).to(mass)
    mass = torch.cat((mass[0::2][stay], mass[1::2] + into @ mass[0::2][gone]))
    rows, order = torch.cat((rows[0::2][stay], rows[1::2])).sort()
    mass = mass[order]
    return mass[:, :-1] / mass[:, -1:], mass[:, -1], rows


@dataclass
class ToMe(Pruner):
    """Merges tokens before layer 0, at most half of them in one round.

    keep          fraction or number of tokens after merging
    proportional  a merged token's key counts as often as it has parts (the authors' proportional attention)
    """

    keep: float = 0.25
    proportional: bool = True

    def __post_init__(self) -> None:
        """Raises UserError if `keep` is no budget."""
        self.budget = Budget(self.keep)

    def plan(self, info: ModelInfo) -> Plan:
        """Acts before layer 0; reads no attention."""
        return Plan((0,), budget={0: self.budget})

    def select(self, context: PruneContext) -> Selection:
        """Keeps the rows that are left, with size-weighted means as their values."""
        values, rows = context.visual.float(), torch.arange(context.visual.shape[0], device=context.visual.device)
        sizes, count = torch.ones_like(values[:, 0]), self.budget.count(context.total)
        while (n := rows.shape[0]) > count:
            gone, width = min(n - count, n // 2), values.shape[1]
            context.charge(n - n // 2, n // 2, width)
            context.charge(n // 2, width + 1, gone)
            values, sizes, rows = merge(values, sizes, rows, gone)
        return Selection(rows, values=values.to(context.visual), multiplicity=sizes if self.proportional else None)
