"""CUDA graphs on a CPU: `Captured` runs here as it is, on graphs that are tapes of what torch dispatched.

As with real graphs, a replay reads and writes the tensors of its capture, whatever they hold by then. Graphs that share
a memory pool share its scratch memory: a replay spoils what graphs captured later left there.
"""

from collections import defaultdict
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


def storage(tensor):
    """Where its memory begins."""
    return tensor.untyped_storage().data_ptr()


class Tape(TorchDispatchMode):
    """Stands for torch.cuda.CUDAGraph."""

    def __init__(self):
        super().__init__()
        self.steps, self.pool = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, out))
        return out

    @property
    def own(self):
        """Tensors that it writes to memory of its own; views and outputs of in-place operators left out."""
        for _, args, kwargs, out in self.steps:
            given = {storage(t) for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
            for t in pytree.tree_leaves(out):
                if isinstance(t, Tensor) and storage(t) not in given:
                    yield t

    def replay(self):
        for later in self.pool[self.pool.index(self) + 1 :]:
            for t in later.own:
                t.fill_(float("nan") if t.is_floating_point() else 0)
        own = {id(t) for t in self.own}
        for func, args, kwargs, out in self.steps:
            new = func(*args, **kwargs)
            for a, b in zip(pytree.tree_leaves(out), pytree.tree_leaves(new), strict=True):
                if id(a) in own:
                    a.copy_(b)


class Stream:
    """Work is done in the order of the program, so there is nothing to wait for."""

    def wait_stream(self, other):
        """Nothing."""


def tape_graphs(monkeypatch):
    """Until the test ends, what `Captured` asks of torch.cuda is done by tapes."""
    pools = defaultdict(list)

    def capture(tape, pool=None):
        tape.pool = pools[pool or object()]
        tape.pool.append(tape)
        return tape

    stands = {
        "CUDAGraph": Tape,
        "Stream": Stream,
        "graph": capture,
        "graph_pool_handle": object,
        "current_stream": Stream,
        "stream": lambda stream: nullcontext(),
        "mem_get_info": lambda: (1, 1),
    }
    for name, stand in stands.items():
        monkeypatch.setattr(torch.cuda, name, stand)
    monkeypatch.setattr("vlaprune.nn.backend._streams", lambda: (Stream(), Stream()))  # which keeps real ones
