"""Rows after the prompt: decoded tokens, and the rows of an action expert. They attend to what the prompt left.

All of it happens within one segment. Its inputs are the keys and values that the prompt left at each layer; each layer
has its own columns. The segment copies them into buffers with room for the rows that follow. A row's keys and values
are written in place, so nothing grows and the sizes of a call are fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlaprune.nn.backend import EAGER, Backend
from vlaprune.nn.block import Block, add_branch, rope

KV = tuple[Tensor, Tensor, Tensor | None]  # keys and values [kv, c, hd], bias [c] added to the logits or None
PromptKV = Sequence[Sequence[KV]]  # by layer, then by sequence


def make_room(kv: KV, rows: int) -> KV:
    """Unit: keys, values and bias of the m columns of a prompt at one layer, with room for `rows` more columns."""
    keys, values, bias = kv
    longer = None if bias is None else F.pad(bias, (0, rows))
    return F.pad(keys, (0, 0, 0, rows)), F.pad(values, (0, 0, 0, rows)), longer


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
    x = add_branch(x, attended if gate is None else attended * gate)
    y, gate = block.normed_mlp(x, second)
    fed = block.feed(y)
    return add_branch(x, fed if gate is None else fed * gate), q


@dataclass(frozen=True, eq=False)
class Suffix:
    """`rows` rows after the prompts of B sequences, some of them computed at a time. It lives within one segment.

    blocks   layers that compute the rows
    prompt   keys, values and biases that the prompts left
    lengths  positions of each prompt, as if no token had been pruned; the rows' positions go on from there
    """

    blocks: nn.ModuleList
    prompt: PromptKV
    lengths: Sequence[int]
    rows: int
    backend: Backend = EAGER

    @cached_property
    def buffers(self) -> list[list[KV]]:
        """The prompts' keys, values and biases with room for the rows: by layer, then by sequence."""
        unit = self.backend.unit(make_room)
        return [[unit(kv, self.rows) for kv in own] for own in self.prompt]

    @cached_property
    def tables(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines [B, rows, head_dim] of the rows' positions."""
        like: Tensor = self.prompt[0][0][0]
        positions = torch.cat([torch.arange(n, n + self.rows, device=like.device) for n in self.lengths])
        cos, sin = self.backend.unit(rope)(self.blocks[0].config, positions, like.dtype)
        return cos.unflatten(0, (-1, self.rows)), sin.unflatten(0, (-1, self.rows))

    def extend(
        self, x: Tensor, start: int, prefix: int = 0, modulations: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Runs all layers on n rows of each sequence: rows [B * n, d] before the final norm, and each layer's queries.

        x            [B * n, d]
        start        number of the first of these rows in the suffix
        prefix       how many of the n rows do not see the rows after them
        modulations  2 per layer; None for plain norms
        """
        unit, queries = self.backend.unit(extend_layer), []
        stop = start + x.shape[0] // len(self.lengths)
        cos, sin = (t[:, start:stop].flatten(0, 1) for t in self.tables)
        for layer, block in enumerate(self.blocks):
            own = None if modulations is None else (modulations[2 * layer], modulations[2 * layer + 1])
            x, q = unit(block, x, (cos, sin), self.buffers[layer], (self.rows, start, prefix), own)
            queries.append(q)
        return x, queries
