"""What methods read from the image patches behind the tokens: pure functions."""

import math
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from vlaprune.methods.choosing import shared
from vlaprune.trace import Layout


def patch_cosine(now: Tensor, before: Tensor) -> Tensor:
    """[V] cosine of the raw pixels of patches [V, p, p, 3] uint8; 1 for patches that are equal, black ones included.

    The sums are whole numbers, so a threshold cuts alike on every machine: 256 products are exact in fp32, and the
    sums of those in float64.
    """
    size = now[0].numel()
    chunks = (-1, size // 256, 256) if size % 256 == 0 else (-1, *now[0].flatten(1).shape)
    a, b = now.view(chunks).float(), before.view(chunks).float()
    dot, left, right = ((x * y).sum(2).double().sum(1) for x, y in ((a, b), (a, a), (b, b)))
    equal = (dot == left) & (dot == right)  # then the squared distance is 0
    return (dot / (left * right).sqrt().clamp(min=1.0)).masked_fill(equal, 1.0)


def still(now: Tensor, before: Tensor, threshold: float, layout: Layout, count: int) -> Tensor:
    """[V] bool, patches that did not change: cosine at or above `threshold`, at most the `count` most similar."""
    near = patch_cosine(now, before)
    return shared(near, layout, count) & (near >= threshold)


def grey_entropy(pixels: Tensor, levels: int) -> Tensor:
    """[V] entropy of the grey levels of patches [V, p, p, 3] uint8, over log2(levels): 0 if flat.

    Grey is ITU-R 601 luma in whole numbers below 2^24, exact in fp32, so every machine counts the same histogram.
    """
    red, green, blue = pixels.float().unbind(-1)
    grey = (19595 * red + 38470 * green + 7471 * blue + 32768).to(torch.int32) >> 16
    bins = (grey if levels == 256 else grey * levels >> 8).flatten(1).long()
    ones = torch.ones_like(bins, dtype=torch.int32)
    counts = torch.zeros(bins.shape[0], levels, dtype=torch.int32, device=pixels.device).scatter_add_(1, bins, ones)
    bits = _entropies(bins.shape[1], pixels.device).index_select(0, counts.flatten()).view(counts.shape).sum(1)
    return bits / math.log(levels)


@cache
def _entropies(pixels: int, device: torch.device) -> Tensor:
    """[pixels + 1] what a grey level that 0, 1, ... of `pixels` pixels have adds to their entropy."""
    return torch.special.entr(torch.arange(pixels + 1, dtype=torch.float64, device=device) / pixels)


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
