"""The vision towers of published policies: DINOv2-L with registers and SigLIP so400m, alone or fused (Prismatic).

Each stops at the block whose output its policy reads, so later blocks and norms are never computed. The names of a
timm checkpoint (Prismatic's) are mapped by `timm_weight_map`. Equal to transformers' Dinov2WithRegistersModel and
SiglipVisionModel (tests/test_towers.py). Their modules are not used here: the attention of one block must be readable,
queries, keys and values are one product, and parameter names of the library move between its releases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from vlaprune.errors import UserError
from vlaprune.nn.backend import EAGER, Backend
from vlaprune.nn.vision import ViTBlock, received, vit_layers
from vlaprune.nn.weights import WeightMap

MEAN = {"imagenet": (0.485, 0.456, 0.406), "half": (0.5, 0.5, 0.5)}
STD = {"imagenet": (0.229, 0.224, 0.225), "half": (0.5, 0.5, 0.5)}


@dataclass(frozen=True)
class TowerShape:
    """Sizes of one tower.

    depth   blocks of the checkpoint; `used` of them are computed
    prefix  learned tokens in front of the patches (DINOv2: CLS, then registers), dropped from the output
    scale   LayerScale
    tanh    GELU in its tanh form (PaliGemma), else exact
    normed  the output goes through the tower's final norm (PaliGemma), else not
    """

    width: int
    depth: int
    used: int
    heads: int
    ffn: int
    prefix: int = 0
    scale: bool = False
    tanh: bool = False
    normed: bool = False

    def __post_init__(self) -> None:
        """Raises UserError where more blocks are used than there are, or the width does not split into heads."""
        if not 1 <= self.used <= self.depth or self.width % self.heads:
            raise UserError(f"{self} cannot be built; use 1 <= used <= depth, and a width that `heads` divides")


def dino(width: int = 1024, depth: int = 24, heads: int = 16) -> TowerShape:
    """DINOv2-L/14 reg4 as Prismatic reads it: the second-to-last block."""
    return TowerShape(width, depth, depth - 1, heads, 4 * width, prefix=5, scale=True)


def siglip(width: int = 1152, depth: int = 27, heads: int = 16, ffn: int = 4304) -> TowerShape:
    """SigLIP so400m/14 as Prismatic reads it: the second-to-last block, exact GELU."""
    return TowerShape(width, depth, depth - 1, heads, ffn)


class Tower(nn.Module):
    """A vision transformer on square images, without the blocks after the one that is read."""

    def __init__(self, shape: TowerShape, image: int = 224, patch: int = 14) -> None:
        super().__init__()
        if image % patch:
            raise UserError(f"image={image} is no multiple of the {patch} px patch; use e.g. {image // patch * patch}")
        self.shape, self.side, self.patch = shape, image // patch, patch
        self.embed = nn.Conv2d(3, shape.width, patch, patch)
        self.position = nn.Parameter(torch.zeros(self.side**2, shape.width))
        self.prefix = nn.Parameter(torch.zeros(shape.prefix, shape.width)) if shape.prefix else None
        block = (shape.width, shape.heads, shape.ffn, 1e-6, shape.scale, shape.tanh)
        self.blocks = nn.ModuleList(ViTBlock(*block) for _ in range(shape.used))
        self.norm = nn.LayerNorm(shape.width, 1e-6) if shape.normed else None

    def forward(self, pixels: Tensor, backend: Backend = EAGER) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Normalised pixels [B, 3, h, w] to patch features [B, side * side, d].

        Also returns the queries and keys [B, H, prefix + side * side, hd] of the last block computed.
        """
        x = backend.unit(embed_patches)(self, pixels)
        x, q, k = vit_layers(self.blocks, x, backend)
        return backend.unit(finish_patches)(self, x), (q, k)

    def received(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Attention [B, side * side] that each patch received: from the CLS token, or, without one, from all patches.

        The CLS token's weights on the prefix tokens are left out; the rest is not rescaled.
        """
        if self.shape.prefix:
            queries = queries[..., :1, :]
        return received(queries, keys)[..., self.shape.prefix :]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the blocks; patch and position embeddings may have a wider one."""
        return next(self.blocks.parameters()).dtype

    @property
    def flops(self) -> float:
        """FLOPs of one image."""
        s, tokens = self.shape, self.side**2 + self.shape.prefix
        linear = s.used * tokens * s.width * (4 * s.width + 2 * s.ffn)
        patches = self.side**2 * 3 * self.patch**2 * s.width
        return 2.0 * (linear + patches) + 4.0 * s.used * tokens**2 * s.width


def embed_patches(tower: Tower, pixels: Tensor) -> Tensor:
    """Unit: normalised pixels [B, 3, h, w] to tokens [B, prefix + side * side, d] in the dtype of the blocks."""
    x = (tower.embed(pixels).flatten(2).transpose(1, 2) + tower.position).to(tower.dtype)
    if tower.prefix is not None:
        x = torch.cat((tower.prefix.expand(x.shape[0], -1, -1), x), 1)
    return x


def finish_patches(tower: Tower, x: Tensor) -> Tensor:
    """Unit: patch features [B, side * side, d] of all tokens, through the final norm where the tower has one."""
    x = x[:, tower.shape.prefix :]
    return x if tower.norm is None else tower.norm(x)


def scale_pixels(images: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """Unit: images [B, h, w, 3] uint8 to normalised pixels [B, 3, h, w]."""
    return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2).to(dtype)


def join(first: Tensor, second: Tensor) -> Tensor:
    """Unit: concatenates the channels of two towers."""
    return torch.cat((first, second), -1)


class FusedTower(nn.Module):
    """DINOv2 and SigLIP on the same image, their channels side by side, DINOv2 first.

    stats  per tower, the (mean, std) of three channels that pixels in [0, 1] are normalised by
    """

    def __init__(
        self,
        first: TowerShape,
        second: TowerShape,
        image: int = 224,
        patch: int = 14,
        stats: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] = (
            (MEAN["imagenet"], STD["imagenet"]),
            (MEAN["half"], STD["half"]),
        ),
    ) -> None:
        super().__init__()
        self.dino, self.siglip = Tower(first, image, patch), Tower(second, image, patch)
        self.width, self.side, self.stats = first.width + second.width, image // patch, stats
        self._stats: dict[torch.device, list[tuple[Tensor, Tensor]]] = {}

    def forward(self, images: Tensor, reads: bool = False, backend: Backend = EAGER) -> tuple[Tensor, Tensor | None]:
        """Maps images [B, h, w, 3] uint8 to features [B, side * side, width].

        With `reads` also the attention [B, side * side] that patches received from the CLS token of DINOv2 in the last
        block computed. Methods for CLS attention expect such a token; SigLIP has none.
        """
        means = self.means(images.device)
        run = partial(self.segment, reads, means, backend)
        return backend.run(("vision", reads), run, images)

    def segment(
        self, reads: bool, stats: Sequence[tuple[Tensor, Tensor]], backend: Backend, images: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Segment: both towers; `stats` are mean and standard deviation [3] of each."""
        pixels = backend.unit(scale_pixels)
        dtype = self.dino.position.dtype
        (first, (q, k)), (second, _) = backend.together(
            lambda: self.dino(pixels(images, *stats[0], dtype), backend),
            lambda: self.siglip(pixels(images, *stats[1], dtype), backend),
        )
        received = backend.unit(Tower.received)(self.dino, q, k) if reads else None
        return backend.unit(join)(first, second), received

    def means(self, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        """Mean and standard deviation [3] of each tower on a device, cached per device."""
        if device not in self._stats:
            self._stats[device] = [
                (torch.tensor(mean, device=device), torch.tensor(std, device=device)) for mean, std in self.stats
            ]
        return self._stats[device]

    def pixels(self, images: Tensor, tower: int) -> Tensor:
        """Normalised pixels [B, 3, h, w], in the dtype of the weights, of images [B, h, w, 3] uint8."""
        return scale_pixels(images, *self.means(images.device)[tower], self.dino.position.dtype)

    @property
    def flops(self) -> float:
        """FLOPs of one image."""
        return self.dino.flops + self.siglip.flops

    @property
    def watch_flops(self) -> float:
        """FLOPs of reading the CLS token's attention in one image."""
        return 2.0 * (self.dino.side**2 + self.dino.shape.prefix) * self.dino.shape.width


class Projector(nn.Module):
    """Three linear layers with exact GELU between them, from the fused towers to the decoder."""

    def __init__(self, vision: int, width: int) -> None:
        super().__init__()
        self.widths = (vision, 4 * vision, width, width)
        self.fc1, self.fc2, self.fc3 = (nn.Linear(a, b) for a, b in zip(self.widths, self.widths[1:], strict=False))
        self.gelu = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., vision] to [..., width]."""
        return self.fc3(self.gelu(self.fc2(self.gelu(self.fc1(x)))))


def project_features(projector: nn.Module, x: Tensor) -> Tensor:
    """Unit: features [..., vision] to rows [..., width] of the decoder."""
    return projector(x)


TIMM = {
    "norm1.weight": "norm_attention.weight",
    "norm1.bias": "norm_attention.bias",
    "attn.qkv.weight": "qkv.weight",
    "attn.qkv.bias": "qkv.bias",
    "attn.proj.weight": "out.weight",
    "attn.proj.bias": "out.bias",
    "norm2.weight": "norm_mlp.weight",
    "norm2.bias": "norm_mlp.bias",
    "mlp.fc1.weight": "up.weight",
    "mlp.fc1.bias": "up.bias",
    "mlp.fc2.weight": "down.weight",
    "mlp.fc2.bias": "down.bias",
}


def timm_weight_map(shape: TowerShape, old: str, new: str, gamma: str = "scale_factor") -> dict[str, WeightMap]:
    """Where the tensors of a timm tower under prefix `old` go in a `Tower` under prefix `new`.

    gamma  last part of the name of LayerScale's vector: `scale_factor` in Hugging Face files, `gamma` in timm's own
    """
    out = {f"{old}pos_embed": WeightMap(f"{new}position", fold=1)}
    if shape.prefix:
        out[f"{old}cls_token"] = WeightMap(f"{new}prefix", (0, 1), fold=1)
        out[f"{old}reg_token"] = WeightMap(f"{new}prefix", (1, shape.prefix), fold=1)
    for kind in ("weight", "bias"):
        out[f"{old}patch_embed.proj.{kind}"] = WeightMap(f"{new}embed.{kind}")
        if shape.normed:
            out[f"{old}norm.{kind}"] = WeightMap(f"{new}norm.{kind}")
    for i in range(shape.used):
        names = {f"{old}blocks.{i}.{a}": f"{new}blocks.{i}.{b}" for a, b in TIMM.items()}
        if shape.scale:
            names[f"{old}blocks.{i}.ls1.{gamma}"] = f"{new}blocks.{i}.scale_attention"
            names[f"{old}blocks.{i}.ls2.{gamma}"] = f"{new}blocks.{i}.scale_mlp"
        out |= {a: WeightMap(b) for a, b in names.items()}
    return out


def timm_unused(shape: TowerShape, old: str) -> tuple[str, ...]:
    """Prefixes of the checkpoint's tensors after the block that is read: later blocks, final norm, pooling."""
    blocks = tuple(f"{old}blocks.{i}." for i in range(shape.used, shape.depth))
    return (*blocks, f"{old}attn_pool.", *(() if shape.normed else (f"{old}norm.",)))
