"""Images as policies were trained to see them: the authors' TensorFlow pipelines without TensorFlow. numpy in and out.

Sources: moojink/openvla-oft@213c5ff:experiments/robot/openvla_utils.py (resize_image_for_policy, center_crop_image);
microsoft/CogACT@b174a1b: the towers' own transform; DelinQu/SimplerEnv-OpenVLA@ccfe380: area means. Against tensorflow
2.21 the JPEG round trip is equal; resizing and cropping differ by at most one level, in fewer than one number of a
thousand (tests/test_images.py). Sums are in fp32: between processors with AVX2 and with AVX-512, where the matrix
product rounds otherwise, about one number in 100 000 differs by one level.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod

import numpy as np

from vlaprune.errors import UserError
from vlaprune.models import filters

BAND = 16  # output pixels in one matrix product: fewer are slower, more multiply more zeros


def rlds(image: np.ndarray, size: int = 224, crop: bool = True) -> np.ndarray:
    """[h, w, 3] uint8 to [size, size, 3]: JPEG round trip, Lanczos-3, and the centre crop scaled back to `size`.

    What OpenVLA's and OFT's fine-tunes on LIBERO were trained on. An image that has its size already is not
    compressed and resized again, as in OFT's code.
    """
    if image.shape == (size, size, 3):
        return centre_crop(image) if crop else image
    return _lanczos_crop(jpeg(image), size, filters.CROP) if crop else lanczos(jpeg(image), size)


def compressed(image: np.ndarray, size: int) -> np.ndarray:
    """The part of `rlds` that is the CPU's on every device: the JPEG round trip, of an image of another size."""
    return image if image.shape == (size, size, 3) else jpeg(image)


def plain(image: np.ndarray, size: int = 224) -> np.ndarray:
    """[h, w, 3] uint8 to [size, size, 3] by Pillow's bicubic filter, aspect not kept: the towers' own transform."""
    return pillow(image, size, size, bicubic=True)


def pillow(image: np.ndarray, height: int, width: int, bicubic: bool) -> np.ndarray:
    """[h, w, 3] uint8 to [height, width, 3] by Pillow's bicubic or bilinear filter.

    First the width, then the height, as upstream's Pillow does it in one call; Pillow 13 takes the height of some tall
    images first, which gives other levels.
    """
    from PIL import Image

    way = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    narrow = Image.fromarray(image).resize((width, image.shape[0]), way)
    return np.asarray(narrow.resize((width, height), way))


def area(image: np.ndarray, size: int = 224) -> np.ndarray:
    """[h, w, 3] uint8 to [size, size, 3], each pixel the mean of the area it covers: OpenCV's INTER_AREA.

    What DelinQu/SimplerEnv-OpenVLA@ccfe380 shows OpenVLA. UserError for an image smaller than `size`.
    """
    check_larger(image, size)
    rows, columns = (_area_bands(n, size) for n in image.shape[:2])
    sums = _blend(image, rows, columns)
    sums /= np.float32(filters.covered(image.shape, size))
    return _packed(np.rint(sums, out=sums))


def check_larger(image: np.ndarray, size: int) -> np.ndarray:
    """Returns the image. UserError for one that `area` would have to enlarge."""
    if min(image.shape[:2]) < size:
        raise UserError(f"image is {image.shape[1]}x{image.shape[0]}; images=area makes images smaller, to {size} px")
    return image


PIPELINES: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "rlds_crop": rlds,
    "rlds": lambda image, size: rlds(image, size, crop=False),
    "plain": plain,
    "area": area,
}


def pipeline(name: str) -> Callable[[np.ndarray, int], np.ndarray]:
    """The function in PIPELINES under this name. UserError for another name."""
    if name not in PIPELINES:
        raise UserError(f"images={name}; use one of {', '.join(PIPELINES)}")
    return PIPELINES[name]


def jpeg(image: np.ndarray) -> np.ndarray:
    """The image compressed and decompressed as by TensorFlow: quality 95, halved colour, fast inverse transform."""
    import simplejpeg
    from PIL import Image

    packed = io.BytesIO()
    Image.fromarray(image).save(packed, "JPEG", quality=95, subsampling=2)
    odd = np.empty(image.size + 1, np.uint8)[1:]  # libjpeg-turbo writes rows at multiples of 32 bytes around the cache
    return simplejpeg.decode_jpeg(packed.getvalue(), fastdct=True, fastupsample=False, buffer=odd)


def lanczos(image: np.ndarray, size: int) -> np.ndarray:
    """The image as [size, size, 3] by a Lanczos-3 kernel, wider if it shrinks, as tf.image.resize(antialias=True)."""
    rows, columns = (_lanczos_bands(n, size, 0) for n in image.shape[:2])
    return _packed(_whole(_blend(image, rows, columns)))


