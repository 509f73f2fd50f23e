"""What models of several families share: device and dtype by name, sizes of smaller models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

import torch

from vlaprune.errors import UserError

DTYPES = ("bfloat16", "float16", "float32")


def check_sizes(sizes: Mapping[str, int], multiples: Mapping[str, int]) -> None:
    """Raises UserError for a size below 1, or one that is no multiple of the number that `multiples` names for it."""
    for name, size in sizes.items():
        if size < 1 or size % multiples.get(name, 1):
            allowed = f"a multiple of {multiples[name]}, at least that" if name in multiples else "1 or more"
            raise UserError(f"model size {name}={size}; use {allowed}")


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
        check_sizes(given, {})
        return cls(**given)


def resolve_device(device: str) -> torch.device:
    """The torch device of this name; `auto` is the GPU if there is one. UserError for one that is none, or not here."""
    there = torch.cuda.is_available()
    try:
        resolved = torch.device(("cuda" if there else "cpu") if device == "auto" else device)
    except RuntimeError:
        raise UserError(f"model.device={device} is no device; use auto, cpu, cuda or cuda:NUMBER") from None
    if resolved.type == "cuda" and (not there or (resolved.index or 0) >= torch.cuda.device_count()):
        raise UserError(
            f"model.device={device}, but torch sees {torch.cuda.device_count() if there else 'no'} GPU here"
        )
    if resolved.type == "cuda" and resolved.index:
        raise UserError(
            f"model.device={device}, but a process computes on the first GPU that it sees; use model.device=cuda with "
            f"CUDA_VISIBLE_DEVICES={resolved.index}, or devices=[{resolved.index}] of vlaprune-eval"
        )
    return resolved


def precision(dtype: str) -> torch.dtype:
    """The torch dtype of this name. UserError for one that is not in DTYPES."""
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype}; use one of {', '.join(DTYPES)}")
    return getattr(torch, dtype)
