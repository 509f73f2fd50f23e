"""The glass decoder: a Llama- or Gemma-config transformer whose layer loop can be watched and cut.

It computes packed rows of several sequences. Before every layer each sequence's session may change which rows go on;
after every attention it is shown the rotated queries and keys. Positions are an argument, never a counter: a row's
index is its RoPE phase, its causal order and its cache slot, so dropped tokens leave no trace in the rows that stay.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu_tanh": partial(F.gelu, approximate="tanh")}


@dataclass(frozen=True)
class DecoderConfig:
    """The architecture of a decoder, in the names of transformers' configurations.

    causal         a row attends to positions up to its own; False for attention in both directions
    hidden_act     activation of the gated feed-forward: `silu` (Llama) or `gelu_tanh` (Gemma)
    norm_plus_one  RMS norms multiply by one plus their weight (Gemma), not by the weight (Llama)

    Errors: ValueError for an unknown activation.
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

    def __post_init__(self) -> None:
        """Refuses an activation that is not implemented."""
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act={self.hidden_act}; use one of {', '.join(ACTIVATIONS)}")


@dataclass(frozen=True, eq=False)
class Tokens:
    """The rows one sequence computes at a layer.

    hidden  [n, d]
    index   [n] position of each row in the prompt (or after it, for decoded tokens), ascending
    columns [n + m] positions attended to: the rows' own, then those of m slots of the cache; None for just their own
    bias    [n + m] added to the attention logits of each column; None for zeros
    """

    hidden: Tensor
    index: Tensor
    columns: Tensor | None = None
    bias: Tensor | None = None


class Cache:
    """Keys and values of one sequence, a slot per position and layer. A slot not written again keeps what it had."""

    def __init__(self, config: DecoderConfig) -> None:
        self.config = config
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def reserve(self, length: int, like: Tensor) -> None:
        """Makes room for positions 0 .. length - 1, on the device and in the dtype of `like`; keeps what is there."""
        have = self._keys[0].shape[1] if self._keys else 0
        if have >= length:
            return
        size = (self.config.num_kv_heads, length - have, self.config.head_dim)
        rooms = [[like.new_zeros(size) for _ in range(self.config.num_layers)] for _ in "kv"]
        if have:
            self._keys = [torch.cat((old, new), 1) for old, new in zip(self._keys, rooms[0], strict=True)]
            self._values = [torch.cat((old, new), 1) for old, new in zip(self._values, rooms[1], strict=True)]
        else:
            self._keys, self._values = rooms

    def write(self, layer: int, index: Tensor, keys: Tensor, values: Tensor) -> None:
        """Stores [kv_heads, n, head_size] keys and values into slots `index` [n]."""
        self._keys[layer].index_copy_(1, index, keys)
        self._values[layer].index_copy_(1, index, values)

    def read(self, layer: int, index: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values in slots `index` [m], each [kv_heads, m, head_size]."""
        return self._keys[layer].index_select(1, index), self._values[layer].index_select(1, index)

    @property
    def bytes(self) -> int:
        """Memory held, in bytes."""
        return sum(t.numel() * t.element_size() for t in (*self._keys, *self._values))


class Session(Protocol):
    """What the decoder asks of whoever watches one sequence.

    cache  where keys and values are kept; None if nothing after this pass needs them
    """

    cache: Cache | None

    def enter(self, layer: int, tokens: Tokens) -> Tokens:
        """The rows that go on into `layer`; the same object where nothing changes."""

    def leave(self, layer: int, tokens: Tokens, queries: Tensor, keys: Tensor, columns: Tensor) -> None:
        """Attention is done: rotated queries [H, n, hd] and keys [kv, c, hd], the positions [c] attended to.

        Nobody writes to these tensors again before the call is over. Both may be empty where it does not look.
        """

    def next_prune_layer(self, layer: int) -> int:
        """The first layer after this one at which `enter` may change the rows."""

    def records_attention(self, layer: int) -> bool:
        """Whether `leave` keeps what it is shown of this layer."""


class NullSession:
    """A session that changes and sees nothing: plain dense computation, for training and for oracles."""

    cache: Cache | None = None

    def enter(self, layer: int, tokens: Tokens) -> Tokens:
        """Everything goes on."""
        return tokens

    def leave(self, layer: int, tokens: Tokens, queries: Tensor, keys: Tensor, columns: Tensor) -> None:
        """Nothing is looked at."""

    def next_prune_layer(self, layer: int) -> int:
        """At none."""
        return sys.maxsize

    def records_attention(self, layer: int) -> bool:
        """No."""
        return False


def per_head(t: Tensor, heads: int) -> Tensor:
    """Keys or values [..., kv, c, hd] for every query head [..., heads, c, hd]; a single one is shared, not copied."""
    if t.shape[-3] == 1:
        return t.expand(*t.shape[:-3], heads, *t.shape[-2:])
    return t if t.shape[-3] == heads else t.repeat_interleave(heads // t.shape[-3], -3)


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Torch's fused attention. Under autocast on a CPU, which is training, without masks: bf16 products, fp32 softmax.

    There the fused kernel with its backward takes 1.6 times as long in fp32, and longer still in bf16.
    """
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        if mask is None and not causal:
            return ((q * q.shape[-1] ** -0.5) @ k.mT).float().softmax(-1) @ v
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask, is_causal=causal)
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in fp32; a shifted one (Gemma's) multiplies by one plus its weight."""

    def __init__(self, width: int, eps: float, shifted: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width) if shifted else torch.ones(width))
        self.eps, self.shifted = eps, shifted

    def forward(self, x: Tensor) -> Tensor:
        """[N, d] to [N, d]."""
        if self.shifted:
            return F.rms_norm(x.float(), self.weight.shape, 1 + self.weight.float(), self.eps).to(x.dtype)
        return F.rms_norm(x, self.weight.shape, None, self.eps).mul_(
            self.weight
        )  # rounded before the weight, as upstream


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on [H, N, hd], half-split as in Llama, with the tables of `rope`; contiguous whatever x is."""
    a, b = x.chunk(2, -1)
    return (torch.cat((b, a), -1) * sin).add_(x * cos)  # each product is rounded, as upstream


def rope(config: DecoderConfig, index: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines [N, hd] of the rotary phases at positions `index` [N], the first half of the sines negated."""
    half = torch.arange(0, config.head_dim, 2, device=index.device, dtype=torch.float32)
    phase = index[:, None].float() / config.rope_theta ** (half / config.head_dim)
    cos, sin = phase.cos().to(dtype), phase.sin().to(dtype)
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


