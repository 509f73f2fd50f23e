"""Vision transformer blocks, and a small vision transformer for policies that we train ourselves."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlaprune.nn.backend import EAGER, Backend
from vlaprune.nn.block import normalise, sdpa


def received(queries: Tensor, keys: Tensor) -> Tensor:
    """Attention [..., t] that each token receives, mean over heads and queries; both are [..., H, t, hd]."""
    logits = (queries @ keys.transpose(-1, -2)).float() * queries.shape[-1] ** -0.5
    return logits.softmax(-1).mean((-3, -2))


class ViTBlock(nn.Module):
    """Pre-norm self-attention and GELU feed-forward.

    eps    epsilon of both norms
    scale  each branch is multiplied by a learned vector before it is added (LayerScale, as in DINOv2)
    tanh   GELU in its tanh form
    """

    def __init__(
        self, width: int, heads: int, ffn: int, eps: float = 1e-5, scale: bool = False, tanh: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.gelu = heads, "tanh" if tanh else "none"
        self.norm_attention = nn.LayerNorm(width, eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width, eps)
        self.up = nn.Linear(width, ffn)
        self.down = nn.Linear(ffn, width)
        self.scale_attention = nn.Parameter(torch.ones(width)) if scale else None
        self.scale_mlp = nn.Parameter(torch.ones(width)) if scale else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps [B, t, d] to [B, t, d], and the queries and keys [B, H, t, hd] of its attention."""
        q, k, v = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = self.out(sdpa(q, k, v).transpose(1, 2).flatten(2))
        x = x + (attended if self.scale_attention is None else attended * self.scale_attention)
        fed = self.down(F.gelu(self.up(self.norm_mlp(x)), approximate=self.gelu))
        return x + (fed if self.scale_mlp is None else fed * self.scale_mlp), q, k


def vit_layer(block: ViTBlock, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unit: one block on tokens [B, t, d]; also its queries and keys [B, H, t, hd]."""
    return block(x)


def vit_layers(blocks: nn.ModuleList, x: Tensor, backend: Backend) -> tuple[Tensor, Tensor, Tensor]:
    """Computes all blocks on tokens [B, t, d]; also the queries and keys [B, H, t, hd] of the last block."""
    unit = backend.unit(vit_layer)
    for block in blocks:
        x, q, k = unit(block, x)
    return x, q, k


class ViT(nn.Module):
    """Patches to tokens: a convolutional stem (arXiv:2106.14881), learned positions, transformer blocks, final norm.

    The stem halves the image until one cell is one patch of 16 px; token i stands for patch i, though its cells also
    see up to 15 px around it.
    """

    def __init__(self, image: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.side, self.width = image // 16, width
        self.channels = (3, width // 8, width // 4, width // 2, width)
        self.stem = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(self.channels[:-1], self.channels[1:], strict=True)
        )
        self.embed = nn.Linear(width, width)
        self.position = nn.Parameter(torch.randn(self.side**2, width) * 0.02)
        self.blocks = nn.ModuleList(ViTBlock(width, heads, 2 * width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor, offset: Tensor, backend: Backend = EAGER) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Maps [B, h, w, 3] in [-1, 1] to [B, side * side, width]; `offset` [B, width] tells the cameras apart.

        Also returns the queries and keys [B, H, side * side, hd] of the last block.
        """
        x = backend.unit(stem)(self, images, offset)
        x, q, k = vit_layers(self.blocks, x, backend)
        return backend.unit(normalise)(self.norm, x), (q, k)


def stem(vit: ViT, images: Tensor, offset: Tensor) -> Tensor:
    """Unit: images [B, h, w, 3] to tokens [B, t, width]."""
    x = images.permute(0, 3, 1, 2)
    for conv in vit.stem:
        x = F.gelu(conv(x))
    return vit.embed(x.flatten(2).transpose(1, 2)) + vit.position + offset[:, None]
