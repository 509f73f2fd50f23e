"""Rank agreement of neighbouring layers: Kendall's tau-b of their attention to the visual tokens, for TIES."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlaprune.errors import UserError
from vlaprune.methods.shared.scoring import action_group, check_option, check_rows
from vlaprune.pruner import Budget, ModelInfo, top
from vlaprune.trace import Layout, QueryGroup, Trace

ROWS = {"last": QueryGroup.LAST, "text": QueryGroup.TEXT, "action": QueryGroup.ACTION}
OPTIONS = {
    "rows": ("auto", *ROWS),
    "heads": ("mean", "max"),
    "tokens": ("topk_ref", "all", "topk_fixed", "topk_union", "topk_union_tied"),
}


@dataclass(frozen=True)
class Estimator:
    """How tau is measured; the fields are options of TIES. Values of different estimators do not compare."""

    keep: float = 0.21875
    rows: str = "auto"
    heads: str = "mean"
    tokens: str = "topk_ref"
    layers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        """Raises UserError for an unknown option or a range without a pair of layers."""
        Budget(self.keep)
        for name, allowed in OPTIONS.items():
            check_option(f"ties {name}", getattr(self, name), allowed)
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))  # from a YAML list
            if len(self.layers) != 2 or not 0 <= self.layers[0] < self.layers[1]:
                raise UserError(f"ties layers={self.layers}; use [first, last], 0 <= first < last, or null for all")

    def span(self, info: ModelInfo) -> range:
        """The layers that are compared. UserError if the model does not have them, or has only one."""
        first, last = self.layers or (0, info.num_layers - 1)
        if not first < last < info.num_layers:
            raise UserError(
                f"ties compares layers {first}..{last}, but {info.name} has layers 0..{info.num_layers - 1}"
            )
        return range(first, last + 1)

    def group(self, layout: Layout) -> QueryGroup:
        """The query rows; `auto` are the rows of the prompt pass that emit the action."""
        rows = ROWS.get(self.rows, action_group(layout))
        check_rows("ties", rows, layout)
        return rows

    def scores(self, trace: Trace, layers: Sequence[int]) -> Tensor:
        """[L, V] attention on the visual tokens at some layers, mean over rows, mean or maximum over heads."""
        heads = trace.per_head(layers, self.group(trace.layout))
        return heads.mean(1) if self.heads == "mean" else heads.amax(1)

    def tau(self, trace: Trace, layers: Sequence[int]) -> float:
        """Mean tau-b over neighbouring layers, read before any token is dropped; NaN where there are only ties."""
        scores = self.scores(trace, layers)
        x, y = neighbours(scores, Budget(self.keep).count(scores.shape[1]), self.tokens)
        return float(tau_b(x, y).nanmean())


def neighbours(scores: Tensor, count: int, tokens: str) -> tuple[Tensor, Tensor]:
    """Scores [L, V] of each layer and of the next, both [L - 1, n], on the tokens compared; NaN: token left out."""
    x, y = scores[:-1], scores[1:]
    if tokens == "all":
        return x, y
    if tokens == "topk_fixed":
        chosen = top(scores.mean(0), count)
        return x[:, chosen], y[:, chosen]
    ranked = top(scores, count)
    if tokens == "topk_ref":
        return x.gather(1, ranked[:-1]), y.gather(1, ranked[:-1])
    member = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, ranked, True)
    if tokens == "topk_union_tied":
        x, y = x.where(member[:-1], -torch.inf), y.where(member[1:], -torch.inf)
    either = member[:-1] | member[1:]
    return x.where(either, torch.nan), y.where(either, torch.nan)


def tau_b(x: Tensor, y: Tensor) -> Tensor:
    """Kendall's tau-b of x and y [..., n] along the last axis; places with a NaN are left out, NaN where all tie."""
    known = ~(x.isnan() | y.isnan())
    a, b = x.where(known, torch.nan), y.where(known, torch.nan)
    above, over = a[..., :, None] > a[..., None, :], b[..., :, None] > b[..., None, :]
    pairs = (above & over, above & over.mT, above, over)  # concordant, discordant, apart in x, apart in y
    agree, against, left, right = (p.sum((-2, -1)).double() for p in pairs)
    return (agree - against) / (left * right).sqrt()
