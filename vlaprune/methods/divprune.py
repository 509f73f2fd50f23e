"""DivPrune: keep the most diverse visual tokens, before the language model and without looking at the text.

Alvar et al., "DivPrune", arXiv:2503.02175; authors' code vbdi/divprune, `LLaVA/llava/model/llava_arch.py`.

Differences: chosen tokens are masked in the max-min step (the authors' are not, so a duplicate feature can be picked
twice); positions stay as they were (LLaVA's version renumbers them; the ports to VLAs do not); `proportional` is ours,
off.
"""

from dataclasses import dataclass

from vlaprune.methods.shared.selecting import farthest_points, stands_for
from vlaprune.pruner import Budget, ModelInfo, Plan, PruneContext, Pruner, Selection


@dataclass
class DivPrune(Pruner):
    """Keeps the tokens of largest max-min cosine distance between projected features.

    The first pick is the token whose nearest neighbour is farthest; then always the token farthest from all chosen.

    keep          fraction or number that go on, over all cameras
    proportional  a kept token's key counts for as many tokens as there are for each that is kept (as in ToMe)
    """

    keep: float = 0.25
    proportional: bool = False

    def __post_init__(self) -> None:
        """Raises UserError if `keep` is no budget."""
        self.budget = Budget(self.keep)

    def plan(self, info: ModelInfo) -> Plan:
        """Acts before layer 0; reads no attention."""
        return Plan((0,), budget={0: self.budget})

    def select(self, context: PruneContext) -> Selection:
        """Keeps the diverse subset."""
        context.charge(context.total, *context.visual.shape)
        picks = context.run(farthest_points, context.visual, self.budget.count(context.total))
        return Selection(picks, multiplicity=stands_for(picks, context.total) if self.proportional else None)
