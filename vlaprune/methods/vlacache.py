"""VLA-Cache: a patch that did not change, and that the instruction does not attend to, reuses its keys and values.

Xu et al., "VLA-Cache", arXiv:2502.02175 (read through the code); authors' code siyuhsu/vla-cache@a490988,
`src/openvla/experiments/robot/vla_cache_utils.py`, and `pruning_loc` in its `modeling_llama.py` @07ffe25.

As in the code: patches within 0.996 of the previous frame, the best `static` of them, less the `relevant` most attended
by the instruction at layer 15 of the previous call; of these, in order of position, a share that only grows leaves at
layers 2, 6, 9, 11. A layer's share is 1 less its attention entropy, scaled to 0..1 over the layers, rises damped.
Differences: layers are scaled to the model's depth (exact at 32); text rows are the prompt's text, where the
authors name 35 positions (OpenVLA) or 34 from the state on (OFT); budgets are split over the cameras in proportion;
equal black patches are static. Authors' defects not copied: an empty reuse set crashes; OFT compares a frame with
itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlaprune.errors import UserError
from vlaprune.methods.shared.patches import Patches, static_patches
from vlaprune.methods.shared.scoring import attention_entropy, check_option, check_range, mean_attention, sharpness
from vlaprune.methods.shared.selecting import split_mask, top_mask
from vlaprune.pruner import Budget, ModelInfo, Plan, PruneContext, Pruner, Selection
from vlaprune.trace import QueryGroup, Trace

ENTROPY = {"all": QueryGroup.PROMPT, "text": QueryGroup.TEXT}


@dataclass
class VLACache(Pruner):
    """Static tokens reuse the keys and values of earlier calls. No token is dropped; every token is attended to.

    threshold      pixel cosine from which a patch is static
    static         fraction or number of tokens that may be static. null: the authors' counts for each 256-token image,
                   130 where there is one camera (their OpenVLA run), 150 where there are several (their OFT run)
    relevant       fraction or number of tokens that the task needs. null: likewise 120 (one camera) or 100 (several)
    layer, stages  layer whose text attention tells relevance; where tokens leave. null: 15 and [2, 6, 9, 11] of 32
    growth         part of a rise of the share from layer to layer that counts
    entropy        over which rows: all of the prompt (the authors) or text, which is cheaper
    """

    threshold: float = 0.996
    static: float | None = None
    relevant: float | None = None
    layer: int | None = None
    stages: Sequence[int] | None = None
    growth: float = 0.55
    entropy: str = "all"

    def __post_init__(self) -> None:
        """Raises UserError for an invalid budget, share or kind of rows, or stages without a layer."""
        self._one, self._several = (self._counts(*published) for published in ((130, 120), (150, 100)))
        check_range("vlacache threshold", self.threshold, -1, 1)
        check_range("vlacache growth", self.growth, 0, 1)
        check_option("vlacache entropy", self.entropy, ENTROPY)
        if self.stages is not None and not self.stages:
            raise UserError("vlacache stages=[]; name at least one layer, or null for the authors' layers")
        self.reset()

    def _counts(self, static: int, relevant: int) -> tuple[Budget, Budget]:
        """Budgets of static and of relevant tokens; `static` and `relevant` of 256 tokens if the options are null."""
        own = static / 256 if self.static is None else self.static
        return Budget(own), Budget(relevant / 256 if self.relevant is None else self.relevant)

    def reset(self) -> None:
        """Forgets the call before."""
        self._before: Patches | None = None
        self._score: Tensor | None = None

    def plan(self, info: ModelInfo) -> Plan:
        """Acts at the stages; reads all layers, because the share of one is measured against the others."""
        layer, *stages = (-(-n * info.num_layers // 32) for n in (15, 2, 6, 9, 11))
        self._layer, self._depth = layer if self.layer is None else self.layer, info.num_layers
        self._stages = tuple(sorted(set(stages)) if self.stages is None else self.stages)
        reads = dict.fromkeys(range(info.num_layers), ENTROPY[self.entropy])
        return Plan(self._stages, {**reads, self._layer: ENTROPY[self.entropy] | QueryGroup.TEXT}, reuses=True)

    def select(self, context: PruneContext) -> Selection | None:
        """Chooses the reuse set at the first planned layer; at each one, its share of the set leaves."""
        if context.layer == self._stages[0]:
            self._reuse = self._found(context).nonzero()[:, 0]
        if not self._reuse.shape[0]:
            return None
        count = max(1, int(self._shares[context.layer] * self._reuse.shape[0] + 1e-9))
        gone = torch.zeros(context.total, dtype=torch.bool, device=context.alive.device)
        gone = gone.index_fill(0, self._reuse[:count], True)[context.alive]
        return Selection(*split_mask(gone))

    def observe(self, trace: Trace) -> None:
        """Keeps the frame, the text's attention and the shares for the next call."""
        rows, layers = ENTROPY[self.entropy], range(self._depth)
        sharp = [attention_entropy(trace.rows(n, rows)) if trace.has(n, rows) else torch.zeros(()) for n in layers]
        self._shares = sharpness(torch.stack(sharp), self.growth)
        self._score = (
            mean_attention(trace, self._layer, QueryGroup.TEXT) if trace.has(self._layer, QueryGroup.TEXT) else None
        )
        self._before = self._now

    def _found(self, context: PruneContext) -> Tensor:
        """[V] bool, the tokens that may be reused; without an instruction no token is relevant."""
        self._now, before, layout = Patches.of(context.trace.pixels), self._before, context.layout
        if before is None or not before.alike(self._now):
            return torch.zeros_like(context.reusable)
        static, relevant = self._one if len(layout.views) == 1 else self._several
        found = context.reusable & static_patches(
            self._now, before, self.threshold, layout, static.count(context.total)
        )
        if self._score is None:
            return found
        return found & ~top_mask(self._score, layout, relevant.count(context.total))