def centre_crop(image: np.ndarray, area: float = filters.CROP) -> np.ndarray:
    """The middle `area` of a square image, scaled back bilinearly from corner to corner as tf.image.crop_and_resize."""
    size = len(image)
    margin = filters.margin(size, area)
    bands = _crop_bands(size, area)
    return _packed(_blend(image[margin : size - margin, margin : size - margin], bands, bands))


def _lanczos_crop(image: np.ndarray, size: int, area: float) -> np.ndarray:
    """centre_crop(lanczos(image, size), area), without the margins that the crop never reads."""
    rows, columns = (_lanczos_bands(n, size, filters.margin(size, area)) for n in image.shape[:2])
    bands = _crop_bands(size, area)
    half = _turned(_levels(image), rows, "rows")  # [w, 3, n]
    whole = _whole(_summed(half, columns, "columns"))  # [n, 3, n], columns first
    half = _turned(whole.transpose(2, 0, 1), bands, "rows")  # [n, 3, size]
    return _packed(_turned(half, bands, "columns"))


def _blend(image: np.ndarray, rows: Sequence[Band], columns: Sequence[Band]) -> np.ndarray:
    """[h, w, 3] uint8 to [3, a, b] fp32: each row a weighted sum of rows, then each column of columns."""
    return _turned(_turned(_levels(image), rows, "rows"), columns, "columns")


def _levels(image: np.ndarray) -> np.ndarray:
    """[h, w, 3] uint8 to fp32, in the memory that the sums over rows do not write."""
    levels = _MEMORY.get("columns", image.shape)
    levels[...] = image
    return levels


def _whole(levels: np.ndarray) -> np.ndarray:
    """Rounds levels to whole numbers in 0 .. 255, in place."""
    return np.clip(np.rint(levels, out=levels), 0, 255, out=levels)


def _packed(planes: np.ndarray) -> np.ndarray:
    """Planes [3, h, w] fp32 in 0 .. 255 as an image [h, w, 3] uint8; fractions are cut off."""
    image = np.empty((*planes.shape[1:], len(planes)), np.uint8)
    for colour, plane in enumerate(planes):
        image[:, :, colour] = plane
    return image


class _Memory(threading.local):
    """fp32 memory of one thread, overwritten by its next call: fresh memory has to be paged in.

    Every step reads the array of one use and writes that of the other: two arrays fit a processor's cache, five do not.
    """

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}

    def get(self, use: str, shape: tuple[int, ...]) -> np.ndarray:
        """An array of this shape in the memory of one use, "rows" or "columns"; the memory grows to the largest."""
        size = prod(shape)
        if use not in self._arrays or self._arrays[use].size < size:
            self._arrays[use] = np.empty(size, np.float32)
        return self._arrays[use][:size].reshape(shape)


_MEMORY = _Memory()
Band = tuple[slice, slice, np.ndarray]  # pixels in, pixels out, weights [out, in]: no other input reaches these outputs


def _summed(levels: np.ndarray, bands: Sequence[Band], use: str) -> np.ndarray:
    """[n, p, q] to [out, p, q] fp32 in the memory of `use`: weighted sums over the first axis."""
    n, p, q = levels.shape
    out = _MEMORY.get(use, (bands[-1][1].stop, p * q))
    _sum(levels.reshape(n, p * q), bands, out)
    return out.reshape(-1, p, q)


def _turned(levels: np.ndarray, bands: Sequence[Band], use: str) -> np.ndarray:
    """[n, p, q] to [p, q, out] fp32: weighted sums over the first axis, put last.

    A product that transposes costs less than a copy.
    """
    n, p, q = levels.shape
    out = _MEMORY.get(use, (p * q, bands[-1][1].stop))
    _sum(levels.reshape(n, p * q), bands, out.T)
    return out.reshape(p, q, -1)


def _sum(levels: np.ndarray, bands: Sequence[Band], out: np.ndarray) -> None:
    """[n, m] into `out` [out, m]; each is contiguous or the transpose of a contiguous array, or numpy copies it."""
    for ins, outs, weights in bands:
        np.matmul(weights, levels[ins], out=out[outs])


def _bands(weights: np.ndarray) -> tuple[Band, ...]:
    """Weights [out, in] cut into BAND outputs each, without the inputs that these do not need."""
    bands = []
    for start in range(0, len(weights), BAND):
        some = weights[start : start + BAND]
        used = np.flatnonzero(some.any(0))
        ins = slice(int(used[0]), int(used[-1]) + 1)
        bands.append((ins, slice(start, start + len(some)), np.asfortranarray(some[:, ins], np.float32)))
    return tuple(bands)


@lru_cache(maxsize=16)
def _lanczos_bands(size: int, out: int, margin: int) -> tuple[Band, ...]:
    return _bands(filters.lanczos(size, out, margin))


@lru_cache(maxsize=16)
def _area_bands(size: int, out: int) -> tuple[Band, ...]:
    return _bands(filters.area(size, out))


@lru_cache(maxsize=16)
def _crop_bands(size: int, area: float) -> tuple[Band, ...]:
    return _bands(filters.crop(size, area))
