"""The cameras' pictures of a call, from the benchmark to what the vision towers see.

On a CPU all of it is numpy (models/images.py, models/letterbox.py). With an accelerator the host is what a captured
call waits for, so there resizing and cropping are a segment of the model. Pillow's filters and area means give the same
levels; Lanczos and the crop are summed in float64 and differ by one level where an exact sum lies at the edge between
two; pi0's letterbox is torch's on either device (tests/test_pictures.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from vlaprune.benchmark import Observation
from vlaprune.errors import UserError
from vlaprune.models import filters, images, letterbox
from vlaprune.nn.backend import PICTURES, Backend

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
    """How Prismatic models prepare images, by a name in `images.PIPELINES`. UserError for another name."""
    whole = images.pipeline(name)
    return {
        "rlds_crop": Preparation(whole, rlds, images.compressed),
        "rlds": Preparation(whole, partial(rlds, crop=False), images.compressed),
        "plain": Preparation(whole, plain),
        "area": Preparation(whole, area, images.check_larger),
    }[name]


def squared(name: str) -> Preparation:
    """How pi0 and pi0.5 prepare images, by a name in `letterbox.RESIZE`."""
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
    """Prepared images [B, cameras, size, size, 3] on the device. UserError for a missing or wrong image."""
    seen = [look(observation, cameras, name) for observation in observations]
    if device.type in ("cpu", "meta"):
        whole = np.stack([np.stack([way.whole(image, size) for image in views]) for views in seen])
        return torch.from_numpy(whole).to(device)
    uploaded = [[upload(group, way, size, device) for group in alike(view)] for view in zip(*seen, strict=True)]
    out = backend.run(PICTURES, partial(resized, way.device, size), uploaded)
    return out.clone() if backend.static else out  # a method may look at them in a later call


def alike(view: Sequence[np.ndarray]) -> Sequence[Sequence[np.ndarray]]:
    """The images of one camera in one group if they have one size, else each alone."""
    return [view] if len({image.shape for image in view}) == 1 else [[image] for image in view]


def upload(group: Sequence[np.ndarray], way: Preparation, size: int, device: torch.device) -> Tensor:
    """Images of one size as [n, h, w, 3] uint8 on the device, after the host's part of the preparation."""
    return torch.from_numpy(np.stack([way.host(image, size) for image in group])).to(device)


def look(observation: Observation, cameras: Sequence[str], name: str) -> list[np.ndarray]:
    """The images of the cameras that a model reads. UserError for a missing camera or no uint8 image."""
    missing = set(cameras) - set(observation.images)
    if missing:
        raise UserError(
            f"observation lacks cameras {sorted(missing)} that {name} reads; it has {sorted(observation.images)}"
        )
    shown = [observation.images[c] for c in cameras]
    wrong = [
        f"{c} {i.shape} {i.dtype}" for c, i in zip(cameras, shown, strict=True) if i.ndim != 3 or i.dtype != np.uint8
    ]
    if wrong:
        raise UserError(f"images {wrong} are not [h, w, 3] uint8; the benchmark is at fault")
    return shown


def resized(way: Device, size: int, views: Sequence[Sequence[Tensor]]) -> Tensor:
    """Segment: [B, cameras, size, size, 3] of every camera's images [n, h, w, 3], in groups of one size."""
    return torch.stack([torch.cat([way(group, size) for group in view]) for view in views], 1)


def rlds(shown: Tensor, size: int, crop: bool = True) -> Tensor:
    """Does what `images.rlds` does after the JPEG round trip: [B, h, w, 3] uint8 to [B, size, size, 3] uint8."""
    x = channels_first(shown)
    edge = filters.margin(size)
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
    """Does what `images.plain` does: [B, h, w, 3] uint8 to [B, size, size, 3] uint8."""
    return channels_last(_pillow(channels_first(shown), size, size, filters.cubic, 2))


def area(shown: Tensor, size: int) -> Tensor:
    """Does what `images.area` does: [B, h, w, 3] uint8 to [B, size, size, 3] uint8."""
    rows, columns = (on(shown.device, filters.area, n, size) for n in shown.shape[1:3])
    sums = (rows @ channels_first(shown) @ columns.mT).float()
    covered = torch.full_like(sums, filters.covered(shown.shape[1:3], size))
    return channels_last((sums / covered).round_())  # by a number, CUDA would multiply with its rounded inverse


def letterboxed_pil(shown: Tensor, size: int) -> Tensor:
    """Does what `letterbox.resize_pil` does: [B, h, w, 3] uint8 to [B, size, size, 3] fp32."""
    height, width = letterbox.fitted(shown.shape[1:3], size)
    x = _pillow(channels_first(shown), height, width, filters.triangle, 1)
    return letterbox.bordered(x.float(), size)


def _pillow(x: Tensor, height: int, width: int, kernel: Callable[[np.ndarray], np.ndarray], radius: int) -> Tensor:
    """Does what `images.pillow` does: [B, 3, h, w] to [B, 3, height, width].

    Every sum is a whole number, so all levels are equal.
    """
    for axis, out in ((3, width), (2, height)):
        if x.shape[axis] != out:
            weights = on(x.device, filters.pillow, x.shape[axis], out, kernel, radius)
            sums = x @ weights.mT if axis == 3 else weights @ x
            x = ((sums + (1 << filters.BITS - 1)) / (1 << filters.BITS)).floor_().clamp_(0, 255)
    return x


def channels_first(shown: Tensor) -> Tensor:
    """Images [B, h, w, 3] as [B, 3, h, w] float64."""
    return shown.permute(0, 3, 1, 2).double()


def channels_last(levels: Tensor) -> Tensor:
    """Levels [B, 3, h, w] as images [B, h, w, 3] uint8; fractions are cut off."""
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@cache  # never dropped: a captured graph reads them where they lie
def on(device: torch.device, weights: Callable[..., np.ndarray], *options: object) -> Tensor:
    """Weights of a filter, kept on a device. Do not write to them."""
    with torch.inference_mode(False):
        return torch.from_numpy(weights(*options)).to(device)
