"""TIES: trust attention as far as neighbouring layers still re-rank the tokens; fill the rest of the budget evenly.

Liu et al., "Beyond Attention Magnitude", arXiv:2603.24941, Algorithm 1. No code of the authors was found, nor the text
of the paper. A secondary reading (sou350121/VLA-Handbook@49a38a1d) gives: tau-b of the top-k tokens, mean over
neighbouring layers; 100 calibration frames, their median; an anchor frame at similarity 0.7; 56 of 256 tokens split by
floor(w K); Hard and Soft. Inferred: all other options, polarity above all, where the reading contradicts itself; that
an anchor call is dense and acts (but is pruned where tau needs only layers before `layer`). Differences: another layout
is a new anchor; one budget for all cameras; without a calibration the episode's own taus stand in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, isnan
from typing import Any

import torch

from vlaprune.methods.shared.patches import RESEMBLANCE
from vlaprune.methods.shared.scoring import option
from vlaprune.methods.shared.selecting import FILL
from vlaprune.methods.ties.agreement import Estimator
from vlaprune.methods.ties.calibration import read, weight
from vlaprune.pruner import Budget, ModelInfo, Plan, PruneContext, Pruner, Selection, top
from vlaprune.trace import Layout, Trace


@dataclass
class TIES(Pruner):
    """layer, keep: tokens go on entry to it; fraction or number that go on. rows to layers: see agreement.Estimator.

    gamma         similarity to the anchor below which a call becomes the anchor and tau is taken anew
    interpolate   tau to weight, see calibration.weight; `threshold` is for hard, null means the median
    low_tau_trusts_attention   the lower tau, the more tokens by attention; False turns it round
    similarity    patches (share with pixel cosine >= 0.996), ssim, embedding (of the mean token), embedding_patches
    uniform       the rest of the budget: stride, random, diverse (as DivPrune)
    calibration   file, or name of one shipped with a model; null: the taus of this episode so far
    """

    layer: int = 2
    keep: float = 0.21875
    gamma: float = 0.7
    interpolate: str = "quantiles"
    threshold: float | None = None
    low_tau_trusts_attention: bool = True
    rows: str = "auto"
    heads: str = "mean"
    tokens: str = "topk_ref"
    layers: Sequence[int] | None = None
    similarity: str = "patches"
    uniform: str = "stride"
    calibration: str | None = None

    def __post_init__(self) -> None:
        """ValueError for an unknown option or layer 0, where nothing has been attended to yet."""
        option("ties interpolate", self.interpolate, ("quantiles", "linear", "ecdf", "hard"))
        option("ties similarity", self.similarity, RESEMBLANCE)
        option("ties uniform", self.uniform, FILL)
        if self.layer < 1:
            raise ValueError(f"ties layer={self.layer}; use 1 or more, it reads the layer before")
        self.budget = Budget(self.keep)
        self.estimator = Estimator(self.keep, self.rows, self.heads, self.tokens, self.layers)
        self.reset()

    def reset(self) -> None:
        """No anchor, no taus, no trust either way."""
        self._anchor: tuple[Layout, Any] | None = None
        self._taus: list[float] = []
        self._anew, self.share = False, 0.5

    def plan(self, info: ModelInfo) -> Plan:
        """PruneContext 0 names what to read: rows that this prompt has, and all layers on an anchor only."""
        self._span = self.estimator.span(info)
        self._known = read(self.calibration, self.estimator, info.name)
        return Plan((0, self.layer), budget={self.layer: self.budget})

    def select(self, context: PruneContext) -> Selection | None:
        """Everything at site 0, and at `layer` while tau waits for deeper layers; else the tokens of the weight."""
        if context.layer == 0:
            resemblance, anchor = RESEMBLANCE[self.similarity], self._anchor
            seen = resemblance.seen(context.trace.pixels, context.visual)
            self._anew = not (
                anchor and anchor[0] == context.layout and resemblance.alike(seen, anchor[1]) >= self.gamma
            )
            if self._anew:
                self._anchor = (context.layout, seen)
            layers = {self.layer - 1, *(self._span if self._anew else ())}
            return Selection.all(context, dict.fromkeys(layers, self.estimator.group(context.layout)))
        if self._anew and self._span[-1] >= self.layer:
            return None
        self.observe(context.trace)
        score, count = self.estimator.scores(context.trace, [self.layer - 1])[0], self.budget.count(context.total)
        first = top(score, floor(self.share * count + 1e-9))
        rest = top(torch.ones_like(score).index_fill(0, first, 0), context.total - first.shape[0])
        even = FILL[self.uniform](rest, count - first.shape[0], context.visual, context.seed * 100_003 + context.step)
        return Selection(torch.cat((first, even)))

    def observe(self, trace: Trace) -> None:
        """The weight of a new anchor, as soon as the layers that tell it have been read."""
        if self._anew:
            tau = self.estimator.tau(trace, self._span)
            self._taus += [] if isnan(tau) else [tau]
            low = weight(tau, self._known or self._taus, self.interpolate, self.threshold)
            self.share, self._anew = low if self.low_tau_trusts_attention else 1 - low, False
