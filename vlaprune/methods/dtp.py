"""DTP: look once, drop the tokens that draw attention without being important, and look again.

"Distracting Token Pruning", arXiv:2601.16065, section 3 and appendix A.2, through an independent audit that implements
it, a source check and four reviews (secondary; the authors' code link expired). It costs time: a call in which
something distracts computes its prompt twice. It is meant to raise success; the audit found no gain on OpenVLA (167 of
400 against 168).

1. Relevance of a token: attention of the instruction's rows, mean over some layers, heads and words; corners are
suppressed, then it is smoothed over the grid; the `important` highest are the important region. 2. Pattern: attention
of the row that emits the first action token, mean over heads, summed over all layers, each weighted by its share of
the visual attention of all. 3. A token outside the region whose pattern exceeds `tau` times the highest within it
distracts. 4. The prompt is computed again without the distracting tokens, which keep no position to anyone else.
Secondary: 109 of 256, tau 0.5 (SpatialVLA; the authors tune it for each checkpoint), layers 4 and 6 of 26 (SpatialVLA).
A port's choice: corners are 0, a Gaussian of 0.65 patches with reflected borders. Inferred: the layers of other models,
scaled to the depth; cameras are searched one by one, with one region for each, and tau holds over all of them.
`mode=late` is not the paper's: a clean call finds what distracts, the next one drops it, and so on in turn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from vlaprune.errors import UserError
from vlaprune.methods.shared.scoring import action_group, check_option, resolve_layers
from vlaprune.methods.shared.selecting import top_mask
from vlaprune.pruner import Budget, ModelInfo, Plan, PruneContext, Pruner, Selection
from vlaprune.trace import Layout, QueryGroup, Trace


def smooth(score: Tensor, layout: Layout, sigma: float, corners: bool) -> Tensor:
    """[V] scores blurred over the grid of each camera by a Gaussian of `sigma` patches, the corners set to 0 before."""
    out = []
    for view in layout.views:
        grid = score[view.slice].view(view.height, view.width).clone()
        if corners:
            for y, x in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
                grid[y, x] = 0
        rows, columns = (blur(size, sigma, grid.device) for size in (view.height, view.width))
        out.append((rows @ grid.float() @ columns.T).flatten())
    return torch.cat(out)


@cache
def blur(size: int, sigma: float, device: torch.device) -> Tensor:
    """[size, size] matrix that blurs a line of `size` numbers, reflected at both ends; the identity for sigma 0.

    Do not write to it.
    """
    reach = int(4 * sigma + 0.5)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / max(sigma, 1e-9)) ** 2)
    out = torch.zeros(size, size)
    for row in range(size):
        for offset, weight in zip(range(-reach, reach + 1), (kernel / kernel.sum()).tolist(), strict=True):
            place = (row + offset) % (2 * size)
            out[row, min(place, 2 * size - 1 - place)] += weight
    return out.to(device)


def distracting(important: Tensor, pattern: Tensor, tau: float) -> Tensor:
    """[V] bool: outside `important` [V] and with more than `tau` times the highest pattern [V] within it."""
    highest = pattern.masked_fill(~important, 0.0).max()
    return ~important & (pattern > tau * highest)


@dataclass
class DTP(Pruner):
    """Drops distracting tokens. A call without distracting tokens is dense.

    important  fraction or number of the tokens in the important region
    tau        a token outside the region is dropped above this share of the highest pattern value inside
    mode       second_pass: the same call computes its prompt again (the paper). late: the next call drops
    layers     layers whose attention tells relevance; null: 4 and 6 of 26, scaled to the depth
    sigma      standard deviation of the smoothing, in patches
    corners    the corners of a picture are never important by themselves
    """

    important: float = 0.42578125
    tau: float = 0.5
    mode: str = "second_pass"
    layers: Sequence[int] | None = None
    sigma: float = 0.65
    corners: bool = True

    def __post_init__(self) -> None:
        """Raises UserError for an unknown mode, an invalid budget, or a number below 0."""
        self.budget = Budget(self.important)
        check_option("dtp mode", self.mode, ("second_pass", "late"))
        if not self.tau >= 0 or not 0 <= self.sigma < float("inf"):
            raise UserError(f"dtp tau={self.tau} sigma={self.sigma}; use numbers of 0 or more")
        self.reset()

    def reset(self) -> None:
        """Forgets the distracting tokens."""
        self._drop: Tensor | None = None
        self._layout: Layout | None = None

    def plan(self, info: ModelInfo) -> Plan:
        """Acts before layer 0, where `select` names the rows to read in this prompt."""
        depth = info.num_layers
        named = sorted({min(-(-n * depth // 26), depth - 1) for n in (4, 6)}) if self.layers is None else self.layers
        self._relevant, self._depth = resolve_layers("dtp layers", named, depth), depth
        return Plan((0,), second_pass=self.mode == "second_pass")

    def select(self, context: PruneContext) -> Selection | None:
        """Keeps every token on a clean pass and names the rows to read; else keeps the tokens that do not distract."""
        late = self.mode == "late"
        clean = self._drop is None or self._layout != context.layout if late else not context.second_pass
        if clean:
            self._drop = None
            reads = dict.fromkeys(range(self._depth), action_group(context.layout))
            if context.layout.text:
                reads |= {n: reads[n] | QueryGroup.TEXT for n in self._relevant}
            return Selection.all(context, reads)
        assert self._drop is not None
        return Selection((~self._drop).nonzero()[:, 0])

    def wants_second_pass(self, context: PruneContext) -> bool:
        """Whether the prompt is computed again now: some token distracts, and `mode` is second_pass."""
        if self.mode == "late":
            return False
        self._drop = self._distracting(context.trace)
        return bool(self._drop.any())

    def observe(self, trace: Trace) -> None:
        """After a clean call, notes what the next one drops."""
        if self.mode == "late":
            clean, self._layout = self._drop is None, trace.layout
            self._drop = self._distracting(trace) if clean else None
            if self._drop is not None and not self._drop.any():
                self._drop = None

    def _distracting(self, trace: Trace) -> Tensor:
        """[V] bool, the distracting tokens; all False without an instruction."""
        layout, rows = trace.layout, action_group(trace.layout)
        if not layout.text:
            return torch.zeros(layout.total, dtype=torch.bool, device=trace.rows(0, rows).device)
        relevance = trace.per_row(self._relevant, QueryGroup.TEXT).mean(0)
        for view in layout.views:
            trace.charge(view.height, view.width, view.height)
            trace.charge(view.height, view.width, view.width)
        smoothed = smooth(relevance.nan_to_num(0.0), layout, self.sigma, self.corners)
        important = top_mask(smoothed, layout, self.budget.count(layout.total))
        each = torch.stack([trace.visual(n, rows)[:, 0].mean(0) for n in range(self._depth)])  # [L, V]
        trace.charge(1, layout.total, self._depth)
        pattern = (each.sum(1) / each.sum() @ each).nan_to_num(0.0)
        return distracting(important, pattern, self.tau)
