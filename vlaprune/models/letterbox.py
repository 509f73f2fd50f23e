"""Images into a square, with their proportions and black borders: pi0's resize_with_pad in its two upstream versions.

Sources: openpi@15a9616:packages/openpi-client/src/openpi_client/image_tools.py (PIL),
lerobot@7427f31:src/lerobot/policies/common/vla_utils.py (torch).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlaprune.models.images import pillow


def resize_pil(image: np.ndarray, size: int) -> np.ndarray:
    """Image [h, w, 3] uint8 to [size, size, 3] fp32, 0 to 255: bilinear by PIL, black borders, as openpi's client."""
    height, width = fitted(image.shape, size)
    if (height, width) != image.shape[:2]:
        image = pillow(image, height, width, bicubic=False)
    return bordered(torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None], size)[0].numpy()


def resize_torch(image: np.ndarray, size: int) -> np.ndarray:
    """Image [h, w, 3] uint8 to [size, size, 3] fp32, 0 to 255: bilinear by torch, as openpi's and lerobot's models do.

    It has black borders, no antialias and no rounding.
    """
    return letterboxed(torch.from_numpy(image)[None], size)[0].numpy()


def letterboxed(images: Tensor, size: int) -> Tensor:
    """Images [N, h, w, 3] uint8 to [N, size, size, 3] fp32, as `resize_torch`, on their own device."""
    height, width = fitted(images.shape[1:3], size)
    x = images.permute(0, 3, 1, 2).float()
    if (height, width) != images.shape[1:3]:
        x = F.interpolate(x, (height, width), mode="bilinear", align_corners=False).clamp(0, 255)
    return bordered(x, size)


def bordered(x: Tensor, size: int) -> Tensor:
    """Images [N, 3, h, w] to [N, size, size, 3], half of the black borders on each side.

    Of an odd number the larger half is below and to the right.
    """
    height, width = x.shape[2:]
    above, left = (size - height) // 2, (size - width) // 2
    borders = (left, size - width - left, above, size - height - above)
    return F.pad(x, borders).permute(0, 2, 3, 1).contiguous()


def fitted(shape: Sequence[int], size: int) -> tuple[int, int]:
    """Height and width of an image of this height and width that keeps its proportions and just fits a square."""
    ratio = max(shape[0], shape[1]) / size
    return int(shape[0] / ratio), int(shape[1] / ratio)


RESIZE = {"torch": resize_torch, "pil": resize_pil}
