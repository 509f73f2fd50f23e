"""FlashVLA's token part: keep the tokens that contribute most to the attention output, by its singular vectors.

Tan et al., "Think Twice, Act Once: Token-Aware Compression and Action Reuse for Efficient Inference in VLA models",
arXiv:2505.21200; no public code. The rule is from the abstract and two reviews (secondary). The paper also skips calls
whose action would repeat the last; that part is left out here, so its speed-ups do not carry over.

T [n, d] is the attention output of the visual tokens, T = U S V' its singular value decomposition; the information
contribution of token x is the sum over the r singular values of |U_xi S_i|. The highest stay, after the first two
layers (secondary). It needs no attention map. Of its FLOPs the Gram matrix is counted, its eigenvectors are not.
Inferred: T is taken after the output projection of layer - 1; r is the numerical rank; keep; one budget
for all cameras.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlaprune.errors import UserError
from vlaprune.pruner import Budget, ModelInfo, Plan, PruneContext, Scored, Selection


def contribution(outputs: Tensor) -> Tensor:
    """[n] sum of |U_i S_i| of each row of outputs [n, d], in float64, from the eigenvectors of the Gram matrix [n, n].

    Where singular values are equal, their vectors are any basis of their space, so the sum depends on that basis.
    """
    rows = outputs.double()
    squared, vectors = torch.linalg.eigh(rows @ rows.T)
    values = squared.clamp(min=0).sqrt()
    least = values[-1] * 1e-6  # what is below is rounding: squares are kept to 1e-16 of the highest
    return (vectors * values.where(values > least, 0.0)).abs().sum(1)


@dataclass
class FlashVLA(Scored):
    """Keeps the tokens that contribute most to the attention output of the layer before `layer`.

    layer  tokens are dropped on entry to this layer
    keep   fraction or number of the visual tokens that are kept
    """

    layer: int = 2
    keep: float = 0.25

    def __post_init__(self) -> None:
        """Raises UserError if `keep` is no budget or `layer` is 0."""
        self.budget = Budget(self.keep)
        if self.layer < 1:
            raise UserError(f"flashvla layer={self.layer}; use 1 or more, it reads the layer before")

    def plan(self, info: ModelInfo) -> Plan:
        """Acts before one layer; reads the attention outputs of the layer before it."""
        return Plan((self.layer,), budget={self.layer: self.budget}, outputs=frozenset({self.layer - 1}))

    def score(self, context: PruneContext) -> Tensor:
        """[n] the contribution of each token."""
        outputs = context.outputs(self.layer - 1)
        context.charge(outputs.shape[0], *outputs.shape)
        return contribution(outputs.nan_to_num(0.0))

    def select(self, context: PruneContext) -> Selection | None:
        """Keeps the tokens that contribute most."""
        return Selection.top(self.score(context), self.budget, of=context.total)
