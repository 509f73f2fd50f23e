"""Images into a square, with their proportions and black borders: pi0's resize_with_pad in its two upstream versions.

Sources: openpi@15a9616:packages/openpi-client/src/openpi_client/image_tools.py (PIL),
lerobot@7427f31:src/lerobot/policies/common/vla_utils.py (torch).
"""

from __future__ import annotations

import numpy as np
import torch


def resize_pil(image: np.ndarray, size: int) -> np.ndarray:
    """Image [h, w, 3] uint8 to [size, size, 3] fp32, 0 to 255: bilinear by PIL, black borders, as openpi's client."""
    from PIL import Image

    height, width = fitted(image, size)
    if (height, width) != image.shape[:2]:
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    return bordered(image.astype(np.float32), size)


def resize_torch(image: np.ndarray, size: int) -> np.ndarray:
    """The same by torch, without antialias and without rounding, as openpi's and lerobot's models do."""
    height, width = fitted(image, size)
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    if (height, width) != image.shape[:2]:
        x = torch.nn.functional.interpolate(x, (height, width), mode="bilinear", align_corners=False).clamp(0, 255)
    return bordered(x[0].permute(1, 2, 0).numpy(), size)


def fitted(image: np.ndarray, size: int) -> tuple[int, int]:
    """Height and width of an image that keeps its proportions and just fits into size x size."""
    ratio = max(image.shape[0], image.shape[1]) / size
    return int(image.shape[0] / ratio), int(image.shape[1] / ratio)


def bordered(image: np.ndarray, size: int) -> np.ndarray:
    """Black borders around an image, half on each side; of an odd number the larger half is below and to the right."""
    above, left = ((size - n) // 2 for n in image.shape[:2])
    out = np.zeros((size, size, 3), np.float32)
    out[above : above + image.shape[0], left : left + image.shape[1]] = image
    return out


RESIZE = {"torch": resize_torch, "pil": resize_pil}
