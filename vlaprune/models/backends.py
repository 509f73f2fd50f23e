"""The ways to run one and the same model: by its attention kernel, compiled, or captured.

A speed-up is quoted against the fastest dense backend, because against a slow baseline any method wins. Methods run
under each backend, too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from vlaprune.errors import UserError
from vlaprune.nn.backend import Backend, Captured, Compiled
from vlaprune.policy import VLA

BACKENDS = ("eager", "sdpa", "flash", "compile", "graph")
KERNELS = {  # in order of preference: flash alone would refuse fp32 inputs and masks
    "eager": [SDPBackend.MATH],
    "flash": [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
}
Model = TypeVar("Model", bound=VLA)


@contextmanager
def kernel(name: str) -> Iterator[None]:
    """Attention as this backend computes it: eager materialises the weights, flash avoids it, else torch chooses."""
    _check(name)
    with sdpa_kernel(order(name), set_priority=True):
        yield


def order(name: str) -> list[SDPBackend]:
    """The attention kernels that a backend tries, the preferred one first.

    Where torch chooses, it is torch's own order without cuDNN. That one plans anew, tens of milliseconds, for every new
    number of queries and keys, which a method whose count depends on the image would pay in every call.
    """
    if name in KERNELS:
        return KERNELS[name]
    known = [SDPBackend(number) for number in torch._C._get_sdp_priority_order()]
    fused = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return [backend for backend in known if backend in fused] or fused


def _check(name: str) -> None:
    if name not in BACKENDS:
        raise UserError(f"backend {name!r} is not one of {', '.join(BACKENDS)}")


def missing(name: str, device: torch.device) -> str | None:
    """Why a backend cannot be run here; None if it can. UserError for one that is not known."""
    _check(name)
    if name in ("flash", "graph") and device.type != "cuda":
        return "needs a CUDA device"
    return None


def with_backend(model: Model, name: str, compiler: str | None = "inductor") -> Model:
    """The model to be run under `kernel(name)`: itself, or a shallow copy that shares its weights.

    compiler  of torch.compile; None captures without compiling (graph)

    UserError where the backend is unknown or cannot run on the model's device.
    """
    _check(name)
    if why := missing(name, model.device):
        raise UserError(f"kernel={name} {why}, and the model is on {model.device}; use sdpa")
    if name not in ("compile", "graph"):
        return model
    twin = copy.copy(model)
    twin.backend = made(name, compiler)
    return twin


def forked(model: Model) -> Model:
    """The model for one of several users: itself, or where graphs are captured, a shallow copy with its own graphs."""
    own = model.backend.fork()
    if own is model.backend:
        return model
    twin = copy.copy(model)
    twin.backend = own
    return twin


def made(name: str, compiler: str | None) -> Backend:
    """A new backend: what one copy of a model compiles or captures serves no other."""
    return Captured(compiler) if name == "graph" else Compiled(compiler or "inductor")
