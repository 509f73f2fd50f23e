"""Pure functions that several methods share."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vlaprune.pruner import top
from vlaprune.trace import Layout, Rows, Trace


def share(count: int, sizes: Sequence[int]) -> list[int]:
    """Splits a budget of `count` tokens over cameras of `sizes` tokens in proportion, exactly; remainders to the first.

    >>> share(7, [4, 4])
    [4, 3]
    """
    total = sum(sizes)
    out: list[int] = []
    for i, size in enumerate(sizes):
        left, rest = count - sum(out), sum(sizes[i:])
        out.append(-(-left * size // rest) if rest else 0)
    assert sum(out) == min(count, total)
    return out


def voted(trace: Trace, layer: int, rows: Rows) -> Tensor:
    """[V] attention at `layer`, mean over heads and over those of `rows` read so far; KeyError where there are none."""
    there = Rows(0)
    for group in rows:
        there |= group if trace.has(layer, group) else Rows(0)
    return trace.visual(layer, there or rows).float().mean(dim=(0, 1))


def emitting(layout: Layout) -> Rows:
    """The prompt rows that emit the action: the action slots, or the last row where actions are decoded after it."""
    return Rows.ACTION if layout.action.start < layout.length else Rows.LAST


def cameras(layout: Layout, device: torch.device) -> Tensor:
    """[V] number of the camera each visual token belongs to."""
    return torch.cat([torch.full((len(v.tokens),), i, device=device) for i, v in enumerate(layout.views)])


def best(score: Tensor, layout: Layout, counts: Sequence[int]) -> Tensor:
    """[V] bool, true for the highest `counts[i]` scores [V] of each camera i."""
    mask = torch.zeros_like(score, dtype=torch.bool)
    for view, count in zip(layout.views, counts, strict=True):
        picks = top(score[view.tokens.start : view.tokens.stop], count) + view.start
        mask.index_fill_(0, picks, True)
    return mask


def spread(features: Tensor, count: int) -> Tensor:
    """[count] rows of features [n, d] by max-min cosine distance; begins with the most isolated row.

    A running distance vector over the [n, n] distances; three small steps per pick and no wait for the device.
    A taken row is at minus infinity, so equal or broken (NaN) features are never taken twice. Ties go to the low row.
    """
    unit = F.normalize(features.float(), dim=-1)
    distance = (1 - unit @ unit.T).nan_to_num(0.0)
    picks = [distance.fill_diagonal_(float("inf")).min(dim=0).values.argmax(0, keepdim=True)]
    near = distance.fill_diagonal_(float("-inf")).index_select(0, picks[0])[0]
    for _ in range(count - 1):
        picks.append(near.argmax(0, keepdim=True))
        near = torch.minimum(near, distance.index_select(0, picks[-1])[0])
    return torch.cat(picks)


def split(count: int, sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Splits `count` tokens over cameras of `sizes` tokens by positive `weights`; what one cannot take, others do.

    >>> split(461, [256, 256], [0.4, 0.6])
    [205, 256]
    """
    out = [0] * len(sizes)
    order = sorted(range(len(sizes)), key=lambda i: (sizes[i] / weights[i], i))  # whoever is full first comes first
    for place, i in enumerate(order):
        fair = (count - sum(out)) * weights[i] / sum(weights[j] for j in order[place:])
        out[i] = min(sizes[i], math.ceil(fair - 1e-9))
    return out


def between(what: str, value: float, low: float, high: float) -> None:
    """ValueError unless low <= value <= high."""
    if not low <= value <= high:
        raise ValueError(f"{what}={value}; use a number from {low:g} to {high:g}")


