import numpy as np
import pytest
import torch
from stepwise import Episode, attend, check_config, play, prompt

from vlaprune.methods.shared.patches import canny, edge_patches
from vlaprune.methods.spvla import SPVLA
from vlaprune.testing import check_pruner


def edges_of(image, low, high):
    """Canny pixel by pixel: Sobel on repeated borders, thinning along the gradient, then a walk from strong pixels."""
    h, w, _ = image.shape
    grey = np.rint(image @ np.array([9798, 19235, 3735]) / 2**15 - 1e-9).astype(int)

    def at(y, x):
        return grey[min(max(y, 0), h - 1), min(max(x, 0), w - 1)]

    gx, gy = np.zeros((h, w), int), np.zeros((h, w), int)
    for y in range(h):
        for x in range(w):
            gx[y, x] = sum(k * (at(y + d, x + 1) - at(y + d, x - 1)) for d, k in ((-1, 1), (0, 2), (1, 1)))
            gy[y, x] = sum(k * (at(y + 1, x + d) - at(y - 1, x + d)) for d, k in ((-1, 1), (0, 2), (1, 1)))
    size = np.pad(abs(gx) + abs(gy), 1)
    weak, strong = set(), []
    for y in range(h):
        for x in range(w):
            angle = np.degrees(np.arctan2(abs(gy[y, x]), abs(gx[y, x])))
            if angle < 22.5:
                (a, b), step = ((0, -1), (0, 1)), True
            elif angle > 67.5:
                (a, b), step = ((-1, 0), (1, 0)), True
            else:
                side = -1 if (gx[y, x] < 0) != (gy[y, x] < 0) else 1
                (a, b), step = ((-1, -side), (1, side)), False
            m = size[y + 1, x + 1]
            one, two = size[y + 1 + a[0], x + 1 + a[1]], size[y + 1 + b[0], x + 1 + b[1]]
            if m > low and m > one and (m >= two if step else m > two):
                weak.add((y, x))
                strong += [(y, x)] if m > high else []
    found = set(strong)
    while strong:
        y, x = strong.pop()
        for near in weak & {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)}:
            if near not in found:
                found.add(near)
                strong.append(near)
    out = np.zeros((h, w), bool)
    for y, x in found:
        out[y, x] = True
    return out


@pytest.mark.parametrize("seed", range(8))
def test_edges_agree_with_a_walk_over_pixels(seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (4 + seed, 5, 3)).repeat(3, 0).repeat(4, 1)
    image = np.clip(image + rng.integers(-25, 25, image.shape), 0, 255).astype(np.uint8)
    found = canny(torch.from_numpy(image)).numpy()
    assert found.any() and np.array_equal(found, edges_of(image, 100, 200))


def test_edges_agree_with_opencv():
    cv2 = pytest.importorskip("cv2")
    for seed in range(10):
        rng = np.random.default_rng(seed)
        image = rng.integers(0, 256, (*rng.integers(5, 90, 2), 3), np.uint8)
        if seed % 2:
            image = cv2.normalize(cv2.GaussianBlur(image, (0, 0), 2.5), None, 0, 255, cv2.NORM_MINMAX)
        want = cv2.Canny(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), 100, 200) > 0
        assert np.array_equal(canny(torch.from_numpy(image)).numpy(), want)


def step_edge(at=9):
    image = torch.zeros(16, 16, 3, dtype=torch.uint8)
    image[:, at:] = 255
    return image


def test_a_step_lights_its_column_of_patches_and_a_flat_picture_none():
    layout = prompt(((4, 4),))
    assert edge_patches([step_edge()], layout).view(4, 4).any(0).tolist() == [False, False, True, False]
    assert not edge_patches([torch.full((16, 16, 3), 77, dtype=torch.uint8)], layout).any()


def moved(speed):
    """Two actions of translations of mean length `speed`; rotation and gripper do not count."""
    return torch.tensor([[0, 1.5 * speed, 0, 5, 5, 5, 1], [0.5 * speed, 0, 0, 0, 5, 0, -1]], dtype=torch.float64)


def course(method, speeds, image, tower):
    episode = Episode(method, prompt(((4, 4),)))
    return [
        episode.call(attend(0, 16), images=[image], tower=tower, executed=None if v is None else moved(v))[0]
        for v in speeds
    ]


def test_union_of_edges_and_attention_in_order():
    tower = torch.rand(16, generator=torch.Generator().manual_seed(0))
    edges = {2, 6, 10, 14}
    order = sorted(range(16), key=lambda i: -float(tower[i]))
    first, full, half = course(SPVLA(0.0, 1.0, 0.25), [None, 2.0, 1.0], step_edge(), tower)
    assert first is None
    assert full == sorted(edges | set(order[:4])) and half == sorted(edges | set(order[:10]))
    assert course(SPVLA(0.0, 1.0, 0.25, edges=False), [2.0], step_edge(), tower)[0] == sorted(order[:4])


def test_standing_still_keeps_all_and_the_share_never_rises_with_speed():
    method = SPVLA()
    shares = [method.share(v / 20) for v in range(21)]
    assert shares[:5] == [1.0] * 5 and abs(shares[-1] - 0.25) < 1e-12
    assert shares == sorted(shares, reverse=True)
    assert course(method, [0.0, 0.0], step_edge(), torch.rand(16)) == [None, None]


def test_speed_is_relative_to_the_fastest_of_the_episode_in_any_unit():
    for unit in (1.0, 0.01):
        kept = course(SPVLA(edges=False), [unit * v for v in (1, 3, 0.3, 2)], step_edge(), torch.rand(16))
        assert [k and len(k) for k in kept] == [4, 4, None, 9]  # shares .25, .25, 1 and 1 - .75 (2/3 - .2) / .8


def test_speed_is_the_mean_over_the_actions_of_a_call():
    image, tower, kept = step_edge(), torch.rand(16), []
    for lengths in ((0.6, 0.6), (1.2, 0.0)):
        episode = Episode(SPVLA(edges=False), prompt(((4, 4),)))
        for own in ((1.2, 1.2), lengths):
            steps = torch.zeros(2, 7, dtype=torch.float64)
            steps[:, 0] = torch.tensor(own)
            kept.append(episode.call(attend(0, 16), images=[image], tower=tower, executed=steps)[0])
    assert kept[1] == kept[3] and len(kept[1]) > len(kept[0])


def test_reset_forgets_the_fastest():
    method = SPVLA(edges=False)
    course(method, [9.0], step_edge(), torch.rand(16))
    assert course(method, [1.0], step_edge(), torch.rand(16))[0] is not None


def test_prunes_the_toy_once_it_moves():
    records, _ = play(SPVLA, "parallel")
    assert records[0].visual[0] == 64 and min(r.visual[0] for r in records[1:]) < 64


def test_laws():
    check_pruner(SPVLA)
    check_pruner(lambda: SPVLA(edges=False, slow=0.0, fast=0.1))


@pytest.mark.parametrize("bad", [{"least": -0.1}, {"slow": 1.0}, {"fast": 1.5}, {"slow": -0.5}])
def test_bad_parameters(bad):
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))) as error:
        SPVLA(**bad)
    assert "\n" not in str(error.value)


def test_config():
    check_config(SPVLA)
