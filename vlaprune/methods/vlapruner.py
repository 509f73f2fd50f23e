"""VLA-Pruner: union of the tokens that the prompt attends to and those that recent actions attended to, thinned.

arXiv:2511.16449, method section. Authors' code: MINT-SJTU/VLA-Pruner@fa5bfed (OpenVLA) and @3d156ee (OFT),
`transformers/src/transformers/models/llama/modeling_llama.py`, `prismatic/extern/hf/modeling_prismatic.py`. There is no
code for pi0; as the paper says, its action attention is the mean over all flow steps.

Rows are the authors': the prefix mean runs over every prompt row before the action slots (in OFT the begin and state
rows too); action rows are OFT's 56 slots, or OpenVLA's last prompt row and six decoded rows.
Defects not copied: reversed temporal weights (until c4adcf1a; here the newest call weighs most); guide and filter in
bfloat16 (here fp32); a filter that can take one token twice (here the count is exact); positions as literals; the layer
off by one in the OFT port (here layers 0 .. layer - 1 compute all tokens); dense warm-up calls left out of the FLOPs.
Differences: the budget is split over cameras exactly (the authors round for each camera, the same at 256 + 256); a new
prompt layout drops the history. `middle` is their layer 15 of 32, scaled to the depth. `carry` is inferred. For OpenVLA
the authors advise `rows=last` (their issue 10: success 76.8 against 69 to 70.8 with the prefix mean).
"""

from collections import deque
from dataclasses import dataclass

import torch

from vlaprune.errors import UserError
from vlaprune.methods.shared.scoring import action_group, check_option, check_range, decayed_sum, mean_attention
from vlaprune.methods.shared.selecting import by_camera, farthest_points_within, split_budget, top_mask
from vlaprune.pruner import Budget, ModelInfo, Plan, PruneContext, Pruner, Selection
from vlaprune.trace import Layout, QueryGroup, Trace

ROWS = {
    "prefix_mean": QueryGroup.PREFIX,
    "last": QueryGroup.LAST,
    "text": QueryGroup.TEXT,
    "all": QueryGroup.PROMPT,
}


@dataclass
class VLAPruner(Pruner):
    """Prunes by prompt attention and by a history of action attention. The first `window` calls are dense.

    layer   tokens are dropped on entry to this decoder layer
    keep    fraction or number of visual tokens that are kept (published: 0.5, 0.25, 0.125)
    rows    query rows of the semantic score: prefix_mean, last, text, all
    action  where action rows are read: middle (the code), latter_half (the paper: mean over the later half of layers)
    window  calls in the history
    gamma   weight of a call, 0 to 1, against the next newer one
    fill    history of a token that had been dropped: zero (the code), or carry its last known value
    warmup  true: the first `window` calls are dense. false: they use their own action rows (an option of the OFT code)
    """

    layer: int = 3
    keep: float = 0.25
    rows: str = "prefix_mean"
    action: str = "middle"
    window: int = 3
    gamma: float = 0.8
    fill: str = "zero"
    warmup: bool = True

    def __post_init__(self) -> None:
        """Raises UserError for a parameter out of range."""
        self.budget = Budget(self.keep)
        check_option("vlapruner rows", self.rows, ROWS)
        check_option("vlapruner action", self.action, ("middle", "latter_half"))
        check_option("vlapruner fill", self.fill, ("zero", "carry"))
        check_range("vlapruner gamma", self.gamma, 0, 1)
        if self.layer < 1 or self.window < 1:
            raise UserError(f"vlapruner layer={self.layer} window={self.window}; use 1 or more of each")
        self.reset()

    def plan(self, info: ModelInfo) -> Plan:
        """Acts at layers 0 (features) and `layer`; reads rows of the layer before, and action rows for later calls."""
        first = (info.num_layers - 1) // 2 if self.action == "middle" else info.num_layers // 2
        self._sources = range(first, first + 1 if self.action == "middle" else info.num_layers)
        reads = dict.fromkeys(self._sources, QueryGroup.ACTION)
        also = QueryGroup(0) if self.warmup else QueryGroup.LAST | QueryGroup.ACTION
        reads[self.layer - 1] = reads.get(self.layer - 1, QueryGroup(0)) | ROWS[self.rows] | also
        return Plan((0, self.layer), reads, {self.layer: self.budget})

    def reset(self) -> None:
        """Forgets the history."""
        self._past = deque[torch.Tensor](maxlen=self.window)  # [V] each, newest last
        self._layout: Layout | None = None

    def select(self, context: PruneContext) -> Selection | None:
        """Keeps the union of both top sets, thinned by max-min distance of the projector's features."""
        if context.layer == 0:
            self._features = context.visual
            return None
        layout, count = context.layout, self.budget.count(context.total)
        full = len(self._past) == self.window and self._layout == layout
        if self.warmup and not full:
            return None
        semantic = mean_attention(context.trace, self.layer - 1, ROWS[self.rows])
        action = (
            decayed_sum(self._past, self.gamma)
            if full
            else mean_attention(context.trace, self.layer - 1, action_group(layout))
        )
        union = top_mask(torch.stack((semantic, action)), layout, count).any(0)
        counts = split_budget(count, layout.sizes)
        features, among = by_camera(self._features, layout), by_camera(union, layout)
        context.charge(features.shape[0] * features.shape[1], *features.shape[1:])
        picks = context.run(farthest_points_within, features, max(counts), among)
        return Selection(torch.cat([p[:k] + v.start for p, k, v in zip(picks, counts, layout.views, strict=True)]))

    def observe(self, trace: Trace) -> None:
        """Adds this call's action rows to the history."""
        if trace.layout != self._layout:
            self.reset()
        self._layout = trace.layout
        votes = [mean_attention(trace, n, QueryGroup.ACTION) for n in self._sources]
        seen = votes[0] if len(votes) == 1 else torch.stack(votes).mean(0)
        if self.fill == "carry" and self._past:
            seen = torch.where(seen > 0, seen, self._past[-1])
        self._past.append(seen)
