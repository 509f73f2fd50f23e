"""Functions of the image patches behind the tokens: similarity, texture, edges. All are pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vlaprune.methods.shared.selecting import top_mask
from vlaprune.trace import Layout, View


class Patches(NamedTuple):
    """The patches [V, p, p, 3] of one frame, made ready to be compared with other frames more than once.

    values  [V, c, m] pixel values, fp32, in pieces of m numbers, short enough that sums of m products are exact
    square  [V] sum of the squared pixel values of each patch
    """

    values: Tensor
    square: Tensor

    @classmethod
    def of(cls, pixels: Tensor) -> Patches:
        """Patches of [V, p, p, 3] uint8."""
        values = pixels.reshape(len(pixels), -1, _piece(pixels[0].numel())).float()
        return cls(values, _dot(values, values))

    def alike(self, other: Patches) -> bool:
        """Whether both have the same number of patches and pixels."""
        return self.values.shape == other.values.shape


@cache
def _piece(size: int) -> int:
    """The largest divisor m of `size` such that fp32 holds every sum of m products of two pixel values exactly."""
    return max(m for m in range(1, 2**24 // 255**2 + 1) if size % m == 0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(2).sum(1, dtype=torch.float64)


def patch_cosine(now: Patches, before: Patches) -> Tensor:
    """[V] cosine of the raw pixels of patches; 1 for patches that are equal, black ones included.

    The sums are whole numbers, so a threshold cuts alike on every machine: those of a piece are exact in fp32, and the
    sums of these in float64.
    """
    dot, left, right = _dot(now.values, before.values), now.square, before.square
    equal = (dot == left) & (dot == right)  # then the squared distance is 0
    return (dot / (left * right).sqrt().clamp(min=1.0)).masked_fill(equal, 1.0)


def grey(pixels: Tensor) -> Tensor:
    """[V, m] ITU-R 601 luma, 0 to 255 in fp32, of the pixels of patches [V, p, p, 3] uint8."""
    flat = pixels.flatten(1, 2).float()
    return flat @ flat.new_tensor([0.299, 0.587, 0.114])


def static_patches(now: Patches, before: Patches, threshold: float, layout: Layout, count: int) -> Tensor:
    """[V] bool, patches that did not change: cosine at or above `threshold`, at most the `count` most similar."""
    near = patch_cosine(now, before)
    return top_mask(near, layout, count) & (near >= threshold)


def grey_product(patches: Patches) -> tuple[int, int, int]:
    """Rows, columns and depth of the product by which `grey_entropy` makes pixels grey, some neighbours at a time."""
    side = math.gcd(patches.values[0].numel() // 3, 16)
    return patches.values.numel() // (3 * side), side, 3 * side


def grey_entropy(patches: Patches, levels: int) -> Tensor:
    """[V] entropy of the grey levels of patches, over log2(levels): 0 if flat.

    Grey is ITU-R 601 luma in 65536ths, exact in fp32, so every machine counts the same histogram.
    """
    count, device = patches.values[0].numel() // 3, patches.values.device
    _, side, depth = grey_product(patches)
    grey = (patches.values.view(-1, depth) @ _luma(side, device)).add_(0.5).long().view(-1, count)
    bins = grey if levels == 256 else grey * levels >> 8
    ones = torch.ones_like(bins, dtype=torch.int32)
    counts = torch.zeros(bins.shape[0], levels, dtype=torch.int32, device=device).scatter_add_(1, bins, ones)
    bits = _entropies(count, device).index_select(0, counts.flatten()).view(counts.shape).sum(1)
    return bits / math.log(levels)


@cache
def _luma(pixels: int, device: torch.device) -> Tensor:
    """[3 pixels, pixels] matrix from red, green, blue of neighbouring pixels to their grey."""
    weights = torch.tensor([19595.0, 38470.0, 7471.0], device=device) / 65536
    return torch.kron(torch.eye(pixels, device=device), weights[:, None])


@cache
def _entropies(pixels: int, device: torch.device) -> Tensor:
    """[pixels + 1] the entropy term of a grey level that 0, 1, ... of `pixels` pixels have."""
    return torch.special.entr(torch.arange(pixels + 1, dtype=torch.float64, device=device) / pixels)


def grey_levels(image: Tensor) -> Tensor:
    """[h, w] whole grey levels, 0 to 255 in fp32, of an image [h, w, 3] uint8, as OpenCV's COLOR_RGB2GRAY rounds."""
    red, green, blue = image.long().unbind(-1)  # no matrix product: CUDA has none for integers
    return ((9798 * red + 19235 * green + 3735 * blue + 16384) >> 15).float()


def sobel(level: Tensor) -> Tensor:
    """[2, h, w] slopes of grey levels [h, w] to the right and downwards, by 3 x 3 Sobel masks; the borders repeat."""
    edge = F.pad(level[None, None], (1, 1, 1, 1), mode="replicate")
    mask = edge.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    slopes: Tensor = F.conv2d(edge, torch.stack((mask, mask.T))[:, None])[0]
    return slopes


