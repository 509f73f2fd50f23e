"""What models of several families share: device and dtype by name, sizes of smaller models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

import torch

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


def resolve_device(device: str) -> torch.device:
    """`auto` is the accelerator if there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)


def precision(dtype: str) -> torch.dtype:
    """UserError for a dtype that is not one of DTYPES."""
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype}; use one of {', '.join(DTYPES)}")
    return getattr(torch, dtype)
