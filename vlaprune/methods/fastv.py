"""FastV: keep the visual tokens that the last prompt token attends to.

Chen et al., "An Image is Worth 1/2 Tokens After Layer 2", arXiv:2403.06764; authors' code pkunlp-icler/FastV,
`src/transformers/src/transformers/models/llama/fastv_forward.py`.

Differences: tokens are really removed (the authors' evaluation masks them, which saves nothing); positions stay as they
were. The paper's text averages over all query tokens, the authors' code reads the last one; `rows` offers both
(`text` is the mean over the instruction, `action` the rows that emit the action). The prune layer is 3, as in the
ports to VLAs, not LLaVA's 2. One budget for all cameras together, as in most ports; VLA-Pruner's
for OFT gives each camera its share, which is not offered.
"""

from dataclasses import dataclass

from torch import Tensor

from vlaprune.errors import UserError
from vlaprune.methods.shared.scoring import check_rows
from vlaprune.pruner import Budget, ModelInfo, Plan, PruneContext, Scored, Selection
from vlaprune.trace import QueryGroup

ROWS = {
    "last": QueryGroup.LAST,
    "prefix_mean": QueryGroup.PREFIX,
    "text": QueryGroup.TEXT,
    "action": QueryGroup.ACTION,
}


@dataclass
class FastV(Scored):
    """Keeps the tokens with the highest attention in layer - 1, mean over heads and query rows.

    layer  tokens go on entry to this layer (K in the paper)
    keep   fraction or number of the visual tokens that go on
    rows   which queries vote: last, prefix_mean, text, action
    """

    layer: int = 3
    keep: float = 0.25
    rows: str = "last"

    def __post_init__(self) -> None:
        """Raises UserError for an unknown kind of rows or layer 0, where nothing has been attended to yet."""
        self.budget = Budget(self.keep)
        if self.rows not in ROWS:
            raise UserError(f"fastv rows={self.rows}; use one of {', '.join(ROWS)}")
        if self.layer < 1:
            raise UserError(f"fastv layer={self.layer}; use 1 or more, it reads the layer before")

    def plan(self, info: ModelInfo) -> Plan:
        """Acts before one layer; reads the query rows of the layer before it."""
        return Plan((self.layer,), {self.layer - 1: ROWS[self.rows]}, {self.layer: self.budget})

    def score(self, context: PruneContext) -> Tensor:
        """[n] attention that each token gets."""
        check_rows("fastv", ROWS[self.rows], context.layout)
        return context.attention(self.layer - 1, ROWS[self.rows]).mean(dim=(0, 1))

    def select(self, context: PruneContext) -> Selection:
        """Keeps the most attended tokens."""
        return Selection.top(self.score(context), self.budget, of=context.total)
