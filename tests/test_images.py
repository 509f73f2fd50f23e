"""Images against what TensorFlow made of the same ones (scripts/record_golden.py), and against plain loops."""

from concurrent.futures import ThreadPoolExecutor

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


def weighted(image, rows, columns):
    """[h, w, 3] by full float64 weights [a, h] and [b, w]: [a, b, 3], not rounded."""
    return np.einsum("ah,hwc,bw->abc", rows, image.astype(float), columns, optimize=True)


def lanczos_weights(size, out):
    scale = size / out
    u = (np.arange(size)[None] - ((np.arange(out) + 0.5) * scale - 0.5)[:, None]) / max(scale, 1.0)
    weights = np.where(np.abs(u) < 3, np.sinc(u) * np.sinc(u / 3), 0.0)
    return weights / weights.sum(1, keepdims=True)


def crop_weights(size, share=0.9):
    at = ((1 - share**0.5) / 2 + share**0.5 * np.arange(size) / (size - 1)) * (size - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(size)))


def agrees(ours, exact, edges):
    """Whether levels are the exact ones; within 1e-3 of an edge between two levels either is right in fp32."""
    near = np.abs(edges(exact) - exact) < 1e-3
    assert levels(ours, exact.clip(0, 255).astype(np.uint8))[0] <= 1
    assert near.mean() < 0.01
    return np.array_equal(ours[~near], exact.clip(0, 255)[~near].astype(np.uint8))


@pytest.mark.parametrize("size", [(256, 256), (480, 640), (60, 96), (224, 224), (128, 300)])
def test_resizing_and_cropping_are_full_sums_in_float64(size):
    """Bands leave out zeros only: every level but those at the edge of a rounding is that of the whole sum."""
    picture, out = scene(7, *size), 224
    exact = weighted(picture, *(lanczos_weights(n, out) for n in size)) + 0.5
    assert agrees(lanczos(picture, out), exact, np.rint)
    square = scene(8, out, out)
    whole = weighted(square, crop_weights(out), crop_weights(out)) * (255.5 / 255)
    assert agrees(centre_crop(square), whole, np.rint)
    assert np.array_equal(rlds(picture, 56), centre_crop(lanczos(jpeg(picture), 56)))


def test_flat_pictures_stay_flat():
    for level in range(256):
        flat = np.full((64, 80, 3), level, np.uint8)
        for made in (lanczos(flat, 56), centre_crop(flat[:, :64]), area(flat, 56)):
            assert (made == level).all()


@pytest.mark.parametrize(("size", "out"), [((512, 640), 224), ((480, 640), 224), ((97, 64), 56)])
def test_area_means_are_rounded_from_exact_sums(size, out):
    """In whole numbers: out times a picture, each pixel repeated `out` times, is cut into stretches of its size."""
    picture = scene(5, *size)
    rows, columns = (
        np.repeat(np.eye(n, dtype=np.int64), out, axis=1).reshape(n, out, n).sum(2).T for n in size
    )  # [out, n]: of each stretch of n parts, how many are of each pixel
    sums = np.einsum("ah,hwc,bw->abc", rows, picture.astype(np.int64), columns, optimize=True)
    low, rest = np.divmod(sums, size[0] * size[1])
    up = 2 * rest > size[0] * size[1]
    tie = 2 * rest == size[0] * size[1]
    assert np.array_equal(area(picture, out), low + up + (tie & (low % 2 == 1)))


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


def test_buffers_are_nobody_elses():
    """What was made stays as it was, and threads do not meet."""
    pictures = [scene(n, 64, 64) for n in range(8)]
    alone = [rlds(picture, 56).copy() for picture in pictures]
    kept = [rlds(picture, 56) for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda n: rlds(pictures[n % 8], 56), range(64)))
    assert all(np.array_equal(a, b) for a, b in zip(kept, alone, strict=True))
    assert all(np.array_equal(made, alone[n % 8]) for n, made in enumerate(together))
