"""Uniform: an even stride through each camera's tokens. The control that spends nothing on choosing."""

from dataclasses import dataclass

import torch

from vlaprune.methods.common import share
from vlaprune.pruner import Budget, Info, Plan, Pruner, Selection, Site


@dataclass
class Uniform(Pruner):
    """layer: tokens go on entry to it. keep: fraction or number that go on, shared evenly by the cameras."""

    layer: int = 0
    keep: float = 0.25

    def __post_init__(self) -> None:
        """ValueError for what is no budget."""
        self.budget = Budget(self.keep)

    def plan(self, info: Info) -> Plan:
        """One site, no reads."""
        return Plan((self.layer,), budget={self.layer: self.budget})

    def select(self, site: Site) -> Selection:
        """Token number floor((i + 1/2) n / k) of each camera, in raster order."""
        picks: list[int] = []
        views = site.layout.views
        for view, k in zip(views, share(self.budget.count(site.total), [len(v.tokens) for v in views]), strict=True):
            picks += [view.start + (2 * i + 1) * len(view.tokens) // (2 * k) for i in range(k)]
        return Selection(torch.tensor(picks, device=site.alive.device))
