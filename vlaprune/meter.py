"""FLOPs from observed shapes, and a clock that does not disturb what it times.

FLOPs are 2 per multiply-accumulate of the matrix products, the whole attention rectangle counted, as
torch.utils.flop_counter counts them (tests/test_meter.py holds the two together). Norms, activations and softmax are
left out by both.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlaprune.nn.block import DecoderConfig


def linear_flops(rows: int, *widths: int) -> float:
    """FLOPs of a chain of linear layers widths[0] -> widths[1] -> ... on `rows` rows."""
    return 2.0 * rows * sum(a * b for a, b in pairwise(widths))


def attention_flops(queries: int, columns: int, inner: int) -> float:
    """FLOPs of queries times keys and of weights times values; `inner` is heads times head size."""
    return 4.0 * queries * columns * inner


def block_flops(config: DecoderConfig, rows: int, columns: int) -> float:
    """FLOPs of one decoder layer that computes `rows` tokens attending to `columns`."""
    inner = config.num_heads * config.head_dim
    kv = config.num_kv_heads * config.head_dim
    linear = linear_flops(rows, config.hidden_size, inner + 2 * kv) + linear_flops(rows, inner, config.hidden_size)
    return (
        linear
        + 3 * linear_flops(rows, config.hidden_size, config.intermediate_size)
        + attention_flops(rows, columns, inner)
    )


def decoder_flops(config: DecoderConfig, counts: Iterable[tuple[int, int]]) -> float:
    """FLOPs of all layers, from the observed (rows, columns) of each.

    The formula is worked out once for layers that are alike. It is a sum of whole numbers, so it is exact in any order.
    """
    return sum(times * block_flops(config, *shape) for shape, times in Counter(counts).items())


def vit_block_flops(tokens: int, width: int, ffn: int) -> float:
    """FLOPs of one vision-transformer block on one image of `tokens` tokens."""
    return (
        linear_flops(tokens, width, 4 * width)
        + linear_flops(tokens, width, ffn, width)
        + attention_flops(tokens, tokens, width)
    )


class Span:
    """A span of time under a name, from entering its `with` block to leaving it."""

    __slots__ = ("_clock", "_name", "_start")

    def __init__(self, clock: Clock, name: str) -> None:
        self._clock = clock
        self._name = name

    def __enter__(self) -> None:
        self._clock.open.append(self._name)
        if len(self._clock.open) == 1:
            self._clock.stream = None
        self._start = self._clock.now()

    def __exit__(self, *_: object) -> None:
        clock = self._clock
        end = clock.now()
        clock.open.pop()
        clock.marks.append((self._name, len(clock.open), self._start, end))


class Clock:
    """Named spans of one model call. CUDA events on a GPU, read with one synchronise at the end; wall time on a CPU.

    Spans may nest: a span's time excludes the spans inside it, so the parts add up to the whole.

    open    names of the spans that are running, outermost first
    marks   finished spans: name, depth, start, end
    stream  of the device, since the outermost span began: to ask for it costs more than to record an event
    """

    def __init__(self, device: str = "cpu") -> None:
        self.cuda = device.startswith("cuda")
        self.open: list[str] = []
        self.marks: list[tuple[str, int, object, object]] = []
        self.stream: object = None
        self._events: list[object] = []  # of spans that were read: to make new ones costs more than to record these

    def now(self) -> object:
        """A point in time: seconds, or an event in the stream of the device."""
        if not self.cuda:
            return time.perf_counter()
        import torch

        if self.stream is None:
            self.stream = torch.cuda.current_stream()
        event = self._events.pop() if self._events else torch.cuda.Event(enable_timing=True)
        event.record(self.stream)  # type: ignore[attr-defined]
        return event

    def span(self, name: str) -> Span:
        """Times what is inside its `with` block, under `name`."""
        return Span(self, name)

    def read(self) -> dict[str, float]:
        """Milliseconds by name since the last read; waits for the device once."""
        if self.cuda and self.marks:
            import torch

            torch.cuda.synchronize()
        ms: dict[str, float] = {}
        inner: dict[int, float] = {}  # depth -> time of spans finished at that depth and not yet claimed by a parent
        for name, depth, start, end in self.marks:
            took = start.elapsed_time(end) if self.cuda else (end - start) * 1e3  # type: ignore[attr-defined,operator]
            ms[name] = ms.get(name, 0.0) + took - inner.pop(depth + 1, 0.0)
            inner[depth] = inner.get(depth, 0.0) + took
        if self.cuda:
            self._events += [event for _, _, *both in self.marks for event in both]
        self.marks.clear()
        return ms
