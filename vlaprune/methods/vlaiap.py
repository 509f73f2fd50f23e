"""A reading of VLA-IAP, not the authors' rule: few tokens once what the words name is what moves, many before that.

Cheng et al., "VLA-IAP: Training-Free Visual Token Pruning via Interaction Alignment for Vision-Language-Action Models",
arXiv:2603.22991. The text and the code (Chengjt1999/VLA-IAP) could not be had, so none of its numbers are known here.
A result of this file says nothing about theirs.

Published (abstract, project page): it needs no training; a semantic prior S, a motion prior M from consecutive frames
"via Gaussian modeling, history accumulation, and morphology" and a geometric prior G by Sobel edges; the overlap (IoU)
of S and M switches from conservative pruning, of the background only, to aggressive pruning once the interaction is
locked. A re-implementation has M by second-order differences of frames (secondary).
Inferred: before layer 0; priors and masks camera by camera; "Gaussian" is a threshold at mean plus deviations,
"history" a running sum, "morphology" a closing.
Chosen by us, the simplest that we could think of: every number; S by cosine of embeddings, not by attention; G by the
sum of absolute slopes; how priors become masks; that the highest of the three priors ranks a token; one overlap over
all cameras; that cautious calls keep a least share. Frames are those of model calls, several control steps apart.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vlaprune.errors import UserError
from vlaprune.methods.shared.patches import by_patch, grey_levels, sobel, sobel_product
from vlaprune.methods.shared.scoring import check_range, cosine, scaled
from vlaprune.methods.shared.selecting import top_mask
from vlaprune.pruner import Budget, ModelInfo, Plan, PruneContext, Scored, Selection
from vlaprune.trace import Layout, View


def outstanding(motion: Tensor, layout: Layout, deviations: float, window: int) -> Tensor:
    """[V] bool: motion [V] above mean + deviations x standard deviation of its camera; then small holes are closed.

    Closing leaves out a patch if some window x window square, cut off at the borders, holds it and nothing that moves.
    """
    out = []
    for view, own in zip(layout.views, motion.double().split(layout.sizes), strict=True):
        mask = own > own.mean() + deviations * own.std(correction=0)
        grid = mask.float().view(1, view.height, view.width)
        wide = F.max_pool2d(grid, window, 1, window // 2)
        out.append(F.max_pool2d(-wide, window, 1, window // 2).flatten() < 0)
    return torch.cat(out)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """[] intersection over union of two masks [V]; 0 where both are empty."""
    return (a & b).sum() / (a | b).sum().clamp(min=1)


@dataclass
class VLAIAP(Scored):
    """Drops tokens before layer 0. The first two calls of an episode see no motion, so they are cautious.

    keep        fraction or number of the visual tokens that stay once the interaction is locked
    cautious    the same before that, at least: what a prior names stays anyway, and never fewer stay than by `keep`
    lock        overlap of what the words name and what moves, 0 to 1, from which the interaction is locked
    named       share of each camera's tokens that the words name, and that has edges
    decay       of accumulated motion, from call to call
    deviations  standard deviations above the mean from which a patch moves
    window      side of the closing of what moves, in patches, odd; 1 for none
    """

    keep: float = 0.25
    cautious: float = 0.7
    lock: float = 0.1
    named: float = 0.25
    decay: float = 0.7
    deviations: float = 1.0
    window: int = 3

    def __post_init__(self) -> None:
        """Raises UserError for a parameter out of range."""
        self.budget, self.floor, self.region = Budget(self.keep), Budget(self.cautious), Budget(self.named)
        check_range("vlaiap lock", self.lock, 0, 1)
        check_range("vlaiap decay", self.decay, 0, 1)
        if self.window < 1 or self.window % 2 == 0 or self.deviations < 0:
            given = f"window={self.window} deviations={self.deviations}"
            raise UserError(f"vlaiap {given}; use an odd number and 0 or more")
        self.reset()

    def reset(self) -> None:
        """Forgets the frames and the motion."""
        self._views: tuple[View, ...] = ()
        self._frames: list[list[Tensor]] = []
        self._motion = torch.empty(0)

    def plan(self, info: ModelInfo) -> Plan:
        """Acts before layer 0; the count depends on the scene."""
        return Plan((0,))

    def select(self, context: PruneContext) -> Selection:
        """Keeps what any prior names and the best of the rest; once the words name what moves, only the best."""
        self._see(context)
        layout, count = context.layout, self.budget.count(context.total)
        priors = self._priors(context)
        best = top_mask(priors, layout, self.region.count(context.total)) & (priors > 0)
        moving = outstanding(priors[1], layout, self.deviations, self.window)
        locked = overlap(best[0], moving) >= self.lock
        score, named = priors.amax(0), best[0] | moving | best[2]
        least = max(count, self.floor.count(context.total))
        cautious = named | top_mask(score.masked_fill(named, float("inf")), layout, least)
        return Selection(torch.where(locked, top_mask(score, layout, count), cautious).nonzero()[:, 0])

    def score(self, context: PruneContext) -> Tensor:
        """[n] the highest of the three priors. In cautious calls, tokens that a prior names stay at any score."""
        return self._priors(context).amax(0)

    def _see(self, context: PruneContext) -> None:
        """Adds the second difference of this frame and the two before to the motion [V]; other views begin anew."""
        views = context.layout.views
        if views != self._views:
            self._views, self._frames = views, []
            self._motion = torch.zeros(context.total, device=context.visual.device)
        now = [grey_levels(image) for image in context.trace.images]
        if len(self._frames) == 2:
            frames = zip(views, *self._frames, now, strict=True)
            jumps = [by_patch((new - 2 * old + older).abs(), view).mean(1) for view, older, old, new in frames]
            self._motion = self.decay * self._motion + torch.cat(jumps)
        self._frames = [*self._frames[-1:], now]

    def _priors(self, context: PruneContext) -> Tensor:
        """[3, V] semantic, motion and geometric prior, each from 0 to 1 within a camera; 0 where it tells nothing."""
        layout, levels = context.layout, self._frames[-1]
        context.charge(context.text.shape[0], *context.visual.shape)
        for level in levels:
            context.charge(*sobel_product(level))
        semantic = cosine(context.visual, context.text).nan_to_num(-1.0).sum(1)  # over words: 0 where there are none
        slopes = zip(layout.views, levels, strict=True)
        edges = torch.cat([by_patch(sobel(level).abs().sum(0), view).mean(1) for view, level in slopes])
        rows = (semantic, self._motion, edges)
        return torch.stack([torch.cat([scaled(own, "minmax") for own in row.split(layout.sizes)]) for row in rows])
