"""SparseVLM: prune in stages by the attention of the words that matter, and recycle part of what is pruned.

Zhang et al., "SparseVLM", arXiv:2410.04417, sections on raters, sparsification and recycling; authors' code
Gumpest/SparseVLMs, `llava/model/language_model/{score,modelling_sparse_llama,utils}.py` at 14cb5a9 (v1).

As in the code: fixed counts instead of the paper's rank rule. Its layers 2, 6, 15 prune what leaves them, by their own
attention, so its planned layers are 3, 7, 16 of 32. Recycled tokens come on top of `keep`.
Differences: positions stay as they were, and a merged token takes its cluster centre's (v1 renumbers); a word rates if
its weight reaches the mean (the code asks for more, and is left without raters where all are equal); equal densities
are told apart by index, not by noise; several cameras are one pool.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlaprune.errors import UserError
from vlaprune.methods.shared.scoring import group_mean
from vlaprune.pruner import Budget, ModelInfo, Plan, PruneContext, Pruner, Selection, ranking
from vlaprune.trace import QueryGroup


def raters(visual: Tensor, text: Tensor) -> Tensor:
    """[t] weights, summing to 1, of the words to which visual tokens look most: those at or above the mean."""
    looks = (visual.float() @ text.float().T).softmax(1).mean(0)
    rates = (looks >= looks.mean() * (1 - 1e-5)).float()
    return rates / rates.sum()


def density_peaks(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Centres [count] among rows x [n, d], dense and far from denser ones, and the nearest centre [n] of each row.

    Of rows of equal density the one of lower index counts as denser. Two rows that are nearest to each other have equal
    densities whenever `count` is 2.
    """
    x = x.float()
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").nan_to_num(float("inf"))
    density = (-distance.topk(count, largest=False).values.square().mean(1) / x.shape[1]).exp()
    rank = ranking(density).argsort()
    separation = torch.where(rank < rank[:, None], distance, distance.max()).amin(1)
    centres = ranking(separation * density)[:count]
    label = distance[:, centres].argmin(1)
    return centres, label.index_copy(0, centres, torch.arange(count, device=x.device))


@dataclass
class SparseVLM(Pruner):
    """Prunes in stages by the attention of relevant words and recycles part of the removed tokens.

    layers   tokens go on entry to these; none for layers 3, 7 and 16 of 32 in proportion to the depth
    keep     per stage, fraction or number of the V kept by score: 300, 200 and 110 of 576 in the authors' setting 192
    recycle  share of the removed tokens that is merged, ten to one, into tokens that stay; 0 for none
    """

    layers: Sequence[int] | None = None
    keep: Sequence[float] = (0.521, 0.347, 0.191)
    recycle: float = 0.3

    def __post_init__(self) -> None:
        """Raises UserError for stages and budgets that do not match or a share outside [0, 1]."""
        self.budgets = [Budget(k) for k in self.keep]
        stages = len(self.budgets) if self.layers is None else len(self.layers)
        if stages != len(self.budgets) or (self.layers is None and stages != 3):
            raise UserError(f"sparsevlm layers={self.layers} and keep={self.keep}; give one budget for each stage")
        if self.layers is not None and min(self.layers, default=1) < 1:
            raise UserError(f"sparsevlm layers={self.layers}; use 1 or more, each reads the layer before")
        if not 0 <= self.recycle <= 1:
            raise UserError(f"sparsevlm recycle={self.recycle}; use a share in [0, 1]")
        self.reset()

    def plan(self, info: ModelInfo) -> Plan:
        """Acts at layer 0 (raters) and at every stage; reads the text rows of the layer before each stage."""
        self.prune_layers = (
            [-(-info.num_layers * n // 32) for n in (3, 7, 16)] if self.layers is None else list(self.layers)
        )
        budget = {} if self.recycle else dict(zip(self.prune_layers, self.budgets, strict=True))
        return Plan((0, *self.prune_layers), {n - 1: QueryGroup.TEXT for n in self.prune_layers}, budget)

    def select(self, context: PruneContext) -> Selection | None:
        """Chooses the raters at layer 0; at a stage keeps the tokens of highest score and the recycled tokens."""
        if context.layer == 0:
            context.charge(context.text.shape[0], *context.visual.shape)
            self.weights = raters(context.visual, context.text)
            return None
        context.charge(1, context.alive.shape[0], self.weights.shape[0])
        score = self.weights @ context.attention(context.layer - 1, QueryGroup.TEXT).mean(0)
        order = ranking(score)
        best = self.budgets[self.prune_layers.index(context.layer)].count(context.total)
        gone = score.shape[0] - best
        if not self.recycle or gone <= 0:
            return Selection(order[:best].sort().values)
        spare = order[best : best + min(gone, int(gone * self.recycle + 1e-9) + 1)]
        rows = context.visual[spare]
        centres, label = density_peaks(rows, spare.shape[0] // 10 + 1)
        context.charge(centres.shape[0], rows.shape[1], rows.shape[0])
        merged = group_mean(rows, label, centres.shape[0]).to(context.visual)
        values = torch.cat((context.visual[order[:best]], merged))
        return Selection(torch.cat((order[:best], spare[centres])), values=values)

    def reset(self) -> None:
        """Forgets the raters."""
        self.weights = torch.empty(0)
