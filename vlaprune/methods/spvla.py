"""SP-VLA's token part: the faster the robot moves, the fewer tokens; those with edges and those attended to stay.

Li et al., "SP-VLA", arXiv:2506.12723 (ICLR 2026). The authors' code (ChildTang/SP-VLA) could not be had; the rule is
from the abstract, notes and reviews (secondary). The paper also replaces calls by a ridge regression; that part is left
out here, so its speed-ups do not carry over.

As told: kept are the patches with Canny edges (the authors: without them success falls from 75 to 24 %) and those of
highest attention in the vision tower, in their order, before the decoder. The share kept by attention is 1 at low speed
and falls in a straight line to a least share. Not found, hence inferred: every number of that line; that speed is the
mean length of the executed translations, over that of the fastest call of the episode so far (worlds differ in units),
so that a call faster than all before keeps the least share; that attention takes a share, not a threshold; Canny's
thresholds 100 and 200 on the picture that the model sees. The first call, when nothing was executed, keeps every token.
"""

from dataclasses import dataclass

from torch import Tensor

from vlaprune.errors import UserError
from vlaprune.methods.shared.patches import edge_patches, sobel_product
from vlaprune.methods.shared.scoring import check_range
from vlaprune.methods.shared.selecting import top_mask
from vlaprune.pruner import ModelInfo, Plan, PruneContext, Scored, Selection


@dataclass
class SPVLA(Scored):
    """Drops tokens before layer 0, by the attention of the vision tower and the edges in the picture.

    slow, fast  relative speed, 0 to 1, up to which every token stays and from which only the least share does
    least       share of the tokens that attention keeps at full speed
    edges       tokens with edges stay too
    """

    slow: float = 0.2
    fast: float = 1.0
    least: float = 0.25
    edges: bool = True

    def __post_init__(self) -> None:
        """Raises UserError for a share or a speed out of range."""
        check_range("spvla least", self.least, 0, 1)
        check_range("spvla slow", self.slow, 0, 1)
        if not self.slow < self.fast <= 1:
            raise UserError(f"spvla slow={self.slow} fast={self.fast}; use slow below fast, fast at most 1")
        self.reset()

    def reset(self) -> None:
        """Forgets the highest speed of the episode."""
        self._fastest = 0.0

    def plan(self, info: ModelInfo) -> Plan:
        """Acts before layer 0; reads the vision tower's attention. The count depends on the scene and the speed."""
        return Plan((0,), vision_attention=True)

    def select(self, context: PruneContext) -> Selection | None:
        """Keeps the union of attended tokens and tokens with edges; None while every token stays."""
        count = max(1, round(self.share(self._speed(context)) * context.total))
        if count == context.total:
            return None
        stay = top_mask(context.vision_attention, context.layout, count)
        if self.edges:
            for image in context.trace.images:
                context.charge(*sobel_product(image))
            stay |= edge_patches(context.trace.images, context.layout)
        return Selection(stay.nonzero()[:, 0])

    def score(self, context: PruneContext) -> Tensor:
        """[n] attention in the vision tower; edges are not part of it."""
        return context.vision_attention

    def share(self, speed: float) -> float:
        """The share of tokens that attention keeps at a relative speed; falls from 1 to `least`."""
        done = (speed - self.slow) / (self.fast - self.slow)
        return 1 - (1 - self.least) * min(1.0, max(0.0, done))

    def _speed(self, context: PruneContext) -> float:
        """The relative speed, from 0 to 1, of the actions executed since the last call."""
        executed = context.trace.executed
        if not executed.shape[0]:
            return 0.0
        speed = float(executed[:, :3].norm(dim=1).mean())
        self._fastest = max(self._fastest, speed)
        return speed / self._fastest if self._fastest else 0.0
