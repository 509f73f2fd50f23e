"""ADP: keep what the instruction asks for, but only while the robot moves fast; slow, delicate phases stay dense.

arXiv:2509.22093 (ICLR 2026), sections on text-driven pruning and the action-aware gate; authors' code TerryPei/VLA-ADP,
`prismatic/extern/hf/modeling_prismatic.py`, `_compute_qk_importance_generic` (the gate's script is not in it any more).

Differences: the gate measures the end-effector's net displacement since the last call by the sum of the translations
that the executed actions commanded, where the authors read it from the robot (`motion=pixels` takes the mean change of
the pictures instead). Importance is the mean over heads and rows of the logarithm of layer 0's attention, which ranks
tokens as the authors' mean of query-key products does, but with rotary phases; so tokens go on entry to layer 1, not
before layer 0. Text rows are the instruction alone. Positions stay as they were (the authors renumber), kept tokens
stay in order (theirs are in score order with one camera).
Defects not copied: an extra forward pass for the scores; errors printed and answered by a dense call; what one camera
cannot take is lost (here the others take it). Their default keep is 0.75, and 0.3 to 0.7 in the tables.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vlaprune.errors import UserError
from vlaprune.methods.shared.scoring import check_option
from vlaprune.methods.shared.selecting import per_camera_topk, split_by_weights
from vlaprune.pruner import Budget, ModelInfo, Plan, PruneContext, Scored, Selection
from vlaprune.trace import Layout, QueryGroup, Trace


@dataclass
class ADP(Scored):
    """Prunes when its gate is open, that is while the robot moves. The first calls are dense.

    keep     fraction or number of the visual tokens that go on when the gate is open
    weights  share of each camera, any scale; empty for equal shares (an older script: 0.4 and 0.6)
    gate     open while motion is at least the lower of the last two (`window`), their running mean (`mean`), `always`
    streak   pruned calls in a row before one must be dense; 0 for no such rule
    motion   measured by the `executed` actions or by the change of the `pixels`
    """

    keep: float = 0.75
    weights: Sequence[float] = ()
    gate: str = "window"
    streak: int = 3
    motion: str = "executed"

    def __post_init__(self) -> None:
        """Raises UserError for a parameter out of range."""
        self.budget = Budget(self.keep)
        check_option("adp gate", self.gate, ("window", "mean", "always"))
        check_option("adp motion", self.motion, ("executed", "pixels"))
        if self.streak < 0 or not all(0 < w < float("inf") for w in self.weights):
            raise UserError(f"adp streak={self.streak} weights={list(self.weights)}; use 0 or more, weights above 0")
        self.reset()

    def plan(self, info: ModelInfo) -> Plan:
        """Acts at layer 0 (the gate) and layer 1 (the choice); text rows are read only while the gate is open."""
        return Plan((0, 1), budget={1: self.budget})

    def reset(self) -> None:
        """Forgets frames and motion."""
        self._frames: list[Tensor] = []
        self._past, self._mean, self._run = deque[float](maxlen=2), 0.0, 0
        self._layout: Layout | None = None

    def select(self, context: PruneContext) -> Selection | None:
        """Keeps the tokens with the highest scores of each camera; None while the gate is closed."""
        if context.layer == 0:
            self._open = self._is_open(context)
            return Selection.all(context, reads={0: QueryGroup.TEXT}) if self._open else None
        if not self._open:
            return None
        sizes = context.layout.sizes
        weights = self.weights or [1.0] * len(sizes)
        if len(weights) != len(sizes):
            raise UserError(f"adp weights={list(weights)}, but there are {len(sizes)} cameras; give one each")
        score = self.score(context)
        assert score is not None
        chosen = per_camera_topk(
            score, context.layout, split_by_weights(self.budget.count(context.total), sizes, weights)
        )
        return Selection(chosen.nonzero().flatten())

    def score(self, context: PruneContext) -> Tensor | None:
        """[n] how much the instruction asks for each token; None while the gate is closed."""
        if context.layer == 0 or not self._open:
            return None
        return context.attention(0, QueryGroup.TEXT).clamp_min(1e-38).log().mean(dim=(0, 1))

    def _is_open(self, context: PruneContext) -> bool:
        """Whether this call prunes; notes its motion."""
        if context.layout != self._layout:
            self.reset()
        ready, fast = len(self._past) == 2, True
        motion = self._motion(context)
        if motion is not None:
            fast = ready and motion >= (self._mean if self.gate == "mean" else min(self._past))
            self._mean = (self._mean + motion) / 2 if self._past else motion
            self._past.append(motion)
        prune = self.gate == "always" or (ready and fast)
        prune = prune and not (self.streak and self._run >= self.streak)
        self._run = self._run + 1 if prune else 0
        return prune

    def _motion(self, context: PruneContext) -> float | None:
        """The motion since the call before; None if there was no such call with this layout."""
        if self._layout is None:
            return None
        if self.motion == "executed":
            return float(context.trace.executed[:, :3].sum(0).norm())
        pairs = zip(context.trace.images, self._frames, strict=True)
        return float(sum((new.float() - old.float()).abs().mean() for new, old in pairs))

    def observe(self, trace: Trace) -> None:
        """Keeps what the next call measures its motion from."""
        self._layout = trace.layout
        if self.motion == "pixels":
            self._frames = [image.clone() for image in trace.images]
