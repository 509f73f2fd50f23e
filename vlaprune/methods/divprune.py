"""DivPrune: keep the most diverse visual tokens, before the language model and without looking at the text.

Alvar et al., "DivPrune", arXiv:2503.02175; authors' code vbdi/divprune, `LLaVA/llava/model/llava_arch.py`.

Differences: chosen tokens are masked in the max-min step (the authors' are not, so a duplicate feature can be picked
twice); positions stay as they were (LLaVA's version renumbers them; the ports to VLAs do not).
"""

from dataclasses import dataclass

from vlaprune.methods.shared.selecting import farthest_points
from vlaprune.pruner import Budget, ModelInfo, Plan, PruneContext, Pruner, Selection


@dataclass
class DivPrune(Pruner):
    """Keeps the tokens of largest max-min cosine distance between projected features.

    keep: fraction or number that go on, over all cameras. The first pick is the token whose nearest neighbour is
    farthest; then always the token farthest from all chosen ones.
    """

    keep: float = 0.25

    def __post_init__(self) -> None:
        """Raises UserError if `keep` is no budget."""
        self.budget = Budget(self.keep)

    def plan(self, info: ModelInfo) -> Plan:
        """Acts before layer 0; reads no attention."""
        return Plan((0,), budget={0: self.budget})

    def select(self, context: PruneContext) -> Selection:
        """Keeps the diverse subset."""
        context.charge(context.total, *context.visual.shape)
        return Selection(context.run(farthest_points, context.visual, self.budget.count(context.total)))
