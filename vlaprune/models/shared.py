"""What models of several families share: the pictures of a call, device and dtype by name, sizes of smaller models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from torch import Tensor

from vlaprune.benchmark import Observation
from vlaprune.errors import UserError

DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a published model; a subclass names them and gives their values."""

    @classmethod
    def of(cls, given: Mapping[str, int]) -> Self:
        """The published sizes with some of them replaced. UserError for a name that is not there."""
        known = [f.name for f in fields(cls)]
        wrong = sorted(set(given) - set(known))
        if wrong:
            raise UserError(f"sizes {wrong} are not known; use {', '.join(known)}")
        return cls(**given)


def images(
    observations: Sequence[Observation], cameras: Sequence[str], prepare: Callable[[np.ndarray], np.ndarray], name: str
) -> Tensor:
    """[B, cameras, h, w, 3] uint8 as the towers see them. UserError for a missing camera or no uint8 image."""
    rows = []
    for observation in observations:
        missing = set(cameras) - set(observation.images)
        if missing:
            raise UserError(
                f"observation lacks cameras {sorted(missing)} that {name} reads; it has {sorted(observation.images)}"
            )
        own = [observation.images[c] for c in cameras]
        wrong = [
            f"{c} {i.shape} {i.dtype}" for c, i in zip(cameras, own, strict=True) if i.ndim != 3 or i.dtype != np.uint8
        ]
        if wrong:
            raise UserError(f"images {wrong} are not [h, w, 3] uint8; the benchmark is at fault")
        rows.append(np.stack([prepare(i) for i in own]))
    return torch.from_numpy(np.stack(rows))


def resolve_device(device: str) -> torch.device:
    """`auto` is the accelerator if there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)


def precision(dtype: str) -> torch.dtype:
    """UserError for a dtype that is not one of DTYPES."""
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype}; use one of {', '.join(DTYPES)}")
    return getattr(torch, dtype)
