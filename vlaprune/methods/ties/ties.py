"""TIES: keep tokens by attention as far as layers disagree on their ranking; take the rest of the budget evenly.

Liu et al., "Beyond Attention Magnitude", arXiv:2603.24941, Algorithm 1. No code of the authors was found, nor the text
of the paper. A secondary reading (sou350121/VLA-Handbook@49a38a1d) gives: tau-b of the top-k tokens, mean over
neighbouring layers; 100 calibration frames, their median; an anchor frame at similarity 0.7; 56 of 256 tokens split by
floor(w K); Hard and Soft. Inferred: all other options, above all the polarity, where the reading contradicts itself;
that an anchor call computes all tokens and its action is executed (where tau needs only layers before `layer`, an
anchor call is pruned as well). `anchor_action=pruned` is the other reading: an anchor call measures tau with all
tokens, then computes its prompt again with the tokens that this tau selects, and executes that action; it costs both
passes.

Several cameras (the paper has one): similarity is taken for each camera, and the highest counts. So a wrist camera that
moves at every step does not make every call an anchor while the third-person camera stands still. `over_cameras=mean`
pools the cameras: with two of them and gamma 0.7, one moving camera then makes every call an anchor, that is dense.
Another prompt layout is a new anchor. One budget for all cameras.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor
from typing import Any

import torch
from torch import Tensor

from vlaprune.errors import UserError
from vlaprune.methods.shared.patches import RESEMBLANCE
from vlaprune.methods.shared.scoring import check_option, check_range
from vlaprune.methods.shared.selecting import FILL
from vlaprune.methods.ties.agreement import Estimator
from vlaprune.methods.ties.calibration import Calibrate, Calibration, weight
from vlaprune.pruner import Budget, Calibrated, ModelInfo, Plan, PruneContext, Scored, Selection, top
from vlaprune.trace import Layout, Trace

OVER: dict[str, Callable[[Tensor], Tensor]] = {"max": torch.amax, "mean": torch.mean, "min": torch.amin}


@dataclass
class TIES(Calibrated, Scored):
    """Prunes between anchor calls.

    layer         decoder layer before which tokens are dropped
    keep          fraction or number of visual tokens that are kept
    rows, heads, tokens, layers   how tau is measured, see agreement.Estimator
    gamma         similarity to the anchor, from 0 to 1, below which a call becomes the new anchor and tau is measured
    similarity    patches (share of patches with pixel cosine >= 0.996), ssim, embedding (cosine of the mean tokens),
                  embedding_patches (mean cosine of the tokens)
    over_cameras  max, mean or min of the similarities of the cameras
    interpolate   tau to weight, see calibration.weight; `threshold` is for hard, null means the median
    low_tau_trusts_attention   true: the lower tau, the more tokens are kept by attention. false: the higher
    uniform       how the rest of the budget is chosen: stride, random, diverse (as in DivPrune)
    anchor_action  action of an anchor call: full (from all tokens) or pruned (from a second pass with the tokens
                  selected)
    calibration   a file, or the name of one shipped with the model; null: vlaprune-eval measures one first
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
    over_cameras: str = "max"
    uniform: str = "stride"
    anchor_action: str = "full"
    calibration: str | None = None

    def __post_init__(self) -> None:
        """Raises UserError for an unknown option, or layer 0, where nothing has been attended to yet."""
        check_range("ties gamma", self.gamma, 0, 1)
        check_option("ties interpolate", self.interpolate, ("quantiles", "linear", "ecdf", "hard"))
        check_option("ties similarity", self.similarity, RESEMBLANCE)
        check_option("ties over_cameras", self.over_cameras, OVER)
        check_option("ties uniform", self.uniform, FILL)
        check_option("ties anchor_action", self.anchor_action, ("full", "pruned"))
        if self.layer < 1:
            raise UserError(f"ties layer={self.layer}; use 1 or more, it reads the layer before")
        self.budget = Budget(self.keep)
        self.estimator = Estimator(self.keep, self.rows, self.heads, self.tokens, self.layers)
        self.reset()

    def reset(self) -> None:
        """Forgets the anchor."""
        self._anchor: tuple[Layout, Any] | None = None
        self._anew, self.share = False, 0.5

    def probe(self) -> Calibrate:
        """A method that measures the usual values of tau."""
        return Calibrate(self.estimator)

    def plan(self, info: ModelInfo) -> Plan:
        """Acts at layer 0, where `select` names the rows to read (all layers on anchor calls only), and at `layer`."""
        self._span = self.estimator.span(info)
        if self.calibration is None:
            raise UserError(
                "ties has no calibration: vlaprune-eval measures one first; elsewhere write one with "
                "`vlaprune-profile mode=calibrate method=ties` and name it with method.calibration=FILE"
            )
        self._known = Calibration.read(self.calibration, self.estimator, info)
        twice = self.anchor_action == "pruned"
        return Plan((0, self.layer), budget={self.layer: self.budget}, second_pass=twice)

    def select(self, context: PruneContext) -> Selection | None:
        """Keeps all at layer 0, and at `layer` while tau needs deeper layers; else what the weight selects."""
        if context.layer == 0:
            self._anew = not context.second_pass and self._is_anchor(context)
            layers = {self.layer - 1, *(self._span if self._anew else ())}
            return Selection.all(context, dict.fromkeys(layers, self.estimator.group(context.layout)))
        if self._anew and self._span[-1] >= self.layer:
            return None
        self.observe(context.trace)
        score, count = self.score(context), self.budget.count(context.total)
        assert score is not None
        first = top(score, floor(self.share * count + 1e-9))
        rest = top(torch.ones_like(score).index_fill(0, first, 0), context.total - first.shape[0])
        if self.uniform == "diverse" and first.shape[0] < count:
            context.charge(rest.shape[0], rest.shape[0], context.visual.shape[1])
        even = FILL[self.uniform](rest, count - first.shape[0], context.visual, context.call_seed)
        return Selection(torch.cat((first, even)))

    def wants_second_pass(self, context: PruneContext) -> bool:
        """Whether an anchor call computes its prompt again with the selected tokens; measures tau first."""
        again = self.anchor_action == "pruned" and self._anew
        if again:
            self.observe(context.trace)
        return again

    def score(self, context: PruneContext) -> Tensor | None:
        """[n] attention at layer - 1, by which its share of the budget is taken; None where nothing is dropped."""
        if context.layer == 0 or self._anew:
            return None
        return self.estimator.scores(context.trace, [self.layer - 1])[0]

    def _is_anchor(self, context: PruneContext) -> bool:
        """Whether this frame replaces the anchor. UserError for a token count that the calibration does not have."""
        layout, resemblance = context.layout, RESEMBLANCE[self.similarity]
        if layout.total != self._known.tokens:
            raise UserError(
                f"calibration {self._known.path} was made with {self._known.tokens} visual tokens, here are "
                f"{layout.total}; calibrate with the run's cameras"
            )
        seen = resemblance.seen(context.trace.pixels, context.visual, layout)
        if self._anchor is not None and self._anchor[0] == layout:
            alike = resemblance.alike(seen, self._anchor[1], layout)
            if float(OVER[self.over_cameras](alike)) >= self.gamma:
                return False
        self._anchor = (layout, seen)
        return True

    def observe(self, trace: Trace) -> None:
        """Computes the weight of a new anchor, once the layers that it needs have been read."""
        if self._anew:
            tau = self.estimator.tau(trace, self._span)
            low = weight(tau, self._known.taus, self.interpolate, self.threshold)
            self.share, self._anew = low if self.low_tau_trusts_attention else 1 - low, False
