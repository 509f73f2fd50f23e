"""SAFE-Pruner: forecast what deep layers will look at, by carrying over what they looked at in the last key call.

Ma et al., arXiv:2605.29662 (ECCV 2026), method section; authors' code msssl/SAFE-Pruner@0094232d (OFT on LIBERO):
`modeling_llama.py`, `src/openvla-oft/prismatic/extern/hf/modeling_prismatic.py`, `src/openvla-oft/run_eval.sh`.

Defects not copied: the proprioception row among the key features (a token could match it); attention maps of every
layer on every call (here layer 0 always, layer - 1 on pruned calls, deep layers on key calls only); the shallow layer 0
in the "deep" mean (`deep=[0, -1]` reproduces it, with the detector's row, as there).
Differences: fusion is the paper's convex one (the code adds LAMBDA = fusion / (1 - fusion) times the forecast, the same
ranking); a changed instruction or layout forces a key call; `normalize`, `within_camera` and `interval` are ours, off.
Published keep by LIBERO suite: Spatial 0.2, Object 0.25, Goal 0.1, Long 0.3 (they name the removed share); elsewhere
0.25 is inferred. Where actions come after the prompt (OpenVLA, pi0), no action row exists when the choice is made. The
shallow saliency then reads the last prompt row (inferred). The deep saliency reads the action rows, as the paper says;
in pi0 these are the rows of all flow steps. `deep_rows=prompt` reads the same row in both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from vlaprune.errors import UserError
from vlaprune.methods.shared.scoring import (
    action_group,
    cameras,
    check_option,
    check_range,
    mean_attention,
    nearest_rows,
    resolve_layers,
    scaled,
)
from vlaprune.pruner import Budget, ModelInfo, Plan, PruneContext, Scored, Selection
from vlaprune.trace import Layout, QueryGroup, Trace


@dataclass
class SAFE(Scored):
    """Makes dense key calls that measure deep saliency; other calls prune by shallow saliency and the forecast of it.

    layer, keep    decoder layer before which tokens are dropped; fraction or number that is kept
    gamma          a call is a key call if the cosine of its detector map with the carried-over one is below this
    fusion         weight of the forecast, 0 to 1
    deep           layers whose saliency is forecast, averaged; negative ones count from the end (-1: layer 31 of 32)
    deep_rows      query rows of the deep layers: action (the paper) or prompt, the rows that the shallow saliency has
    normalize      how each map is scaled before it is added: none, sum1, minmax
    within_camera  a token matches tokens of its own camera only
    interval       calls after which a key call is due at the latest; 0 for no such rule
    """

    layer: int = 3
    keep: float = 0.25
    gamma: float = 0.92
    fusion: float = 0.5
    deep: Sequence[int] = (-1,)
    deep_rows: str = "action"
    normalize: str = "none"
    within_camera: bool = False
    interval: int = 0

    def __post_init__(self) -> None:
        """Raises UserError for a parameter out of range."""
        self.budget = Budget(self.keep)
        if self.layer < 2 or self.gamma != self.gamma or self.interval < 0:
            raise UserError(
                f"safe layer={self.layer} gamma={self.gamma} interval={self.interval}; use 2+, a number, 0+"
            )
        check_option("safe deep_rows", self.deep_rows, ("action", "prompt"))
        check_option("safe normalize", self.normalize, ("none", "sum1", "minmax"))
        check_range("safe fusion", self.fusion, 0, 1)
        self.reset()

    def plan(self, info: ModelInfo) -> Plan:
        """Acts at layers 0 (features), 1 (key call or not) and `layer` (choice); `select` names most reads."""
        self._deep = resolve_layers("safe deep", self.deep, info.num_layers)
        return Plan((0, 1, self.layer), {0: QueryGroup.LAST}, {self.layer: self.budget})

    def reset(self) -> None:
        """Forgets the key call: its layout, step, unit features [V, d], instruction [t, d] and maps [V]."""
        self._layout: Layout | None = None

    def select(self, context: PruneContext) -> Selection | None:
        """Keeps the tokens of highest fused saliency; None on key calls."""
        if context.layer == 0:
            self._now = F.normalize(context.visual.float(), dim=-1), context.text.clone()
            return None
        if context.layer == 1:
            self._key = self._is_key(context)
            if self._key:
                return Selection.all(context, dict.fromkeys([n for n in self._deep if n], self._rows(context.layout)))
            return Selection.all(context, {self.layer - 1: action_group(context.layout)})
        score = self.score(context)
        return None if score is None else Selection.top(score, self.budget, of=context.total)

    def score(self, context: PruneContext) -> torch.Tensor | None:
        """[n] the fused saliency; None on key calls."""
        if context.layer != self.layer or self._key:
            return None
        shallow = scaled(mean_attention(context.trace, self.layer - 1, action_group(context.layout)), self.normalize)
        return (1 - self.fusion) * shallow + self.fusion * self._maps[1][self._match]

    def _rows(self, layout: Layout) -> QueryGroup:
        """Query rows of the deep layers."""
        return QueryGroup.ACTION if self.deep_rows == "action" else action_group(layout)

    def _is_key(self, context: PruneContext) -> bool:
        """Whether this is a key call: compares its detector map with that of the last key call, token by token."""
        if self._layout != context.layout or (self.interval and context.step - self._step >= self.interval):
            return True
        camera = cameras(context.layout, context.alive.device) if self.within_camera else None
        context.charge(self._then[0].shape[0], *self._now[0].shape)
        self._match: torch.Tensor = nearest_rows(self._now[0], self._then[0], camera)
        agree = F.cosine_similarity(
            mean_attention(context.trace, 0, QueryGroup.LAST), self._maps[0][self._match], dim=0
        )
        return not bool((agree >= self.gamma) & (self._now[1] == self._then[1]).all())  # NaN agrees with nothing

    def observe(self, trace: Trace) -> None:
        """Keeps the features and maps of a key call."""
        if self._key:
            rows = [self._rows(trace.layout) if n else QueryGroup.LAST for n in self._deep]
            maps = [scaled(mean_attention(trace, n, r), self.normalize) for n, r in zip(self._deep, rows, strict=True)]
            self._maps: tuple[torch.Tensor, torch.Tensor] = (
                mean_attention(trace, 0, QueryGroup.LAST),
                torch.stack(maps).mean(0),
            )
            self._layout, self._step, self._then = trace.layout, trace.step, self._now
