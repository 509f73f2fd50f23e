"""Budgets over cameras and ways to choose tokens that several methods share: pure functions."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vlaprune.pruner import ranking, top
from vlaprune.trace import Layout


def by_camera(rows: Tensor, layout: Layout) -> Tensor:
    """Groups rows [V, ...] by camera: [C, n, ...]; short cameras are padded with zeros."""
    sizes = layout.sizes
    return rows.unflatten(0, (len(sizes), -1)) if len(set(sizes)) == 1 else pad_sequence(rows.split(sizes), True)


def split_budget(count: int, sizes: Sequence[int]) -> list[int]:
    """Splits a budget of `count` tokens over cameras of `sizes` tokens in proportion, exactly; remainders to the first.

    >>> split_budget(7, [4, 4])
    [4, 3]
    """
    total = sum(sizes)
    out: list[int] = []
    for i, size in enumerate(sizes):
        left, rest = count - sum(out), sum(sizes[i:])
        out.append(-(-left * size // rest) if rest else 0)
    assert sum(out) == min(count, total)
    return out


def per_camera_topk(score: Tensor, layout: Layout, counts: Sequence[int]) -> Tensor:
    """[..., V] bool, true for the highest `counts[i]` of scores [..., V] of camera i; ties go low, NaN last."""
    mask = torch.zeros_like(score, dtype=torch.bool)
    if len(set(layout.sizes)) == len(set(counts)) == 1:  # one sort for all cameras
        grid = (*score.shape[:-1], len(layout.views), -1)
        mask.view(grid).scatter_(-1, ranking(score.reshape(grid))[..., : counts[0]], True)
        return mask
    for view, count in zip(layout.views, counts, strict=True):
        own = slice(view.tokens.start, view.tokens.stop)
        mask[..., own].scatter_(-1, ranking(score[..., own])[..., :count], True)
    return mask


def farthest_points(features: Tensor, count: int) -> Tensor:
    """[count] rows of features [n, d] by max-min cosine distance, the most isolated first.

    One group of `farthest_points_within`, of which any row may be taken.
    """
    everywhere = torch.ones((1, features.shape[0]), dtype=torch.bool, device=features.device)
    return farthest_points_within(features[None], count, everywhere)[0]


def farthest_points_within(features: Tensor, count: int, among: Tensor) -> Tensor:
    """[C, count] rows of features [C, n, d], in each of C groups, by max-min cosine distance; the most isolated first.

    among  [C, n] bool, the rows that may be taken; once they are used up, row 0 is named

    A running vector of similarity to what is taken, over the [n, n] cosines; three small steps per pick and no wait
    for the device. A taken row is at infinity, so equal or broken (NaN) features are never taken twice. Ties go to the
    low row. The cosines are made symmetric, because two rows that are nearest to each other are equally isolated and
    rounding must not decide between them.
    """
    unit = F.normalize(features.float(), dim=-1)
    near = (unit @ unit.mT).nan_to_num_(1.0)
    near = torch.maximum(near, near.mT)
    itself, absent = near.diagonal(dim1=1, dim2=2), ~among
    itself.fill_(float("-inf"))
    picks = [near.masked_fill(absent[:, None], float("-inf")).amax(-1).masked_fill_(absent, float("inf")).argmin(-1)]
    itself.fill_(float("inf"))
    group = torch.arange(near.shape[0], device=near.device)
    most = near[group, picks[0]].masked_fill_(absent, float("inf"))
    for _ in range(count - 1):
        picks.append(most.argmin(-1))
        torch.maximum(most, near[group, picks[-1]], out=most)
    return torch.stack(picks, -1)


def split_by_weights(count: int, sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Splits `count` tokens over cameras of `sizes` tokens by positive `weights`; what one cannot take, others do.

    >>> split_by_weights(461, [256, 256], [0.4, 0.6])
    [205, 256]
    """
    out = [0] * len(sizes)
    order = sorted(range(len(sizes)), key=lambda i: (sizes[i] / weights[i], i))  # first the camera that is full first
    for place, i in enumerate(order):
        fair = (count - sum(out)) * weights[i] / sum(weights[j] for j in order[place:])
        out[i] = min(sizes[i], math.ceil(fair - 1e-9))
    return out


