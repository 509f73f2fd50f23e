"""What models that compute rows behind the prompt record of them: columns, FLOPs, attention of the action rows."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vlaprune.call import Call, decode_flops
from vlaprune.nn.block import DecoderConfig
from vlaprune.nn.extend import Suffix
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


def record_action(
    calls: Sequence[Call],
    suffix: Suffix,
    layers: Sequence[int],
    queries: Sequence[Tensor],
    keys: Sequence[Sequence[Tensor]],
    causal: bool = True,
) -> None:
    """Hands over the action rows of some layers.

    queries  per layer [B, H, q, hd], of the last q rows of the suffix
    keys     per layer and sequence [kv, m + s, hd]
    causal   a row sees no later row
    """
    for number, layer in enumerate(layers):
        for i, call in enumerate(calls):
            if call.records_action(layer):
                buffer, own = suffix.buffers[layer][i], queries[number][i]
                index = buffer.columns[-own.shape[1] :] if causal else None
                rows = AttentionRows(own, keys[number][i], buffer.columns, index, buffer.tensors[2])
                call.record_attention(layer, rows)
