"""SpecPrune-VLA: drop what did not change and nobody attends to, then a fifth of the rest every few layers.

arXiv:2509.05614 (ICML 2026), static pruning and dynamic pruning; authors' code alexwhz-sjtu/SpecPrune-VLA@d3b06ed:
`modeling_llama.py`, `openvla-oft/experiments/robot/spec_prune_constants.py`, `.../openvla_utils.py`.

As in the code: patches at or above `similar` (what its runs pass; its function's default is 0.996), the counts 16, 12
and 200 of 256, stages after layers 5 .. 25 of 32, ranks of layers 0, 1 and 12, a share of the whole sequence. Layers
and counts are shares here, so that they fit other models; a stage that falls before layer 3 is left out.
Differences: no precise mode for slow phases, whose threshold is a speed of the authors' robot (0.4; its counts:
attended=[0.0977, 0.0742], static=0.86); the earlier frame is the last call's, not 3 to 6 steps old; the layer weight,
always 1, and the rows of stop, proprioception and the fixed words round the instruction are left out. The previous
action's set is read at the last layer, as many as a camera's `attended` (inferred: the paper names it, the code hands
on an empty list).
Defects not copied: the first frame compared with itself (nearly all static; here nothing is); numbers of shortened and
full sequences mixed in scores and in layer 1's choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vlaprune.errors import UserError
from vlaprune.methods.shared.patches import Patches, static_patches
from vlaprune.methods.shared.scoring import camera_rank, cameras, check_range, mean_attention
from vlaprune.methods.shared.selecting import camera_counts, per_camera_topk
from vlaprune.pruner import Budget, ModelInfo, Plan, PruneContext, Pruner, Selection, top
from vlaprune.trace import Layout, QueryGroup, Trace

OTHERS = QueryGroup.TEXT | QueryGroup.ACTION


@dataclass
class SpecPrune(Pruner):
    """Static choice on entry to layers 1 and 2, dynamic choice at the stages. How many go on depends on the data.

    similar   cosine of a patch's pixels with the last call's, from which it counts as unchanged
    static    at most this share of the visual tokens counts as unchanged
    attended  share of each camera's tokens that the instruction protects, threefold at layer 0; the last one repeats
    keep      share of the whole sequence that passes each stage; no count
    floor     share of the visual tokens that no stage goes below
    stages    depths of the stages, as shares of the layers
    alpha     weight of each new rank
    """

    similar: float = 0.986
    static: float = 0.78125
    attended: Sequence[float] = (0.0625, 0.046875)
    keep: float = 0.8
    floor: float = 0.1171875
    stages: Sequence[float] = (0.1875, 0.34375, 0.5, 0.65625, 0.8125)
    alpha: float = 0.2

    def __post_init__(self) -> None:
        """Raises UserError for a parameter out of range."""
        for name in ("similar", "static", "keep", "floor", "alpha"):
            check_range(f"specprune {name}", getattr(self, name), 0, 1)
        for value in (*(self.attended or [-1]), *self.stages):
            check_range("specprune attended and stages", value, 0, 1)
        if isinstance(self.keep, int):
            raise UserError(f"specprune keep={self.keep} would be a count; use a share such as 0.8, or 1.0 for all")
        Budget(self.keep)
        self.reset()

    def plan(self, info: ModelInfo) -> Plan:
        """Acts at layers 1, 2 and the stages. Reads non-visual rows at layers 0, 1, 12 of 32, action rows at 31."""
        depths = {round(share * info.num_layers) for share in self.stages}
        self._ranked, self._last = sorted({0, 1, round(0.375 * info.num_layers)}), info.num_layers - 1
        reads = dict.fromkeys(self._ranked, OTHERS)
        reads[self._last] = reads.get(self._last, QueryGroup(0)) | QueryGroup.ACTION
        return Plan((1, 2, *sorted(d for d in depths if 2 < d < info.num_layers)), reads)

    def reset(self) -> None:
        """Forgets the last call."""
        self._layout: Layout | None = None

    def select(self, context: PruneContext) -> Selection | None:
        """Keeps the tokens that changed or are attended to; at the stages the best ranked ones."""
        self._rank(context)
        if context.layer > 2 or self._layout != context.layout:
            return self._stage(context) if context.layer > 2 else None
        if context.layer == 1:
            count, now = round(self.static * context.total), Patches.of(context.trace.pixels)
            self._kept = ~static_patches(now, self._pixels, self.similar, context.layout, count) | self._acted
        task, counts = (
            mean_attention(context.trace, context.layer - 1, QueryGroup.TEXT),
            camera_counts(context.layout, self.attended),
        )
        wide = per_camera_topk(task, context.layout, [3 * n for n in counts]) if context.layer == 1 else self._kept
        self._kept = self._kept | per_camera_topk(task, context.layout, counts)
        return Selection((self._kept | wide)[context.alive].nonzero().flatten())

    def _rank(self, context: PruneContext) -> None:
        """Adds the ranks from the layers since the last planned layer, among the tokens that those layers had."""
        if context.layer == 1:
            self._score, self._due = torch.zeros(context.total, device=context.alive.device), list(self._ranked)
        while self._due and self._due[0] < context.layer:
            seen = mean_attention(context.trace, self._due.pop(0), OTHERS)[context.alive]
            fresh = camera_rank(seen, cameras(context.layout, seen.device)[context.alive])
            self._score[context.alive] = self._score[context.alive].lerp(fresh, self.alpha)

    def _stage(self, context: PruneContext) -> Selection | None:
        n, others = len(context.alive), context.layout.length - context.total
        count = max(round(self.floor * context.total), int(self.keep * (n + others) + 1e-9) - others, 1)
        return None if count >= n else Selection(top(self._score[context.alive], count))

    def observe(self, trace: Trace) -> None:
        """Keeps the patches and what the action attended to; a token that was gone has attention 0 and is left out."""
        acted, self._layout = mean_attention(trace, self._last, QueryGroup.ACTION), trace.layout
        self._pixels = Patches.of(trace.pixels)
        self._acted = per_camera_topk(acted, trace.layout, camera_counts(trace.layout, self.attended)) & (acted > 0)