def row_winners(score: Tensor) -> Tensor:
    """[q] the highest column of each row of scores [q, n]; ties go to the low index, NaN never wins."""
    return score.detach().nan_to_num(float("-inf")).argmax(1)


def distinct_winners(score: Tensor, least: int) -> Tensor:
    """[k] distinct row winners of scores [q, n], ascending; filled up to `least` by the columns' highest scores."""
    winners = row_winners(score).unique()
    least = min(least, score.shape[1])
    if winners.shape[0] >= least:
        return winners
    return top(score.amax(0).index_fill(0, winners, float("inf")), least)


def multiplicity(score: Tensor, picks: Tensor) -> Tensor:
    """[k] how many rows of scores [q, n] each of the columns `picks` [k] wins; 1 for one that wins none."""
    return row_winners(score).bincount(minlength=score.shape[1])[picks].clamp(min=1)


def stands_for(picks: Tensor, total: int) -> Tensor:
    """[k] multiplicities with which k picks count for `total` tokens, each for as many: total / k."""
    return torch.full_like(picks, total / max(picks.shape[0], 1), dtype=torch.float32)


def straight_through(score: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Winners [q] of scores [q, n] and their rows [q, d] of [n, d], with duplicates.

    Forward it is the gather, to the last bit; backward the scores get the gradient of softmax(score) @ rows.
    """
    winners, soft = row_winners(score), score.softmax(1)
    return winners, rows[winners] + ((soft - soft.detach()) @ rows.detach().float()).to(rows)


NOISES = ("uniform", "gumbel")


def noise(kind: str, like: Tensor, seed: int) -> Tensor:
    """Noise of one kind in the shape of `like`, drawn on the CPU, so that a GPU draws the same."""
    even = torch.rand(like.shape, generator=torch.Generator().manual_seed(seed))
    return (even if kind == "uniform" else -(-even.clamp(min=1e-9).log()).log()).to(like)


def top_mask(score: Tensor, layout: Layout, count: int) -> Tensor:
    """[..., V] bool, the `count` highest of scores [..., V], each camera having its proportional share of the count."""
    return per_camera_topk(score, layout, split_budget(min(count, layout.total), layout.sizes))


def even_strides(rest: Tensor, count: int) -> Tensor:
    """[count] of the rows `rest` [m], in even strides: number floor((i + 1/2) m / count)."""
    return rest[(2 * torch.arange(count, device=rest.device) + 1) * rest.shape[0] // (2 * max(count, 1))]


def split_mask(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of the rows where a mask [n] is False, and of those where it is True, ascending; the host waits once."""
    count, order = mask.shape[0] - int(mask.sum()), mask.to(torch.uint8).sort(stable=True).indices
    return order[:count], order[count:]


def random_subset(rest: Tensor, count: int, seed: int) -> Tensor:
    """[count] of the rows `rest` [m], drawn without replacement on the CPU, so that a GPU draws the same."""
    order = torch.randperm(rest.shape[0], generator=torch.Generator().manual_seed(seed))
    return rest[order[:count].to(rest.device)]


def random_mask(among: Tensor, share: float, seed: int) -> Tensor:
    """[n] bool, floor(share m) of the m rows that `among` [n] names, drawn without replacement on the CPU."""
    rows = among.nonzero()[:, 0]
    picks = random_subset(rows, math.floor(share * rows.shape[0] + 1e-9), seed)
    return torch.zeros_like(among).index_fill(0, picks, True)


FILL: dict[str, Callable[..., Tensor]] = {  # `count` of the rows `rest` [m] of tokens [n, d]
    "stride": lambda rest, count, tokens, seed: even_strides(rest, count),
    "random": lambda rest, count, tokens, seed: random_subset(rest, count, seed),
    "diverse": lambda rest, count, tokens, seed: rest[farthest_points(tokens[rest], count)] if count else rest[:0],
}


def camera_counts(layout: Layout, shares: Sequence[float]) -> list[int]:
    """Tokens that `shares` make of each camera, at least one; the last share stands for all further cameras."""
    each = [shares[min(i, len(shares) - 1)] for i in range(len(layout.views))]
    return [max(1, round(share * len(view.tokens))) for share, view in zip(each, layout.views, strict=True)]
