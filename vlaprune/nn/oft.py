"""The parts that OpenVLA-OFT adds to the trunk: action heads, projectors of state and noise, diffusion schedule.

Source: moojink/openvla-oft@213c5ff:prismatic/models/{action_heads,projectors}.py; parameter names are the checkpoint's.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlaprune.errors import UserError
from vlaprune.nn.weights import WeightMap


class ResBlock(nn.Module):
    """A residual block: the input plus ReLU(linear(norm(input)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., width] to [..., width]."""
        return x + self.ffn(x)


class ResNet(nn.Module):
    """An action head: maps the concatenated final hidden states of one time step to its action, or its noise."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(inputs)
        self.fc1 = nn.Linear(inputs, width)
        self.mlp_resnet_blocks = nn.ModuleList(ResBlock(width) for _ in range(2))
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, outputs)
        self.widths = (inputs, width, width, width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., inputs] to [..., outputs]."""
        x = F.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class MLPProjector(nn.Module):
    """Two linear layers with GELU between them that map numbers to a row of the decoder."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(inputs, width), nn.Linear(width, width)
        self.widths = (inputs, width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., inputs] to [..., width]."""
        return self.fc2(F.gelu(self.fc1(x)))


def action_numbers(head: ResNet, x: Tensor) -> Tensor:
    """Unit: normalised actions [B, chunk, action] from rows side by side [B, chunk, action * d]."""
    return head(x)


def best_tokens(head: nn.Module, rows: Tensor) -> Tensor:
    """Unit: the most likely token of the vocabulary [B, n] after rows [B, n, d]."""
    return head(rows).argmax(-1)


def plain_weight_map(module: nn.Module, prefix: str = "") -> dict[str, WeightMap]:
    """The weight map of a file whose parameter names are `prefix` plus those of `module`."""
    return {f"{prefix}{name}": WeightMap(name) for name, _ in module.named_parameters()}


def time_row(step: int, width: int) -> Tensor:
    """[width] sines and cosines of a diffusion step, float32."""
    half = width // 2
    phase = step * torch.exp(torch.arange(half) * -math.log(10000) / (half - 1))
    return torch.cat((phase.sin(), phase.cos()))


class Schedule:
    """DDIM without noise on a squared-cosine schedule: diffusers' DDIMScheduler as OFT configures it.

    trained  steps of training; sampling goes backwards through `steps` of them, evenly spaced from the start
    """

    def __init__(self, steps: int, trained: int = 50) -> None:
        if not 1 <= steps <= trained:
            raise UserError(f"steps={steps}; use 1..{trained}")
        bar = [math.cos((i / trained + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(trained + 1)]
        betas = torch.tensor([min(1 - b / a, 0.999) for a, b in pairwise(bar)])
        self._alphas = (1 - betas).cumprod(0).tolist()
        self._stride = trained // steps
        self.steps = [i * self._stride for i in reversed(range(steps))]

    def back(self, noise: Tensor, step: int, x: Tensor) -> Tensor:
        """One denoising step: x at the next lower noise level. The estimate of the clean x is clipped to [-1, 1]."""
        now = self._alphas[step]
        before = self._alphas[step - self._stride] if step >= self._stride else 1.0
        clean = ((x - (1 - now) ** 0.5 * noise) / now**0.5).clamp(-1, 1)
        return before**0.5 * clean + (1 - before) ** 0.5 * noise
