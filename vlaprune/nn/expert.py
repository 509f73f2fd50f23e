"""The action expert of pi0 and pi0.5: a small Gemma whose rows attend to the keys and values that a prompt left behind.

The prompt is computed once. Each step of the flow then computes the action rows alone. At every layer they attend to
what that layer of the prompt still has after pruning, and to themselves (`vlaprune.nn.extend`). Positions go on at the
prompt's ORIGINAL length.

pi0 has a state row in front of the action rows. It sees the prompt and itself only, and no step of the flow changes it:
it is computed in the first step, and its keys and values stay.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlaprune.nn.block import Block, DecoderConfig, RMSNorm


class AdaNorm(nn.Module):
    """RMSNorm whose scale, shift and gate come from the time of the flow (adaRMS of pi0.5), computed in fp32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width, 3 * width)
        self.eps = eps

    def modulation(self, times: Tensor) -> Tensor:
        """Scale, shift and gate [T, 3d] of every step, from embedded times [T, d]."""
        return self.dense(times)

    def forward(self, x: Tensor, modulation: Tensor) -> tuple[Tensor, Tensor]:
        """Normed rows [N, d], and the gate [d] of the branch after them, from rows [N, d] and one step's [3d]."""
        scale, shift, gate = modulation.float().chunk(3)
        y = F.rms_norm(x.float(), x.shape[-1:], 1 + scale, self.eps)
        return (y + shift).to(x.dtype), gate.to(x.dtype)


class AdaBlock(Block):
    """A decoder layer whose norms follow the time of the flow."""

    def __init__(self, config: DecoderConfig, layer: int = 0) -> None:
        super().__init__(config, layer)
        self.norm_attention = AdaNorm(config.hidden_size, config.rms_norm_eps)  # type: ignore[assignment]
        self.norm_mlp = AdaNorm(config.hidden_size, config.rms_norm_eps)  # type: ignore[assignment]

    def normed_attention(self, x: Tensor, modulation: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Normed rows [N, d], and the gate [d] of the attention branch."""
        return self.norm_attention(x, modulation)

    def normed_mlp(self, x: Tensor, modulation: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Normed rows [N, d], and the gate [d] of the feed-forward branch."""
        return self.norm_mlp(x, modulation)


class Expert(nn.Module):
    """The layers of the action expert and its final norm. `vlaprune.nn.extend.Suffix.extend` runs them.

    config    as many layers, heads and head numbers as the prompt's decoder, of another width
    adaptive  norms follow the time of the flow (pi0.5)
    """

    def __init__(self, config: DecoderConfig, adaptive: bool) -> None:
        super().__init__()
        self.config, self.adaptive = config, adaptive
        kind = AdaBlock if adaptive else Block
        self.blocks = nn.ModuleList(kind(config, layer) for layer in range(config.num_layers))
        self.norm: nn.Module = (
            AdaNorm(config.hidden_size, config.rms_norm_eps)
            if adaptive
            else RMSNorm(config.hidden_size, config.rms_norm_eps, config.norm_plus_one)
        )

    def modulations(self, times: Tensor) -> list[Tensor]:
        """Scale, shift and gate of every norm for all steps at once, from embedded times [T, d]: 2L + 1 of [T, 3d]."""
        return [norm.modulation(times) for norm in self.modules() if isinstance(norm, AdaNorm)]

    def normalise(self, x: Tensor, modulation: Tensor | None) -> Tensor:
        """The final norm of rows [N, d]."""
        return self.norm(x) if modulation is None else self.norm(x, modulation)[0]


def embed_time(times: Tensor, width: int, shortest: float = 4e-3, longest: float = 4.0) -> Tensor:
    """Sines, then cosines [T, width] in fp64 of times [T], periods from `shortest` to `longest` in even ratios."""
    fraction = torch.linspace(0.0, 1.0, width // 2, dtype=torch.float64, device=times.device)
    period = shortest * (longest / shortest) ** fraction
    phase = times.double()[:, None] * (2 * math.pi / period)
    return torch.cat((phase.sin(), phase.cos()), 1)


def flow_times(steps: int, added: bool = True) -> Tensor:
    """Times [steps] from 1 down to 1 / steps, in fp32.

    added  True: steps are summed up in fp32, as in openpi's sampler. False: each time is computed alone, as in lerobot
           (from v0.4.1 on: policies/common/flow_matching.py). Times differ in the last digits, actions by 1e-4 of their
           size
    """
    if not added:
        return torch.tensor([1.0 + step * (-1.0 / steps) for step in range(steps)])
    out, dt = [torch.tensor(1.0)], torch.tensor(-1.0 / steps)
    for _ in range(steps - 1):
        out.append(out[-1] + dt)
    return torch.stack(out)
