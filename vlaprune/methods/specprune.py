"""SpecPrune-VLA: drop what did not change and nobody attends to, then a fifth of the rest every few layers.

arXiv:2509.05614 (ICML 2026), static pruning and dynamic pruning; authors' code alexwhz-sjtu/SpecPrune-VLA@d3b06ed:
`modeling_llama.py`, `openvla-oft/experiments/robot/spec_prune_constants.py`, `.../openvla_utils.py`.

As in the code: patches at or above `similar` (what its runs pass; its function's default is 0.996), the counts 16, 12
and 200 of 256, stages after layers 5 .. 25 of 32, ranks of layers 0, 1 and 12, a share of the whole sequence. Layers
and counts are shares here, so that they fit other models; a stage that falls before layer 3 is left out.
Differences: a method sees no robot speed, so no precise mode (its counts: attended=[0.0977, 0.0742], static=0.86), and
the earlier frame is the last call's, not 3 to 6 steps old; ranks are among the tokens still there; the layer weight,
always 1, is left out; text rows are the instruction alone. The previous action's set is read at the last layer, as many
as a camera's `attended` (inferred: the paper names it, the code hands on an empty list).
Defects not copied: the first frame compared with itself (nearly all static; here nothing is); numbers of shortened and
full sequences mixed in scores and in layer 1's choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vlaprune.methods.common import best, between, cameras, standing, still, voted
from vlaprune.pruner import Info, Plan, Pruner, Selection, Site, top
from vlaprune.trace import Layout, Rows, Trace

OTHERS = Rows.TEXT | Rows.ACTION | Rows.LAST


@dataclass
class SpecPrune(Pruner):
    """Static choice on entry to layers 1 and 2, dynamic choice at the stages. How many go on depends on the data.

    similar   cosine of a patch's pixels with the last call's, from which it counts as unchanged
    static    at most this share of the visual tokens counts as unchanged
    attended  share of each camera's tokens that the instruction protects, threefold at layer 0; the last one repeats
    keep      share of the whole sequence that passes each stage
    floor     share of the visual tokens that no stage goes below
    stages    depths, as shares of the layers; alpha is the weight of each new rank
    """

    similar: float = 0.986
    static: float = 0.78125
    attended: Sequence[float] = (0.0625, 0.046875)
    keep: float = 0.8
    floor: float = 0.1171875
    stages: Sequence[float] = (0.1875, 0.34375, 0.5, 0.65625, 0.8125)
    alpha: float = 0.2

    def __post_init__(self) -> None:
        """ValueError for a parameter out of range."""
        for name in ("similar", "static", "keep", "floor", "alpha"):
            between(f"specprune {name}", getattr(self, name), 0, 1)
        for value in (*(self.attended or [-1]), *self.stages):
            between("specprune attended and stages", value, 0, 1)
        self.reset()

    def plan(self, info: Info) -> Plan:
        """Layers 1 and 2 and the stages; the rows of all but visual tokens at layers 0, 1 and 12 of 32."""
        depths = {round(share * info.layers) for share in self.stages}
        self._ranked, self._last = sorted({0, 1, round(0.375 * info.layers)}), info.layers - 1
        reads = dict.fromkeys(self._ranked, OTHERS)
        reads[self._last] = reads.get(self._last, Rows(0)) | Rows.ACTION
        return Plan((1, 2, *sorted(d for d in depths if 2 < d < info.layers)), reads)

    def reset(self) -> None:
        """Forgets the last call: patches [V, p, p, 3] and what its action attended to [V]."""
        self._layout: Layout | None = None

    def select(self, site: Site) -> Selection | None:
        """What changed or is attended to; later the best ranked."""
        if site.layer > 2 or self._layout != site.layout:
            return self._stage(site) if site.layer > 2 else None
        if site.layer == 1:
            count = round(self.static * site.total)
            self._kept = ~still(site.trace.pixels, self._pixels, self.similar, site.layout, count) | self._acted
        task, counts = voted(site.trace, site.layer - 1, Rows.TEXT), self._counts(site.layout)
        wide = best(task, site.layout, [3 * n for n in counts]) if site.layer == 1 else self._kept
        self._kept = self._kept | best(task, site.layout, counts)
        return Selection((self._kept | wide)[site.alive].nonzero().flatten())

    def _counts(self, layout: Layout) -> list[int]:
        shares = [self.attended[min(i, len(self.attended) - 1)] for i in range(len(layout.views))]
        return [max(1, round(s * len(v.tokens))) for s, v in zip(shares, layout.views, strict=True)]

    def _stage(self, site: Site) -> Selection | None:
        n, others = site.alive.shape[0], site.layout.length - site.total
        count = max(round(self.floor * site.total), int(self.keep * (n + others) + 1e-9) - others, 1)
        if count >= n:
            return None
        camera, score = cameras(site.layout, site.alive.device)[site.alive], torch.zeros(n, device=site.alive.device)
        for layer in (r for r in self._ranked if r < site.layer):
            score = score.lerp(standing(voted(site.trace, layer, OTHERS)[site.alive], camera), self.alpha)
        return Selection(top(score, count))

    def observe(self, trace: Trace) -> None:
        """Keeps the patches and what the action attended to; a token that was gone has attention 0 and is left out."""
        acted = voted(trace, self._last, Rows.ACTION)
        self._acted = best(acted, trace.layout, self._counts(trace.layout)) & (acted > 0)
        self._pixels, self._layout = trace.pixels, trace.layout
