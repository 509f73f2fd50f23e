"""A method from outside."""

from dataclasses import dataclass

import torch

from vlaprune.pruner import Budget, Info, Plan, Pruner, Selection, Site


@dataclass
class Mine(Pruner):
    """Keeps the first tokens."""

    keep: float = 0.5

    def plan(self, info: Info) -> Plan:
        return Plan((0,), budget={0: Budget(self.keep)})

    def select(self, site: Site) -> Selection:
        return Selection(torch.arange(Budget(self.keep).count(site.total)))
