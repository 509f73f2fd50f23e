"""The fast path: stretches of layers that nothing interrupts, compiled, and on CUDA captured as graphs.

A stretch ends before the next layer at which a session may change its rows, so a method that prunes at one layer costs
two stretches. Sessions are shown the layers of a stretch when it is over. What a stretch cannot hold (several sequences
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

Seen = tuple[Tensor, Tensor, Tensor]  # queries, keys and values of a layer
Pass = tuple[Tensor, list[Seen]]  # final rows; what each layer of the stretch showed

AGAIN = 3  # times a stretch must have come with the same number of rows before it is captured
GRAPHS = 64  # captured at most; where a method keeps another number in every call, the rest runs without


@dataclass(frozen=True, eq=False)
class Graph:
    """A captured stretch: the tensors that it reads, and those that each replay writes anew."""

    graph: torch.cuda.CUDAGraph
    hidden: Tensor
    index: Tensor
    out: Pass


class Fast(Decoder):
    """A decoder with the weights of another.

    graph    captures stretches that come again; needs CUDA
    backend  of torch.compile; None runs the blocks as they are
    """

    def __init__(self, decoder: Decoder, graph: bool = False, backend: str | None = "inductor") -> None:
        nn.Module.__init__(self)
        self.shape, self.blocks, self.norm, self.graph = decoder.shape, decoder.blocks, decoder.norm, graph
        self.block: Callable[..., tuple[Tensor, ...]] = (
            _block if backend is None else torch.compile(_block, backend=backend)
        )
        self._came: Counter[tuple[int, int, int]] = Counter()
        self._graphs: dict[tuple[int, int, int], Graph] = {}

    def forward(self, sequences: Sequence[Tokens], sessions: Sequence[Session]) -> list[Tensor]:
        """As in `Decoder`."""
        if len(sequences) > 1:
            return super().forward(sequences, sessions)
        (tokens,), (session,) = sequences, sessions
        index, layer = None, 0
        while layer < self.shape.layers:
            tokens = session.enter(layer, tokens)
            if tokens.columns is None and tokens.bias is None:
                stop = min(session.until(layer), self.shape.layers)
                hidden = self._stretch(layer, stop, tokens, session)
            else:
                stop = layer + 1
                if tokens.index is not index:
                    index, rope = tokens.index, self.rope(tokens.index, tokens.hidden.dtype)
                hidden = self.blocks[layer](layer, Packed.of([tokens]), rope, sessions)
            tokens, layer = replace(tokens, hidden=hidden), stop
        return [self.norm(tokens.hidden)]

    def _stretch(self, first: int, stop: int, tokens: Tokens, session: Session) -> Tensor:
        """Final rows [n, d] of layers first .. stop - 1; the session is told of each."""
        hidden, layers = (self._replay if self.graph else self._run)(first, stop, tokens.hidden, tokens.index)
        for layer, (queries, keys, values) in enumerate(layers, first):
            if session.cache is not None:
                session.cache.write(layer, tokens.index, keys, values)
            if self.graph and session.looks(layer):  # another pass of the same call would write over them
                queries, keys = queries.clone(), keys.clone()
            session.leave(layer, tokens, queries, keys, tokens.index)
        return hidden

    def _run(self, first: int, stop: int, hidden: Tensor, index: Tensor) -> Pass:
        rope, layers = self.rope(index, hidden.dtype), []
        for block in self.blocks[first:stop]:
            hidden, queries, keys, values = self.block(block, hidden, index, *rope)
            layers.append((queries, keys, values))
        return hidden, layers

    def _replay(self, first: int, stop: int, hidden: Tensor, index: Tensor) -> Pass:
        key = (first, stop, hidden.shape[0])
        self._came[key] += 1
        if key not in self._graphs:
            if self._came[key] < AGAIN or len(self._graphs) >= GRAPHS:
                return self._run(first, stop, hidden, index)
            self._graphs[key] = self._capture(first, stop, hidden.clone(), index.clone())
        found = self._graphs[key]
        found.hidden.copy_(hidden)
        found.index.copy_(index)
        found.graph.replay()
        out, layers = found.out
        return out.clone(), layers

    def _capture(self, first: int, stop: int, hidden: Tensor, index: Tensor) -> Graph:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._run(first, stop, hidden, index)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = self._run(first, stop, hidden, index)
        return Graph(graph, hidden, index, out)


class Shelf:
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

    def until(self, layer: int) -> int:
        """After this layer, as far as it knows."""
        return layer + 1

    def looks(self, layer: int) -> bool:
        """It does."""
        return True


def _block(block: Block, hidden: Tensor, index: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    packed, shelf = Packed(hidden, index, (Tokens(hidden, index),)), Shelf()
    out = block(0, packed, (cos, sin), [shelf])
    return out, shelf.queries, shelf.keys, shelf.values
