"""TTF-VLA: a token whose patch neither changed nor matters to the instruction keeps its value of the call before.

Liu et al., "TTF-VLA: Temporal Token Fusion via Pixel-Attention Integration", arXiv:2508.19257 (AAAI 2026); authors'
code PKU-XLab/TTF-VLA@afbd6bf, `experiments/robot/aptube_manager.py`, `prismatic/extern/hf/modeling_prismatic.py`. It
saves no compute: every token goes on. It takes noise out of what the decoder sees.

As in the code: call 0 and every `interval`-th one is a keyframe with new tokens only; else a token is new if its
patch's mean grey difference to the previous call exceeds `threshold`, or if it is among the `relevant` most attended by
the instruction's rows of layer 15 of 32 in the previous call. Defaults are those of the authors' README command (the
code's own: 0.1, 5, 120 of 256).
Differences: tokens are fused after the projector, not before it; the two are the same where both towers share one
mask, and here they do. Pixels are scaled from -1 to 1 as SigLIP's are (the authors compare each tower's own scaling, so
that a token may be half old, half new). Text rows are the instruction (theirs: positions 257 to 291); several cameras
share `relevant` in proportion. A new prompt layout is a keyframe.
Defects not copied: `mode=hybrid` is refused under the README's name for it; attention outlives the episode; all action
scores are zero for most prompts; GFLOPs of the vision tower that nobody saved.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlaprune.errors import UserError
from vlaprune.methods.shared.patches import grey
from vlaprune.methods.shared.scoring import check_option, mean_attention
from vlaprune.methods.shared.selecting import top_mask
from vlaprune.pruner import Budget, ModelInfo, Plan, PruneContext, Pruner, Selection
from vlaprune.trace import Layout, QueryGroup, Trace

MODES = ("hybrid", "pixel", "attention")


@dataclass
class TTFVLA(Pruner):
    """Keeps every token. Unchanged tokens get the value of the call before.

    threshold  mean difference of a patch's grey, on pixels from -1 to 1, above which it changed
    interval   every so many calls all tokens are new
    relevant   fraction or number of the tokens that are new because the instruction attends to them
    mode       what makes a token new: hybrid (changed or relevant), pixel (changed), attention (relevant)
    layer      layer whose instruction rows tell relevance; null: layer 15 of 32, scaled to the depth
    """

    threshold: float = 0.03
    interval: int = 3
    relevant: float = 0.2734375
    mode: str = "hybrid"
    layer: int | None = None

    def __post_init__(self) -> None:
        """Raises UserError for an unknown mode, an invalid budget, or an interval below 1."""
        self.budget = Budget(self.relevant)
        check_option("ttfvla mode", self.mode, MODES)
        if self.interval < 1 or self.threshold < 0:
            raise UserError(f"ttfvla interval={self.interval} threshold={self.threshold}; use 1 or more and 0 or more")
        self.reset()

    def reset(self) -> None:
        """Makes the next call a keyframe."""
        self._layout: Layout | None = None
        self._grey: Tensor | None = None
        self._score: Tensor | None = None

    def plan(self, info: ModelInfo) -> Plan:
        """Acts before layer 0; unless `mode` is pixel, reads the instruction's rows of one layer, for the next call."""
        self._layer = -(-15 * info.num_layers // 32) if self.layer is None else self.layer
        reads = {} if self.mode == "pixel" else {self._layer: QueryGroup.TEXT}
        return Plan((0,), reads, {0: Budget(1.0)})

    def select(self, context: PruneContext) -> Selection | None:
        """Keeps all rows; those that are not new get their value of the call before. None on a keyframe."""
        before, now = self._grey if self._layout == context.layout else None, grey(context.pixels) / 127.5
        self._grey = now
        if before is None or before.shape != now.shape or context.step % self.interval == 0:
            self._tokens = context.visual.clone()
            return None
        new = torch.zeros_like(context.reusable)
        if self.mode != "attention":
            new |= (now - before).abs().mean(1) > self.threshold
        if self.mode != "pixel" and self._score is not None:
            new |= top_mask(self._score, context.layout, self.budget.count(context.total))
        self._tokens = torch.where(new[:, None], context.visual, self._tokens)
        return Selection(torch.arange(context.total, device=context.alive.device), values=self._tokens)

    def observe(self, trace: Trace) -> None:
        """Keeps the instruction's attention for the next call."""
        self._layout = trace.layout
        read = self.mode != "pixel" and trace.has(self._layer, QueryGroup.TEXT)
        self._score = mean_attention(trace, self._layer, QueryGroup.TEXT) if read else None
