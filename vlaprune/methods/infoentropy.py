"""VLA-InfoEntropy: compute textured patches early in an episode, word-bound ones late; static others are reused.

Liu et al., "VLA-InfoEntropy", arXiv:2604.05323, Eq. 2-8; no code of the authors was found. Entropy of a patch's grey
levels; 1 less the entropy over text rows of the previous call's attention, mean over layers and heads; quotas that swap
from (k2, k1) to (k1, k2) over T steps; what is static and in neither top reuses its keys and values. Inferred: 256
levels of luma; 150 of 256 tokens static, all reused, from layer 2 on (the best fit to the paper's FLOPs); alpha stays 1
after T; text rows = the layout's instruction; its "static = low similarity" is a slip. Differences: budgets are split
over cameras in proportion; with fewer than two text rows texture takes both quotas; too high a count is refused, not
clamped. The paper counts T in control steps, and so does this by default where a model call gives several actions.
`mode=prune` is not in the paper: the rest is dropped, and attention is that of this call before `layer`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vlaprune.errors import UserError
from vlaprune.methods.shared.patches import Patches, grey_entropy, grey_product, static_patches
from vlaprune.methods.shared.scoring import blend_quotas, check_option, check_range, focus, text_scores
from vlaprune.methods.shared.selecting import split_mask, top_mask
from vlaprune.pruner import Budget, ModelInfo, Plan, PruneContext, Pruner, Selection, ranking
from vlaprune.trace import QueryGroup, Trace


@dataclass
class InfoEntropy(Pruner):
    """Reuses or drops static patches without much texture or attention from the instruction.

    mode       reuse (the paper), or prune: drops the rest, down to `keep`
    layer      tokens leave on entry to this layer
    k1, k2     quotas, fraction or number of tokens: 40 and 60 of 256
    keep       mode=prune: fraction or number of the visual tokens that are kept; None in mode=reuse
    horizon    control steps over which the quotas swap (T)
    clock      what t counts: control_step, those that the robot executed (the paper), or model_call
    threshold  pixel cosine from which a patch is static
    static     fraction or number of the tokens that may be static
    share      share of the static, unimportant tokens that are reused
    levels     number of grey levels
    norm       softmax or renorm, see scoring.focus
    layers     layers whose attention counts, null for all
    """

    mode: str = "reuse"
    layer: int = 2
    k1: float = 0.15625
    k2: float = 0.234375
    keep: float | None = None
    horizon: int = 100
    clock: str = "control_step"
    threshold: float = 0.996
    static: float = 0.5859375
    share: float = 1.0
    levels: int = 256
    norm: str = "softmax"
    layers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        """Raises UserError for an unknown option, a number out of range, or an invalid budget."""
        check_option("infoentropy mode", self.mode, ("reuse", "prune"))
        check_option("infoentropy norm", self.norm, ("softmax", "renorm"))
        check_option("infoentropy clock", self.clock, ("control_step", "model_call"))
        for name, low, high in (("threshold", -1, 1), ("share", 0, 1), ("levels", 2, 256)):
            check_range(f"infoentropy {name}", getattr(self, name), low, high)
        self._k1, self._k2, self._static = map(Budget, (self.k1, self.k2, self.static))
        self._prunes = self.mode == "prune"
        if (self.keep is not None) != self._prunes:
            use = "give one, such as 0.390625" if self._prunes else "it has none: leave it out, or use mode=prune"
            raise UserError(f"infoentropy mode={self.mode} keep={self.keep}; {use}")
        self._keep = Budget(1.0 if self.keep is None else self.keep)
        self.reset()

    def reset(self) -> None:
        """Forgets the call before."""
        self._before: Patches | None = None
        self._score: Tensor | None = None

    def plan(self, info: ModelInfo) -> Plan:
        """Acts before one layer; reads text rows. mode=reuse: all layers, for the next call; prune: earlier layers."""
        every = range(self.layer if self._prunes else info.num_layers)
        self._layers = tuple(every if self.layers is None else self.layers)
        if not self._layers or (self._prunes and max(self._layers) >= self.layer):
            raise UserError(f"infoentropy mode={self.mode} layer={self.layer} cannot use layers={list(self._layers)}")
        reads, budget = dict.fromkeys(self._layers, QueryGroup.TEXT), {self.layer: self._keep} if self._prunes else {}
        return Plan((self.layer,), reads, budget, reuses=not self._prunes)

    def select(self, context: PruneContext) -> Selection | None:
        """mode=reuse: reuses static, unimportant tokens, none in the first call. mode=prune: keeps the best `keep`."""
        layout, total, before = context.layout, context.total, self._before
        self._now = Patches.of(context.trace.pixels)
        if not self._prunes and (before is None or not before.alike(self._now)):
            return None
        context.charge(*grey_product(self._now))
        favoured = grey_entropy(self._now, self.levels)
        score = text_scores(context.trace, self._layers) if self._prunes else self._score
        time = context.trace.elapsed if self.clock == "control_step" else context.step
        alpha = min(1.0, time / self.horizon) if self.horizon > 0 else 1.0
        seen, told = blend_quotas(alpha, self._k1.count(total), self._k2.count(total))
        if score is None or score.shape[0] < 2:
            important = top_mask(favoured, layout, seen + told)
        else:
            bound = focus(score, self.norm)
            important = top_mask(favoured, layout, seen) | top_mask(bound, layout, told)
            favoured = favoured if seen >= told else bound
        if self._prunes:
            order = ranking(favoured)
            return Selection(order[ranking(important[order])][: self._keep.count(total)])
        assert before is not None
        found = (
            context.reusable
            & ~important
            & static_patches(self._now, before, self.threshold, layout, self._static.count(total))
        )
        if self.share < 1:
            found &= found.cumsum(0) <= (self.share * found.sum().double() + 1e-9).floor()
        return Selection(*split_mask(found))

    def observe(self, trace: Trace) -> None:
        """Keeps the frame and the text's attention for the next call."""
        if not self._prunes:
            self._before, self._score = self._now, text_scores(trace, self._layers)
