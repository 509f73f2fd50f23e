"""The action expert of pi0 and pi0.5: a small Gemma whose rows attend to the keys and values a prompt left behind.

The prompt is computed once. Each step of the flow then computes the action rows alone; at every layer they attend to
what that layer of the prompt still had after pruning, each layer its own columns, and to themselves. Positions go on at
the prompt's ORIGINAL length. Per call and layer one buffer holds [what the prompt left | suffix], so a step writes its
keys and values in place and nothing grows.

pi0 has a state row in front of the action rows. It sees the prompt and itself only, and no step of the flow changes it:
it is computed in the first step, and its keys and values stay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlaprune.nn.decoder import Block, Cache, DecoderConfig, RMSNorm, per_head, rope, sdpa


class Host(Protocol):
    """What the expert asks of the session whose prompt it reads."""

    cache: Cache | None

    def kv_positions(self, layer: int) -> tuple[Tensor, Tensor | None]:
        """Positions [m] to attend to at `layer`, and what is added to their logits."""

    def record_attention(self, layer: int, queries: Tensor, keys: Tensor, columns: Tensor, bias: Tensor | None) -> None:
        """Rotated queries [H, n, hd] of the action rows, keys [kv, c, hd], positions and biases [c] of the columns."""


@dataclass(frozen=True, eq=False)
class KVBuffer:
    """Keys and values of one sequence at one layer, the prompt's m columns first, then buffer for the suffix.

    keys, values  [kv, m + s, hd]
    columns       [m + s] positions
    bias          [m + s] added to the logits of each column; None for zeros
    """

    keys: Tensor
    values: Tensor
    columns: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, host: Host, layer: int, suffix: Tensor) -> KVBuffer:
        """What the prompt left at `layer`, and buffer for the rows at positions `suffix` [s]."""
        assert host.cache is not None
        index, bias = host.kv_positions(layer)
        keys, values = host.cache.read(layer, index)
        keys, values = (torch.cat((t, t.new_empty(t.shape[0], len(suffix), t.shape[2])), 1) for t in (keys, values))
        if bias is not None:
            bias = torch.cat((bias, bias.new_zeros(len(suffix))))
        return cls(keys, values, torch.cat((index, suffix)), bias)

    def write(self, keys: Tensor, values: Tensor) -> None:
        """Puts keys and values [kv, n, hd] of the last n suffix rows in place."""
        self.keys[:, -keys.shape[1] :], self.values[:, -values.shape[1] :] = keys, values

    def attend(self, queries: Tensor, upto: int) -> Tensor:
        """[H, n, hd] for rotated queries [H, n, hd] that see the first `upto` columns."""
        keys, values = (per_head(t[None, :, :upto], queries.shape[0]) for t in (self.keys, self.values))
        mask = None if self.bias is None else self.bias[:upto].to(queries.dtype).expand(queries.shape[1], -1)
        return sdpa(queries[None], keys, values, mask)[0]


class AdaNorm(nn.Module):
    """RMSNorm whose scale, shift and gate come from the time of the flow (adaRMS of pi0.5), computed in fp32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width, 3 * width)
        self.eps = eps

    def modulation(self, times: Tensor) -> Tensor:
        """Scale, shift and gate [T, 3d] of every step, from embedded times [T, d]."""
        return self.dense(times)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, modulation: Tensor) -> tuple[Tensor, Tensor]:
        """Normed rows [N, d], and the gate [d] of the branch behind them, from rows [N, d] and one step's [3d]."""
        scale, shift, gate = modulation.float().chunk(3)
        y = F.rms_norm(x.float(), x.shape[-1:], 1 + scale, self.eps)
        return (y + shift).to(x.dtype), gate.to(x.dtype)


