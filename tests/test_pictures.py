"""Pictures resized by the accelerator are those that the CPU makes, and stay when the next call comes."""

import numpy as np
import pytest
import torch
from golden import scene

from vlaprune.benchmark import Observation
from vlaprune.models.images import PIPELINES
from vlaprune.models.letterbox import RESIZE
from vlaprune.models.pictures import preparation, prepared, resized, squared
from vlaprune.nn.backend import EAGER, Backend

WAYS = {name: preparation(name) for name in PIPELINES} | {f"letterbox, {name}": squared(name) for name in RESIZE}
ROUNDED = {"rlds_crop": 1, "rlds": 1, "letterbox, torch": 1e-3}  # largest difference, of 255; the others are equal


def on_device(way, pictures, size):
    """[n, size, size, 3] as an accelerator makes them, one picture after the other."""
    shown = [torch.from_numpy(way.host(p, size))[None] for p in pictures]
    return np.stack([way.device(p, size)[0].numpy() for p in shown])


@pytest.mark.parametrize("shape", [(64, 64), (60, 96), (96, 60), (56, 56), (57, 131), (224, 99)])
@pytest.mark.parametrize("name", WAYS)
def test_the_accelerators_part_gives_the_cpus_pictures(name, shape):
    way, pictures = WAYS[name], [scene(seed, *shape) for seed in range(4)]
    whole = np.stack([way.whole(p, 56) for p in pictures])
    found = on_device(way, pictures, 56)
    assert found.shape == whole.shape and found.dtype == whole.dtype
    away = np.abs(found.astype(float) - whole)
    assert away.max() <= ROUNDED.get(name, 0)
    assert whole.dtype == np.float32 or (away > 0).mean() < 1e-4


@pytest.mark.parametrize("shape", [(30, 40), (56, 20)])
@pytest.mark.parametrize("name", [name for name in WAYS if name != "area"])
def test_it_enlarges_small_pictures_as_well(name, shape):
    way, picture = WAYS[name], scene(1, *shape)
    away = np.abs(on_device(way, [picture], 56)[0].astype(float) - way.whole(picture, 56))
    assert away.max() <= ROUNDED.get(name, 0) and (name == "letterbox, torch" or (away > 0).mean() < 1e-3)


def test_area_means_refuse_a_small_picture_on_either_device():
    way = WAYS["area"]
    for refused in (way.whole, way.host):
        with pytest.raises(ValueError, match="image is 40x60; images=area makes images smaller, to 56 px"):
            refused(scene(1, 60, 40), 56)


def test_cameras_of_different_sizes_share_a_call():
    sizes = {"primary": (64, 64), "wrist": (96, 60)}
    seen = {c: scene(i, *size) for i, (c, size) in enumerate(sizes.items())}
    observations = [Observation(seen, "pick", None), Observation(seen, "pick", None)]
    way = WAYS["rlds_crop"]
    whole = prepared(observations, list(sizes), way, 56, "some", torch.device("cpu"), EAGER)
    views = [torch.from_numpy(np.stack([way.host(seen[c], 56)] * 2)) for c in sizes]
    assert (resized(way.device, 56, views).int() - whole.int()).abs().max() <= 1


class Overwriting(Backend):
    """A backend whose segments write every result into the same memory, as captured graphs do."""

    static = True

    def run(self, key, segment, *inputs):
        out = super().run(key, segment, *inputs)
        if not hasattr(self, "memory"):
            self.memory = out
        return self.memory.copy_(out)


def test_what_a_method_looked_at_stays_as_it_was():
    """ADP and SP-VLA hold the last call's pictures against those of this one."""
    from pretended import DEVICE, Pretended

    backend, way = Overwriting(), WAYS["rlds_crop"]
    shown = [[Observation({"primary": scene(seed, 64, 64)}, "pick", None)] for seed in range(2)]
    with Pretended():
        first, second = (prepared(o, ["primary"], way, 56, "some", DEVICE, backend) for o in shown)
        assert (first != second).any()
    assert backend.entered == 2
