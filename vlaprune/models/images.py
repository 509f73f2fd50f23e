"""Images as policies were trained to see them: the authors' TensorFlow pipelines without TensorFlow. numpy in and out.

Sources: moojink/openvla-oft@213c5ff:experiments/robot/openvla_utils.py (resize_image_for_policy, center_crop_image);
microsoft/CogACT@b174a1b: the towers' own transform; DelinQu/SimplerEnv-OpenVLA@ccfe380: area means. Against tensorflow
2.21 the JPEG round trip is equal; resizing and cropping differ by at most one level, in fewer than one number of a
thousand (tests/test_images.py).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from vlaprune.errors import UserError

CROP = 0.9  # area of the centre crop: training with random crops saw nine tenths of an image


def rlds(image: np.ndarray, size: int = 224, crop: bool = True) -> np.ndarray:
    """[h, w, 3] uint8 to [size, size, 3]: JPEG round trip, Lanczos-3, and the centre crop scaled back to `size`.

    What OpenVLA's and OFT's fine-tunes on LIBERO were trained on. An image that has its size already is not
    compressed and resized again, as in OFT's code.
    """
    if image.shape != (size, size, 3):
        image = lanczos(jpeg(image), size)
    return centre_crop(image) if crop else image


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
    rows, columns = (_area_weights(n, size) for n in image.shape[:2])
    return np.rint(_blend(image.astype(np.float32), rows, columns)).clip(0, 255).astype(np.uint8)


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
    rows, columns = (_lanczos_weights(n, size) for n in image.shape[:2])
    return np.rint(_blend(image.astype(np.float32), rows, columns)).clip(0, 255).astype(np.uint8)


def centre_crop(image: np.ndarray, area: float = CROP) -> np.ndarray:
    """The middle `area` of a square image, scaled back bilinearly from corner to corner as tf.image.crop_and_resize."""
    weights = _crop_weights(image.shape[0], area)
    unit = _blend(image.astype(np.float32) * np.float32(1 / 255), weights, weights).clip(0, 1)
    return (unit * np.float32(255.5)).astype(np.uint8)


def _blend(image: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """[h, w, c] weighted by rows [a, h] and columns [b, w]: [a, b, c]."""
    return np.einsum("ah,hwc,bw->abc", rows, image, columns, optimize=["einsum_path", (0, 1), (0, 1)])


@lru_cache(maxsize=16)
def _lanczos_weights(size: int, out: int) -> np.ndarray:
    """[out, size]: each output pixel's weights on the input pixels that the kernel reaches, of sum 1."""
    scale = size / out
    centre = (np.arange(out) + 0.5) * scale - 0.5
    u = (np.arange(size)[None] - centre[:, None]) / max(scale, 1.0)
    weights = np.where(np.abs(u) < 3, np.sinc(u) * np.sinc(u / 3), 0.0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


@lru_cache(maxsize=16)
def _area_weights(size: int, out: int) -> np.ndarray:
    """[out, size]: the share of each input pixel in the stretch that an output pixel covers."""
    edges = np.arange(out + 1) * (size / out)
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (overlap.clip(0, None) * (out / size)).astype(np.float32)


@lru_cache(maxsize=16)
def _crop_weights(size: int, area: float) -> np.ndarray:
    """[size, size]: bilinear weights at positions spread evenly over the middle sqrt(area) of 0 .. size - 1."""
    side = area**0.5
    at = ((1 - side) / 2 + side * np.arange(size) / (size - 1)) * (size - 1)
    low = np.floor(at).astype(int)
    weights = np.zeros((size, size))
    weights[np.arange(size), low] = 1 - (at - low)
    weights[np.arange(size), np.minimum(low + 1, size - 1)] += at - low
    return weights.astype(np.float32)
