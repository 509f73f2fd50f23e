"""What models that compute rows behind the prompt record of them: columns, FLOPs, attention of the action rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlaprune.call import Call, decode_flops
from vlaprune.nn.block import DecoderConfig
from vlaprune.nn.extend import KV, Suffix
from vlaprune.trace import AttentionRows


def recorded_layers(calls: Sequence[Call], config: DecoderConfig) -> tuple[int, ...]:
    """Layers whose action rows some method reads."""
    return tuple(layer for layer in range(config.num_layers) if any(c.records_action(layer) for c in calls))


def record_passes(calls: Sequence[Call], suffix: Suffix, passes: int) -> None:
    """Notes and charges `passes` decoded rows, one a pass, each of which also attends to those before it."""
    for i, call in enumerate(calls):
        columns = [[seen + number + 1 for seen in suffix.columns(i)] for number in range(passes)]
        call.record_passes(columns)
        call.charge("decode", decode_flops(call.config, columns))


Read = tuple[
    Tensor, list[Tensor]
]  # queries [B, H, q, hd] of the last q rows of the suffix; keys [kv, m + s, hd] of each


def record_action(
    calls: Sequence[Call], suffix: Suffix, layers: Sequence[int], reads: Sequence[Sequence[Read]], causal: bool = True
) -> None:
    """Hands over the action rows of some layers.

    reads   per layer, one for each time that the rows were computed
    causal  a row sees no later row
    """
    for layer, own in zip(layers, reads, strict=True):
        for i, call in enumerate(calls):
            if call.records_action(layer):
                buffer = suffix.buffers[layer][i]
                for queries, keys in own:
                    index = buffer.columns[-queries.shape[2] :] if causal else None
                    rows = AttentionRows(queries[i], keys[i], buffer.columns, index, buffer.tensors[2])
                    call.record_attention(layer, rows)


def joined(
    queries: Sequence[Sequence[Tensor]], layers: Sequence[int], buffers: Sequence[Sequence[KV]]
) -> list[list[Read]]:
    """The reads of rows that were computed one a pass: per pass and layer queries [B, H, 1, hd], and the final keys."""
    return [[(torch.cat([own[layer] for own in queries], 2), [kv[0] for kv in buffers[layer]])] for layer in layers]