def sobel_product(plane: Tensor) -> tuple[int, int, int]:
    """Rows, columns and depth of the product that `sobel` is on a plane [h, w, ...]: two masks of 3 x 3 a pixel."""
    return plane.shape[0] * plane.shape[1], 2, 9


def canny(image: Tensor, low: float = 100, high: float = 200) -> Tensor:
    """[h, w] bool edges of an image [h, w, 3] uint8: Canny 1986 with 3 x 3 Sobel masks, gradients by L1, no blur.

    Grey is rounded and the borders repeat, as in OpenCV's `Canny(cvtColor(image, COLOR_RGB2GRAY), low, high)`.
    """
    dx, dy = (slope.long() for slope in sobel(grey_levels(image)))
    x, y = dx.abs(), dy.abs()
    size = x + y
    around = F.pad(size, (1, 1, 1, 1))
    h, w = size.shape

    def at(down: int, right: int) -> Tensor:
        return around[1 + down : 1 + down + h, 1 + right : 1 + right + w]

    tangent = round(0.4142135623730950488 * 2**15)  # tangent of 22.5 degrees
    flat, steep = (y << 15) < x * tangent, (y << 15) > x * (tangent + 2**16)
    falling = (dx ^ dy) >= 0  # the diagonal from the upper left to the lower right
    peak = torch.where(
        flat,
        (size > at(0, -1)) & (size >= at(0, 1)),
        torch.where(
            steep,
            (size > at(-1, 0)) & (size >= at(1, 0)),
            torch.where(
                falling,
                (size > at(-1, -1)) & (size > at(1, 1)),
                (size > at(-1, 1)) & (size > at(1, -1)),
            ),
        ),
    )
    weak = peak & (size > low)
    return _connected(weak & (size > high), weak)


def by_patch(plane: Tensor, view: View) -> Tensor:
    """[n, m] the m values of a plane [h, w] behind each of the n tokens of its camera, as Trace.pixels cuts images."""
    h, w = plane.shape[0] // view.height, plane.shape[1] // view.width
    plane = plane[: h * view.height, : w * view.width]
    return plane.reshape(view.height, h, view.width, w).transpose(1, 2).flatten(2).flatten(0, 1)


def edge_patches(images: Sequence[Tensor], layout: Layout) -> Tensor:
    """[V] bool, patches that hold a pixel of a Canny edge; one image [h, w, 3] uint8 per view."""
    views = zip(layout.views, images, strict=True)
    return torch.cat([by_patch(canny(image), view).any(1) for view, image in views])


def _connected(seeds: Tensor, among: Tensor) -> Tensor:
    """[h, w] bool, the pixels of `among` that a path within it joins to one of `seeds`, diagonals included."""
    reached, before = seeds, torch.zeros_like(seeds)
    while not torch.equal(reached, before):
        before = reached
        for _ in range(16):  # reading the result waits for the device
            wide: Tensor = F.max_pool2d(reached[None].float(), 3, 1, 1)[0] > 0
            reached = wide & among
    return reached


def patch_ssim(now: Tensor, before: Tensor) -> Tensor:
    """[V] structural similarity (Wang et al. 2004) of patches [V, p, p, 3]: one window each, mean over colours."""
    a, b = now.flatten(1, 2).double(), before.flatten(1, 2).double()
    left, right = a.mean(1), b.mean(1)
    spread_a, spread_b = a.var(1, correction=0), b.var(1, correction=0)
    joint = ((a - left[:, None]) * (b - right[:, None])).mean(1)
    small, large = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    light = (2 * left * right + small) / (left.square() + right.square() + small)
    return (light * (2 * joint + large) / (spread_a + spread_b + large)).mean(1)


class Resemblance(NamedTuple):
    """A measure of how alike two frames are, camera by camera.

    seen   what is kept of a frame, from its pixels [V, p, p, 3], visual tokens [V, d] and layout
    alike  [C] similarity, at most 1, of what was kept of two frames of one layout
    """

    seen: Callable[[Tensor, Tensor, Layout], Any]
    alike: Callable[[Any, Any, Layout], Tensor]


def _by_camera(rows: Tensor, layout: Layout) -> Tensor:
    """[C, ...] mean of the rows [V, ...] of each camera."""
    return torch.stack([own.mean(0) for own in rows.split(layout.sizes)])


RESEMBLANCE = {
    "patches": Resemblance(
        lambda pixels, tokens, layout: Patches.of(pixels),
        lambda a, b, layout: _by_camera((patch_cosine(a, b) >= 0.996).float(), layout),
    ),
    "ssim": Resemblance(
        lambda pixels, tokens, layout: pixels, lambda a, b, layout: _by_camera(patch_ssim(a, b), layout)
    ),
    "embedding": Resemblance(
        lambda pixels, tokens, layout: _by_camera(tokens.float(), layout),
        lambda a, b, layout: F.cosine_similarity(a, b),
    ),
    "embedding_patches": Resemblance(
        # a copy: a captured graph writes over its tokens in the next call
        lambda pixels, tokens, layout: tokens.to(torch.float32, copy=True),
        lambda a, b, layout: _by_camera(F.cosine_similarity(a, b), layout),
    ),
}
