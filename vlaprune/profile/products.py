"""The observed work of a call: every matrix product that torch dispatched, by stage, with its FLOPs and bytes.

The meter computes the cost of a call from formulas; this module observes it. It also sees a method's own products
(similarities, matching) and any model's head, so the roofline floor of a call needs no description of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from vlaprune.nn.backend import Backend
from vlaprune.profile.roofline import Work

_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class Products(TorchDispatchMode):
    """Notes matrix products, convolutions and fused attentions while its `with` block runs.

    stage      returns the name of the current stage; called at every product
    found      stage -> its products, in order, without those of preparing pictures
    operators  number of operators that ran, without views, bare allocations and the preparation of pictures
    outside    number of operators that ran outside the segments of `Watched`
    """

    def __init__(self, stage: Callable[[], str]) -> None:
        super().__init__()
        self.stage = stage
        self.found: dict[str, list[Work]] = {}
        self.operators = 0
        self.outside = 0
        self.depth = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.stage() == "pictures":
            return func(*args, **kwargs)
        packet = func._overloadpacket
        if packet not in flop_registry and packet is not _CPU_ATTENTION:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
            if not _looks(func):
                self._count()
            return func(*args, **kwargs)
        self._count()
        out = func(*args, **kwargs)
        if packet is _CPU_ATTENTION:  # missing in torch's registry
            flops = sdpa_flop_count(args[0].shape, args[1].shape, args[2].shape)
        else:
            flops = flop_registry[packet](*args, **kwargs, out_val=out)
        moved = _bytes([*args, *kwargs.values()]) + _bytes(out if isinstance(out, (tuple, list)) else [out])
        single = args[0].dtype == torch.float32
        self.found.setdefault(self.stage(), []).append(Work(float(flops), float(moved), single))
        return out

    def _count(self) -> None:
        self.operators += 1
        self.outside += not self.depth


class Watched(Backend):
    """A backend that runs segments as they are and tells a `Products` when a segment is running."""

    def __init__(self, seen: Products) -> None:
        super().__init__()
        self.seen = seen

    def run(self, key: Hashable, segment: Callable[..., Any], *inputs: Any) -> Any:
        """Runs a segment and counts as inside while it runs."""
        self.seen.depth += 1
        try:
            return super().run(key, segment, *inputs)
        finally:
            self.seen.depth -= 1


def _looks(func: Any) -> bool:
    """Whether an operator computes nothing: it is a view of its input, or only allocates memory."""
    returns = func._schema.returns
    views = bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
    return views or func._schema.name in ("aten::empty", "aten::empty_strided")


def _bytes(values: Sequence[Any]) -> int:
    """Bytes of tensors as they lie in memory: what is spread over a dimension without a copy (stride 0) counts once."""
    return sum(_spread_once(v) * v.element_size() for v in values if isinstance(v, Tensor))


def _spread_once(t: Tensor) -> int:
    return math.prod(size for size, stride in zip(t.shape, t.stride(), strict=True) if stride) if t.numel() else 0
