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

from vlaprune.nn.decoder import Block, Decoder, Packed, Tokens, Unwatched
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


def dense(model: VLA, rung: str, backend: str = "inductor") -> VLA:
    """The model to be run under `kernel(rung)`: itself, or a twin with its weights and a compiled decoder.

    ValueError where the model's decoder cannot be swapped.
    """
    if rung not in ("compile", "graph"):
        return model
    decoder = getattr(model, "decoder", None)
    if not isinstance(decoder, Decoder):
        raise ValueError(f"{model.info.name} has no decoder of ours to compile")
    twin: Any = copy.copy(model)
    if isinstance(twin, nn.Module):
        twin._modules = dict(twin._modules)  # a shallow copy shares this table with the original
    twin.decoder = Whole(decoder, rung == "graph", backend)
    return twin  # type: ignore[no-any-return]


class Whole(nn.Module):
    """A dense decoder in compiled blocks, that nobody watches; on CUDA also as one captured graph per length."""

    def __init__(self, decoder: Decoder, graph: bool, backend: str) -> None:
        super().__init__()
        self.decoder, self.graph = decoder, graph
        self.shape, self.norm = decoder.shape, decoder.norm
        self.block: Callable[[Block, Tensor, Tensor, Tensor, Tensor], Tensor] = torch.compile(
            _block, backend=backend, dynamic=False
        )
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Tensor]] = {}

    def forward(self, sequences: Sequence[Tokens], sessions: Sequence[Any]) -> list[Tensor]:
        """Final hidden states [n, d]; each session is told the shapes. ValueError where a pass needs a cache."""
        if any(s.cache is not None for s in sessions):
            raise ValueError("a compiled dense decoder keeps no cache; leave compile and graph out of the ladder")
        for session, tokens in zip(sessions, sequences, strict=True):
            rows = tokens.index.shape[0]
            session.trace.counts.extend([(rows, rows)] * self.decoder.shape.layers)
        run = self._replay if self.graph else self._run
        return [run(t.hidden, t.index) for t in sequences]

    def _run(self, hidden: Tensor, index: Tensor) -> Tensor:
        cos, sin = self.decoder.rope(index, hidden.dtype)
        for block in self.decoder.blocks:
            hidden = self.block(block, hidden, index, cos, sin)  # type: ignore[arg-type]
        return self.decoder.norm(hidden)  # type: ignore[no-any-return]

    def _replay(self, hidden: Tensor, index: Tensor) -> Tensor:
        rows = hidden.shape[0]
        if rows not in self._graphs:
            self._graphs[rows] = self._capture(hidden.clone(), index.clone())
        graph, own_hidden, own_index, out = self._graphs[rows]
        own_hidden.copy_(hidden)
        own_index.copy_(index)
        graph.replay()
        return out.clone()

    def _capture(self, hidden: Tensor, index: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Tensor]:
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


def _block(block: Block, hidden: Tensor, index: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    packed = Packed(hidden, index, (Tokens(hidden, index),))
    return block(0, packed, (cos, sin), [Unwatched()])  # type: ignore[no-any-return]
