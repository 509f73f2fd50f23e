"""A method from outside."""

from dataclasses import dataclass

import torch

from vlaprune.pruner import Budget, ModelInfo, Plan, PruneContext, Pruner, Selection


@dataclass
class Mine(Pruner):
    """Keeps the first tokens."""

    keep: float = 0.5

    def plan(self, info: ModelInfo) -> Plan:
        return Plan((0,), budget={0: Budget(self.keep)})

    def select(self, context: PruneContext) -> Selection:
        return Selection(torch.arange(Budget(self.keep).count(context.total)))
