"""What authors' own code answers to inputs and weights that both sides make by formula; see scripts/record_golden.py.

numpy only, so that the environments of the authors' code can import it.
"""

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
PI = {  # sizes of the pi0 and pi0.5 that were recorded, and the tokens they read
    "image": 56,
    "vision_width": 32,
    "vision_layers": 3,
    "vision_heads": 4,
    "vision_ffn": 48,
    "layers": 4,
    "heads": 8,
    "head_size": 16,
    "width": 64,
    "ffn": 96,
    "expert_width": 32,
    "expert_ffn": 48,
    "vocabulary": 300,
    "chunk": 6,
    "text": (2, 17, 45, 210, 9, 108),
}
COGACT = {
    **{"image": 56, "dino_width": 32, "dino_depth": 3, "dino_heads": 2, "siglip_width": 32, "siglip_depth": 3},
    **{"siglip_heads": 2, "siglip_ffn": 48, "width": 32, "layers": 4, "heads": 2, "ffn": 48, "vocabulary": 32064},
}


def uniform(name: str, size: int) -> np.ndarray:
    """[size] float64 in [-1, 1), a hash of name and place: the same on every machine, with every version of numpy."""
    x = np.arange(size, dtype=np.uint32) * np.uint32(0x9E3779B9) + np.uint32(zlib.crc32(name.encode()))
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    x = x ^ (x >> np.uint32(16))
    return x / 2.0**31 - 1.0


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A float32 parameter: matrices of variance 2 / inputs, norms around 1, everything else small around 0."""
    values = uniform(name, int(np.prod(shape))).reshape(shape)
    if len(shape) > 1 and min(shape[-1], shape[0]) > 1 and "token" not in name and "pos" not in name:
        if name.endswith("lm_head.weight") and shape[0] == 32064:  # so that action tokens win
            values[:31744] /= 5
            values[32000:] /= 5
        return (values * (6.0 / np.prod(shape[1:])) ** 0.5).astype(np.float32)
    norm = name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "scale_factor", "gamma"))
    return (values * 0.3 + norm).astype(np.float32)


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """All parameters of a model."""
    return {name: weight(name, tuple(shape)) for name, shape in shapes.items()}


def pi_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter of pi0 or pi0.5; steps of the flow are small, so that rounding does not grow from one to the next."""
    return weight(name, shape) * np.float32(0.1 if name.startswith("action_out") else 1)


def scene(seed: int, height: int, width: int) -> np.ndarray:
    """A picture [height, width, 3] uint8 with waves, noise and an edge."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([128 + 100 * np.sin(x / 7 + y / 11 + seed), 128 + 90 * np.cos(x / 5 - y / 13), (x * y) % 256], -1)
    picture = waves + 25 * uniform(f"scene {seed}", waves.size).reshape(waves.shape)
    picture[height // 4 : height // 2, width // 3 : width // 2] = (250, 20, 30)
    return picture.clip(0, 255).astype(np.uint8)


def words(text: str) -> list[int]:
    """Token ids of a text, in place of a tokenizer: 1, then one for each word, fixed by its letters."""
    return [1, *(3 + zlib.crc32(word.encode()) % 29000 for word in text.split())]


def load(name: str) -> dict[str, np.ndarray]:
    """The arrays of one file."""
    with np.load(HERE / f"{name}.npz") as file:
        return dict(file)


# The Prismatic family at a size for goldens: keys are those of vlaprune.models.prismatic.Sizes.
PRISMATIC = {
    **{"image": 56, "dino_width": 48, "dino_depth": 4, "dino_heads": 4, "siglip_width": 32, "siglip_depth": 4},
    **{"siglip_heads": 4, "siglip_ffn": 119, "width": 64, "layers": 4, "heads": 4, "ffn": 96},
}
IDS = (
    1,
    512,
    29901,
    1724,
    3158,
    881,
    278,
    19964,
    2125,
    304,
    5839,
    701,
    278,
    2654,
    18002,
    29973,
    13,
    3744,
    29901,
    29871,
)
STATE = (0.1, -0.4, 0.9, 0.3, -0.8, 0.05, 0.5, -0.6)  # as it enters the projector


def pixels(seed: int) -> np.ndarray:
    """[1, 6, 56, 56] float32: one picture normalised for DINOv2 (rounded ImageNet numbers) and for SigLIP."""
    unit = scene(seed, 56, 56).astype(np.float32) / 255
    mean, std = np.float32([0.484375, 0.455078125, 0.40625]), np.float32([0.228515625, 0.2236328125, 0.224609375])
    towers = np.concatenate([(unit - mean) / std, (unit - 0.5) / 0.5], -1)
    return towers.transpose(2, 0, 1)[None].astype(np.float32)
