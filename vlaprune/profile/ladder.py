"""The dense ladder: the same weights, unpruned, under each kernel one could really run them with.

A speed-up is quoted against the fastest of them. Against a handicapped baseline any method wins.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vlaprune.nn.decoder import Block, Decoder, Packed, Tokens
from vlaprune.policy import VLA

RUNGS = ("eager", "sdpa", "flash", "compile", "graph")
BACKENDS = {"eager": SDPBackend.MATH, "flash": SDPBackend.FLASH_ATTENTION}


@contextmanager
def kernel(rung: str) -> Iterator[None]:
    """Attention as this rung computes it: eager writes the weights out, flash never does, else torch chooses."""
    if rung not in RUNGS:
        raise ValueError(f"ladder rung {rung!r} is not one of {', '.join(RUNGS)}")
    if rung not in BACKENDS:
        yield
        return
    with sdpa_kernel(BACKENDS[rung]):
        yield


def missing(rung: str, device: torch.device) -> str | None:
    """Why a rung cannot be run here; None if it can."""
    if rung in ("flash", "graph") and device.type != "cuda":
        return "needs a CUDA device"
    return None


def decoder_of(model: VLA) -> tuple[list[str], Decoder]:
    """The decoder that prunes, and the attributes that lead to it. ValueError where the model has none of ours."""
    for name, part in [*vars(model).items(), *getattr(model, "_modules", {}).items()]:
        if isinstance(part, Decoder):
            return [name], part
        if isinstance(getattr(part, "decoder", None), Decoder):
            return [name, "decoder"], part.decoder
    raise ValueError(f"{model.info.name} has no decoder of ours")


def dense(model: VLA, rung: str, backend: str = "inductor") -> VLA:
    """The model to be run under `kernel(rung)`: itself, or a twin with its weights and a compiled decoder."""
    if rung not in ("compile", "graph"):
        return model
    path, decoder = decoder_of(model)
    twin = _twin(model)
    holder = twin
    for name in path[:-1]:
        setattr(holder, name, _twin(getattr(holder, name)))
        holder = getattr(holder, name)
    setattr(holder, path[-1], Whole(decoder, rung == "graph", backend))
    return twin  # type: ignore[no-any-return]


def _twin(thing: Any) -> Any:
    """A shallow copy; of a module also its table of parts, which it would share with the original."""
    twin = copy.copy(thing)
    if isinstance(twin, nn.Module):
        twin._modules = dict(twin._modules)
    return twin


Pass = tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]]]  # final rows; queries, keys and values of each layer


class Whole(Decoder):
    """A dense decoder whose prompt pass is compiled block by block, on CUDA also one captured graph per length.

    Sessions are told of each layer when the pass is over. Later passes on a cache run as they always do.
    """

    def __init__(self, decoder: Decoder, graph: bool, backend: str) -> None:
        nn.Module.__init__(self)
        self.shape, self.blocks, self.norm, self.graph = decoder.shape, decoder.blocks, decoder.norm, graph
        self.block: Callable[..., tuple[Tensor, ...]] = torch.compile(_block, backend=backend, dynamic=False)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Pass]] = {}

    def forward(self, sequences: Sequence[Tokens], sessions: Sequence[Any]) -> list[Tensor]:
        """Final hidden states [n, d] of each sequence."""
        if any(s.enter(0, t) is not t for s, t in zip(sessions, sequences, strict=True)):
            return super().forward(sequences, sessions)  # tokens decoded on a cache
        out = []
        for session, tokens in zip(sessions, sequences, strict=True):
            hidden, layers = (self._replay if self.graph else self._run)(tokens.hidden, tokens.index)
            for layer, (queries, keys, values) in enumerate(layers):
                if session.cache is not None:
                    session.cache.write(layer, tokens.index, keys, values)
                session.leave(layer, tokens, queries, keys, tokens.index)
            out.append(hidden)
        return out

    def _run(self, hidden: Tensor, index: Tensor) -> Pass:
        rope, layers = self.rope(index, hidden.dtype), []
        for block in self.blocks:
            hidden, *seen = self.block(block, hidden, index, *rope)
            layers.append(tuple(seen))
        return self.norm(hidden), layers  # type: ignore[return-value]

    def _replay(self, hidden: Tensor, index: Tensor) -> Pass:
        rows = hidden.shape[0]
        if rows not in self._graphs:
            self._graphs[rows] = self._capture(hidden.clone(), index.clone())
        graph, own_hidden, own_index, (out, layers) = self._graphs[rows]
        own_hidden.copy_(hidden)
        own_index.copy_(index)
        graph.replay()
        return out.clone(), layers

    def _capture(self, hidden: Tensor, index: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Pass]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._run(hidden, index)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = self._run(hidden, index)
        return graph, hidden, index, out


class Shelf:
    """A session that keeps what one layer shows it."""

    def __init__(self) -> None:
        self.cache = self

    def write(self, layer: int, index: Tensor, keys: Tensor, values: Tensor) -> None:
        """As a cache is given them."""
        self.values = values

    def leave(self, layer: int, tokens: Tokens, queries: Tensor, keys: Tensor, columns: Tensor) -> None:
        """As a session is shown them."""
        self.queries, self.keys = queries, keys


def _block(block: Block, hidden: Tensor, index: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    packed, shelf = Packed(hidden, index, (Tokens(hidden, index),)), Shelf()
    out = block(0, packed, (cos, sin), [shelf])
    return out, shelf.queries, shelf.keys, shelf.values
