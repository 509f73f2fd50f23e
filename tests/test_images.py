"""Images against what TensorFlow made of the same ones (scripts/record_golden.py), and against plain loops."""

import numpy as np
import pytest
from golden import load, scene

from vlaprune.models.images import area, centre_crop, jpeg, lanczos, pipeline, plain, rlds

SIZES = {"square": (64, 64), "wide": (60, 96)}


def levels(a, b):
    """Largest difference, and the share of numbers that differ."""
    assert a.shape == b.shape and a.dtype == b.dtype == np.uint8
    return int(np.abs(a.astype(int) - b).max()), float((a != b).mean())


@pytest.mark.parametrize("name", SIZES)
def test_every_step_is_tensorflows(name, parity):
    golden = load("images")
    assert levels(jpeg(scene(1, *SIZES[name])), golden[f"{name}_jpeg"]) == (0, 0.0)
    for ours, key in (
        (lanczos(golden[f"{name}_jpeg"], 56), "lanczos"),
        (centre_crop(golden[f"{name}_lanczos"]), "crop"),
    ):
        what = f"{key}, {name} picture: TensorFlow, recorded, in levels of 255"
        parity("images", what, ours, golden[f"{name}_{key}"], 1)
        assert levels(ours, golden[f"{name}_{key}"])[1] < 1e-3, key
    most, share = levels(rlds(scene(1, *SIZES[name]), 56), golden[f"{name}_crop"])
    assert most <= 1 and share < 2e-3


def test_what_a_step_left_out_would_cost():
    """The difference that the pipeline exists to avoid is many levels, not one."""
    picture = scene(1, 64, 64)
    assert levels(lanczos(picture, 56), load("images")["square_lanczos"])[0] > 20
    assert levels(plain(picture, 56), load("images")["square_crop"])[0] > 20


def test_lanczos_equals_its_definition():
    """A loop over output pixels, written from the kernel's formula."""
    line = scene(2, 40, 40)[7, :, 0].astype(float)
    ours = lanczos(np.tile(line[None, :, None], (40, 1, 3)).astype(np.uint8), 16)[0, :, 0]
    for i in range(16):
        at, scale = (i + 0.5) * 2.5 - 0.5, 2.5
        taps = [(j, (j - at) / scale) for j in range(40) if abs(j - at) < 3 * scale]
        kernel = [np.sinc(u) * np.sinc(u / 3) for _, u in taps]
        value = sum(line[j] * k for (j, _), k in zip(taps, kernel, strict=True)) / sum(kernel)
        assert abs(np.clip(value, 0, 255) - ours[i]) <= 0.51


def test_the_crop_keeps_a_ramp_straight_and_the_middle_in_place():
    ramp = np.repeat(np.linspace(0, 255, 57).round().astype(np.uint8)[None, :, None], 57, 0).repeat(3, 2)
    crop = centre_crop(ramp).astype(float)
    assert abs(crop[28, 28, 0] - 127.5) <= 1 and np.abs(np.diff(crop[28, :, 0], 2)).max() <= 2
    edge = 255 * (1 - 0.9**0.5) / 2
    assert crop[0, 0, 0] == pytest.approx(edge, abs=1) and crop[0, -1, 0] == pytest.approx(255 - edge, abs=1)


def test_a_picture_of_the_right_size_is_not_compressed_again():
    picture = scene(3, 56, 56)
    assert np.array_equal(pipeline("rlds")(picture, 56), picture)
    assert np.array_equal(pipeline("rlds_crop")(picture, 56), centre_crop(picture))


def test_an_unknown_pipeline_is_refused():
    with pytest.raises(ValueError, match="images=raw; use one of rlds_crop, rlds, plain, area"):
        pipeline("raw")


@pytest.mark.parametrize("size", [(512, 640), (480, 640), (256, 256), (60, 96)])
def test_area_means_are_opencvs(size):
    import cv2

    out = 224 if size[0] > 224 else 56
    picture = scene(4, *size)
    theirs = cv2.resize(picture, (out, out), interpolation=cv2.INTER_AREA)
    most, share = levels(area(picture, out), theirs)
    assert most <= 1 and share < 5e-3


def test_area_means_do_not_enlarge():
    with pytest.raises(ValueError, match="image is 40x64; images=area makes images smaller, to 56 px"):
        area(scene(1, 64, 40), 56)
