"""TEAM-VLA, Token Expand-Merge: the patches that the words name and those around them; later they merge into few.

Ye et al., "Token Expand-Merge: Training-Free Token Compression for Vision-Language-Action Models", arXiv:2512.09927.
The authors' code (Jasper-aaa/TEAM-VLA) could not be had; the rule is from a review and two third-party ports
(secondary). Current frame only: it remembers nothing.

1. Seeds: for each word of the instruction the patch of highest cosine. 2. Expand: a K x K window of ones over the seeds
of each camera; patches that see `tau` of them or more stay. 3. Context: a random share of all others stays too.
4. Merge, before layer 16 of 32: the M tokens that the action rows attend to most are anchors; every other token t_j is
shared out over them by W_ji = softmax_i(rms(t_j) . rms(a_i) / sqrt(d)), and a_i becomes (a_i + sum_j W_ji t_j) /
(1 + sum_j W_ji).
Secondary: K 3, tau 1, context 0.25 (0.35 elsewhere), M 80 of 256, layer 16 of 32. Inferred: which rows guide the merge
(those of the prompt that emit the action, one layer before), that M is a share of all cameras' tokens, so with two
cameras 160 of 512 (`keep=80` is 80 in all).
Differences: the context is drawn from the episode's seed; the ports threshold the cosine at mean + sd, not here.
`proportional` (ours, off) adds log(1 + sum W) to an anchor's key logit, as ToMe does for merged tokens.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vlaprune.errors import UserError
from vlaprune.methods.shared.scoring import action_group, check_range, cosine, mean_attention, rms
from vlaprune.methods.shared.selecting import random_mask
from vlaprune.pruner import Budget, ModelInfo, Plan, PruneContext, Pruner, Selection, top
from vlaprune.trace import Layout


def dilate(seeds: Tensor, layout: Layout, window: int, tau: int) -> Tensor:
    """[V] bool: patches with at least `tau` seeds [V] in the window around them, camera by camera."""
    out = []
    for view in layout.views:
        own = seeds[view.slice].float().view(1, 1, view.height, view.width)
        ones = own.new_ones(1, 1, window, window)
        out.append(F.conv2d(own, ones, padding=window // 2).flatten() >= tau)
    return torch.cat(out)


def merge_tokens(tokens: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Values [m, d] of the rows `anchors` [m] of tokens [n, d] with all others shared out over them; their weight [m].

    In fp32; the sum of weight times value is the sum of all tokens.
    """
    rest = torch.ones_like(tokens[:, 0], dtype=torch.bool).index_fill(0, anchors, False)
    unit, values = rms(tokens), tokens.float()
    weights = (unit @ unit[anchors].T * tokens.shape[1] ** -0.5).softmax(1) * rest[:, None]  # [n, m]
    size = 1 + weights.sum(0)
    return (values[anchors] + weights.T @ values) / size[:, None], size


@dataclass
class TEAMVLA(Pruner):
    """Drops tokens before layer 0 and merges tokens in the middle of the decoder.

    window        K, side of the window around a seed, odd
    tau           seeds in the window that a patch needs to stay
    context       share of all other patches that stays, drawn at random
    keep          fraction or number of the visual tokens that are anchors; where no more are left, nothing merges
    layer         decoder layer before which tokens merge; null: layer 16 of 32, scaled to the depth
    proportional  an anchor's weight in attention grows with what merged into it
    """

    window: int = 3
    tau: int = 1
    context: float = 0.25
    keep: float = 0.3125
    layer: int | None = None
    proportional: bool = False

    def __post_init__(self) -> None:
        """Raises UserError for a parameter out of range."""
        self.budget = Budget(self.keep)
        check_range("teamvla context", self.context, 0, 1)
        if self.window < 1 or self.window % 2 == 0 or self.tau < 1:
            raise UserError(f"teamvla window={self.window} tau={self.tau}; use an odd number and 1 or more")
        if self.layer is not None and self.layer < 1:
            raise UserError(f"teamvla layer={self.layer}; use 1 or more, it reads the layer before")

    def plan(self, info: ModelInfo) -> Plan:
        """Acts at layer 0, where `select` names the rows to read, and at the merge; both counts depend on the scene."""
        self._layer = max(1, info.num_layers // 2) if self.layer is None else self.layer
        return Plan((0, self._layer))

    def select(self, context: PruneContext) -> Selection | None:
        """Keeps named patches, their surroundings and some others; at the merge, anchors with all others merged in."""
        if context.layer == 0:
            reads = {self._layer - 1: action_group(context.layout)}
            if not context.text.shape[0]:  # without words no patch is named
                return Selection.all(context, reads)
            context.charge(context.text.shape[0], *context.visual.shape)
            near = cosine(context.text, context.visual).nan_to_num(-2.0).argmax(1)
            seeds = torch.zeros_like(context.reusable).index_fill(0, near, True)
            context.charge(context.total, 1, self.window**2)
            stay = dilate(seeds, context.layout, self.window, self.tau)
            stay |= random_mask(~stay, self.context, context.call_seed)
            return Selection(stay.nonzero()[:, 0], reads=reads)
        count, rows = self.budget.count(context.total), context.alive.shape[0]
        if rows <= count:
            return None
        score = mean_attention(context.trace, self._layer - 1, action_group(context.layout))[context.alive]
        anchors = top(score, count)
        context.charge(count, *context.visual.shape)
        context.charge(count, *context.visual.T.shape)
        values, size = merge_tokens(context.visual, anchors)
        return Selection(anchors, values=values.to(context.visual), multiplicity=size if self.proportional else None)
