"""How the segments of a model call are executed: eager, compiled, or captured as CUDA graphs.

A model call is a sequence of segments (the vision towers, the rows of the prompt, the layers between two prune layers,
the decoded tokens, the denoising steps). A segment is a function of tensors. Inside it, units do the work: functions of
modules and tensors, such as one decoder layer, that are compiled once and called for every layer.

Eager is the reference. Every other backend gives the same results (see `vlaprune.testing.check_model`).
"""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

REPEATS = 3  # runs of a segment with the same shapes before it is captured
PICTURES = ("pictures",)  # key of the segment that resizes pictures: no part of the network, so it is counted nowhere
FREE = 0.2  # share of the device's memory that captured graphs leave free

Function = Callable[..., Any]


class Backend:
    """Runs segments and units as they are. Subclasses compile the units or capture the segments.

    name     the name on the command line: `kernel=NAME`
    static   whether outputs of a segment are overwritten by its next run
    compiled how often a unit was compiled
    captured how often a segment was captured
    entered  how often a segment of the network was run; 0 after a call means that the model bypasses its backend
    replayed how often one of these runs was a replay of its graph
    launched what these replays launched: the graph itself, and the copies of its inputs
    """

    name = "sdpa"
    static = False

    def __init__(self) -> None:
        self.compiled = 0
        self.captured = 0
        self.entered = 0
        self.replayed = 0
        self.launched = 0

    @property
    def builds(self) -> int:
        """The number of compilations and captures so far. A call during which it grows is a cold call."""
        return self.compiled + self.captured

    def fork(self) -> Backend:
        """A backend for another user of the same model: compiled code is shared, captured graphs are not."""
        return self

    def clear(self) -> None:
        """Drops the captured graphs and frees their memory."""

    def unit(self, function: Function) -> Function:
        """The function, compiled where the backend compiles. `function` must be defined at module level."""
        return function

    def run(self, key: Hashable, segment: Function, *inputs: Any) -> Any:
        """Runs a segment on tensors (or nested lists of tensors and None). `key` names it, shapes left aside.

        A segment writes to none of its inputs.
        """
        self.note(key)
        return segment(*inputs)

    def note(self, key: Hashable, replayed: bool = False, launched: int = 0) -> None:
        """Counts a run of a segment and the launches of its replay."""
        if key != PICTURES:
            self.entered += 1
            self.replayed += replayed
            self.launched += launched

    def together(self, *parts: Callable[[], Any]) -> list[Any]:
        """The results of independent parts of a segment, run one after the other."""
        return [part() for part in parts]


EAGER = Backend()


class Compiled(Backend):
    """Units are compiled by torch.compile, with the number of rows as a dynamic size.

    compiler  backend of torch.compile: `inductor`, or `eager` or a function for tests of the graphs alone

    Errors: RuntimeError where torch.compile gives up on a unit (too many graphs) in place of a silent eager run.
    """

    name = "compile"

    def __init__(self, compiler: str | Function = "inductor") -> None:
        super().__init__()
        self.compiler = compiler
        self._units: dict[Function, Function] = {}

    def unit(self, function: Function) -> Function:
        """The compiled function. torch.compile runs when it is first called."""
        if function not in self._units:
            self._units[function] = torch.compile(_copy(function), backend=self._counted, fullgraph=True)
        return self._units[function]

    def _counted(self, graph: Any, inputs: Any) -> Any:
        """Compiles one graph and counts it."""
        self.compiled += 1
        return torch._dynamo.lookup_backend(self.compiler)(graph, inputs)


def _copy(function: Function) -> Function:
    """A copy of a function with its own code object, because torch.compile limits the graphs per code object."""
    own = cast(FunctionType, function)
    code = own.__code__.replace(co_name=own.__name__)
    return FunctionType(code, own.__globals__, own.__name__, own.__defaults__, own.__closure__)


@dataclass(frozen=True, eq=False)
class Graph:
    """A captured segment: the graph, the tensors it reads, and the outputs that every replay overwrites.

    inputs  the tensors copied before a replay: number of the given tensor, and destination. The output of another graph
            is read in place
    """

    graph: torch.cuda.CUDAGraph
    inputs: Sequence[tuple[int, Tensor]]
    outputs: Any

    def replay(self, given: Sequence[Tensor]) -> int:
        """Replays the graph on these tensors; returns the number of launches.

        Inputs of one dtype and layout are copied by one launch.
        """
        alike: dict[Hashable, tuple[list[Tensor], list[Tensor]]] = {}
        for number, static in self.inputs:
            new = given[number]
            own = alike.setdefault(static.dtype if static.stride() == new.stride() else number, ([], []))
            own[0].append(static)
            own[1].append(new)
        for statics, news in alike.values():
            torch._foreach_copy_(statics, news)
        self.graph.replay()
        return 1 + len(alike)


def flat(inputs: Sequence[Any]) -> list[Any]:
    """The leaves of nested lists and tuples in order, and before each list its length. Faster than pytree."""
    out: list[Any] = []
    for one in inputs:
        if isinstance(one, (list, tuple)):
            out.append(len(one))
            out += flat(one)
        else:
            out.append(one)
    return out


