"""Dense: no pruning. The baseline of every comparison."""

from dataclasses import dataclass

from vlaprune.pruner import ModelInfo, Plan, PruneContext, Pruner, Selection


@dataclass
class Dense(Pruner):
    """Keeps every token and reads nothing."""

    def plan(self, info: ModelInfo) -> Plan:
        """Acts nowhere."""
        return Plan()

    def select(self, context: PruneContext) -> Selection | None:
        """Never asked."""
        return None
