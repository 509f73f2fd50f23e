"""CogACT's action head: a diffusion transformer on action chunks, conditioned on one cognition feature.

Source: microsoft/CogACT@b174a1b:action_model/{models,action_model,gaussian_diffusion,respace}.py. Parameter names are
the checkpoint's. Differences: the embeddings of all sampling steps are computed in one product, and a step's
coefficients are numbers of the host instead of tensors, so that sampling never waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlaprune.nn.decoder import sdpa

FREQUENCIES, TRAINED = 128, 100  # of a timestep's sinusoidal embedding; diffusion steps in training


@dataclass(frozen=True)
class DiTShape:
    """Sizes: transformer width, layers and heads; width of the condition; actions of a chunk, numbers of an action."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    condition: int = 4096
    chunk: int = 16
    action: int = 7


SIZES = {  # name -> (width, layers, heads); of CogACT-Small, CogACT-Base, CogACT-Large, and one for tests
    "DiT-S": (384, 6, 4),
    "DiT-B": (768, 12, 12),
    "DiT-L": (1024, 24, 16),
    "DiT-tiny": (32, 2, 2),
}


class Embed(nn.Module):
    """A linear layer under the name `linear`."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] to [..., width]."""
        return self.linear(x)  # type: ignore[no-any-return]


class ConditionEmbed(Embed):
    """The same for the condition, and the learned feature [1, size] that stands for having none."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__(size, width)
        self.uncondition = nn.Parameter(torch.randn(1, size) * 0.02)


class TimeEmbed(nn.Module):
    """Sinusoids of a diffusion step through two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return next(self.parameters()).dtype

    def forward(self, steps: Tensor) -> Tensor:
        """[n] step numbers to [n, width]."""
        rates = torch.exp(torch.arange(FREQUENCIES, device=steps.device) * (-math.log(10000) / FREQUENCIES))
        phase = steps[:, None].float() * rates
        return self.mlp(torch.cat((phase.cos(), phase.sin()), -1).to(self.dtype))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head self-attention over the chunk."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, t, width] to the same."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(sdpa(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """Two linear layers with the tanh form of GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, t, width] to the same."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm without parameters."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, t, width] to the same."""
        x = x + self.attn(_norm(x))
        return x + self.mlp(_norm(x))


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


class DiT(nn.Module):
    """Predicts the noise in a chunk. Its first token is condition plus step, the others are the noisy actions.

    `history_embedder` is in every checkpoint and used by none.
    """

    def __init__(self, shape: DiTShape) -> None:
        super().__init__()
        self.shape = shape
        d = shape.width
        self.positional_embedding = nn.Parameter(torch.randn(shape.chunk + 1, d) * d**-0.5)
        self.history_embedder = Embed(shape.action, d)
        self.x_embedder = Embed(shape.action, d)
        self.t_embedder = TimeEmbed(d)
        self.z_embedder = ConditionEmbed(shape.condition, d)
        self.blocks = nn.ModuleList(Block(d, shape.heads) for _ in range(shape.layers))
        self.final_layer = Embed(d, shape.action)

    def forward(self, noisy: Tensor, when: Tensor, condition: Tensor) -> Tensor:
        """The noise in `noisy` [B, chunk, action], at embedded step `when` [width] under `condition` [B, width]."""
        first = (when + condition)[:, None]
        x = torch.cat((first, self.x_embedder(noisy)), 1) + self.positional_embedding
        for block in self.blocks:
            x = block(x)
        return self.final_layer(_norm(x))[:, 1:]  # type: ignore[no-any-return]


class Diffusion(nn.Module):
    """The action head: the network and how chunks are drawn from it.

    steps     sampling steps of DDIM (eta 0); must divide the 100 of training with an integer stride
    guidance  classifier-free guidance: 1 or less switches it off, and with it half of the rows
    """

    def __init__(self, shape: DiTShape, steps: int = 10, guidance: float = 1.5) -> None:
        super().__init__()
        self.shape, self.guidance = shape, guidance
        self.timesteps = timesteps(steps)
        self.net = DiT(shape)

    def forward(self, condition: Tensor, noise: Tensor) -> Tensor:
        """Normalised chunks [B, chunk, action] from features [B, condition] and normal noise of the chunks' shape."""
        guided = self.guidance > 1
        dtype = self.net.positional_embedding.dtype
        z = condition.to(dtype)
        if guided:
            z = torch.cat((z, self.net.z_embedder.uncondition.expand_as(z)))
        z = self.net.z_embedder(z)
        first, second = self.timesteps[:2]
        whens = self.net.t_embedder(torch.arange(first, -1, second - first, device=z.device))

        def predict(x: Tensor, step: int) -> Tensor:
            x = x.to(dtype)
            eps = self.net(torch.cat((x, x)) if guided else x, whens[step], z)
            if not guided:
                return eps
            told, untold = eps.chunk(2)
            return untold + self.guidance * (told - untold)

        return ddim(predict, noise, self.timesteps)

    def flops(self) -> float:
        """FLOPs of one chunk: 2 per multiply-accumulate of the matrix products and of attention."""
        s, d, passes = self.shape, self.shape.width, 2 if self.guidance > 1 else 1
        rows = s.chunk + 1
        block = 2.0 * rows * 12 * d * d + 4.0 * rows * rows * d
        one = s.layers * block + 2.0 * s.chunk * s.action * d + 2.0 * rows * d * s.action
        once = passes * 2.0 * s.condition * d + len(self.timesteps) * 2.0 * (2 * FREQUENCIES + d) * d
        return passes * len(self.timesteps) * one + once


def ddim(predict: Callable[[Tensor, int], Tensor], noise: Tensor, times: tuple[int, ...]) -> Tensor:
    """Deterministic DDIM (arXiv:2010.02502, equation 12 with sigma 0), without clipping what is estimated.

    predict  noise in x at the i-th of `times`, which descend
    """
    x, signal = noise, alpha_bar()
    for i, time in enumerate(times):
        now, then = signal[time], signal[times[i + 1]] if i + 1 < len(times) else 1.0
        eps = predict(x, i).to(x.dtype)
        clean = (x - math.sqrt(1 - now) * eps) / math.sqrt(now)
        x = math.sqrt(then) * clean + math.sqrt(1 - then) * eps
    return x


def timesteps(count: int) -> tuple[int, ...]:
    """`count` of the trained steps, evenly spaced, descending to 0. ValueError where no integer stride gives them."""
    for stride in range(1, TRAINED):
        times = range(0, TRAINED, stride)
        if len(times) == count:
            return tuple(reversed(times))
    raise ValueError(f"steps={count}; no even spacing of {TRAINED} diffusion steps has so many; the default is 10")


def alpha_bar() -> list[float]:
    """Share of signal after each of the 100 trained steps: the squared-cosine schedule, betas capped at 0.999."""

    def cosine(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    out, signal = [], 1.0
    for i in range(TRAINED):
        beta = min(1 - cosine((i + 1) / TRAINED) / cosine(i / TRAINED), 0.999)
        signal *= 1 - beta
        out.append(signal)
    return out
