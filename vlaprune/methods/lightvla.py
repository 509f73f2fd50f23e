"""LightVLA: each visual token asks, in the light of the task, for one visual token; what nobody asks for is dropped.

Jiang et al., "The Better You Learn, The Smarter You Prune", arXiv:2509.12594; authors' code LiAutoAD/LightVLA,
`prismatic/extern/hf/modeling_prismatic.py`, `TokenPruner`. The rule has no parameters: the policy is fine-tuned around
it. On weights not trained so this is the "zero-shot LightVLA rule", not the paper's method.

As in the code, not the paper: weightless RMS norms; uniform noise (the paper says Gumbel, offered as `gumbel`).
Differences: scores stay in fp32; one sequence at a time, so counts may differ within a batch; a floor
`min_keep`. Authors' defects not copied: a slice of the action states two tokens off, gathers that need equal counts.
Padding is among the queries, as theirs, where a prompt has a fixed length (tiny, smol); `queries=instruction` leaves it
out. In training a token asked for often is there often, and weighs more in attention than at test;
the authors leave this gap, and so does the default. `multiplicity_bias` closes it.
"""

import torch
from torch import Tensor

from vlaprune.errors import UserError
from vlaprune.methods.shared.scoring import check_option, check_range, rms
from vlaprune.methods.shared.selecting import (
    NOISES,
    distinct_winners,
    multiplicity,
    noise,
    random_subset,
    row_winners,
    straight_through,
)
from vlaprune.pruner import Learned, ModelInfo, Plan, PruneContext, Scored, Selection


class LightVLA(Learned, Scored):
    """Keeps the distinct winners, as many as there are; starts in evaluation mode.

    noise     added to the scores in training: uniform (authors' code) or gumbel (paper)
    min_keep  at least so many go on, filled up by best score (inferred; 1 is the authors' behaviour)
    queries   what the rows look at before they ask: task (all that stands behind the visual tokens, the authors' code)
              or instruction
    extra     from the paper's ablation: this many other tokens go on too, drawn at random
    drop      from the paper's ablation: this share of the winners does not go on, drawn at random
    multiplicity_bias  a winner's key counts once for each row that asked for it, as its duplicates do in training

    After `train()`, select keeps V rows with duplicates, each with the winner's position and values that pass a
    straight-through gradient on. The trainer sets `noise_scale` before each step, gives each sequence its own seed and
    never calls Session.finish, which refuses duplicates.
    """

    name = "lightvla"

    def __init__(
        self,
        noise: str = "uniform",
        min_keep: int = 1,
        multiplicity_bias: bool = False,
        queries: str = "task",
        extra: int = 0,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        check_option(f"{self.name} noise", noise, NOISES)
        check_option(f"{self.name} queries", queries, ("task", "instruction"))
        check_range(f"{self.name} drop", drop, 0, 1)
        if min_keep < 1 or extra < 0:
            raise UserError(f"{self.name} min_keep={min_keep} extra={extra}; use at least 1 and 0")
        self.noise, self.min_keep, self.multiplicity_bias = noise, min_keep, multiplicity_bias
        self.queries, self.extra, self.drop = queries, extra, drop
        self.draws = 0

    def plan(self, info: ModelInfo) -> Plan:
        """Acts before layer 0; the number of tokens kept depends on the scene."""
        return Plan((0,))

    def scores(self, visual: Tensor, text: Tensor) -> Tensor:
        """[n, n] how much each visual row, having looked at the text, asks for each visual row."""
        visual, text = rms(visual), rms(text)  # fp32
        scale = visual.shape[1] ** -0.5
        queries = (visual @ text.T * scale).softmax(1) @ text
        score: Tensor = rms(queries) @ visual.T * scale
        return score

    def select(self, context: PruneContext) -> Selection:
        """Keeps the distinct winners; in training all winners with duplicates, from noisy scores and with gradients."""
        score = self._asked(context)
        seed = context.seed * 100_003 + (self.draws if self.training else context.step)
        if not self.training:
            picks = self._varied(distinct_winners(score, self.min_keep), context.alive.shape[0], seed)
            return Selection(picks, multiplicity=multiplicity(score, picks) if self.multiplicity_bias else None)
        self.draws += 1
        picks, values = straight_through(score + self.noise_scale * noise(self.noise, score, seed), context.visual)
        return Selection(picks, values=values)

    def score(self, context: PruneContext) -> Tensor:
        """[n] how many rows ask for each token; tokens that no row asks for are dropped."""
        return row_winners(self._asked(context)).bincount(minlength=context.visual.shape[0])

    def _charge(self, context: PruneContext) -> None:
        """Charges the FLOPs of the matrix products of `scores`."""
        (n, d), text = context.visual.shape, self._looks_at(context).shape[0]
        context.charge(n, text, d)
        context.charge(n, d, text)
        context.charge(n, n, d)

    def _looks_at(self, context: PruneContext) -> Tensor:
        """[t, d] the rows that each token looks at before it asks."""
        return context.task if self.queries == "task" else context.text

    def _asked(self, context: PruneContext) -> Tensor:
        """[n, n] the scores in fp32; also charges their FLOPs."""
        self._charge(context)
        with torch.autocast(context.visual.device.type, enabled=False):
            return self.scores(context.visual, self._looks_at(context))

    def _varied(self, picks: Tensor, total: int, seed: int) -> Tensor:
        """The picks [k] of `total` rows, after the additions and removals of the paper's ablations."""
        if self.drop:
            picks = random_subset(picks, max(1, round((1 - self.drop) * picks.shape[0])), seed)
        if self.extra:
            others = torch.ones(total, dtype=torch.bool, device=picks.device).index_fill(0, picks, False)
            picks = torch.cat((picks, random_subset(others.nonzero()[:, 0], self.extra, seed)))
        return picks

    def reset(self) -> None:
        """Restarts the noise for a new episode; the noise scale, which the trainer sets, stays."""
        self.draws = 0
