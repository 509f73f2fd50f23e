"""One decoder layer and its parts: RMS norm, rotary positions, grouped-query attention, gated feed-forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlaprune.errors import UserError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu_tanh": partial(F.gelu, approximate="tanh")}


@dataclass(frozen=True)
class DecoderConfig:
    """The architecture of a decoder, in the names of transformers' configurations.

    causal                 a row attends to positions up to its own; False for attention in both directions
    hidden_act             activation of the gated feed-forward: `silu` (Llama) or `gelu_tanh` (Gemma)
    norm_plus_one          RMS norms multiply by one plus their weight (Gemma), not by the weight (Llama)
    qkv_bias               the projections of queries, keys and values have a bias (Qwen2)
    qk_norm                an RMS norm of each head's query and key, before rotation (Qwen3)
    partial_rotary_factor  share of a head's numbers that RoPE rotates, the first ones (Phi-3: 0.75; else 1)
    mrope_section          frequencies that follow each axis of a position (Qwen2-VL: time, height, width), together
                           half of the rotated numbers; None where a position is one number
    mrope_interleaved      the axes take turns from frequency to frequency (Qwen3-VL), not one after the other
    no_rope_layers         layers without RoPE (SmolLM3: every fourth)

    Errors: UserError for an unknown activation, or a rotation that does not fit the heads.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    causal: bool = True
    hidden_act: str = "silu"
    norm_plus_one: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    partial_rotary_factor: float = 1.0
    mrope_section: tuple[int, ...] | None = None
    mrope_interleaved: bool = False
    no_rope_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuses an activation that is not implemented, and a rotation that does not fit."""
        if self.hidden_act not in ACTIVATIONS:
            raise UserError(f"hidden_act={self.hidden_act}; use one of {', '.join(ACTIVATIONS)}")
        if not 0 < self.rotary_dim <= self.head_dim or self.rotary_dim % 2:
            raise UserError(
                f"partial_rotary_factor={self.partial_rotary_factor} rotates {self.rotary_dim} of {self.head_dim} "
                "numbers of a head; use an even count"
            )
        if self.mrope_section is not None and sum(self.mrope_section) != self.rotary_dim // 2:
            raise UserError(
                f"mrope_section={list(self.mrope_section)} are not the {self.rotary_dim // 2} frequencies of a head"
            )

    @property
    def rotary_dim(self) -> int:
        """How many numbers of a head RoPE rotates."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def axes(self) -> list[int]:
        """Which axis of a position each frequency follows; empty where a position is one number."""
        sections = self.mrope_section or ()
        if not self.mrope_interleaved:
            return [axis for axis, count in enumerate(sections) for _ in range(count)]
        turns = [i % len(sections) for i in range(sum(sections))]
        return [axis if i < len(sections) * sections[axis] else 0 for i, axis in enumerate(turns)]


def per_head(t: Tensor, heads: int) -> Tensor:
    """Keys or values [..., kv, c, hd] for every query head [..., heads, c, hd]; a single one is shared, not copied."""
    if t.shape[-3] == 1:
        return t.expand(*t.shape[:-3], heads, *t.shape[-2:])
    return t if t.shape[-3] == heads else t.repeat_interleave(heads // t.shape[-3], -3)


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Torch's fused attention. Under autocast on a CPU, which is training, without masks: bf16 products, fp32 softmax.

    In that case the fused kernel with its backward takes 1.6 times as long in fp32, and longer still in bf16.
    """
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        if mask is None and not causal:
            return ((q * q.shape[-1] ** -0.5) @ k.mT).float().softmax(-1) @ v
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask, is_causal=causal)
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)


def add_branch(x: Tensor, branch: Tensor) -> Tensor:
    """The residual sum of rows [N, d] and a branch of the layer [N, d].

    Compiled code adds one more axis. Without it, torch.compile fuses the sum into the matrix product before it, which
    first copies x to the place of the result. With it, the sum is fused into the code after it.
    """
    return (x[None] + branch[None])[0] if torch.compiler.is_compiling() else x + branch


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in fp32; with `plus_one` (Gemma) it multiplies by one plus its weight."""

    def __init__(self, width: int, eps: float, plus_one: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width) if plus_one else torch.ones(width))
        self.eps, self.plus_one = eps, plus_one

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, d] to [N, d]."""
        if self.plus_one:
            return F.rms_norm(x.float(), self.weight.shape, 1 + self.weight.float(), self.eps).to(x.dtype)
        return F.rms_norm(x, self.weight.shape, None, self.eps).mul_(self.weight)  # rounded before the weight: upstream


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on [H, N, hd], half-split as in Llama, with the tables of `rope`; contiguous whatever x is."""
    if cos.shape[-1] < x.shape[-1]:  # the numbers after rotary_dim are not rotated
        turned, plain = x.split((cos.shape[-1], x.shape[-1] - cos.shape[-1]), -1)
        return torch.cat((_rotate(turned, cos, sin), plain), -1)
    a, b = x.chunk(2, -1)
    return (torch.cat((b, a), -1) * sin).add_(x * cos)  # each product is rounded, as upstream


