"""Scores and checks that several methods share: pure functions."""

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vlaprune.errors import UserError
from vlaprune.trace import Layout, QueryGroup, Trace


def mean_attention(trace: Trace, layer: int, rows: QueryGroup) -> Tensor:
    """[V] attention at `layer`, mean over heads and those of `rows` read so far; KeyError where there are none."""
    there = QueryGroup(0)
    for group in rows.groups:
        there |= group if trace.has(layer, group) else QueryGroup(0)
    return trace.received(layer, there or rows)


def action_group(layout: Layout) -> QueryGroup:
    """The prompt rows that emit the action: the action slots, or the last row where actions are decoded after it.

    OpenVLA's last row emits the first number and decoded rows the others: when the call is over, ACTION means all of
    them, so that a score that is read then would be another one than in the prompt pass.
    """
    return QueryGroup.ACTION if layout.action.stop <= layout.length else QueryGroup.LAST


def check_rows(method: str, rows: QueryGroup, layout: Layout) -> None:
    """Raises UserError where a method is to read action rows in the prompt of a model that has none there."""
    if rows is QueryGroup.ACTION and layout.action.start >= layout.length:
        raise UserError(f"{method} rows=action: this model has no action rows in its prompt; use rows=last")


def cameras(layout: Layout, device: torch.device) -> Tensor:
    """[V] number of the camera each visual token belongs to."""
    return torch.cat([torch.full((len(v.tokens),), i, device=device) for i, v in enumerate(layout.views)])


def check_range(what: str, value: float, low: float, high: float) -> None:
    """Raises UserError unless low <= value <= high."""
    if not low <= value <= high:
        raise UserError(f"{what}={value}; use a number from {low:g} to {high:g}")


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """[n, m] cosines, in fp32, of the rows of a [n, d] and b [m, d]."""
    return F.normalize(a.float(), dim=-1) @ F.normalize(b.float(), dim=-1).T


def group_mean(rows: Tensor, label: Tensor, count: int) -> Tensor:
    """[count, d] mean, in fp32, of the rows [n, d] under each label [n]; zero for a label without rows.

    A product, not a scatter: on a GPU a scatter adds in no fixed order.
    """
    member = (label == torch.arange(count, device=label.device)[:, None]).float()
    return member @ rows.float() / member.sum(1, keepdim=True).clamp(min=1)


def rms(x: Tensor) -> Tensor:
    """Each row of x [n, d] divided by its root mean square, in fp32: RMSNorm without a weight."""
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def resolve_layers(what: str, named: Sequence[int], layers: int) -> list[int]:
    """Layer numbers in 0 .. layers - 1; negative ones count from the end. UserError for a layer that does not exist."""
    wrong = [n for n in named if not -layers <= n < layers]
    if wrong or not named:
        raise UserError(f"{what}={list(named)}, but the model has layers 0..{layers - 1}; name those, -1 is the last")
    return [n % layers for n in named]


def nearest_rows(features: Tensor, reference: Tensor, camera: Tensor | None = None) -> Tensor:
    """[n] the most similar row of unit rows `reference` [m, d] for each of unit rows `features` [n, d]; ties go low.

    camera  [n] (then n is m): a row matches rows of its own camera only
    """
    similar = features @ reference.T
    if camera is not None:
        similar = similar.masked_fill(camera[:, None] != camera[None, :], float("-inf"))
    return similar.argmax(1)


def scaled(score: Tensor, how: str) -> Tensor:
    """Scores [n] as they are (`none`), with sum 1 (`sum1`) or from 0 to 1 (`minmax`)."""
    if how == "sum1":
        return score / score.sum().clamp_min(1e-30)
    if how == "minmax":
        return (score - score.min()) / (score.max() - score.min()).clamp_min(1e-30)
    return score


def decayed_sum(past: Sequence[Tensor], decay: float) -> Tensor:
    """[n] sum of scores [n], oldest first: decay^0 times the newest, decay^1 times the one before, and so on."""
    total = past[0]
    for score in list(past)[1:]:
        total = torch.add(score, total, alpha=decay)
    return total


def check_option(what: str, value: str, known: Iterable[str]) -> None:
    """Raises UserError unless `value` is one of `known`."""
    if value not in known:
        raise UserError(f"{what}={value}; use one of {', '.join(known)}")


def camera_rank(score: Tensor, camera: Tensor) -> Tensor:
    """[n] from 10 for the best of its camera down to 0.1 for the worst, evenly; equal scores stand alike, NaN last."""
    score = score.nan_to_num(nan=float("-inf"))
    same = camera[:, None] == camera[None, :]
    above = ((score[None, :] > score[:, None]) & same).sum(1)
    return 10 - 9.9 * above / (same.sum(1) - 1).clamp_min(1)


def attention_entropy(probs: Tensor) -> Tensor:
    """Entropy of the head-mean attention [H, q, P] of each row, mean over the rows."""
    weights = probs.float().mean(0)
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-10)
    rows: Tensor = torch.special.entr(weights).sum(-1)
    return rows.mean().nan_to_num(0.0)


def focus(score: Tensor, norm: str) -> Tensor:
    """[V] 1 less the entropy over the rows of scores [W, V], W > 1, as a share of log W: 1 if one row has it all.

    norm  `softmax` over the rows, whose values differ so little that they need float64, or `renorm`, by their sum
    """
    score = score.double()
    part = score.softmax(0) if norm == "softmax" else score / score.sum(0)
    spread_out: Tensor = torch.special.entr(part).sum(0)
    return (1 - spread_out / math.log(score.shape[0])).nan_to_num(0.0)


def blend_quotas(alpha: float, low: int, high: int) -> tuple[int, int]:
    """Two quotas that change places: (high, low) at alpha 0, (low, high) at alpha 1, whole numbers between."""
    return math.floor((1 - alpha) * high + alpha * low + 1e-9), math.floor((1 - alpha) * low + alpha * high + 1e-9)


def sharpness(entropies: Tensor, growth: float) -> list[float]:
    """1 for the layer of lowest attention entropy [L], 0 for the highest; of a rise only the part `growth` counts."""
    low, high = entropies.min(), entropies.max()
    out = (1 - (entropies - low) / (high - low).clamp(min=1e-10)).tolist()
    for i in range(1, len(out)):
        rise = out[i] - out[i - 1]
        out[i] = out[i - 1] + growth * rise if rise > 0 else out[i]
    return out


def text_scores(trace: Trace, layers: Iterable[int]) -> Tensor | None:
    """[W, V] attention of each text row, mean over `layers` and heads; None where there is no instruction."""
    read = [n for n in layers if trace.has(n, QueryGroup.TEXT)]
    return trace.per_row(read, QueryGroup.TEXT) if read else None
