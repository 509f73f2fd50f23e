"""The ways to run one and the same model: by the kernel of its attention, compiled, captured.

As the dense ladder they are the baselines of a speed-up, which is quoted against the fastest of them: against a
handicapped one any method wins. Methods run under each of them, too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vlaprune.nn.decoder import Decoder
from vlaprune.nn.fast import Fast
from vlaprune.policy import VLA

BACKENDS = ("eager", "sdpa", "flash", "compile", "graph")
SDPA_BACKENDS = {"eager": SDPBackend.MATH, "flash": SDPBackend.FLASH_ATTENTION}


@contextmanager
def kernel(rung: str) -> Iterator[None]:
    """Attention as this rung computes it: eager writes the weights out, flash never does, else torch chooses."""
    _known(rung)
    if rung not in SDPA_BACKENDS:
        yield
        return
    with sdpa_kernel(SDPA_BACKENDS[rung]):
        yield


def _known(rung: str) -> None:
    if rung not in BACKENDS:
        raise ValueError(f"ladder rung {rung!r} is not one of {', '.join(BACKENDS)}")


def missing(rung: str, device: torch.device) -> str | None:
    """Why a rung cannot be run here; None if it can."""
    if rung in ("flash", "graph") and device.type != "cuda":
        return "needs a CUDA device"
    return None


def decoder_of(model: VLA) -> tuple[list[str], Decoder]:
    """The decoder that prunes, and the attributes that lead to it. ValueError where the model has none of ours."""
    for name, part in [*vars(model).items(), *getattr(model, "_modules", {}).items()]:
        if isinstance(part, Decoder):
            return [name], part
        if isinstance(getattr(part, "decoder", None), Decoder):
            return [name, "decoder"], part.decoder
    raise ValueError(f"{model.info.name} has no decoder of ours")


def with_backend(model: VLA, rung: str, backend: str | None = "inductor") -> VLA:
    """The model to be run under `kernel(rung)`: itself, or a twin with its weights and the fast path's decoder.

    ValueError where the rung cannot be run on the model's device, or is none.
    """
    _known(rung)
    if why := missing(rung, model.device):
        raise ValueError(f"kernel={rung} {why}, and the model is on {model.device}; use sdpa")
    if rung not in ("compile", "graph"):
        return model
    path, decoder = decoder_of(model)
    twin = _twin(model)
    holder = twin
    for name in path[:-1]:
        setattr(holder, name, _twin(getattr(holder, name)))
        holder = getattr(holder, name)
    setattr(holder, path[-1], Fast(decoder, rung == "graph", backend))
    return twin  # type: ignore[no-any-return]


def _twin(thing: Any) -> Any:
    """A shallow copy; of a module also its table of parts, which it would share with the original."""
    twin = copy.copy(thing)
    if isinstance(twin, nn.Module):
        twin._modules = dict(twin._modules)
    return twin
