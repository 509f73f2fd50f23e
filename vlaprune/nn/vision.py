"""A small vision transformer for policies that we train ourselves."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ViTBlock(nn.Module):
    """Pre-norm self-attention and GELU feed-forward."""

    def __init__(self, width: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.up = nn.Linear(width, ffn)
        self.down = nn.Linear(ffn, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, t, d] to [B, t, d]."""
        q, k, v = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm_mlp(x))))


class ViT(nn.Module):
    """Patches to tokens: linear patch embedding, learned positions, blocks, final norm."""

    def __init__(self, image: int, patch: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.patch, self.side, self.width = patch, image // patch, width
        self.embed = nn.Linear(3 * patch * patch, width)
        self.position = nn.Parameter(torch.randn(self.side**2, width) * 0.02)
        self.blocks = nn.ModuleList(ViTBlock(width, heads, 4 * width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor, offset: Tensor) -> Tensor:
        """[B, h, w, 3] in [-1, 1] to [B, side * side, width]; `offset` [B, width] tells the cameras apart."""
        s, p = self.side, self.patch
        patches = images.unflatten(1, (s, p)).unflatten(3, (s, p)).transpose(2, 3).reshape(len(images), s * s, -1)
        x = self.embed(patches) + self.position + offset[:, None]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)
