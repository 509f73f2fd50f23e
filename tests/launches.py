"""Counts operators that reach the device outside the segments of a model call."""

from collections import Counter

from torch.utils._python_dispatch import TorchDispatchMode

from vlaprune.nn.backend import Backend

FREE = ("aten::empty", "aten::empty_strided", "aten::detach")  # memory, no kernel


def is_view(func):
    """Whether an operator only looks at its input in another way."""
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


class Launches(TorchDispatchMode):
    """Operators by name, views and bare allocations left out; those inside a segment count apart."""

    def __init__(self):
        super().__init__()
        self.outside, self.inside, self.depth = Counter(), Counter(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not is_view(func) and func.name().split(".")[0] not in FREE:
            (self.inside if self.depth else self.outside)[func.name()] += 1
        return func(*args, **(kwargs or {}))


class Marked(Backend):
    """Runs segments as they are and tells a counter when it is inside one."""

    def __init__(self, launches):
        super().__init__()
        self.launches = launches

    def run(self, key, segment, *inputs):
        self.launches.depth += 1
        try:
            return super().run(key, segment, *inputs)
        finally:
            self.launches.depth -= 1
