"""What models that compute rows behind the prompt take from the calls, and record: columns, FLOPs, action rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlaprune.call import Call, decode_flops
from vlaprune.nn.block import DecoderConfig
from vlaprune.nn.extend import PromptKV, Suffix
from vlaprune.trace import AttentionRows


def recorded_layers(calls: Sequence[Call], config: DecoderConfig) -> tuple[int, ...]:
    """Layers whose action rows some method reads."""
    return tuple(layer for layer in range(config.num_layers) if any(c.records_action(layer) for c in calls))


def left_by_prompt(calls: Sequence[Call]) -> tuple[PromptKV, list[int]]:
    """What the prompts left at each layer, and the length of each prompt before pruning: inputs of a segment."""
    layers = range(calls[0].config.num_layers)
    prompt = [[(kv.keys, kv.values, kv.bias) for kv in (call.kv(layer) for call in calls)] for layer in layers]
    return prompt, [call.trace.layout.length for call in calls]


def columns_of(call: Call) -> list[int]:
    """Columns of the prompt that rows behind it attend to, at each layer."""
    return [seen for _, seen in call.trace.counts]


def record_passes(calls: Sequence[Call], passes: int) -> None:
    """Notes and charges `passes` decoded rows, one a pass, each of which also attends to those before it."""
    for call in calls:
        prompt = columns_of(call)
        columns = [[seen + number + 1 for seen in prompt] for number in range(passes)]
        call.record_passes(columns)
        call.charge("decode", decode_flops(call.config, columns))


Read = tuple[
    Tensor, list[Tensor]
]  # queries [B, H, q, hd] of the last q rows of the suffix; keys [kv, m + s, hd] of each


def record_action(
    calls: Sequence[Call], layers: Sequence[int], reads: Sequence[Sequence[Read]], causal: bool = True
) -> None:
    """Records the action rows of some layers in the calls whose method reads them.

    reads   per layer, one for each time that the rows were computed
    causal  a row sees no later row
    """
    for layer, layer_reads in zip(layers, reads, strict=True):
        for i, call in enumerate(calls):
            if call.records_action(layer):
                columns, bias = _extended(call, layer, layer_reads[0][1][i].shape[1])
                for queries, keys in layer_reads:
                    index = columns[-queries.shape[2] :] if causal else None
                    call.record_attention(layer, AttentionRows(queries[i], keys[i], columns, index, bias))


def _extended(call: Call, layer: int, total: int) -> tuple[Tensor, Tensor | None]:
    """Positions [total] of the prompt's columns and of the rows behind them, and their bias [total] or None."""
    kv = call.kv(layer)
    length = call.trace.layout.length
    rows = total - kv.columns.shape[0]
    behind = torch.arange(length, length + rows, device=kv.columns.device)
    bias = None if kv.bias is None else torch.cat((kv.bias, kv.bias.new_zeros(rows)))
    return torch.cat((kv.columns, behind)), bias


def gather_reads(queries: Sequence[Sequence[Tensor]], layers: Sequence[int], suffix: Suffix) -> list[list[Read]]:
    """The reads of rows that were computed one a pass: per pass and layer queries [B, H, 1, hd], and the final keys."""
    return [
        [(torch.cat([rows[layer] for rows in queries], 2), [kv[0] for kv in suffix.buffers[layer]])] for layer in layers
    ]
