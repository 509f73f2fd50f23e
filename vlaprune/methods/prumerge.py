"""PruMerge and PruMerge+: keep the outliers of the vision tower's attention, each enriched by its neighbours.

Shang et al., "LLaVA-PruMerge", arXiv:2403.15388, sections on adaptive selection and token supplement; authors' code
42Shawn/LLaVA-PruMerge at 1ca8b2b, `llava/model/multimodal_encoder/clip_encoder.py`, `token_prune_merge_advanced` and
`token_prune_merge_advanced_plus`.

As in the code: a kept token is itself plus the attention-weighted sum of its nearest neighbours, kept ones included and
not normalised; one more token is the weighted sum of all dropped ones.
Differences: attention received, mean over queries, where the tower has no CLS token; neighbours by projected features
(theirs: keys), and it merges behind the projector (theirs: before it, so that the projector sees the sums); the extra
token takes the position of the best dropped token; images one by one, so counts may differ.
Defects not copied: an image without outliers divides by zero (here its best token stays); the even grid skips the last
token and breaks where more than a third are outliers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlaprune.errors import UserError
from vlaprune.methods.shared.scoring import cosine
from vlaprune.pruner import ModelInfo, Plan, PruneContext, Pruner, Selection, ranking


def outliers(score: Tensor) -> int:
    """How many of the scores [n] lie more than 1.5 quartile ranges above the third quartile."""
    low, high = score.quantile(score.new_tensor([0.25, 0.75]))
    return int((score > high + 1.5 * (high - low)).sum())


@dataclass
class PruMerge(Pruner):
    """Prunes before layer 0; the number of tokens kept depends on the scene.

    plus        PruMerge+: also an even grid of about three tokens per outlier
    neighbours  tokens merged into each kept one
    """

    plus: bool = True
    neighbours: int = 32

    def __post_init__(self) -> None:
        """Raises UserError for a negative number."""
        if self.neighbours < 0:
            raise UserError(f"prumerge neighbours={self.neighbours}; use 0 or more")

    def plan(self, info: ModelInfo) -> Plan:
        """Acts before layer 0; reads the vision tower's attention. Promises no fixed count."""
        return Plan((0,), vision_attention=True)

    def select(self, context: PruneContext) -> Selection:
        """Keeps and merges tokens camera by camera."""
        keep, values, score = [], [], context.vision_attention.float().nan_to_num(0.0)
        for view in context.layout.views:
            own = view.slice
            rows, new = self._merge(context, context.visual[own].float(), score[own])
            keep.append(rows + view.start)
            values.append(new)
        return Selection(torch.cat(keep), values=torch.cat(values).to(context.visual))

    def _merge(self, context: PruneContext, features: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of features [n, d] that are kept, and their new values."""
        n, order, count = features.shape[0], ranking(score), max(1, outliers(score))
        keep = torch.zeros_like(score, dtype=torch.bool)
        keep[order[:count]] = True
        if self.plus:
            keep[:: max(1, n // count // 3)] = True
        rows = keep.nonzero()[:, 0]
        rest = order[keep[order].to(torch.uint8).sort(stable=True).indices[: n - rows.shape[0]]]
        context.charge(rows.shape[0], *features.shape)
        near = cosine(features[rows], features).nan_to_num(0.0)
        near[torch.arange(rows.shape[0], device=rows.device), rows] = float("-inf")
        near = near.sort(dim=1, descending=True, stable=True).indices[:, : min(self.neighbours, n - 1)]
        weight = score.new_zeros((rows.shape[0], n)).scatter(1, near, score[near])
        context.charge(rows.shape[0], features.shape[1], n)
        values = features[rows] + weight @ features
        if not rest.shape[0]:
            return rows, values
        context.charge(1, features.shape[1], rest.shape[0])
        extra = score[rest] @ features[rest]
        return torch.cat((rows, rest[:1])), torch.cat((values, extra[None]))
