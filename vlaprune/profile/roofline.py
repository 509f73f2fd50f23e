"""Bytes moved and the roofline floor: the least time in which a device can do the work of a call.

Per matrix product max(FLOPs / peak, bytes / bandwidth), summed (Williams, Waterman & Patterson 2009). Bytes are weights
read once a pass, activations in and out once; launches, norms and synchronisation cost nothing. Real stacks sit 3 to 20
times above this floor at batch 1, and no pruning goes below it: where the weights' bytes bound a pass, fewer tokens
save FLOPs and no time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from vlaprune.errors import UserError
from vlaprune.meter import attention_flops, linear_flops

if TYPE_CHECKING:
    import torch

    from vlaprune.nn.block import DecoderConfig


@dataclass(frozen=True)
class Work:
    """One matrix product, or one fused attention: FLOPs (2 per multiply-accumulate), bytes moved, whether in fp32."""

    flops: float
    bytes: float
    single: bool = False

    def times(self, count: int) -> Work:
        """This work done `count` times, as one entry. Its floor is `count` times as large."""
        return Work(self.flops * count, self.bytes * count, self.single)


Stages = Mapping[str, Sequence[Work]]


@dataclass(frozen=True)
class Device:
    """A device: peak FLOP/s of dense matrix products in its dtype, bytes/s of its memory, and the source.

    single  peak FLOP/s of products in fp32, if it differs and is known: parts of a bf16 model may stay in fp32
    """

    name: str
    flops: float
    bandwidth: float
    source: str
    single: float | None = None

    @property
    def ridge(self) -> float:
        """FLOPs per byte above which a product is bound by arithmetic."""
        return self.flops / self.bandwidth

    def floor(self, works: Iterable[Work]) -> float:
        """Milliseconds below which these products cannot be done one after the other."""
        return 1e3 * sum(max(w.flops / self._peak(w), w.bytes / self.bandwidth) for w in works)

    def _peak(self, work: Work) -> float:
        return self.single if work.single and self.single is not None else self.flops

    def floors(self, stages: Stages) -> dict[str, float]:
        """The floor of each stage, in milliseconds."""
        return {name: self.floor(works) for name, works in stages.items()}


SHEET = "vendor's data sheet, bf16 dense, not measured here"
JETSON = "measured there: infinigence/ApxInf@21ae1dc:doc/jetson-roofline.md, not here"
DEVICES = {
    d.name: d
    for d in (
        Device("H100", 989e12, 3.35e12, SHEET),
        Device("H200", 790e12, 4.3e12, "reported as measured (sheet: 989 TFLOP/s, 4.8 TB/s), not measured here"),
        Device("4090", 182.8e12, 1.01e12, "arXiv:2510.26742, not measured here"),
        Device("A100", 312e12, 2.039e12, SHEET + "; the 80 GB SXM part"),
        Device("5090", 209.5e12, 1.792e12, SHEET + " (RTX Blackwell whitepaper, FP32 accumulation)"),
        Device("Orin64", 33.8e12, 152.8e9, JETSON + "; AGX Orin 64 GB, MAXN"),
        Device("Thor", 135.2e12, 257.0e9, JETSON + "; Drive AGX Thor, 14 SMs"),
    )
}


def device(name: str) -> Device:
    """A device of `DEVICES` by name, in any case. UserError for another name; it lists the names."""
    found = {known.lower(): on for known, on in DEVICES.items()}.get(name.lower())
    if found is None:
        raise UserError(f"device {name!r} is not one of {', '.join(DEVICES)}; for this machine use delay.ms=measured")
    return found


def linear(rows: int, *widths: int, size: int = 2) -> list[Work]:
    """A chain of linear layers; `size` bytes a number."""
    return [Work(linear_flops(rows, a, b), float(size * (a * b + rows * a + rows * b))) for a, b in pairwise(widths)]


def attention(queries: int, columns: int, heads: int, kv_heads: int, head_size: int, size: int = 2) -> Work:
    """One fused attention that never writes its weights; the whole rectangle is counted."""
    moved = size * head_size * (2 * queries * heads + 2 * columns * kv_heads)
    return Work(attention_flops(queries, columns, heads * head_size), float(moved))


def block(config: DecoderConfig, rows: int, columns: int, size: int = 2) -> list[Work]:
    """One decoder layer that computes `rows` tokens attending to `columns`."""
    inner, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return [
        *linear(rows, config.hidden_size, inner + 2 * kv, size=size),
        attention(rows, columns, config.num_heads, config.num_kv_heads, config.head_dim, size),
        *linear(rows, inner, config.hidden_size, size=size),
        *linear(rows, config.hidden_size, 2 * config.intermediate_size, size=size),
        *linear(rows, config.intermediate_size, config.hidden_size, size=size),
    ]


def decoder(config: DecoderConfig, counts: Iterable[tuple[int, int]], size: int = 2) -> list[Work]:
    """All layers, from the observed (rows, columns) of each."""
    return [work for rows, columns in counts for work in block(config, rows, columns, size)]


def vit(tokens: int, width: int, heads: int, ffn: int, blocks: int, batch: int = 1, size: int = 2) -> list[Work]:
    """The blocks of a transformer on `batch` images of `tokens` tokens in one pass: weights are read once for all."""
    rows = batch * tokens
    one = [
        *linear(rows, width, 3 * width, size=size),
        attention(tokens, tokens, heads, heads, width // heads, size).times(batch),
        *linear(rows, width, width, size=size),
        *linear(rows, width, ffn, width, size=size),
    ]
    return [work.times(blocks) for work in one]


def total(stages: Stages) -> Work:
    """FLOPs and bytes of a call."""
    works = [w for stage in stages.values() for w in stage]
    return Work(sum(w.flops for w in works), sum(w.bytes for w in works))


def ceiling(on: Device, dense: Stages, pruned: Stages) -> float:
    """The largest possible speed-up of the pruned over the dense call: the ratio of their floors."""
    return sum(on.floors(dense).values()) / sum(on.floors(pruned).values())


def measure(where: torch.device, dtype: torch.dtype, side: int = 0, repeats: int = 12) -> Device:
    """Measures the peaks of this machine: the best of some square products and copies. Takes seconds on a CPU.

    The products are in `dtype`, and in fp32 if that differs.
    """
    import torch

    cuda = where.type == "cuda"
    side = side or (8192 if cuda else 1024)
    square = torch.randn(side, side, device=where)
    source = torch.randn(side * side * (4 if cuda else 16), device=where)  # far larger than any cache
    target = torch.empty_like(source)

    def best(job: Callable[[], object]) -> float:
        took = []
        for _ in range(repeats):
            start = time.perf_counter()
            job()
            if cuda:
                torch.cuda.synchronize(where)
            took.append(time.perf_counter() - start)
        return min(took[2:])

    def peak(kind: torch.dtype) -> float:
        a, out = square.to(kind), torch.empty_like(square, dtype=kind)
        return 2.0 * side**3 / best(lambda: torch.mm(a, a, out=out))

    bandwidth = 2.0 * source.numel() * source.element_size() / best(lambda: target.copy_(source))
    name = torch.cuda.get_device_name(where) if cuda else f"this CPU, {torch.get_num_threads()} threads"
    note = f"measured: best of {repeats} products of side {side} in {str(dtype).removeprefix('torch.')}, and of copies"
    single = None if dtype == torch.float32 else peak(torch.float32)
    return Device(name, peak(dtype), bandwidth, note, single)
