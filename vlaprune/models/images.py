"""Images as policies were trained to see them: the authors' TensorFlow pipelines without TensorFlow. numpy in and out.

Sources: moojink/openvla-oft@213c5ff:experiments/robot/openvla_utils.py (resize_image_for_policy, center_crop_image);
microsoft/CogACT@b174a1b: the towers' own transform; DelinQu/SimplerEnv-OpenVLA@ccfe380: area means. Against tensorflow
2.21 the JPEG round trip is equal; resizing and cropping differ by at most one level, in fewer than one number of a
thousand (tests/test_images.py).
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from math import gcd

import numpy as np

from vlaprune.errors import UserError

CROP = 0.9  # area of the centre crop: training with random crops saw nine tenths of an image
BAND = 16  # output pixels in one matrix product: fewer are slower, more multiply more zeros


def rlds(image: np.ndarray, size: int = 224, crop: bool = True) -> np.ndarray:
    """[h, w, 3] uint8 to [size, size, 3]: JPEG round trip, Lanczos-3, and the centre crop scaled back to `size`.

    What OpenVLA's and OFT's fine-tunes on LIBERO were trained on. An image that has its size already is not
    compressed and resized again, as in OFT's code.
    """
    if image.shape == (size, size, 3):
        return centre_crop(image) if crop else image
    image = jpeg(image)
    return _cropped(_lanczos(image, size, _margin(size, CROP)), size, CROP) if crop else lanczos(image, size)


def plain(image: np.ndarray, size: int = 224) -> np.ndarray:
    """[h, w, 3] uint8 to [size, size, 3] by Pillow's bicubic filter, aspect not kept: the towers' own transform."""
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def area(image: np.ndarray, size: int = 224) -> np.ndarray:
    """[h, w, 3] uint8 to [size, size, 3], each pixel the mean of the area it covers: OpenCV's INTER_AREA.

    What DelinQu/SimplerEnv-OpenVLA@ccfe380 shows OpenVLA. UserError for an image smaller than `size`.
    """
    if min(image.shape[:2]) < size:
        raise UserError(f"image is {image.shape[1]}x{image.shape[0]}; images=area makes images smaller, to {size} px")
    rows, columns = (_area_bands(n, size) for n in image.shape[:2])
    sums = _blend(_planes(image), rows, columns)
    covered = _units(image.shape[0], size)[0] * _units(image.shape[1], size)[0]
    sums /= np.float32(covered)
    return _packed(np.rint(sums, out=sums))


PIPELINES: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "rlds_crop": rlds,
    "rlds": lambda image, size: rlds(image, size, crop=False),
    "plain": plain,
    "area": area,
}


def pipeline(name: str) -> Callable[[np.ndarray, int], np.ndarray]:
    """One of PIPELINES. UserError for another name."""
    if name not in PIPELINES:
        raise UserError(f"images={name}; use one of {', '.join(PIPELINES)}")
    return PIPELINES[name]


def jpeg(image: np.ndarray) -> np.ndarray:
    """Compressed and decompressed as TensorFlow does: quality 95, halved colour, the fast inverse transform."""
    import simplejpeg
    from PIL import Image

    packed = io.BytesIO()
    Image.fromarray(image).save(packed, "JPEG", quality=95, subsampling=2)
    return simplejpeg.decode_jpeg(packed.getvalue(), fastdct=True, fastupsample=False)


def lanczos(image: np.ndarray, size: int) -> np.ndarray:
    """To [size, size, 3] by a Lanczos-3 kernel that widens when it shrinks, as tf.image.resize(antialias=True)."""
    return _packed(_lanczos(image, size))


def centre_crop(image: np.ndarray, area: float = CROP) -> np.ndarray:
    """The middle `area` of a square image, scaled back bilinearly from corner to corner as tf.image.crop_and_resize."""
    size, margin = len(image), _margin(len(image), area)
    return _cropped(_planes(image[margin : size - margin, margin : size - margin]), size, area)


def _lanczos(image: np.ndarray, size: int, margin: int = 0) -> np.ndarray:
    """[h, w, 3] uint8 to whole levels [3, size, size] fp32, without `margin` pixels at each edge."""
    rows, columns = (_lanczos_bands(n, size, margin) for n in image.shape[:2])
    out = _blend(_planes(image), rows, columns)
    return np.clip(np.rint(out, out=out), 0, 255, out=out)


def _cropped(planes: np.ndarray, size: int, area: float) -> np.ndarray:
    """Levels [3, n, n] fp32, without the margins that the crop never reads, to [size, size, 3] uint8."""
    bands = _crop_bands(size, area)
    return _packed(_blend(planes, bands, bands))


def _planes(image: np.ndarray) -> np.ndarray:
    """[h, w, 3] uint8 to [3, h, w] fp32: matrix products are fast on contiguous rows."""
    planes = _MEMORY.get("planes", (image.shape[2], *image.shape[:2]))
    planes[...] = image.transpose(2, 0, 1)
    return planes


def _packed(planes: np.ndarray) -> np.ndarray:
    """[3, h, w] fp32 in 0 .. 255 to [h, w, 3] uint8, without fractions."""
    image = np.empty((*planes.shape[1:], len(planes)), np.uint8)
    for colour, plane in enumerate(planes):
        image[:, :, colour] = plane
    return image


class _Memory(threading.local):
    """fp32 arrays of one thread, overwritten by its next call: fresh memory has to be paged in."""

    def __init__(self) -> None:
        self._arrays: dict[tuple[str, tuple[int, ...]], np.ndarray] = {}

    def get(self, use: str, shape: tuple[int, ...]) -> np.ndarray:
        """The array of one use and shape."""
        if (use, shape) not in self._arrays:
            self._arrays[use, shape] = np.empty(shape, np.float32)
        return self._arrays[use, shape]


_MEMORY = _Memory()
Band = tuple[slice, slice, np.ndarray]  # pixels in, pixels out, weights [in, out]: no other input reaches these outputs


def _blend(planes: np.ndarray, rows: Sequence[Band], columns: Sequence[Band]) -> np.ndarray:
    """[3, h, w] fp32 to [3, a, b]: each row a weighted sum of rows, then each column of columns."""
    colours, _, width = planes.shape
    tall, wide = rows[-1][1].stop, columns[-1][1].stop
    half = _MEMORY.get("rows", (colours, tall, width))
    for ins, outs, weights in rows:
        np.matmul(weights.T, planes[:, ins], out=half[:, outs])
    flat, out = half.reshape(colours * tall, width), _MEMORY.get("columns", (colours * tall, wide))
    for ins, outs, weights in columns:
        np.matmul(flat[:, ins], weights, out=out[:, outs])
    return out.reshape(colours, tall, wide)


def _bands(weights: np.ndarray) -> tuple[Band, ...]:
    """Weights [out, in] cut into BAND outputs each, without the inputs that these do not need."""
    bands = []
    for start in range(0, len(weights), BAND):
        some = weights[start : start + BAND]
        used = np.flatnonzero(some.any(0))
        ins = slice(int(used[0]), int(used[-1]) + 1)
        bands.append((ins, slice(start, start + len(some)), np.ascontiguousarray(some[:, ins].T, np.float32)))
    return tuple(bands)


@lru_cache(maxsize=16)
def _lanczos_bands(size: int, out: int, margin: int) -> tuple[Band, ...]:
    """Each output pixel's weights on the input pixels that the kernel reaches, of sum 1; no outputs in the margins."""
    scale = size / out
    centre = (np.arange(margin, out - margin) + 0.5) * scale - 0.5
    u = (np.arange(size)[None] - centre[:, None]) / max(scale, 1.0)
    weights = np.where(np.abs(u) < 3, np.sinc(u) * np.sinc(u / 3), 0.0)
    return _bands(weights / weights.sum(1, keepdims=True))


