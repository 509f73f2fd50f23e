import numpy as np
import pytest
import torch
from stepwise import Episode, attend, check_config, play, prompt

from vlaprune.methods.shared.patches import by_patch, sobel
from vlaprune.methods.vlaiap import VLAIAP, outstanding, overlap
from vlaprune.testing import check_pruner
from vlaprune.trace import View

GRIDS = ((4, 4), (3, 5))


def grey_of(image):
    return np.rint(image @ np.array([9798, 19235, 3735]) / 2**15 - 1e-9)


def edges_of(grey, height, width):
    """Sum of the absolute slopes of each patch, pixel by pixel, each slope as three differences."""
    h, w = grey.shape
    out = np.zeros((height, width))

    def at(y, x):
        return grey[min(max(y, 0), h - 1), min(max(x, 0), w - 1)]

    for y in range(h):
        for x in range(w):
            right = sum(k * (at(y + d, x + 1) - at(y + d, x - 1)) for d, k in ((-1, 1), (0, 2), (1, 1)))
            down = sum(k * (at(y + 1, x + d) - at(y - 1, x + d)) for d, k in ((-1, 1), (0, 2), (1, 1)))
            out[y * height // h, x * width // w] += abs(right) + abs(down)
    return out.flatten()


def closed(mask, height, width, reach):
    """All patches but those that a square of patches which do not move covers."""
    stay = set(range(height * width))
    for y in range(height):
        for x in range(width):
            square = {
                v * width + u
                for v in range(max(0, y - reach), min(height, y + reach + 1))
                for u in range(max(0, x - reach), min(width, x + reach + 1))
            }
            stay -= square if not square & mask else set()
    return stay


def from_0_to_1(values):
    values = np.asarray(values, float)
    return (values - values.min()) / (values.max() - values.min()) if values.max() > values.min() else 0 * values


def first(score, count):
    return set(sorted(range(len(score)), key=lambda i: (-score[i], i))[:count])


def reference(calls, grids, keep, cautious, share, lock):
    """Call by call with sets; calls are (images, visual, text). Motion is summed up anew over all frames each time."""
    out = []
    for step, (_, visual, text) in enumerate(calls):
        start, ranks, words, moving, named = 0, [], set(), set(), set()
        unit = text / np.linalg.norm(text, axis=1, keepdims=True)
        for camera, (height, width) in enumerate(grids):
            size = height * width
            own = visual[start : start + size]
            near = from_0_to_1([np.mean(unit @ (v / np.linalg.norm(v))) for v in own])
            frames = [grey_of(images[camera]) for images, _, _ in calls[: step + 1]]
            motion = np.zeros((height, width))
            for age in range(step - 1):
                now, old, older = (frames[step - age - i] for i in range(3))
                jump = abs((now - old) - (old - older))
                motion += 0.7**age * jump.reshape(height, 4, width, 4).mean((1, 3))
            motion = from_0_to_1(motion.flatten())
            edges = from_0_to_1(edges_of(frames[-1], height, width))
            cut = motion.mean() + np.sqrt(((motion - motion.mean()) ** 2).mean())
            moved = closed({i for i in range(size) if motion[i] > cut}, height, width, 1)
            says = {i for i in first(near, round(share * size)) if near[i] > 0}
            shape = {i for i in first(edges, round(share * size)) if edges[i] > 0}
            ranks.append(np.maximum(np.maximum(near, motion), edges))
            words |= {start + i for i in says}
            moving |= {start + i for i in moved}
            named |= {start + i for i in says | moved | shape}
            start += size
        locked = bool(words | moving) and len(words & moving) / len(words | moving) >= lock
        kept, start = set(), 0
        for score in ranks:
            size, own = len(score), {i - start for i in named if start <= i < start + len(score)}
            if locked:
                chosen = first(score, round(keep * size))
            else:
                rest = [9 if i in own else score[i] for i in range(size)]
                chosen = own | first(rest, round(cautious * size))
            kept |= {start + i for i in chosen}
            start += size
        out.append((locked, sorted(kept)))
    return out


def episode_of(seed, grids, count):
    """A blob of new colours wanders over still pictures; the tokens under it begin to resemble the words."""
    rng = np.random.default_rng(seed)
    still = [rng.integers(0, 255, (4 * h, 4 * w, 3)).astype(np.uint8) // 3 for h, w in grids]
    total, words = sum(h * w for h, w in grids), rng.normal(size=(3, 16)) * 0.1 + rng.normal(size=16)
    for step in range(count):
        visual, images, start = rng.normal(size=(total, 16)), [], 0
        for image, (h, w) in zip(still, grids, strict=True):
            y, x = rng.integers(0, h), rng.integers(0, w)
            image = image.copy()
            image[4 * y : 4 * y + 4, 4 * x : 4 * x + 4] = rng.integers(0, 255, (4, 4, 3))
            visual[start + y * w + x] += (4.0 if step % 2 else 0.0) * words[0]
            images.append(image)
            start += h * w
        yield images, visual.astype(np.float32), words.astype(np.float32)


def course(method, calls, grids):
    episode = Episode(method, prompt(grids))
    return [
        episode.call(
            attend(0, episode.layout.total),
            torch.from_numpy(visual),
            torch.from_numpy(text),
            [torch.from_numpy(i) for i in images],
        )[0]
        for images, visual, text in calls
    ]


def test_agrees_with_sets_and_sums_made_one_by_one():
    modes = set()
    for grids in (((4, 4),), ((4, 4), (4, 4))):
        for seed in range(8):
            calls = list(episode_of(seed, grids, 6))
            want = reference(calls, grids, 0.25, 0.75, 0.25, 0.2)
            got = course(VLAIAP(cautious=0.75, lock=0.2), calls, grids)
            assert got == [kept for _, kept in want]
            modes |= {locked for locked, _ in want}
    assert modes == {False, True}


def test_a_flat_picture_has_no_edges_and_a_step_lights_its_column_of_patches():
    view = View("main", 0, 4, 4)
    level = torch.zeros(16, 16)
    assert not sobel(level + 77).any()
    level[:, 9:] = 255
    lit = by_patch(sobel(level).abs().sum(0), view).mean(1).view(4, 4) > 0
    assert lit.any(0).tolist() == [False, False, True, False]


def test_overlap():
    masks = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]).bool()
    assert abs(float(overlap(masks[0], masks[1])) - 1 / 3) < 1e-6
    assert float(overlap(masks[0], masks[0])) == 1 and float(overlap(masks[2], masks[2])) == 0


