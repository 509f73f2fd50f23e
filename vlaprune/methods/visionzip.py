"""VisionZip: keep the tokens the vision tower itself attends to, and merge the rest into a few context tokens.

Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models", arXiv:2412.04467, section on
dominant and contextual tokens; authors' code dvlab-research/VisionZip, `visionzip/{clip_encoder,utils}.py`.

Differences: attention received in the tower's last layer, mean over queries where it has no CLS token (theirs: the CLS
row of the layer before the last); merging goes by the projected features, after the projector (theirs: by the tower's
keys, before it). As in the code, a context token is its own features plus the mean of those merged into it. Each camera
gets its share of the budget.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlaprune.errors import UserError
from vlaprune.methods.shared.scoring import cosine, group_mean
from vlaprune.methods.shared.selecting import split_budget
from vlaprune.pruner import Budget, ModelInfo, Plan, PruneContext, Scored, Selection, ranking


def zipped(features: Tensor, score: Tensor, dominant: int, context: int) -> tuple[Tensor, Tensor]:
    """Rows [dominant + context] and values: the best, then an even stride of the rest with what merges into it."""
    order = ranking(score)
    best, rest = order[:dominant], order[dominant:].sort().values
    if not context:
        return best, features[best].float()
    stride = rest.shape[0] // context
    grid, behind = rest[: context * stride].unflatten(0, (context, stride)), rest[context * stride :]
    seats, others = grid[:, 0], torch.cat((grid[:, 1:].flatten(), behind))
    label = cosine(features[others], features[seats]).argmax(1)
    merged = features[seats].float() + group_mean(features[others], label, context)
    return torch.cat((best, seats)), torch.cat((features[best].float(), merged))


@dataclass
class VisionZip(Scored):
    """Prunes before layer 0, by the vision tower's attention.

    keep        fraction or number that go on, context tokens included
    contextual  share of these that are context tokens: 30 of 221 in the authors' setting
    """

    keep: float = 0.25
    contextual: float = 0.136

    def __post_init__(self) -> None:
        """Raises UserError if `keep` is no budget or `contextual` is no share."""
        self.budget = Budget(self.keep)
        if not 0 <= self.contextual <= 1:
            raise UserError(f"visionzip contextual={self.contextual}; use a share in [0, 1]")

    def plan(self, info: ModelInfo) -> Plan:
        """Acts before layer 0; reads the vision tower's attention."""
        return Plan((0,), budget={0: self.budget}, vision_attention=True)

    def score(self, context: PruneContext) -> Tensor:
        """[n] attention in the vision tower, by which the dominant tokens are taken."""
        return context.vision_attention

    def select(self, context: PruneContext) -> Selection:
        """Keeps dominant and context tokens camera by camera."""
        rows, values, views, score = [], [], context.layout.views, context.vision_attention
        for view, k in zip(views, split_budget(self.budget.count(context.total), context.layout.sizes), strict=True):
            own = view.slice
            merged = round(self.contextual * k)
            others, width = len(view.tokens) - k, context.visual.shape[1]
            context.charge(others, merged, width)
            context.charge(merged, width, others)
            picks, new = zipped(context.visual[own], score[own], k - merged, merged)
            rows.append(picks + view.start)
            values.append(new)
        return Selection(torch.cat(rows), values=torch.cat(values).to(context.visual))
