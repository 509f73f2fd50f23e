"""CDPruner: the subset that is both relevant to the instruction and diverse, by a determinantal point process.

Zhang et al., "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs",
arXiv:2506.10967, section on conditional DPP; authors' code Theia-4869/CDPruner, `llava/model/llava_arch.py`,
`encode_images`.

Differences: a VLA has no CLIP text tower, so relevance is the mean cosine of a projected visual token with the words'
embeddings in the decoder. The authors negate CLIP's similarity; which sign serves a VLA is inferred and an option. One
pool for all cameras (theirs: a budget per image). Defect not copied: equal relevance divides by zero.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vlaprune.errors import UserError
from vlaprune.pruner import Budget, ModelInfo, Plan, PruneContext, Pruner, Selection

EPS = 1e-6
SIGNS = {"similar": 1.0, "dissimilar": -1.0}


def dpp(features: Tensor, count: int) -> Tensor:
    """[count] rows of features [n, d]: each adds most to the determinant of the Gram matrix of the rows before it.

    Greedy MAP with an incremental Cholesky factor; nothing in the loop waits for the device.
    """
    kernel, chosen = features.detach() @ features.detach().T, []
    left, factor = kernel.diagonal().clone(), kernel.new_empty((count, kernel.shape[0]))
    taken = torch.zeros_like(left, dtype=torch.bool)  # beyond the kernel's rank a quotient may overflow
    for i in range(count):
        j = left.argmax(0, keepdim=True)
        row, known = factor[i], factor[:i]
        torch.addmv(kernel.index_select(0, j)[0], known.T, known.index_select(1, j)[:, 0], alpha=-1, out=row)
        row.mul_(left.index_select(0, j).clamp_(min=EPS).rsqrt_())
        taken.index_fill_(0, j, True)
        left.addcmul_(row, row, value=-1).nan_to_num_(0.0, 0.0).masked_fill_(taken, float("-inf"))
        chosen.append(j)
    return torch.cat(chosen)


@dataclass
class CDPruner(Pruner):
    """Prunes before layer 0; the kernel is r_i cos_ij r_j, r the relevance scaled to [0, 1].

    keep       fraction or number that go on
    relevance  similar: the closer to the words the more relevant (inferred); dissimilar: the authors' sign
    """

    keep: float = 0.25
    relevance: str = "similar"

    def __post_init__(self) -> None:
        """Raises UserError if `keep` is no budget or `relevance` is unknown."""
        self.budget = Budget(self.keep)
        if self.relevance not in SIGNS:
            raise UserError(f"cdpruner relevance={self.relevance}; use one of {', '.join(SIGNS)}")

    def plan(self, info: ModelInfo) -> Plan:
        """Acts before layer 0; reads no attention."""
        return Plan((0,), budget={0: self.budget})

    def select(self, context: PruneContext) -> Selection:
        """Keeps the most probable subset of the determinantal point process, found greedily."""
        context.charge(context.total, *context.visual.shape)
        unit = F.normalize(context.visual.float(), dim=-1).nan_to_num(0.0)
        words = F.normalize(context.text.float(), dim=-1)
        relevance = SIGNS[self.relevance] * (unit @ words.mean(0)).nan_to_num(0.0)
        low, high = relevance.aminmax()
        relevance = (relevance - low + EPS) / (high - low + EPS)
        return Selection(context.run(dpp, unit * relevance[:, None], self.budget.count(context.total)))
