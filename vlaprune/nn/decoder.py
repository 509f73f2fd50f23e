"""A Llama- or Gemma-shaped decoder whose hidden states can be read and pruned between layers.

It computes packed rows of several sequences. Before every layer the hooks of a sequence may change which rows go on.
After every layer they get the rotated queries and keys. Positions are an argument, never a counter: a row's position is
its RoPE phase, its causal order and its cache slot, so dropped tokens leave no trace in the rows that stay.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from vlaprune.nn.backend import EAGER, Backend
from vlaprune.nn.block import Block, DecoderConfig, RMSNorm, normalise, rope


@dataclass(frozen=True, eq=False)
class Tokens:
    """The rows that one sequence computes at a layer.

    hidden  [n, d]
    index   [n] position of each row in the prompt, sorted
    columns [n + m] positions attended to: the rows' own, then those of m slots of the cache; None for just their own
    bias    [n + m] added to the attention logits of each column; None for zeros
    axes    [length, axes] RoPE position of every position of the prompt, for a decoder with `mrope_section` (Qwen2-VL);
            None where a row's position is its RoPE position. It stays the same for the whole call
    """

    hidden: Tensor
    index: Tensor
    columns: Tensor | None = None
    bias: Tensor | None = None
    axes: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether the rows attend to each other only, without a bias."""
        return self.columns is None and self.bias is None

    @property
    def phases(self) -> Tensor:
        """RoPE positions of the rows, [n] or [n, axes]."""
        return self.index if self.axes is None else self.axes.index_select(0, self.index)