class Block(nn.Module):
    """One decoder layer: norm, rotary attention with grouped keys, norm, gated feed-forward; QKV, gate/up are fused."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        inner, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.parts = {
            "qkv": (inner, kv, kv),
            "gate_up": (config.intermediate_size, config.intermediate_size),
        }  # rows of what is fused
        self.norm_attention = RMSNorm(config.hidden_size, config.rms_norm_eps, config.norm_plus_one)
        self.qkv = nn.Linear(config.hidden_size, inner + 2 * kv, bias=False)
        self.out = nn.Linear(inner, config.hidden_size, bias=False)
        self.norm_mlp = RMSNorm(config.hidden_size, config.rms_norm_eps, config.norm_plus_one)
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, layer: int, packed: Packed, rope: tuple[Tensor, Tensor], sessions: Sequence[Session]) -> Tensor:
        """[N, d] to [N, d] for the packed rows of all sessions; no row sees another sequence."""
        x = packed.hidden
        q, k, v = self.project(self.norm_attention(x), rope)
        attend = self._attend_alike if packed.alike(sessions) else self._attend_each
        x = x + self.out(attend(layer, packed, q, k, v, sessions))
        return x + self.feed(self.norm_mlp(x))

    def project(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries [H, N, hd] and keys [kv, N, hd], and values [kv, N, hd], of normed rows [N, d]."""
        s = self.config
        heads = self.qkv(x).unflatten(-1, (s.num_heads + 2 * s.num_kv_heads, s.head_dim)).transpose(0, 1)
        q, k = _rotate(heads[: -s.num_kv_heads], *rope).split((s.num_heads, s.num_kv_heads))
        return q, k, heads[-s.num_kv_heads :]

    def feed(self, x: Tensor) -> Tensor:
        """The gated feed-forward [N, d] of normed rows [N, d]."""
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(ACTIVATIONS[self.config.hidden_act](gate).mul_(up))  # type: ignore[no-any-return]

    def _attend_each(
        self, layer: int, packed: Packed, q: Tensor, k: Tensor, v: Tensor, sessions: Sequence[Session]
    ) -> Tensor:
        """Attention sequence by sequence: ragged lengths, caches, reused columns. [H, N, hd] in, [N, H*hd] out."""
        outs = []
        for session, tokens, rows in zip(sessions, packed.sequences, packed.slices(), strict=True):
            queries, keys, values = (t[:, rows] for t in (q, k, v))
            columns = tokens.index
            if session.cache is not None:
                session.cache.write(layer, tokens.index, keys, values)
            if tokens.columns is not None:
                columns = tokens.columns
                old_keys, old_values = session.cache.read(layer, columns[tokens.index.shape[0] :])  # type: ignore[union-attr]
                keys, values = torch.cat((keys, old_keys), 1), torch.cat((values, old_values), 1)
            outs.append(self._sdpa(queries[None], keys[None], values[None], tokens, columns)[0])
            session.leave(layer, tokens, queries, keys, columns)
        out = outs[0] if len(outs) == 1 else torch.cat(outs, 1)
        return out.transpose(0, 1).flatten(1)

    def _attend_alike(
        self, layer: int, packed: Packed, q: Tensor, k: Tensor, v: Tensor, sessions: Sequence[Session]
    ) -> Tensor:
        """The same for sequences of equal length without caches, in one kernel call: what training uses."""
        count = len(sessions)
        queries, keys, values = (t.unflatten(1, (count, -1)).transpose(0, 1) for t in (q, k, v))
        first = packed.sequences[0]
        out = self._sdpa(queries, keys, values, first, first.index)
        for i, (session, tokens) in enumerate(zip(sessions, packed.sequences, strict=True)):
            session.leave(layer, tokens, queries[i], keys[i], tokens.index)
        return out.transpose(1, 2).flatten(0, 1).flatten(1)

    def _sdpa(self, q: Tensor, k: Tensor, v: Tensor, tokens: Tokens, columns: Tensor) -> Tensor:
        """[S, H, n, hd] queries on [S, kv, c, hd] keys through torch's fused kernel."""
        k, v = per_head(k, self.config.num_heads), per_head(v, self.config.num_heads)
        causal = self.config.causal and q.shape[2] > 1
        if tokens.columns is None and tokens.bias is None:
            return sdpa(q, k, v, None, causal)
        mask = tokens.index[:, None] >= columns[None, :] if causal else None
        if tokens.bias is not None:
            bias = tokens.bias.to(q.dtype).expand(q.shape[2], -1)
            mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
        return sdpa(q, k, v, mask)