def rotate_by_row(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE as in `_rotate`, but the heads of a row stay next to each other in memory.

    The output of flash attention then has this layout too and need not be copied for the next matrix product.
    """
    return _rotate(x.transpose(0, 1), cos[:, None], sin[:, None]).transpose(0, 1)


def rope(config: DecoderConfig, index: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines [N, rotary_dim] of the rotary phases at positions, the first half of the sines negated.

    index  [N], or [N, axes] for a config with `mrope_section`; of one number all axes are that number
    """
    size = config.rotary_dim
    half = torch.arange(0, size, 2, device=index.device, dtype=torch.float32)
    own = index[:, None] if index.ndim == 1 else torch.stack([index[:, axis] for axis in config.axes], 1)
    phase = own.float() / config.rope_theta ** (half / size)
    cos, sin = phase.cos().to(dtype), phase.sin().to(dtype)
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


class Block(nn.Module):
    """One decoder layer: norm, rotary attention with grouped keys, norm, gated feed-forward; QKV, gate/up are fused."""

    def __init__(self, config: DecoderConfig, layer: int = 0) -> None:
        super().__init__()
        self.config, self.rotates = config, layer not in config.no_rope_layers
        inner, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.parts = {"qkv": (inner, kv, kv), "gate_up": (config.intermediate_size,) * 2}  # rows of the fused weights
        self.norm_attention = RMSNorm(config.hidden_size, config.rms_norm_eps, config.norm_plus_one)
        self.qkv = nn.Linear(config.hidden_size, inner + 2 * kv, bias=config.qkv_bias)
        self.norm_q = RMSNorm(config.head_dim, config.rms_norm_eps, config.norm_plus_one) if config.qk_norm else None
        self.norm_k = RMSNorm(config.head_dim, config.rms_norm_eps, config.norm_plus_one) if config.qk_norm else None
        self.out = nn.Linear(inner, config.hidden_size, bias=False)
        self.norm_mlp = RMSNorm(config.hidden_size, config.rms_norm_eps, config.norm_plus_one)
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def normed_attention(self, x: Tensor, modulation: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Normed rows [N, d] for attention, and the gate [d] of its branch where the norm is adaptive, else None."""
        return self.norm_attention(x), None

    def normed_mlp(self, x: Tensor, modulation: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Normed rows [N, d] for the feed-forward, and the gate [d] of its branch (None unless adaptive)."""
        return self.norm_mlp(x), None

    def project(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries [H, N, hd] and keys [kv, N, hd], and values [kv, N, hd], of normed rows [N, d]."""
        c = self.config
        heads = self.qkv(x).unflatten(-1, (c.num_heads + 2 * c.num_kv_heads, c.head_dim)).transpose(0, 1)
        both = heads[: -c.num_kv_heads]
        if self.norm_q is not None and self.norm_k is not None:
            both = torch.cat((self.norm_q(both[: c.num_heads]), self.norm_k(both[c.num_heads :])))
        if self.rotates:
            compiled = torch.compiler.is_compiling() and x.device.type != "cpu"
            both = rotate_by_row(both, *rope) if compiled else _rotate(both, *rope)
        q, k = both.split((c.num_heads, c.num_kv_heads))
        return q, k, heads[-c.num_kv_heads :]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Attention output [..., H, n, hd] of queries [..., H, n, hd] on keys and values [..., kv, c, hd]."""
        heads = self.config.num_heads
        return sdpa(q, per_head(k, heads), per_head(v, heads), mask, causal)

    def output(self, attended: Tensor) -> Tensor:
        """Attention output [N, d] of the layer, from the outputs of its heads [H, N, hd]."""
        return self.out(attended.transpose(0, 1).flatten(1))

    def finish(self, x: Tensor, output: Tensor) -> Tensor:
        """Rows [N, d] after the layer, from the rows before it and their attention output [N, d]."""
        x = add_branch(x, output)
        return add_branch(x, self.feed(self.norm_mlp(x)))

    def feed(self, x: Tensor) -> Tensor:
        """The gated feed-forward [N, d] of normed rows [N, d]."""
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(ACTIVATIONS[self.config.hidden_act](gate).mul_(up))


def normalise(norm: nn.Module, x: Tensor) -> Tensor:
    """Unit: applies a norm to rows [N, d]."""
    return norm(x)
