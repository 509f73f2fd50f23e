"""The fast path: segments of layers that nothing interrupts, compiled, and on CUDA captured as graphs.

A segment ends before the next layer at which a session may change its rows, so a method that prunes at one layer costs
two segments. Sessions are shown the layers of a segment when it is over. What a segment cannot hold (several sequences
together, columns of a cache, biases) goes on layer by layer, as in `Decoder`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vlaprune.nn.decoder import Block, Decoder, Packed, Session, Tokens

Shown = list[tuple[Tensor, Tensor, Tensor]]  # queries, keys and values of each layer, empty where nobody looks
Pass = tuple[Tensor, Shown]  # final rows, and that

AGAIN = 3  # times a segment must have come alike before it is captured
GRAPHS = 64  # captured at most; where a method keeps another number in every call, the rest runs without
FREE = 0.2  # share of the device's memory that captures leave alone


@dataclass(frozen=True)
class Segment:
    """Layers first .. stop - 1 on so many rows; of which queries and keys are looked at, and whether all are cached."""

    first: int
    stop: int
    rows: int
    looks: tuple[int, ...]
    cached: bool

    def wants(self, layer: int) -> bool:
        """Whether anything of this layer is."""
        return self.cached or layer in self.looks


@dataclass(frozen=True, eq=False)
class Graph:
    """A captured segment: the tensors that it reads, and those that each replay writes anew."""

    graph: torch.cuda.CUDAGraph
    hidden: Tensor
    index: Tensor
    out: Pass


class Fast(Decoder):
    """A decoder with the weights of another.

    graph    captures segments that come again; needs CUDA
    backend  of torch.compile; None runs the blocks as they are
    """

    def __init__(self, decoder: Decoder, graph: bool = False, backend: str | None = "inductor") -> None:
        nn.Module.__init__(self)
        self.config, self.blocks, self.norm, self.graph = decoder.config, decoder.blocks, decoder.norm, graph
        self.block: Callable[..., tuple[Tensor, ...]] = (
            _block if backend is None else torch.compile(_block, backend=backend)
        )
        self._came: Counter[Segment] = Counter()
        self._graphs: dict[Segment, Graph] = {}

    def forward(self, sequences: Sequence[Tokens], sessions: Sequence[Session]) -> list[Tensor]:
        """As in `Decoder`."""
        if len(sequences) > 1:
            return super().forward(sequences, sessions)
        (tokens,), (session,) = sequences, sessions
        index, layer = None, 0
        while layer < self.config.num_layers:
            tokens = session.enter(layer, tokens)
            if tokens.columns is None and tokens.bias is None:
                stop = min(session.next_prune_layer(layer), self.config.num_layers)
                looks = tuple(n for n in range(layer, stop) if session.records_attention(n))
                hidden = self._over(
                    Segment(layer, stop, tokens.index.shape[0], looks, session.cache is not None), tokens, session
                )
            else:
                stop = layer + 1
                if tokens.index is not index:
                    index, rope = tokens.index, self.rope(tokens.index, tokens.hidden.dtype)
                hidden = self.blocks[layer](layer, Packed.of([tokens]), rope, sessions)
            tokens, layer = replace(tokens, hidden=hidden), stop
        return [self.norm(tokens.hidden)]

    def _over(self, segment: Segment, tokens: Tokens, session: Session) -> Tensor:
        """Final rows [n, d] of a segment; the session is told of each layer."""
        hidden, shown = (self._replay if self.graph else self._run)(segment, tokens.hidden, tokens.index)
        for layer, (queries, keys, values) in enumerate(shown, segment.first):
            if session.cache is not None:
                session.cache.write(layer, tokens.index, keys, values)
            if self.graph and layer in segment.looks:  # another pass of the same call would write over them
                queries, keys = queries.clone(), keys.clone()
            session.leave(layer, tokens, queries, keys, tokens.index)
        return hidden

    def _run(self, segment: Segment, hidden: Tensor, index: Tensor) -> Pass:
        rope, shown, nothing = self.rope(index, hidden.dtype), [], hidden.new_empty(0)
        for layer in range(segment.first, segment.stop):
            hidden, *seen = self.block(self.blocks[layer], hidden, index, *rope)
            shown.append(tuple(seen) if segment.wants(layer) else (nothing, nothing, nothing))
        return hidden, shown  # type: ignore[return-value]

    def _replay(self, segment: Segment, hidden: Tensor, index: Tensor) -> Pass:
        self._came[segment] += 1
        if segment not in self._graphs:
            if self._came[segment] < AGAIN or not self._room():
                return self._run(segment, hidden, index)
            self._graphs[segment] = self._capture(segment, hidden.clone(), index.clone())
        found = self._graphs[segment]
        found.hidden.copy_(hidden)
        found.index.copy_(index)
        found.graph.replay()
        out, shown = found.out
        return out.clone(), shown

    def _room(self) -> bool:
        free, total = torch.cuda.mem_get_info()
        return len(self._graphs) < GRAPHS and free > FREE * total

    def _capture(self, segment: Segment, hidden: Tensor, index: Tensor) -> Graph:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._run(segment, hidden, index)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = self._run(segment, hidden, index)
        return Graph(graph, hidden, index, out)


class KVRecorder:
    """A session that keeps what one layer shows it."""

    def __init__(self) -> None:
        self.cache: Any = self

    def write(self, layer: int, index: Tensor, keys: Tensor, values: Tensor) -> None:
        """As a cache is given them."""
        self.values = values

    def enter(self, layer: int, tokens: Tokens) -> Tokens:
        """Everything goes on."""
        return tokens

    def leave(self, layer: int, tokens: Tokens, queries: Tensor, keys: Tensor, columns: Tensor) -> None:
        """As a session is shown them."""
        self.queries, self.keys = queries, keys

    def next_prune_layer(self, layer: int) -> int:
        """After this layer, as far as it knows."""
        return layer + 1

    def records_attention(self, layer: int) -> bool:
        """It does."""
        return True


def _block(block: Block, hidden: Tensor, index: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    packed, recorder = Packed(hidden, index, (Tokens(hidden, index),)), KVRecorder()
    out = block(0, packed, (cos, sin), [recorder])
    return out, recorder.queries, recorder.keys, recorder.values