def test_where_nothing_moves_nothing_stands_out_and_holes_are_closed():
    layout = prompt(((7, 7),))
    assert not outstanding(torch.zeros(49), layout, 1.0, 3).any()
    block = torch.zeros(7, 7, dtype=torch.bool)
    block[2:5, 2:5] = True
    ring = block.clone()
    ring[3, 3] = False
    for window, want in ((1, ring), (3, block)):
        assert torch.equal(outstanding(ring.float().flatten(), layout, 1.0, window), want.flatten())


def test_a_still_world_stays_cautious():
    images, visual, text = next(episode_of(0, GRIDS, 1))
    kept = course(VLAIAP(), [(images, visual, text)] * 5, GRIDS)
    assert len(kept[0]) >= round(0.7 * 31) and kept == kept[:1] * 5


def test_the_first_two_calls_are_cautious_and_again_after_reset_and_with_other_cameras():
    method, calls = VLAIAP(lock=1e-6, named=0.5), list(episode_of(3, GRIDS, 5))
    for _ in range(2):
        sizes = [len(k) for k in course(method, calls, GRIDS)]
        assert min(sizes[:2]) >= round(0.7 * 31) and sizes[2:] == [8, 8, 8]
    one = [len(k) for k in course(method, list(episode_of(3, ((4, 4),), 3)), ((4, 4),))]
    assert min(one[:2]) >= 11 and one[2] == 4
    assert [len(k) for k in course(VLAIAP(lock=0.0), calls, GRIDS)] == [8] * 5


@pytest.mark.parametrize("seed", range(3))
def test_cautious_calls_keep_what_any_prior_names_and_no_fewer(seed):
    calls = list(episode_of(seed, GRIDS, 5))
    few, many = course(VLAIAP(lock=0.0), calls, GRIDS), course(VLAIAP(lock=1.0), calls, GRIDS)
    assert all(len(m) >= len(f) for f, m in zip(few, many, strict=True))
    named = course(VLAIAP(lock=1.0, cautious=1), calls, GRIDS)
    assert all(set(n) <= set(m) for n, m in zip(named, many, strict=True))
    assert len(course(VLAIAP(keep=0.9, cautious=0.1), calls, GRIDS)[0]) >= round(0.9 * 31)


def test_without_an_instruction_it_stays_cautious():
    calls = [(images, visual, np.empty((0, 16), np.float32)) for images, visual, _ in episode_of(1, GRIDS, 5)]
    assert min(len(k) for k in course(VLAIAP(lock=1e-6), calls, GRIDS)) >= round(0.7 * 31)


def test_a_broken_token_is_named_by_no_word():
    images, visual, text = next(episode_of(0, ((4, 4),), 1))
    visual[5] = np.nan
    flat = [np.full_like(images[0], 90)]
    kept = course(VLAIAP(cautious=15), [(flat, visual, text)], ((4, 4),))[0]
    assert kept == [i for i in range(16) if i != 5]


def test_prunes_the_toy():
    records, _ = play(VLAIAP, "parallel")
    assert max(r.visual[0] for r in records) < 64


def test_laws():
    check_pruner(VLAIAP)
    check_pruner(lambda: VLAIAP(lock=0.0, keep=0.5))


@pytest.mark.parametrize(
    "bad",
    [{"lock": 1.5}, {"decay": -0.1}, {"window": 2}, {"deviations": -1.0}, {"keep": 0.0}, {"named": 2.0}],
)
def test_bad_parameters(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad.values()))}") as error:
        VLAIAP(**bad)
    assert "\n" not in str(error.value)


def test_config():
    check_config(VLAIAP)
