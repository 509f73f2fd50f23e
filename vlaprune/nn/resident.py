"""Tensors that stay on the device from call to call, and the copy of results to the host."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

KEPT = 256  # sequences of token ids


class TokenIds:
    """Token ids on a device. Each sequence of ids is uploaded once; the `KEPT` used last stay."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[torch.device, tuple[int, ...]], Tensor] = OrderedDict()

    def __call__(self, ids: Sequence[int], device: torch.device) -> Tensor:
        """[n] int64. Do not write to it."""
        key = device, tuple(ids)
        if key not in self._known:
            with torch.inference_mode(False):  # training may need the same tensor later
                self._known[key] = torch.tensor(key[1], dtype=torch.long, device=device)
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]


def to_host(numbers: Tensor) -> Tensor:
    """Results of a call on the CPU; waits for the device. Tensors on the meta device have no numbers and stay there."""
    return numbers if numbers.device.type == "meta" else numbers.cpu()
