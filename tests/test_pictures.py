"""Pictures resized by the accelerator are those that the CPU makes, and stay when the next call comes."""

import numpy as np
import pytest
import torch
from golden import scene
from PIL import Image
from pretended import DEVICE, Pretended

from vlaprune.benchmark import Observation
from vlaprune.models.images import PIPELINES, plain
from vlaprune.models.letterbox import RESIZE
from vlaprune.models.pictures import preparation, prepared, squared
from vlaprune.nn.backend import EAGER, Backend, Captured

WAYS = {name: preparation(name) for name in PIPELINES} | {f"letterbox, {name}": squared(name) for name in RESIZE}
ROUNDED = {"rlds_crop": 1, "rlds": 1, "letterbox, torch": 5e-3}  # largest difference, of 255; the others are equal


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


@pytest.mark.parametrize("name", WAYS)
def test_a_call_on_a_device_is_in_order_whatever_the_sizes(name):
    """Three observations with two cameras; one camera changes its size from slot to slot."""
    sizes = {"primary": [(64, 64)] * 3, "wrist": [(96, 60), (64, 64), (60, 96)]}
    seen = [{c: scene(3 * i + k, *size[k]) for i, (c, size) in enumerate(sizes.items())} for k in range(3)]
    observations, way = [Observation(images, "pick", None) for images in seen], WAYS[name]
    whole = prepared(observations, list(sizes), way, 56, "some", torch.device("cpu"), EAGER)
    with Pretended():
        found = prepared(observations, list(sizes), way, 56, "some", DEVICE, EAGER).cpu()
    assert found.shape == whole.shape == (3, 2, 56, 56, 3) and found.dtype == whole.dtype
    assert (found.double() - whole).abs().max() <= ROUNDED.get(name, 0)


def test_torchs_letterbox_is_its_formula():
    """Half-pixel centres, two neighbours a side, no antialias; black around it."""
    picture = scene(2, 40, 80).astype(float)
    at = np.clip((np.arange(56) + 0.5) * 80 / 56 - 0.5, 0, None)
    low = np.floor(at).astype(int)
    part = (at - low)[:, None]
    wide = picture[:, low] * (1 - part) + picture[:, np.minimum(low + 1, 79)] * part
    at = np.clip((np.arange(28) + 0.5) * 40 / 28 - 0.5, 0, None)
    low = np.floor(at).astype(int)
    part = (at - low)[:, None, None]
    whole = wide[low] * (1 - part) + wide[np.minimum(low + 1, 39)] * part
    found = on_device(WAYS["letterbox, torch"], [scene(2, 40, 80)], 56)[0]
    assert np.abs(found[14:42] - whole).max() < 5e-3 and not found[:14].any() and not found[42:].any()


def test_pillow_resizes_the_width_first_in_every_release():
    """Pillow 13 takes the height of a tall image first, earlier ones never; the levels of the two differ."""
    tall = scene(3, 224, 99)
    narrow = np.asarray(Image.fromarray(tall).resize((56, 224), Image.Resampling.BICUBIC))
    assert np.array_equal(
        plain(tall, 56), np.asarray(Image.fromarray(narrow).resize((56, 56), Image.Resampling.BICUBIC))
    )


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(256, 256), (480, 640), (400, 640), (640, 360)])
@pytest.mark.parametrize("name", WAYS)
def test_cuda_makes_the_cpus_pictures_eager_and_captured(name, shape):
    way, graphs = WAYS[name], Captured(None)
    for seed in range(6):
        seen = [Observation({"primary": scene(seed, *shape)}, "pick", None)]
        whole = prepared(seen, ["primary"], way, 224, "some", torch.device("cpu"), EAGER)
        for backend in (EAGER, graphs):
            found = prepared(seen, ["primary"], way, 224, "some", torch.device("cuda"), backend).cpu()
            away = (found.double() - whole).abs()
            assert away.max() <= ROUNDED.get(name, 0)
            assert whole.dtype == torch.float32 or (away > 0).double().mean() < 1e-4
    assert graphs.captured == 1


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
    backend, way = Overwriting(), WAYS["rlds_crop"]
    shown = [[Observation({"primary": scene(seed, 64, 64)}, "pick", None)] for seed in range(2)]
    with Pretended():
        first, second = (prepared(o, ["primary"], way, 56, "some", DEVICE, backend) for o in shown)
        assert (first != second).any()
    assert backend.entered == 0  # no segment of the network ran
