"""CogACT's action head: a diffusion transformer on action chunks, conditioned on one cognition feature.

Source: microsoft/CogACT@b174a1b:action_model/{models,action_model,gaussian_diffusion,respace}.py. Parameter names are
the checkpoint's. Differences: the embeddings of all sampling steps are computed in one product, and the coefficients of
all steps are one tensor on the device, so that sampling never waits for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlaprune.errors import UserError
from vlaprune.nn.backend import EAGER, Backend
from vlaprune.nn.block import sdpa

FREQUENCIES, TRAINED = 128, 100  # frequencies in the embedding of a timestep; diffusion steps in training


@dataclass(frozen=True)
class DiTShape:
    """Sizes: transformer width, layers and heads; width of the condition; actions of a chunk, numbers of an action."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    condition: int = 4096
    chunk: int = 16
    action: int = 7


SIZES = {  # name -> (width, layers, heads) for CogACT-Small, CogACT-Base, CogACT-Large, and one for tests
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
        """Maps [..., size] to [..., width]."""
        return self.linear(x)


class ConditionEmbed(Embed):
    """The linear layer for the condition, and a learned feature [1, size] that stands for no condition."""

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
        """The dtype of the parameters."""
        return next(self.parameters()).dtype

    def forward(self, steps: Tensor) -> Tensor:
        """Maps [n] step numbers to [n, width]."""
        rates = torch.exp(torch.arange(FREQUENCIES, device=steps.device) * (-math.log(10000) / FREQUENCIES))
        phase = steps[:, None].float() * rates
        return self.mlp(torch.cat((phase.cos(), phase.sin()), -1).to(self.dtype))


class Attention(nn.Module):
    """Multi-head self-attention over the chunk."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, t, width] to [B, t, width]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(sdpa(q, k, v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with the tanh form of GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, t, width] to [B, t, width]."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """Attention and feed-forward, each after a norm without parameters."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, t, width] to [B, t, width]."""
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
        return self.final_layer(_norm(x))[:, 1:]


class Diffusion(nn.Module):
    """The action head: the network and how chunks are drawn from it.

    steps     sampling steps of DDIM (eta 0); must divide the 100 of training with an integer stride
    guidance  classifier-free guidance: 1 or less switches it off, and with it half of the rows
    """

    def __init__(self, shape: DiTShape, steps: int = 10, guidance: float = 1.5) -> None:
        super().__init__()
        self.shape, self.guidance = shape, guidance
        self.timesteps = timesteps(steps)
        self._scales: dict[torch.device, Tensor] = {}
        self.net = DiT(shape)

    def forward(self, condition: Tensor, noise: Tensor, backend: Backend = EAGER) -> Tensor:
        """Segment: normalised chunks [B, chunk, action] from features [B, condition] and normal noise of that shape."""
        z, whens = backend.unit(conditions)(self, condition)
        unit = backend.unit(predict_noise)
        return ddim(lambda x, i: unit(self, x, whens[i], z), noise, self.scales(noise.device), backend.unit(ddim_step))

    def scales(self, device: torch.device) -> Tensor:
        """[T, 4] scales of the steps on a device, cached per device."""
        if device not in self._scales:
            self._scales[device] = ddim_scales(self.timesteps).to(device)
        return self._scales[device]

    def flops(self) -> float:
        """FLOPs of one chunk: 2 per multiply-accumulate of the matrix products and of attention."""
        s, d, passes = self.shape, self.shape.width, 2 if self.guidance > 1 else 1
        rows = s.chunk + 1
        block = 2.0 * rows * 12 * d * d + 4.0 * rows * rows * d
        one = s.layers * block + 2.0 * s.chunk * s.action * d + 2.0 * rows * d * s.action
        once = passes * 2.0 * s.condition * d + len(self.timesteps) * 2.0 * (2 * FREQUENCIES + d) * d
        return passes * len(self.timesteps) * one + once


def conditions(head: Diffusion, condition: Tensor) -> tuple[Tensor, Tensor]:
    """Unit: embedded conditions [B, width] (with guidance [2B, width], the empty ones last) and steps [T, width]."""
    z = condition.to(head.net.positional_embedding.dtype)
    if head.guidance > 1:
        z = torch.cat((z, head.net.z_embedder.uncondition.expand_as(z)))
    first, second = head.timesteps[:2]
    return head.net.z_embedder(z), head.net.t_embedder(torch.arange(first, -1, second - first, device=z.device))


def predict_noise(head: Diffusion, x: Tensor, when: Tensor, z: Tensor) -> Tensor:
    """Unit: the noise in chunks x [B, chunk, action], at embedded step `when` [width], under conditions `z`."""
    x = x.to(z.dtype)
    if head.guidance <= 1:
        return head.net(x, when, z)
    told, untold = head.net(torch.cat((x, x)), when, z).chunk(2)
    return untold + head.guidance * (told - untold)


def ddim_step(x: Tensor, eps: Tensor, scales: Tensor) -> Tensor:
    """Unit: x one step earlier; scales [4]: of the noise and of the estimate, now and then."""
    noise_now, signal_now, noise_then, signal_then = scales
    eps = eps.to(x.dtype)
    clean = (x - noise_now * eps) / signal_now
    return signal_then * clean + noise_then * eps


def ddim(
    predict: Callable[[Tensor, int], Tensor],
    noise: Tensor,
    scales: Tensor,
    step: Callable[[Tensor, Tensor, Tensor], Tensor] = ddim_step,
) -> Tensor:
    """Deterministic DDIM (arXiv:2010.02502, equation 12 with sigma 0), without clipping what is estimated.

    predict  noise in x at the i-th step
    scales   [T, 4] of `ddim_scales`
    """
    x = noise
    for i, own in enumerate(scales):
        x = step(x, predict(x, i), own)
    return x


def ddim_scales(times: Sequence[int]) -> Tensor:
    """[T, 4] float64: per step the scale of the noise and of the clean estimate at `times`, and at the step behind."""
    signal, rows = alpha_bar(), []
    for i, time in enumerate(times):
        now, then = signal[time], signal[times[i + 1]] if i + 1 < len(times) else 1.0
        rows.append([math.sqrt(1 - now), math.sqrt(now), math.sqrt(1 - then), math.sqrt(then)])
    return torch.tensor(rows, dtype=torch.float64)


def timesteps(count: int) -> tuple[int, ...]:
    """`count` of the trained steps, evenly spaced, descending to 0. UserError where no integer stride gives them."""
    for stride in range(1, TRAINED):
        times = range(0, TRAINED, stride)
        if len(times) == count:
            return tuple(reversed(times))
    raise UserError(f"steps={count}; no even spacing of {TRAINED} diffusion steps has so many; the default is 10")


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