def ranking(score: Tensor) -> Tensor:
    """[n] indices, the highest score first; ties in order of index, NaN last."""
    worst = float("-inf")
    return score.float().nan_to_num(worst, float("inf"), worst).sort(descending=True, stable=True).indices


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
    """Each row of x [n, d] over its root mean square, in fp32: RMSNorm without a weight."""
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def row_winners(score: Tensor) -> Tensor:
    """[q] the highest column of each row of scores [q, n]; ties go to the low index, NaN never wins."""
    return score.detach().nan_to_num(float("-inf")).argmax(1)


def elected(score: Tensor, least: int) -> Tensor:
    """[k] distinct row winners of scores [q, n], ascending; filled up to `least` by the columns' highest scores."""
    winners = row_winners(score).unique()
    least = min(least, score.shape[1])
    if winners.shape[0] >= least:
        return winners
    return top(score.amax(0).index_fill(0, winners, float("inf")), least)


def multiplicity(score: Tensor, picks: Tensor) -> Tensor:
    """[k] how many rows of scores [q, n] each of the columns `picks` [k] wins; 1 for one that wins none."""
    return row_winners(score).bincount(minlength=score.shape[1])[picks].clamp(min=1)


def straight_through(score: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Winners [q] of scores [q, n] and their rows [q, d] of [n, d], with duplicates.

    Forward it is the gather, to the last bit; backward the scores get the gradient of softmax(score) @ rows.
    """
    winners, soft = row_winners(score), score.softmax(1)
    return winners, rows[winners] + ((soft - soft.detach()) @ rows.detach().float()).to(rows)


NOISES = ("uniform", "gumbel")


def noise(kind: str, like: Tensor, seed: int) -> Tensor:
    """Noise of one kind in the shape of `like`, drawn on the CPU, so that a GPU draws the same."""
    lot = torch.rand(like.shape, generator=torch.Generator().manual_seed(seed))
    return (lot if kind == "uniform" else -(-lot.clamp(min=1e-9).log()).log()).to(like)


def shared(score: Tensor, layout: Layout, count: int) -> Tensor:
    """[V] bool, the `count` highest scores [V], each camera having its proportional share of the count."""
    return best(score, layout, share(min(count, layout.total), [len(v.tokens) for v in layout.views]))


def patch_cosine(now: Tensor, before: Tensor) -> Tensor:
    """[V] cosine of the raw pixels of patches [V, p, p, 3] uint8; 1 for patches that are equal, black ones included.

    The sums are whole numbers, so a threshold cuts alike on every machine.
    """
    a, b = now.flatten(2).int(), before.flatten(2).int()
    dot, left, right = ((x * y).sum(2, dtype=torch.int32).sum(1).double() for x, y in ((a, b), (a, a), (b, b)))
    return (dot / (left * right).sqrt().clamp(min=1.0)).masked_fill((now == before).flatten(1).all(1), 1.0)


def still(now: Tensor, before: Tensor, threshold: float, layout: Layout, count: int) -> Tensor:
    """[V] bool, patches that did not change: cosine at or above `threshold`, at most the `count` most similar."""
    near = patch_cosine(now, before)
    return shared(near, layout, count) & (near >= threshold)


def grey_entropy(pixels: Tensor, levels: int) -> Tensor:
    """[V] entropy of the grey levels of patches [V, p, p, 3] uint8, over log2(levels): 0 if flat.

    Grey is ITU-R 601 luma in integers, so every machine counts the same histogram.
    """
    red, green, blue = pixels.int().unbind(-1)
    grey = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    bins = (grey * levels >> 8).flatten(1).long()
    counts = torch.zeros(bins.shape[0], levels, dtype=torch.float64, device=pixels.device)
    counts.scatter_add_(1, bins, torch.ones_like(bins, dtype=torch.float64))
    bits: Tensor = torch.special.entr(counts / bins.shape[1]).sum(1)
    return bits / math.log(levels)


def resolved(what: str, named: Sequence[int], layers: int) -> list[int]:
    """Layer numbers of 0 .. layers - 1; negative ones count from the end. ValueError for one that is not there."""
    wrong = [n for n in named if not -layers <= n < layers]
    if wrong or not named:
        raise ValueError(f"{what}={list(named)}, but the model has layers 0..{layers - 1}; name those, -1 is the last")
    return [n % layers for n in named]


def matched(features: Tensor, reference: Tensor, camera: Tensor | None = None) -> Tensor:
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


def smoothed(past: Sequence[Tensor], decay: float) -> Tensor:
    """[n] sum of scores [n], oldest first: decay^0 times the newest, decay^1 times the one before, and so on."""
    newest_first = torch.stack(tuple(reversed(past)))
    weights = decay ** torch.arange(len(past), dtype=newest_first.dtype, device=newest_first.device)
    return weights @ newest_first


def option(what: str, value: str, known: Iterable[str]) -> None:
    """ValueError unless `value` is one of `known`."""
    if value not in known:
        raise ValueError(f"{what}={value}; use one of {', '.join(known)}")


def patch_ssim(now: Tensor, before: Tensor) -> Tensor:
    """[V] structural similarity (Wang et al. 2004) of patches [V, p, p, 3]: one window each, mean over colours."""
    a, b = now.flatten(1, 2).double(), before.flatten(1, 2).double()
    left, right = a.mean(1), b.mean(1)
    spread_a, spread_b = a.var(1, correction=0), b.var(1, correction=0)
    joint = ((a - left[:, None]) * (b - right[:, None])).mean(1)
    small, large = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    light = (2 * left * right + small) / (left.square() + right.square() + small)
    return (light * (2 * joint + large) / (spread_a + spread_b + large)).mean(1)


# Of two frames, each (pixels [V, p, p, 3], visual tokens [V, d]): a number up to 1.
RESEMBLANCE: dict[str, Callable[..., Tensor]] = {
    "patches": lambda now, then: (patch_cosine(now[0], then[0]) >= 0.996).float().mean(),
    "ssim": lambda now, then: patch_ssim(now[0], then[0]).mean(),
    "embedding": lambda now, then: F.cosine_similarity(now[1].float().mean(0), then[1].float().mean(0), dim=0),
    "embedding_patches": lambda now, then: F.cosine_similarity(now[1].float(), then[1].float()).mean(),
}


def evenly(rest: Tensor, count: int) -> Tensor:
    """[count] of the rows `rest` [m], in even strides: number floor((i + 1/2) m / count)."""
    return rest[(2 * torch.arange(count, device=rest.device) + 1) * rest.shape[0] // (2 * max(count, 1))]


def lots(rest: Tensor, count: int, seed: int) -> Tensor:
    """[count] of the rows `rest` [m], drawn without replacement on the CPU, so that a GPU draws the same."""
    order = torch.randperm(rest.shape[0], generator=torch.Generator().manual_seed(seed))
    return rest[order[:count].to(rest.device)]


FILL: dict[str, Callable[..., Tensor]] = {  # `count` of the rows `rest` [m] of tokens [n, d]
    "stride": lambda rest, count, tokens, seed: evenly(rest, count),
    "random": lambda rest, count, tokens, seed: lots(rest, count, seed),
    "diverse": lambda rest, count, tokens, seed: rest[spread(tokens[rest], count)] if count else rest[:0],
}


def standing(score: Tensor, camera: Tensor) -> Tensor:
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


def crossing(alpha: float, low: int, high: int) -> tuple[int, int]:
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
    read = [trace.visual(n, Rows.TEXT).float().mean(0) for n in layers if trace.has(n, Rows.TEXT)]
    return torch.stack(read).mean(0) if read else None


def portions(layout: Layout, shares: Sequence[float]) -> list[int]:
    """Tokens that `shares` make of each camera, at least one; the last share stands for all further cameras."""
    each = [shares[min(i, len(shares) - 1)] for i in range(len(layout.views))]
    return [max(1, round(share * len(view.tokens))) for share, view in zip(each, layout.views, strict=True)]
