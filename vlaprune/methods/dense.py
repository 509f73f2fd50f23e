"""Dense: no pruning. The baseline of every comparison."""

from dataclasses import dataclass

from vlaprune.pruner import ModelInfo, Plan, PruneContext, Pruner, Selection


@dataclass
class Dense(Pruner):
    """Keeps every token and reads nothing."""

    def plan(self, info: ModelInfo) -> Plan:
        """An empty plan: acts before no layer."""
        return Plan()

    def select(self, context: PruneContext) -> Selection | None:
        """None: keeps every token. Never called, since the plan names no layer."""
        return None