@dataclass(frozen=True, eq=False)
class Packed:
    """Rows of several sequences, one after the other; segment s owns rows offsets[s] .. offsets[s + 1] - 1.

    hidden     [N, d]
    index      [N] position of each row within its own sequence
    sequences  the S segments; their `hidden` are what was packed, later layers read `hidden` above
    """

    hidden: Tensor
    index: Tensor
    sequences: tuple[Tokens, ...]

    @classmethod
    def of(cls, sequences: Sequence[Tokens]) -> Packed:
        """Packs; a single sequence is taken as it is, without a copy."""
        if len(sequences) == 1:
            return cls(sequences[0].hidden, sequences[0].index, tuple(sequences))
        return cls(torch.cat([t.hidden for t in sequences]), torch.cat([t.index for t in sequences]), tuple(sequences))

    def slices(self) -> list[slice]:
        """The rows of each segment."""
        start, out = 0, []
        for length in self.lengths:
            out.append(slice(start, start + length))
            start += length
        return out

    @property
    def lengths(self) -> list[int]:
        """Rows of each segment."""
        return [t.index.shape[0] for t in self.sequences]

    def split(self, hidden: Tensor) -> list[Tokens]:
        """The segments with new hidden states [N, d]."""
        parts = hidden.split(self.lengths)  # one node in the backward graph, where S slices would be S full gradients
        return [replace(t, hidden=part) for t, part in zip(self.sequences, parts, strict=True)]

    def alike(self, sessions: Sequence[Session]) -> bool:
        """Whether all segments have one length, attend to themselves only, evenly, and are not cached."""
        first = self.sequences[0].index.shape[0]
        return len(self.sequences) > 1 and all(
            t.index.shape[0] == first and t.columns is None and t.bias is None and s.cache is None
            for t, s in zip(self.sequences, sessions, strict=True)
        )


class Decoder(nn.Module):
    """The layer loop."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, config.norm_plus_one)

    def forward(self, sequences: Sequence[Tokens], sessions: Sequence[Session]) -> list[Tensor]:
        """Final hidden states [n, d] of the rows of each sequence that reached the end."""
        packed = None
        for layer, block in enumerate(self.blocks):
            entered = [s.enter(layer, t) for s, t in zip(sessions, sequences, strict=True)]
            if packed is None or any(new is not old for new, old in zip(entered, sequences, strict=True)):
                packed = Packed.of(entered)
                rope = self.rope(packed.index, packed.hidden.dtype)
            hidden = block(layer, packed, rope, sessions)
            sequences = packed.split(hidden)
            packed = replace(packed, hidden=hidden, sequences=tuple(sequences))
        assert packed is not None
        return [t.hidden for t in packed.split(self.norm(packed.hidden))]

    def rope(self, index: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The rotary tables [N, hd] of positions `index` [N]."""
        return rope(self.config, index, dtype)


def from_llama(state: Mapping[str, Tensor], layers: int, prefix: str = "model.") -> dict[str, Tensor]:
    """Renames a Llama's or Gemma's tensors to those of `Decoder`, fusing QKV and gate/up; KeyError names a gap."""
    out = {"norm.weight": state[f"{prefix}norm.weight"]}
    for i in range(layers):
        old, new = f"{prefix}layers.{i}.", f"blocks.{i}."
        out[new + "norm_attention.weight"] = state[old + "input_layernorm.weight"]
        out[new + "norm_mlp.weight"] = state[old + "post_attention_layernorm.weight"]
        out[new + "qkv.weight"] = torch.cat([state[f"{old}self_attn.{n}_proj.weight"] for n in "qkv"])
        out[new + "out.weight"] = state[old + "self_attn.o_proj.weight"]
        out[new + "gate_up.weight"] = torch.cat([state[f"{old}mlp.{n}_proj.weight"] for n in ("gate", "up")])
        out[new + "down.weight"] = state[old + "mlp.down_proj.weight"]
    return out
