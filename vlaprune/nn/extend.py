"""Rows behind the prompt: decoded tokens, and the rows of an action expert. They attend to what the prompt left.

Every layer has a buffer: the prompt's keys and values at that layer, each layer its own columns, then room for the rows
that follow. Writing a row's keys and values happens in place, so nothing grows and the sizes of a call are fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from vlaprune.nn.backend import Backend
from vlaprune.nn.block import Block, DecoderConfig, rope
from vlaprune.nn.decoder import LayerKV

KV = tuple[Tensor, Tensor, Tensor | None]  # keys and values [kv, m + s, hd], bias [m + s] or None


@dataclass(frozen=True, eq=False)
class KVBuffer:
    """Keys and values of one sequence at one layer: m columns of the prompt, then room for s rows.

    tensors  keys and values [num_kv_heads, m + s, head_dim], and the bias [m + s] added to the logits, or None
    columns  [m + s] positions
    rows     s
    """

    tensors: KV
    columns: Tensor
    rows: int

    @classmethod
    def of(cls, kv: LayerKV, positions: Tensor) -> KVBuffer:
        """What the prompt left at a layer, and room for rows at `positions` [s]."""
        rows = positions.shape[0]
        keys, values = (torch.cat((t, t.new_zeros(t.shape[0], rows, t.shape[2])), 1) for t in (kv.keys, kv.values))
        bias = None if kv.bias is None else torch.cat((kv.bias, kv.bias.new_zeros(rows)))
        return cls((keys, values, bias), torch.cat((kv.columns, positions)), rows)

    @property
    def seen(self) -> int:
        """Columns of the prompt."""
        return self.columns.shape[0] - self.rows


def attend_buffer(block: Block, q: Tensor, kv: KV, seen: int) -> Tensor:
    """Attention output [H, n, hd] of queries [H, n, hd] on the first `seen` columns."""
    keys, values, bias = kv
    mask = None if bias is None else bias[:seen].to(q.dtype).expand(q.shape[1], -1)
    return block.attend(q[None], keys[None, :, :seen], values[None, :, :seen], mask)[0]


def extend_layer(
    block: Block,
    x: Tensor,
    tables: tuple[Tensor, Tensor],
    buffers: Sequence[KV],
    span: tuple[int, int, int],
    modulation: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Unit: one layer on n rows of each of B sequences. Rows [B * n, d], and queries [B, H, n, hd].

    tables      cosines and sines [B * n, hd]
    buffers     of the B sequences; the rows' keys and values are written into them
    span        s, the number of rows that a buffer has room for; which of them these n rows are the first of; and how
                many of the n are prefix rows, which do not see the rows behind them
    modulation  of the two norms, each [3d], where the block has adaptive norms (pi0.5)
    """
    room, start, prefix = span
    first, second = (None, None) if modulation is None else modulation
    y, gate = block.normed_attention(x, first)
    q, k, v = (t.unflatten(1, (len(buffers), -1)).transpose(0, 1) for t in block.project(y, tables))
    rows, outs = q.shape[2], []
    for buffer, queries, keys, values in zip(buffers, q, k, v, strict=True):
        at = buffer[0].shape[1] - room + start
        buffer[0][:, at : at + rows] = keys
        buffer[1][:, at : at + rows] = values
        own = attend_buffer(block, queries[:, prefix:], buffer, at + rows)
        if prefix:
            own = torch.cat((attend_buffer(block, queries[:, :prefix], buffer, at + prefix), own), 1)
        outs.append(own)
    attended = block.out(torch.cat(outs, 1).transpose(0, 1).flatten(1))
    x = x + (attended if gate is None else attended * gate)
    y, gate = block.normed_mlp(x, second)
    fed = block.feed(y)
    return x + (fed if gate is None else fed * gate), q


def extend(
    blocks: nn.ModuleList,
    x: Tensor,
    tables: tuple[Tensor, Tensor],
    buffers: Sequence[Sequence[KV]],
    span: tuple[int, int, int],
    backend: Backend,
    modulations: Sequence[Tensor] | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """All layers on n rows of each of B sequences: rows [B * n, d] before the final norm, and each layer's queries.

    buffers      by layer, then by sequence
    modulations  2 per layer; None for plain norms
    """
    unit, queries = backend.unit(extend_layer), []
    for layer, block in enumerate(blocks):
        own = None if modulations is None else (modulations[2 * layer], modulations[2 * layer + 1])
        x, q = unit(block, x, tables, buffers[layer], span, own)
        queries.append(q)
    return x, queries


class Prompt(Protocol):
    """What rows behind a prompt need of it."""

    def kv(self, layer: int) -> LayerKV:
        """The keys and values that they attend to at `layer`."""


@dataclass(frozen=True, eq=False)
class Suffix:
    """Room for s rows behind the prompts of B sequences.

    buffers  by layer, then by sequence
    tables   cosines and sines [B, s, head_dim] of the rows' positions
    """

    buffers: list[list[KVBuffer]]
    tables: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, config: DecoderConfig, prompts: Sequence[Prompt], lengths: Sequence[int], rows: int) -> Suffix:
        """Behind prompts of so many positions, as if no token had been pruned."""
        layers = [[prompt.kv(layer) for prompt in prompts] for layer in range(config.num_layers)]
        like = layers[0][0].keys
        positions = [torch.arange(length, length + rows, device=like.device) for length in lengths]
        buffers = [[KVBuffer.of(kv, at) for kv, at in zip(own, positions, strict=True)] for own in layers]
        cos, sin = rope(config, torch.cat(positions), like.dtype)
        return cls(buffers, (cos.unflatten(0, (-1, rows)), sin.unflatten(0, (-1, rows))))

    @property
    def kv(self) -> list[list[KV]]:
        """The tensors of the buffers."""
        return [[buffer.tensors for buffer in own] for own in self.buffers]

    def columns(self, sequence: int) -> list[int]:
        """Columns of the prompt at each layer."""
        return [own[sequence].seen for own in self.buffers]


def part(tables: tuple[Tensor, Tensor], start: int, stop: int) -> tuple[Tensor, Tensor]:
    """The tables [B * n, hd] of rows start .. stop - 1 of each sequence."""
    cos, sin = tables
    return cos[:, start:stop].flatten(0, 1), sin[:, start:stop].flatten(0, 1)