class ExpertBlock(Block):
    """One layer of the expert: that of the decoder, but it attends to a buffer, and its norms may be adaptive."""

    def __init__(self, config: DecoderConfig, adaptive: bool) -> None:
        super().__init__(config)
        self.adaptive = adaptive
        if adaptive:
            self.norm_attention = AdaNorm(config.hidden_size, config.rms_norm_eps)  # type: ignore[assignment]
            self.norm_mlp = AdaNorm(config.hidden_size, config.rms_norm_eps)  # type: ignore[assignment]

    def step(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        buffers: Sequence[KVBuffer],
        num_prefix: int,
        modulation: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        """Hidden rows [B * n, d], and queries [B, H, n, hd]; the first `num_prefix` rows see no row behind them."""
        y, gate = self.normed(self.norm_attention, x, None if modulation is None else modulation[0])
        q, k, v = (t.unflatten(1, (len(buffers), -1)).transpose(0, 1) for t in self.project(y, rotation))
        outs = []
        for buffer, queries, keys, values in zip(buffers, q, k, v, strict=True):
            buffer.write(keys, values)
            whole = buffer.keys.shape[1]
            parts = [buffer.attend(queries[:, num_prefix:], whole)]
            if num_prefix:
                parts.insert(0, buffer.attend(queries[:, :num_prefix], whole - queries.shape[1] + num_prefix))
            outs.append(torch.cat(parts, 1) if num_prefix else parts[0])
        attended = torch.stack(outs) if len(outs) > 1 else outs[0][None]
        attended = self.out(attended.transpose(1, 2).flatten(0, 1).flatten(1))
        x = x + (attended if gate is None else attended * gate)
        y, gate = self.normed(self.norm_mlp, x, None if modulation is None else modulation[1])
        fed = self.feed(y)
        return x + (fed if gate is None else fed * gate), q

    @staticmethod
    def normed(norm: nn.Module, x: Tensor, modulation: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Normed rows, and the gate where the norm is adaptive."""
        return (norm(x), None) if modulation is None else norm(x, modulation)


class Expert(nn.Module):
    """The layer loop of the action expert.

    config     as many layers, heads and head numbers as the prompt's decoder, of another width
    adaptive  norms follow the time of the flow (pi0.5)
    """

    def __init__(self, config: DecoderConfig, adaptive: bool) -> None:
        super().__init__()
        self.config, self.adaptive = config, adaptive
        self.blocks = nn.ModuleList(ExpertBlock(config, adaptive) for _ in range(config.num_layers))
        self.norm: nn.Module = (
            AdaNorm(config.hidden_size, config.rms_norm_eps)
            if adaptive
            else RMSNorm(config.hidden_size, config.rms_norm_eps, config.norm_plus_one)
        )

    def kv_buffers(self, hosts: Sequence[Host], starts: Sequence[int], rows: int) -> list[list[KVBuffer]]:
        """Layer by layer, one buffer per sequence, its `rows` suffix rows from its own original length on."""
        like = next(self.parameters())
        suffixes = [torch.arange(start, start + rows, device=like.device) for start in starts]
        return [
            [KVBuffer.of(host, layer, suffix) for host, suffix in zip(hosts, suffixes, strict=True)]
            for layer in range(self.config.num_layers)
        ]

    def modulations(self, times: Tensor) -> list[Tensor]:
        """Scale, shift and gate of every norm for all steps at once, from embedded times [T, d]: 2L + 1 of [T, 3d]."""
        return [norm.modulation(times) for norm in self.modules() if isinstance(norm, AdaNorm)]

    def rotation(self, buffers: Sequence[Sequence[KVBuffer]], rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Rotary tables [B * rows, hd] of the last `rows` suffix rows of every sequence."""
        return rope(self.config, torch.cat([buffer.columns[-rows:] for buffer in buffers[0]]), dtype)

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        buffers: Sequence[Sequence[KVBuffer]],
        num_prefix: int = 0,
        modulations: Sequence[Tensor] | None = None,
        hosts: Sequence[Host] = (),
    ) -> Tensor:
        """Final hidden states [B, n, d] of the last n suffix rows [B, n, d].

        rotation     rotary tables of these rows
        num_prefix         first rows that see the prompt and each other only
        modulations  of this step: 2L + 1 of [3d]; None for plain norms
        hosts        sessions that are shown the rows behind `num_prefix`
        """
        batch = x.shape[0]
        x = x.flatten(0, 1)
        for layer, block in enumerate(self.blocks):
            own = None if modulations is None else (modulations[2 * layer], modulations[2 * layer + 1])
            x, queries = block.step(x, rotation, buffers[layer], num_prefix, own)  # type: ignore[operator]
            for host, buffer, q in zip(hosts, buffers[layer] if hosts else (), queries if hosts else (), strict=True):
                host.record_attention(layer, q[:, num_prefix:], buffer.keys, buffer.columns, buffer.bias)
        x, _ = ExpertBlock.normed(self.norm, x, None if modulations is None else modulations[-1])
        return x.unflatten(0, (batch, -1))


def embed_time(times: Tensor, width: int, shortest: float = 4e-3, longest: float = 4.0) -> Tensor:
    """Sines, then cosines [T, width] in fp64 of times [T], periods from `shortest` to `longest` in even ratios."""
    fraction = torch.linspace(0.0, 1.0, width // 2, dtype=torch.float64, device=times.device)
    period = shortest * (longest / shortest) ** fraction
    phase = times.double()[:, None] * (2 * math.pi / period)
    return torch.cat((phase.sin(), phase.cos()), 1)


def flow_times(steps: int) -> Tensor:
    """Times [steps] from 1 down to 1 / steps, in fp32 and by adding up, as openpi's sampler has them."""
    out, dt = [torch.tensor(1.0)], torch.tensor(-1.0 / steps)
    for _ in range(steps - 1):
        out.append(out[-1] + dt)
    return torch.stack(out)
