"""Pure functions that several methods share."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def share(count: int, sizes: Sequence[int]) -> list[int]:
    """Splits a budget of `count` tokens over cameras of `sizes` tokens in proportion, exactly; remainders to the first.

    >>> share(7, [4, 4])
    [4, 3]
    """
    total, out = sum(sizes), []
    for i, size in enumerate(sizes):
        left, rest = count - sum(out), sum(sizes[i:])
        out.append(-(-left * size // rest) if rest else 0)
    assert sum(out) == min(count, total)
    return out


def farthest(features: Tensor, count: int, first: int | Tensor) -> Tensor:
    """[count] rows of features [n, d], each the farthest from those before it by cosine distance; begins with `first`.

    A running distance vector, so the cost is count * n * d, without the [n, n] matrix.
    """
    unit = F.normalize(features.float(), dim=-1)
    chosen = torch.empty(count, dtype=torch.long, device=features.device)
    chosen[0] = first
    nearest = 1 - unit @ unit[chosen[0]]
    taken = torch.zeros(unit.shape[0], dtype=torch.bool, device=features.device)
    taken[chosen[0]] = True
    for i in range(1, count):
        chosen[i] = nearest.masked_fill(taken, float("-inf")).argmax()
        taken[chosen[i]] = True
        nearest = torch.minimum(nearest, 1 - unit @ unit[chosen[i]])
    return chosen
