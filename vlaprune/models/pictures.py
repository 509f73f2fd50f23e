"""The cameras' pictures of a call, from the benchmark to what the vision towers see.

On a CPU all of it is numpy (models/images.py, models/letterbox.py). With an accelerator the host is what a captured
call waits for, so there resizing and cropping are a segment of the model: the same sums, in float64. Levels are the
same, save where an exact sum of Lanczos' or the crop's lies at the edge between two levels (tests/test_pictures.py).
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
from vlaprune.models import filters, images, letterbox
from vlaprune.nn.backend import Backend

Host = Callable[[np.ndarray, int], np.ndarray]  # an image [h, w, 3] uint8 and the size in px
Device = Callable[[Tensor, int], Tensor]  # images [B, h, w, 3] and the size in px


@dataclass(frozen=True)
class Preparation:
    """How an image becomes the square that a model reads.

    whole   by the CPU: [h, w, 3] uint8 to [size, size, 3]
    device  by an accelerator: [B, h, w, 3] uint8 to [B, size, size, 3]
    host    what stays the CPU's before that
    """

    whole: Host
    device: Device
    host: Host = lambda image, size: image


def preparation(name: str) -> Preparation:
    """Of Prismatic models, by its name in `images.PIPELINES`. UserError for another name."""
    whole = images.pipeline(name)
    return {
        "rlds_crop": Preparation(whole, rlds, images.compressed),
        "rlds": Preparation(whole, partial(rlds, crop=False), images.compressed),
        "plain": Preparation(whole, plain),
        "area": Preparation(whole, area, images.check_larger),
    }[name]


def squared(name: str) -> Preparation:
    """Of pi0 and pi0.5, by its name in `letterbox.RESIZE`."""
    device = {"torch": letterbox.letterboxed, "pil": letterboxed_pil}
    return Preparation(letterbox.RESIZE[name], device[name])


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
    if device.type in ("cpu", "meta"):
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


def rlds(shown: Tensor, size: int, crop: bool = True) -> Tensor:
    """`images.rlds` behind the JPEG round trip: [B, h, w, 3] uint8 to [B, size, size, 3] uint8."""
    x, edge = channels_first(shown), filters.margin(size)
    if shown.shape[1:3] != (size, size):
        margin = edge if crop else 0
        rows, columns = (on(shown.device, filters.lanczos, n, size, margin) for n in shown.shape[1:3])
        x = (rows @ x @ columns.mT).round_().clamp_(0, 255)
    elif crop:
        x = x[:, :, edge : size - edge, edge : size - edge]
    if crop:
        weights = on(shown.device, filters.crop, size)
        x = weights @ x @ weights.mT
    return channels_last(x)


def plain(shown: Tensor, size: int) -> Tensor:
    """`images.plain`: [B, h, w, 3] uint8 to [B, size, size, 3] uint8."""
    return channels_last(_pillow(channels_first(shown), size, size, filters.cubic, 2))


def area(shown: Tensor, size: int) -> Tensor:
    """`images.area`: [B, h, w, 3] uint8 to [B, size, size, 3] uint8."""
    rows, columns = (on(shown.device, filters.area, n, size) for n in shown.shape[1:3])
    sums = rows @ channels_first(shown) @ columns.mT
    return channels_last((sums.float() / filters.covered(shown.shape[1:3], size)).round_())


def letterboxed_pil(shown: Tensor, size: int) -> Tensor:
    """`letterbox.resize_pil`: [B, h, w, 3] uint8 to [B, size, size, 3] fp32."""
    height, width = letterbox.fitted(shown.shape[1:3], size)
    x = _pillow(channels_first(shown), height, width, filters.triangle, 1)
    return letterbox.bordered_planes(x.float(), size)


def _pillow(x: Tensor, height: int, width: int, kernel: Callable[[np.ndarray], np.ndarray], radius: int) -> Tensor:
    """[B, 3, h, w] to [B, 3, height, width] as Pillow 13 does it. Every sum is a whole number, so all are equal.

    A row or column is rounded before the other axis is summed: rows are summed last, or first where the height shrinks
    by more than twice what the width does.
    """
    taller, wider = x.shape[2] - height, x.shape[3] - width
    for axis in (2, 3) if taller > max(0, 2 * wider) else (3, 2):
        out = width if axis == 3 else height
        if x.shape[axis] != out:
            weights = on(x.device, filters.pillow, x.shape[axis], out, kernel, radius)
            sums = x @ weights.mT if axis == 3 else weights @ x
            x = ((sums + (1 << filters.BITS - 1)) / (1 << filters.BITS)).floor_().clamp_(0, 255)
    return x


def channels_first(shown: Tensor) -> Tensor:
    """[B, h, w, 3] to [B, 3, h, w] float64."""
    return shown.permute(0, 3, 1, 2).double()


def channels_last(levels: Tensor) -> Tensor:
    """[B, 3, h, w] to [B, h, w, 3] uint8, without fractions."""
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@lru_cache(maxsize=16)
def on(device: torch.device, weights: Callable[..., np.ndarray], *options: object) -> Tensor:
    """Weights of a filter, kept on a device. Do not write to them."""
    with torch.inference_mode(False):
        return torch.from_numpy(weights(*options)).to(device)
