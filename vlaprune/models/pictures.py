"""The cameras' pictures of a call, from the benchmark to what the vision towers see.

On a CPU all of it is numpy (models/images.py, models/letterbox.py). With an accelerator the host is what a captured
call waits for, so resizing and cropping are a segment of the model there: the same sums, in float64. Levels are those
of `images.py`, save where the exact sum lies at the edge between two levels (tests/test_pictures.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from vlaprune.benchmark import Observation
from vlaprune.errors import UserError
from vlaprune.models import letterbox
from vlaprune.models.images import CROP, compressed, crop_weights, lanczos_weights, margin_of, pipeline
from vlaprune.nn.backend import Backend

Host = Callable[[np.ndarray, int], np.ndarray]  # an image [h, w, 3] uint8 and the size in px
Device = Callable[[Tensor, int], Tensor]  # images [B, h, w, 3] and the size in px


@dataclass(frozen=True)
class Preparation:
    """How an image becomes the square that a model reads.

    whole   by the CPU: [h, w, 3] uint8 to [size, size, 3]
    host    what stays the CPU's where an accelerator does the rest
    device  the rest: [B, h, w, 3] to [B, size, size, 3]; None where the CPU does all
    """

    whole: Host
    host: Host
    device: Device | None = None


def preparation(name: str) -> Preparation:
    """Of Prismatic models, by its name in `images.PIPELINES`. UserError for another name."""
    whole = pipeline(name)
    if name in ("rlds_crop", "rlds"):
        return Preparation(whole, compressed, partial(rlds, crop=name == "rlds_crop"))
    return Preparation(whole, whole)


def squared(name: str) -> Preparation:
    """Of pi0 and pi0.5, by its name in `letterbox.RESIZE`."""
    whole = letterbox.RESIZE[name]
    if name == "torch":
        return Preparation(whole, lambda image, size: image, letterbox.letterboxed)
    return Preparation(whole, whole)


def prepared(
    observations: Sequence[Observation],
    cameras: Sequence[str],
    way: Preparation,
    size: int,
    name: str,
    device: torch.device,
    backend: Backend,
) -> Tensor:
    """[B, cameras, size, size, 3] on the device, as the towers see them. UserError for a missing or wrong image."""
    seen = [look(observation, cameras, name) for observation in observations]
    if way.device is None or device.type in ("cpu", "meta"):
        whole = np.stack([np.stack([way.whole(image, size) for image in own]) for own in seen])
        return torch.from_numpy(whole).to(device)
    views = zip(*seen, strict=True)
    uploaded = [torch.from_numpy(np.stack([way.host(i, size) for i in view])).to(device) for view in views]
    out = backend.run(("pictures",), partial(resized, way.device, size), uploaded)
    return out.clone() if backend.static else out  # a method may look at them in a later call


def look(observation: Observation, cameras: Sequence[str], name: str) -> list[np.ndarray]:
    """The images of the cameras that a model reads. UserError for a missing camera or no uint8 image."""
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
    return own


def resized(way: Device, size: int, views: Sequence[Tensor]) -> Tensor:
    """Segment: [B, cameras, size, size, 3] of the images [B, h, w, 3] of every camera."""
    return torch.stack([way(view, size) for view in views], 1)


def rlds(images: Tensor, size: int, crop: bool = True) -> Tensor:
    """`images.rlds` behind the JPEG round trip: [B, h, w, 3] uint8 to [B, size, size, 3] uint8."""
    x = images.permute(0, 3, 1, 2).double()
    if images.shape[1:3] != (size, size):
        margin = margin_of(size, CROP) if crop else 0
        rows, columns = (on(images.device, lanczos_weights, n, size, margin) for n in images.shape[1:3])
        x = (rows @ x @ columns.mT).round_().clamp_(0, 255)
    elif crop:
        margin = margin_of(size, CROP)
        x = x[:, :, margin : size - margin, margin : size - margin]
    if crop:
        weights = on(images.device, crop_weights, size)
        x = weights @ x @ weights.mT
    return x.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@lru_cache(maxsize=16)
def on(device: torch.device, weights: Callable[..., np.ndarray], *sizes: int) -> Tensor:
    """Weights of these sizes, kept on a device. Do not write to them."""
    with torch.inference_mode(False):
        return torch.from_numpy(weights(*sizes)).to(device)
