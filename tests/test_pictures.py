"""Pictures resized by the accelerator are those that the CPU makes, and stay when the next call comes."""

import numpy as np
import pytest
import torch
from golden import scene

from vlaprune.benchmark import Observation
from vlaprune.models.pictures import preparation, prepared, resized, squared
from vlaprune.nn.backend import EAGER, Backend

WAYS = {"rlds_crop": preparation("rlds_crop"), "rlds": preparation("rlds"), "letterbox": squared("torch")}


def on_device(way, pictures, size):
    """[n, size, size, 3] as an accelerator makes them, one picture after the other."""
    shown = [torch.from_numpy(way.host(p, size))[None] for p in pictures]
    return np.stack([way.device(p, size)[0].numpy() for p in shown])


@pytest.mark.parametrize("shape", [(64, 64), (60, 96), (96, 60), (56, 56), (40, 56)])
@pytest.mark.parametrize("name", WAYS)
def test_the_accelerators_part_gives_the_cpus_pictures(name, shape, parity):
    way, pictures = WAYS[name], [scene(seed, *shape) for seed in range(4)]
    whole = np.stack([way.whole(p, 56) for p in pictures])
    found = on_device(way, pictures, 56)
    assert found.shape == whole.shape and found.dtype == whole.dtype
    away = np.abs(found.astype(float) - whole)
    if whole.dtype == np.float32:
        assert away.max() < 1e-3  # of 255
    else:
        assert away.max() <= 1 and (away > 0).mean() < 1e-4


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


def test_what_a_method_looked_at_stays_as_it_was(monkeypatch):
    """ADP and SP-VLA hold the last call's pictures against those of this one."""
    from pretended import DEVICE, Pretended

    backend, way = Overwriting(), WAYS["rlds_crop"]
    shown = [[Observation({"primary": scene(seed, 64, 64)}, "pick", None)] for seed in range(2)]
    with Pretended():
        first, second = (prepared(o, ["primary"], way, 56, "some", DEVICE, backend) for o in shown)
        assert (first != second).any()
    assert backend.entered == 2
