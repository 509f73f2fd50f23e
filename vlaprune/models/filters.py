"""Filters that resize along one axis: the weights [out, size] float64 of every output pixel on the input pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd

import numpy as np

CROP = 0.9  # area of the centre crop: training with random crops saw nine tenths of an image
BITS = 22  # binary places of Pillow's weights, which are whole numbers


def lanczos(size: int, out: int, margin: int = 0) -> np.ndarray:
    """[out - 2 * margin, size]: the pixels that a kernel of radius 3 reaches, of sum 1; the margins have no outputs."""
    scale = size / out
    centre = (np.arange(margin, out - margin) + 0.5) * scale - 0.5
    u = (np.arange(size)[None] - centre[:, None]) / max(scale, 1.0)
    weights = np.where(np.abs(u) < 3, np.sinc(u) * np.sinc(u / 3), 0.0)
    return weights / weights.sum(1, keepdims=True)


def margin(size: int, area: float = CROP) -> int:
    """Pixels at each edge of `size` that the crop never reads."""
    return int((1 - area**0.5) / 2 * (size - 1))


def crop(size: int, area: float = CROP) -> np.ndarray:
    """[size, size - margins]: bilinear weights of outputs spread evenly over the middle sqrt(area).

    Rows and columns together scale by 255.5 / 255: TensorFlow divides levels by 255, and multiplies by 255.5 after.
    """
    edge = margin(size, area)
    at = np.linspace((1 - area**0.5) / 2, (1 + area**0.5) / 2, size) * (size - 1) - edge
    low = np.floor(at).astype(int)
    weights = np.zeros((size, size - 2 * edge))
    weights[np.arange(size), low] = 1 - (at - low)
    weights[np.arange(size), np.minimum(low + 1, weights.shape[1] - 1)] += at - low
    return weights * (255.5 / 255) ** 0.5


def area(size: int, out: int) -> np.ndarray:
    """How much of each input pixel an output pixel covers, in units of which both are whole numbers (`units`).

    So sums are exact, and a mean half way between two levels is rounded to the even one on every machine.
    """
    wide, narrow = units(size, out)
    edges = np.arange(out + 1) * wide
    starts = np.arange(size) * narrow
    overlap = np.minimum(edges[1:, None], starts + narrow) - np.maximum(edges[:-1, None], starts)
    return overlap.clip(0, None).astype(float)


def covered(shape: Sequence[int], out: int) -> int:
    """What the weights of `area` along both axes of an image of this height and width add up to."""
    return units(shape[0], out)[0] * units(shape[1], out)[0]


def units(size: int, out: int) -> tuple[int, int]:
    """The lengths of an output pixel and of an input pixel in the largest unit that divides both."""
    return size // gcd(size, out), out // gcd(size, out)


def cubic(u: np.ndarray) -> np.ndarray:
    """Pillow's bicubic kernel, of radius 2 and a = -0.5."""
    u = np.abs(u)
    near, far = (1.5 * u - 2.5) * u * u + 1, (((u - 5) * u + 8) * u - 4) * -0.5
    return np.where(u < 1, near, np.where(u < 2, far, 0.0))


def triangle(u: np.ndarray) -> np.ndarray:
    """Pillow's bilinear kernel, of radius 1."""
    return np.clip(1 - np.abs(u), 0, None)


def pillow(size: int, out: int, kernel: Callable[[np.ndarray], np.ndarray], radius: int) -> np.ndarray:
    """[out, size] whole numbers in units of 2 ** -BITS: what Pillow multiplies levels by (src/libImaging/Resample.c).

    kernel, radius  `cubic`, 2 or `triangle`, 1; the kernel widens where the image shrinks
    """
    scale = size / out
    wide = max(scale, 1.0)
    weights = np.zeros((out, size))
    for i in range(out):
        centre = (i + 0.5) * scale
        first = max(int(centre - radius * wide + 0.5), 0)
        stop = min(int(centre + radius * wide + 0.5), size)
        reached = kernel((np.arange(first, stop) - centre + 0.5) * (1 / wide))
        weights[i, first:stop] = reached / reached.sum()
    scaled = weights * (1 << BITS)
    return np.trunc(scaled + np.where(scaled < 0, -0.5, 0.5))
