"""SpecPrune-VLA: drop what did not change and nobody attends to, then a fifth of the rest every few layers.

arXiv:2509.05614 (ICML 2026), static pruning and dynamic pruning; authors' code alexwhz-sjtu/SpecPrune-VLA@d3b06ed:
`modeling_llama.py`, `openvla-oft/experiments/robot/spec_prune_constants.py`, `.../openvla_utils.py`.

As in the code: patches at or above `similar` (what its runs pass; its function's default is 0.996), the counts 16, 12
and 200 of 256, stages after layers 5 .. 25 of 32, ranks of layers 0, 1 and 12, a share of the whole sequence. Layers
and counts are shares here, so that they fit other models; a stage that falls before layer 3 is left out.
Differences: a method sees no robot speed, so no precise mode (its counts: attended=[0.0977, 0.0742], static=0.86); the
earlier frame is the last call's, not 3 to 6 steps old; the layer weight, always 1, and the rows of stop, proprioception
and the fixed words round the instruction are left out. The previous action's set is read at the last layer, as many as
a camera's `attended` (inferred: the paper names it, the code hands on an empty list).
Defects not copied: the first frame compared with itself (nearly all static; here nothing is); numbers of shortened and
full sequences mixed in scores and in layer 1's choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vlaprune.methods.shared.patches import Patches, still
from vlaprune.methods.shared.scoring import between, cameras, standing, voted
from vlaprune.methods.shared.selecting import best, portions
from vlaprune.pruner import Budget, Info, Plan, Pruner, Selection, Site, top
from vlaprune.trace import Layout, Rows, Trace

OTHERS = Rows.TEXT | Rows.ACTION


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
        Budget(self.keep)
        self.reset()

    def plan(self, info: Info) -> Plan:
        """Layers 1 and 2 and the stages; the rows of all but visual tokens at layers 0, 1 and 12 of 32."""
        depths = {round(share * info.layers) for share in self.stages}
        self._ranked, self._last = sorted({0, 1, round(0.375 * info.layers)}), info.layers - 1
        reads = dict.fromkeys(self._ranked, OTHERS)
        reads[self._last] = reads.get(self._last, Rows(0)) | Rows.ACTION
        return Plan((1, 2, *sorted(d for d in depths if 2 < d < info.layers)), reads)

    def reset(self) -> None:
        """Forgets the last call."""
        self._layout: Layout | None = None

    def select(self, site: Site) -> Selection | None:
        """What changed or is attended to; later the best ranked."""
        self._rank(site)
        if site.layer > 2 or self._layout != site.layout:
            return self._stage(site) if site.layer > 2 else None
        if site.layer == 1:
            count, now = round(self.static * site.total), Patches.of(site.trace.pixels)
            self._kept = ~still(now, self._pixels, self.similar, site.layout, count) | self._acted
        task, counts = voted(site.trace, site.layer - 1, Rows.TEXT), portions(site.layout, self.attended)
        wide = best(task, site.layout, [3 * n for n in counts]) if site.layer == 1 else self._kept
        self._kept = self._kept | best(task, site.layout, counts)
        return Selection((self._kept | wide)[site.alive].nonzero().flatten())

    def _rank(self, site: Site) -> None:
        """Adds the ranks of layers that ran since the site before, among the tokens they had."""
        if site.layer == 1:
            self._score, self._due = torch.zeros(site.total, device=site.alive.device), list(self._ranked)
        while self._due and self._due[0] < site.layer:
            seen = voted(site.trace, self._due.pop(0), OTHERS)[site.alive]
            fresh = standing(seen, cameras(site.layout, seen.device)[site.alive])
            self._score[site.alive] = self._score[site.alive].lerp(fresh, self.alpha)

    def _stage(self, site: Site) -> Selection | None:
        n, others = len(site.alive), site.layout.length - site.total
        count = max(round(self.floor * site.total), int(self.keep * (n + others) + 1e-9) - others, 1)
        return None if count >= n else Selection(top(self._score[site.alive], count))

    def observe(self, trace: Trace) -> None:
        """Keeps the patches and what the action attended to; a token that was gone has attention 0 and is left out."""
        acted, self._layout = voted(trace, self._last, Rows.ACTION), trace.layout
        self._pixels = Patches.of(trace.pixels)
        self._acted = best(acted, trace.layout, portions(trace.layout, self.attended)) & (acted > 0)
