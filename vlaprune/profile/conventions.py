"""What papers call FLOPs: each convention, computed from the observed shapes of a call, beside our own count.

The same dense call of OpenVLA (291 positions) is published as 1.9 T and as 1.5 T, and is 3.8 T when a
multiply-accumulate counts twice. So a number means something only with its convention; `CONVENTIONS` names them and who
prints them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlaprune.nn.block import DecoderConfig
    from vlaprune.records import StepRecord

CONVENTIONS: Mapping[str, str] = {
    "flops_call": "2 per multiply-accumulate, the whole call, attention as the full rectangle: ours, EfficientVLA",
    "flops_prefill": "2 per multiply-accumulate, the layers of the first pass: ADP, LightVLA",
    "macs_prefill_paper": "multiply-accumulates of the layers of the first pass, gated feed-forward with its three "
    "products, sum of 4nd^2 + 2n^2 d + 3ndm: VLA-Cache's code and Table 1, InfoEntropy, SAFE-Pruner, VLA-Pruner",
    "macs_prefill_eq9": "the same with 2ndm, as if the feed-forward had no gate: VLA-Cache Eq. 9, VLA-Pruner's text",
    "visual_mean": "visual tokens computed, averaged over layers: SparseVLM and those who compare with it",
}


def prefill_macs(config: DecoderConfig, rows: Sequence[float], ffn: int = 3) -> float:
    """Multiply-accumulates of the first pass as papers count them, from the rows computed at each layer.

    `ffn` is the coefficient of the feed-forward: 3 for the gated one that these models have, 2 as in VLA-Cache's
    Eq. 9. Reused columns are not counted; papers that reuse do not count them either. Vision, projector, head
    and decode are left out.
    """
    inner, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    token = config.hidden_size * (2 * inner + 2 * kv) + ffn * config.hidden_size * config.intermediate_size
    return sum(n * token + 2 * n * n * inner for n in rows)


def rosetta(config: DecoderConfig, record: StepRecord) -> dict[str, float]:
    """The numbers of one call in every convention; the keys are those of `CONVENTIONS`."""
    rows = (*record.first_rows, *record.rows)
    paper = prefill_macs(config, rows)
    return {
        "flops_call": sum(record.flops.values()),
        "flops_prefill": 2 * paper,
        "macs_prefill_paper": paper,
        "macs_prefill_eq9": prefill_macs(config, rows, ffn=2),
        "visual_mean": sum(record.visual) / len(record.visual),
    }
