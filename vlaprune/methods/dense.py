"""Dense: no pruning. The baseline of every comparison."""

from dataclasses import dataclass

from vlaprune.pruner import Info, Plan, Pruner, Selection, Site


@dataclass
class Dense(Pruner):
    """Keeps every token and reads nothing."""

    def plan(self, info: Info) -> Plan:
        """Acts nowhere."""
        return Plan()

    def select(self, site: Site) -> Selection | None:
        """Never asked."""
        return None