def numbered(*parts: Tensor) -> tuple[Tensor, Tensor]:
    """Parts [n, d] of one prompt behind each other, and the position of each row."""
    rows = torch.cat(parts)
    return rows, torch.arange(rows.shape[0], device=rows.device)


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
        more = [[like.new_zeros(size) for _ in range(self.config.num_layers)] for _ in "kv"]
        if have:
            self._keys = [torch.cat((old, new), 1) for old, new in zip(self._keys, more[0], strict=True)]
            self._values = [torch.cat((old, new), 1) for old, new in zip(self._values, more[1], strict=True)]
        else:
            self._keys, self._values = more

    def write(self, layer: int, index: Tensor, keys: Tensor, values: Tensor) -> None:
        """Stores [num_kv_heads, n, head_dim] keys and values into slots `index` [n]."""
        self._keys[layer].index_copy_(1, index, keys)
        self._values[layer].index_copy_(1, index, values)

    def read(self, layer: int, index: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values in slots `index` [m], each [num_kv_heads, m, head_dim]."""
        return self._keys[layer].index_select(1, index), self._values[layer].index_select(1, index)

    @property
    def bytes(self) -> int:
        """Memory held, in bytes."""
        return sum(t.numel() * t.element_size() for t in (*self._keys, *self._values))


@dataclass(frozen=True, eq=False)
class LayerKV:
    """The keys and values that one layer's rows attended to.

    keys, values  [num_kv_heads, c, head_dim], keys rotated
    columns       [c] their positions
    bias          [c] added to the logits; None for zeros
    """

    keys: Tensor
    values: Tensor
    columns: Tensor
    bias: Tensor | None


@dataclass(frozen=True, eq=False)
class Computed:
    """What one layer computed for one sequence. The tensors stay unmodified until the call ends.

    seen     number of columns attended to
    queries  [num_heads, n, head_dim] rotated; None where `records_attention` is False
    kv       what the rows attended to; None where neither attention nor keys and values are kept
    outputs  [n, d] attention output of the rows (after o_proj, before the residual sum); None where `records_outputs`
             is False
    """

    seen: int
    queries: Tensor | None = None
    kv: LayerKV | None = None
    outputs: Tensor | None = None


class Hooks(Protocol):
    """The methods that the decoder calls for one sequence.

    cache     keys and values of earlier calls, where a method reuses them; else None
    keeps_kv  whether rows behind the prompt will attend to its keys and values
    """

    cache: Cache | None
    keeps_kv: bool

    def enter(self, layer: int, tokens: Tokens) -> Tokens:
        """The rows that enter `layer`; the same object if nothing changes."""

    def leave(self, layer: int, tokens: Tokens, computed: Computed) -> None:
        """Called after a layer is computed."""

    def next_prune_layer(self, layer: int) -> int:
        """The first layer after this one at which `enter` may change the rows."""

    def records_attention(self, layer: int) -> bool:
        """Whether `leave` reads queries and keys of this layer."""

    def records_outputs(self, layer: int) -> bool:
        """Whether `leave` reads the attention outputs of this layer."""

    def begin_second_pass(self, hidden: Tensor) -> bool:
        """Whether to compute the prompt again. Called after the last layer; `hidden` [n, d] are the final rows."""


class NullHooks:
    """Hooks that change and keep nothing: plain dense computation, for training and as an oracle."""

    cache: Cache | None = None
    keeps_kv = False

    def enter(self, layer: int, tokens: Tokens) -> Tokens:
        """All rows, unchanged."""
        return tokens

    def leave(self, layer: int, tokens: Tokens, computed: Computed) -> None:
        """Does nothing."""

    def next_prune_layer(self, layer: int) -> int:
        """A layer that is never reached: nothing is pruned."""
        return sys.maxsize

    def records_attention(self, layer: int) -> bool:
        """False: it is not needed."""
        return False

    def records_outputs(self, layer: int) -> bool:
        """False: it is not needed."""
        return False

    def begin_second_pass(self, hidden: Tensor) -> bool:
        """False: it is not needed."""
        return False


class LayerResult(NamedTuple):
    """What a layer computes: rows [n, d], queries [H, n, hd], keys and values [kv, c, hd].

    output  [n, d] attention output; None where it is not read
    """

    rows: Tensor
    queries: Tensor
    keys: Tensor
    values: Tensor
    output: Tensor | None


class LayerWants(NamedTuple):
    """Which tensors of a layer's result are kept after its segment."""

    queries: bool
    keys_values: bool
    output: bool


class LayerKept(NamedTuple):
    """The tensors of a LayerResult that are kept after the segment; None for those not wanted."""

    queries: Tensor | None
    keys: Tensor | None
    values: Tensor | None
    output: Tensor | None

    @classmethod
    def of(cls, result: LayerResult, wants: LayerWants) -> LayerKept:
        """The wanted tensors of a result."""
        keys, values = (result.keys, result.values) if wants.keys_values else (None, None)
        return cls(result.queries if wants.queries else None, keys, values, result.output)


class Masking(NamedTuple):
    """What rows attend to, if not only to each other.

    positions  [n] of the rows
    columns    [c] positions attended to: the rows' own, then those of the old keys
    bias       [c] added to the logits; None for zeros
    old        per layer the keys and values [kv, m, hd] of columns that no row computes; None for none
    """

    positions: Tensor
    columns: Tensor
    bias: Tensor | None
    old: Sequence[tuple[Tensor, Tensor] | None]


def mask_of(index: Tensor, columns: Tensor, bias: Tensor | None, causal: bool, dtype: torch.dtype) -> Tensor | None:
    """The mask [n, c] of rows at positions [n] on columns [c]: bool, or added to the logits where there is a bias."""
    mask = index[:, None] >= columns[None, :] if causal else None
    if bias is None:
        return mask
    added = bias.to(dtype).expand(index.shape[0], -1)
    return added if mask is None else added.masked_fill(~mask, float("-inf"))


def plain_layer(block: Block, x: Tensor, cos: Tensor, sin: Tensor, reads: bool) -> LayerResult:
    """Unit: one layer on rows [n, d] that attend to each other only, without a bias.

    reads  the attention output is read
    """
    q, k, v = block.project(block.norm_attention(x), (cos, sin))
    output = block.output(block.attend(q[None], k[None], v[None], None, block.config.causal)[0])
    return LayerResult(block.finish(x, output), q, k, v, output if reads else None)


def masked_layer(
    block: Block,
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    index: Tensor,
    columns: Tensor,
    bias: Tensor | None,
    old: tuple[Tensor, Tensor] | None,
    reads: bool,
) -> LayerResult:
    """Unit: one layer on rows [n, d] at positions [n], with a bias [c] or with old keys and values [kv, m, hd].

    columns  [c] positions attended to: the rows' own, then those of the old keys
    reads    the attention output is read
    """
    q, k, v = block.project(block.norm_attention(x), (cos, sin))
    if old is not None:
        k, v = torch.cat((k, old[0]), 1), torch.cat((v, old[1]), 1)
    mask = mask_of(index, columns, bias, block.config.causal, q.dtype)
    output = block.output(block.attend(q[None], k[None], v[None], mask)[0])
    return LayerResult(block.finish(x, output), q, k, v, output if reads else None)


class Decoder(nn.Module):
    """A decoder whose hidden states can be read and pruned between layers."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, config.norm_plus_one)

    def forward(self, sequences: Sequence[Tokens], hooks: Sequence[Hooks], backend: Backend = EAGER) -> list[Tensor]:
        """Final hidden states [n, d] of the rows of each sequence that reached the end.

        One sequence runs segment by segment through the backend. Several run layer by layer as they are. Sequences
        whose hooks ask for it are computed once more, from the same rows.
        """
        out = self._pass(sequences, hooks, backend)
        again = [i for i, own in enumerate(out) if hooks[i].begin_second_pass(own)]
        if again:
            redone = self._pass([sequences[i] for i in again], [hooks[i] for i in again], backend)
            for i, rows in zip(again, redone, strict=True):
                out[i] = rows
        return out

    def _pass(self, sequences: Sequence[Tokens], hooks: Sequence[Hooks], backend: Backend) -> list[Tensor]:
        """Computes all layers once."""
        layer, last = 0, self.config.num_layers
        sequences = list(sequences)
        while layer < last:
            sequences = [h.enter(layer, t) for h, t in zip(hooks, sequences, strict=True)]
            stop = min(last, *(h.next_prune_layer(layer) for h in hooks))
            if len(sequences) == 1:
                sequences = [self._segment(layer, stop, sequences[0], hooks[0], backend)]
            else:
                sequences = self._packed(range(layer, stop), sequences, hooks)
            layer = stop
        return [t.hidden for t in sequences]

    def _segment(self, first: int, stop: int, tokens: Tokens, hook: Hooks, backend: Backend) -> Tokens:
        """Computes layers first .. stop - 1 of one sequence through the backend, then calls `leave` for each layer."""
        keeps = hook.keeps_kv or hook.cache is not None
        records = [(hook.records_attention(layer), hook.records_outputs(layer)) for layer in range(first, stop)]
        wants = tuple(LayerWants(record, record or keeps, reads) for record, reads in records)
        columns = tokens.index if tokens.columns is None else tokens.columns
        rows, seen = tokens.index.shape[0], columns.shape[0]
        old: list[tuple[Tensor, Tensor] | None] = [None] * (stop - first)
        if hook.cache is not None and seen > rows:
            old = [hook.cache.read(layer, columns[rows:]) for layer in range(first, stop)]
        masking = None if tokens.plain else Masking(tokens.index, columns, tokens.bias, old)
        layers = partial(self.layers, first, stop, wants, backend)
        hidden, kept = backend.run(("layers", first, stop, wants), layers, tokens.hidden, tokens.phases, masking)
        nothing = Computed(seen)
        for layer, own in enumerate(kept, first):
            read = own.queries is not None or own.output is not None
            if backend.static and read:  # a second pass would overwrite tensors that a method may read later
                own = LayerKept(*(None if t is None else t.clone() for t in own))
            if not read and own.keys is None:
                hook.leave(layer, tokens, nothing)
                continue
            kv = None if own.keys is None else LayerKV(own.keys, own.values, columns, tokens.bias)
            hook.leave(layer, tokens, Computed(seen, own.queries, kv, own.output))
        return replace(tokens, hidden=hidden)

    def layers(
        self,
        first: int,
        stop: int,
        wants: Sequence[LayerWants],
        backend: Backend,
        hidden: Tensor,
        phases: Tensor,
        masking: Masking | None,
    ) -> tuple[Tensor, list[LayerKept]]:
        """Segment: layers first .. stop - 1 on rows [n, d] at RoPE positions [n], the final norm after the last layer.

        masking  None for rows that attend to each other only, without a bias
        """
        cos, sin = backend.unit(rope)(self.config, phases, hidden.dtype)
        plain, other = backend.unit(plain_layer), backend.unit(masked_layer)
        kept: list[LayerKept] = []
        for i, own in enumerate(wants):
            block = self.blocks[first + i]
            if masking is None:
                result = plain(block, hidden, cos, sin, own.output)
            else:
                positions, columns, bias, old = masking
                result = other(block, hidden, cos, sin, positions, columns, bias, old[i], own.output)
            kept.append(LayerKept.of(result, own))
            hidden = result.rows
        if stop == self.config.num_layers:
            hidden = backend.unit(normalise)(self.norm, hidden)
        return hidden, kept

    def _packed(self, layers: range, sequences: Sequence[Tokens], hooks: Sequence[Hooks]) -> list[Tokens]:
        """Computes some layers of several sequences: one matrix product for all rows, attention per sequence."""
        lengths = [t.index.shape[0] for t in sequences]
        hidden = torch.cat([t.hidden for t in sequences])
        tables = rope(self.config, torch.cat([t.phases for t in sequences]), hidden.dtype)
        alike = len(set(lengths)) == 1 and all(
            t.plain and h.cache is None and not h.keeps_kv for t, h in zip(sequences, hooks, strict=True)
        )
        for layer in layers:
            block: Block = self.blocks[layer]  # type: ignore[assignment]
            q, k, v = block.project(block.norm_attention(hidden), tables)
            attend = self._attend_alike if alike else self._attend_each
            attended, kept = attend(layer, sequences, hooks, (q, k, v))
            output = block.output(attended)
            start = 0
            for tokens, hook, rows, queries, kv in zip(sequences, hooks, lengths, *kept, strict=True):
                own = output[start : start + rows] if hook.records_outputs(layer) else None
                hook.leave(layer, tokens, Computed(kv.columns.shape[0], queries, kv, own))
                start += rows
            hidden = block.finish(hidden, output)
        if layers.stop == self.config.num_layers:
            hidden = self.norm(hidden)
        parts = hidden.split(lengths)  # one node in the backward graph, where slices would be full gradients
        return [replace(t, hidden=part) for t, part in zip(sequences, parts, strict=True)]

    def _attend_each(
        self, layer: int, sequences: Sequence[Tokens], hooks: Sequence[Hooks], qkv: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Sequence[Tensor], Sequence[LayerKV]]]:
        """Attention output [H, N, hd], sequence by sequence: ragged lengths, caches, reused columns.

        Also returns the queries [H, n, hd] of each sequence and the keys and values that they attended to.
        """
        block: Block = self.blocks[layer]  # type: ignore[assignment]
        outs, kept, lengths = [], [], [t.index.shape[0] for t in sequences]
        for tokens, hook, q, k, v in zip(sequences, hooks, *(t.split(lengths, 1) for t in qkv), strict=True):
            columns = tokens.index if tokens.columns is None else tokens.columns
            if hook.cache is not None and columns.shape[0] > tokens.index.shape[0]:
                old = hook.cache.read(layer, columns[tokens.index.shape[0] :])
                k, v = torch.cat((k, old[0]), 1), torch.cat((v, old[1]), 1)
            if tokens.plain:
                outs.append(block.attend(q[None], k[None], v[None], None, self.config.causal)[0])
            else:
                mask = mask_of(tokens.index, columns, tokens.bias, self.config.causal, q.dtype)
                outs.append(block.attend(q[None], k[None], v[None], mask)[0])
            kept.append(LayerKV(k, v, columns, tokens.bias))
        return torch.cat(outs, 1), (qkv[0].split(lengths, 1), kept)

    def _attend_alike(
        self, layer: int, sequences: Sequence[Tokens], hooks: Sequence[Hooks], qkv: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Sequence[Tensor], Sequence[LayerKV]]]:
        """`_attend_each` in one kernel call, for sequences of equal length that attend to themselves (training)."""
        block: Block = self.blocks[layer]  # type: ignore[assignment]
        q, k, v = (t.unflatten(1, (len(sequences), -1)).transpose(0, 1) for t in qkv)
        out = block.attend(q, k, v, None, self.config.causal)
        kept = [LayerKV(k[i], v[i], tokens.index, None) for i, tokens in enumerate(sequences)]
        return out.transpose(0, 1).flatten(1, 2), (list(q), kept)
