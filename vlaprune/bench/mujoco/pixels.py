"""Effects of a sensor on a picture: noise, defocus, zoom. Functions of a picture, a severity and a generator alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

SIGMAS = (0.08, 0.12, 0.18, 0.26, 0.38)  # of noise in ImageNet-C (arXiv:1903.12261), of the full range
# Every other of the ten levels of LIBERO-Plus (arXiv:2510.13626): pixels of a 256 px picture; last factor and step.
BLUR = 2.0
ZOOMS = (
    (1.16, 0.01),
    (1.26, 0.02),
    (1.36, 0.01),
    (1.46, 0.02),
    (1.56, 0.03),
)  # end, step


def noise(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Adds independent Gaussian noise to each number of the picture [h, w, 3] uint8."""
    noisy = image / 255.0 + SIGMAS[severity - 1] * rng.standard_normal(image.shape)
    return _whole(noisy)


def blur(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Gaussian blur of the picture [h, w, 3] uint8; its width is a share of the picture's size."""
    from scipy.ndimage import gaussian_filter

    sigma = BLUR * severity * image.shape[0] / 256
    return _whole(gaussian_filter(image / 255.0, (sigma, sigma, 0), mode="nearest"))


def zoom(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Zoom blur: the mean of the picture [h, w, 3] uint8 and of its middle, enlarged more and more."""
    sharp = (image / 255.0).astype(np.float32)
    end, step = ZOOMS[severity - 1]
    factors = np.arange(1, end, step)
    larger = sum((_enlarged(sharp, factor) for factor in factors), np.zeros_like(sharp))
    return _whole((sharp + larger) / (len(factors) + 1))


def _enlarged(image: np.ndarray, factor: float) -> np.ndarray:
    """The middle of a square picture [h, h, 3], enlarged to its size, by linear interpolation."""
    from scipy.ndimage import zoom as resample

    side = image.shape[0]
    part = int(np.ceil(side / float(factor)))
    first = (side - part) // 2
    large = resample(image[first : first + part, first : first + part], (factor, factor, 1), order=1)
    edge = (large.shape[0] - side) // 2
    return np.asarray(large[edge : edge + side, edge : edge + side])


def _whole(image: np.ndarray) -> np.ndarray:
    """A picture in [0, 1] as uint8; fractions are cut off, as LIBERO-Plus does."""
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


FILTERS: Mapping[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    "noise": noise,
    "blur": blur,
    "zoom": zoom,
}