@lru_cache(maxsize=16)
def _area_bands(size: int, out: int) -> tuple[Band, ...]:
    """How much of each input pixel an output pixel covers, in units of which both are whole numbers (`_units`).

    So sums are exact, and a mean half way between two levels is rounded to the even one on every machine.
    """
    wide, narrow = _units(size, out)
    edges, starts = np.arange(out + 1) * wide, np.arange(size) * narrow
    overlap = np.minimum(edges[1:, None], starts + narrow) - np.maximum(edges[:-1, None], starts)
    return _bands(overlap.clip(0, None))


def _units(size: int, out: int) -> tuple[int, int]:
    """The lengths of an output pixel and of an input pixel in the largest unit that divides both."""
    return size // gcd(size, out), out // gcd(size, out)


def _margin(size: int, area: float) -> int:
    """Pixels at each edge of `size` that the crop never reads."""
    return int((1 - area**0.5) / 2 * (size - 1))


@lru_cache(maxsize=16)
def _crop_bands(size: int, area: float) -> tuple[Band, ...]:
    """Bilinear weights of `size` outputs on inputs without their margins, spread evenly over the middle sqrt(area).

    Rows and columns together scale by 255.5 / 255: TensorFlow divides levels by 255, and multiplies by 255.5 after.
    """
    margin = _margin(size, area)
    at = np.linspace((1 - area**0.5) / 2, (1 + area**0.5) / 2, size) * (size - 1) - margin
    low = np.floor(at).astype(int)
    weights = np.zeros((size, size - 2 * margin))
    weights[np.arange(size), low] = 1 - (at - low)
    weights[np.arange(size), np.minimum(low + 1, weights.shape[1] - 1)] += at - low
    return _bands(weights * (255.5 / 255) ** 0.5)