@cache
def _say_once(text: str) -> None:
    """Says a line on the terminal, once in a process."""
    print(text, file=sys.stderr, flush=True)


def _enough() -> bool:
    """Whether more than FREE of the GPU's memory is free."""
    free, total = torch.cuda.mem_get_info()
    return free > FREE * total


@cache
def _streams() -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """Two streams: for warm-up and for a second branch. Always the same two, since libraries keep memory for each."""
    return torch.cuda.Stream(), torch.cuda.Stream()


class Captured(Compiled):
    """Captures segments that ran several times with the same shapes as CUDA graphs and replays them. Needs CUDA.

    Each graph has its own memory pool: in a shared pool, outputs may lie in the scratch memory of a graph that was
    captured before, whose replay would overwrite them. What one graph writes the next one reads in place. Parts that do
    not need each other become branches of a graph. Each arm of a comparison has its own fork and clears it after its
    measurement.
    """

    name = "graph"
    static = True

    def __init__(self, compiler: str | None = "inductor") -> None:
        super().__init__(compiler or "inductor")
        self._compiles = compiler is not None
        self.clear()

    def fork(self) -> Captured:
        """A backend with its own graphs and the same compiled units."""
        twin = copy.copy(self)
        twin.clear()
        return twin

    def clear(self) -> None:
        """Drops all graphs and their memory."""
        self._seen: Counter[Hashable] = Counter()
        self._graphs: dict[Hashable, Graph] = {}
        self._outputs: set[int] = set()  # the graphs' outputs, by id; the graphs hold them
        self._written: set[int] = set()  # and their addresses, since a segment may read another view of an output
        self._side: torch.cuda.Stream | None = None  # while a segment is captured, for its second branch

    def unit(self, function: Function) -> Function:
        """The compiled function; the function as it is if the backend only captures."""
        return super().unit(function) if self._compiles else function

    def run(self, key: Hashable, segment: Function, *inputs: Any) -> Any:
        """Runs, captures or replays a segment."""
        leaves = flat(inputs)
        shapes = (key, *(self._kind(x) if isinstance(x, Tensor) else x for x in leaves))
        found = self._graphs.get(shapes)
        if found is None:
            self._seen[shapes] += 1
            if self._seen[shapes] < REPEATS or not self._room(first=self._seen[shapes] == REPEATS):
                return super().run(key, segment, *inputs)
            found = self._graphs[shapes] = self._capture(segment, inputs)
            outputs = [t for t in pytree.tree_leaves(found.outputs) if isinstance(t, Tensor)]
            self._outputs |= {id(t) for t in outputs}
            self._written |= {t.data_ptr() for t in outputs}
        self.note(key, True, found.replay([x for x in leaves if isinstance(x, Tensor)]))
        return found.outputs

    def together(self, *parts: Callable[[], Any]) -> list[Any]:
        """The results of independent parts: branches of a graph during capture, else one after the other."""
        if self._side is None:
            return super().together(*parts)
        here, side, out = torch.cuda.current_stream(), self._side, []
        side.wait_stream(here)
        with torch.cuda.stream(side):
            out = [part() for part in parts[1:]]
        first = parts[0]()
        here.wait_stream(side)
        return [first, *out]

    def _kind(self, tensor: Tensor) -> Hashable:
        """What a graph assumes of a tensor: which output it is, or else its shape, dtype and where a graph wrote it."""
        if id(tensor) in self._outputs:
            return (id(tensor),)
        place = (tensor.data_ptr(), tensor.stride()) if self._is_written(tensor) else None
        return tensor.shape, tensor.dtype, place

    def _is_written(self, tensor: Tensor) -> bool:
        """Whether a graph of this backend writes this tensor."""
        return tensor.data_ptr() in self._written

    @staticmethod
    def _room(first: bool) -> bool:
        """Whether enough memory is free for another graph; says it once where not.

        first  it is asked for the first time for this graph: torch then hands back what it holds unused, as it does
               before every capture
        """
        if _enough():
            return True
        if first:
            torch.cuda.empty_cache()
            if _enough():
                return True
        _say_once(
            f"kernel=graph: less than {FREE:.0%} of the GPU's memory is free, so parts of calls are not captured "
            "and run slower; free memory, or use kernel=compile"
        )
        return False

    def _capture(self, segment: Function, inputs: Sequence[Any]) -> Graph:
        self.captured += 1
        leaves, spec = pytree.tree_flatten(inputs)
        own = [x.clone() if isinstance(x, Tensor) and not self._is_written(x) else x for x in leaves]
        tensors = [(x, mine) for x, mine in zip(leaves, own, strict=True) if isinstance(x, Tensor)]
        static = pytree.tree_unflatten(own, spec)
        warm, self._side = _streams()
        try:
            warm.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(warm):
                for _ in range(2):
                    segment(*static)
            torch.cuda.current_stream().wait_stream(warm)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outputs = segment(*static)
        finally:
            self._side = None
        return Graph(graph, [(n, mine) for n, (x, mine) in enumerate(tensors) if mine is not x], outputs)
