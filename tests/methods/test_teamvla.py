import numpy as np
import pytest
import torch
from handmade import check_memoryless
from stepwise import Episode, attend, check_config, constant, prompt

from vlaprune.methods.teamvla import TEAMVLA, dilate, merge_tokens
from vlaprune.testing import check_pruner


def seeds_of(visual, text):
    """The most similar patch of each word, one by one."""
    unit = visual / np.linalg.norm(visual, axis=1, keepdims=True)
    return sorted({int(np.argmax(unit @ (word / np.linalg.norm(word)))) for word in text})


def around(seeds, grids, reach, tau):
    """Patches with at least tau seeds within `reach` rows and columns, in their own camera."""
    out, start = [], 0
    for height, width in grids:
        for i in range(height * width):
            y, x = divmod(i, width)
            near = [
                s for s in seeds
                if start <= s < start + height * width
                and abs((s - start) // width - y) <= reach and abs((s - start) % width - x) <= reach
            ]  # fmt: skip
            if len(near) >= tau:
                out.append(start + i)
        start += height * width
    return out


@pytest.mark.parametrize("grids", [((4, 4),), ((3, 5), (4, 4))])
@pytest.mark.parametrize(("window", "tau"), [(1, 1), (3, 1), (3, 2), (5, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_seeds_and_their_surroundings(grids, window, tau, seed):
    layout, generator = prompt(grids, words=5), torch.Generator().manual_seed(seed)
    visual, text = torch.randn(layout.total, 16, generator=generator), torch.randn(5, 16, generator=generator)
    kept = Episode(TEAMVLA(window, tau, context=0.0), layout).call(attend(seed, layout.total), visual, text)[0]
    want = around(seeds_of(visual.numpy(), text.numpy()), grids, window // 2, tau)
    assert kept == want
    if window == tau == 1:
        assert len(kept) <= 5


@pytest.mark.parametrize(("seed", "count"), [((1, 1), 9), ((0, 0), 4), ((0, 2), 6)])
def test_a_seed_grows_to_its_window(seed, count):
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[seed] = True
    assert int(dilate(mask.flatten(), prompt(((4, 4),)), 3, 1).sum()) == count


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_context_is_a_share_of_the_rest_and_drawn_from_the_seed(share):
    layout = prompt(((8, 8),), words=2)
    visual, text = torch.randn(64, 16), torch.randn(2, 16)
    named, some, again = (
        Episode(TEAMVLA(context=c), layout).call(attend(0, 64), visual, text)[0] for c in (0.0, share, share)
    )
    assert set(named) <= set(some) and len(some) == len(named) + int(share * (64 - len(named))) and some == again


def merge_by_loops(tokens, anchors):
    """Equation by equation, in float64."""
    rest = [i for i in range(len(tokens)) if i not in anchors]
    unit = tokens / np.sqrt((tokens**2).mean(1, keepdims=True) + 1e-6)
    total, size = {a: tokens[a].copy() for a in anchors}, dict.fromkeys(anchors, 1.0)
    for j in rest:
        logits = np.array([unit[j] @ unit[a] / np.sqrt(tokens.shape[1]) for a in anchors])
        weights = np.exp(logits - logits.max())
        for a, w in zip(anchors, weights / weights.sum(), strict=True):
            total[a] += w * tokens[j]
            size[a] += w
    return np.stack([total[a] / size[a] for a in anchors]), np.array([size[a] for a in anchors])


def test_context_is_drawn_anew_in_every_call():
    layout = prompt(((8, 8),))
    episode = Episode(TEAMVLA(context=0.3), layout)
    first, second = (episode.call(attend(0, 64))[0] for _ in range(2))
    assert first != second and len(first) == len(second)


@pytest.mark.parametrize("seed", range(5))
def test_merging_agrees_with_loops_and_keeps_the_sum(seed):
    tokens = torch.randn(20, 16, generator=torch.Generator().manual_seed(seed))
    anchors = torch.tensor([1, 4, 5, 17])
    values, size = merge_tokens(tokens, anchors)
    want, weights = merge_by_loops(tokens.double().numpy(), anchors.tolist())
    assert np.allclose(values, want, atol=1e-5) and np.allclose(size, weights, atol=1e-5)
    assert torch.allclose((size[:, None] * values).sum(0), tokens.sum(0), atol=1e-4)
    assert abs(float(size.sum()) - 20) < 1e-4


def test_the_most_attended_by_the_action_rows_are_anchors():
    score = torch.rand(64, generator=torch.Generator().manual_seed(3))
    for decoded in (False, True):
        layout = prompt(((8, 8),), decoded=decoded)
        out = Episode(TEAMVLA(keep=10, context=0.5), layout).call(constant(score))
        assert out[3] == sorted(sorted(out[0], key=lambda i: (-float(score[i]), i))[:10])


def test_nothing_merges_where_no_more_than_the_anchors_are_left():
    layout = prompt(((4, 4),))
    episode = Episode(TEAMVLA(keep=16, context=1.0), layout)
    assert episode.call(attend(0, 16)) == {0: list(range(16)), 3: None}
    assert Episode(TEAMVLA(), prompt(((4, 4),), words=0)).call(attend(0, 16))[0] == list(range(16))


def test_anchors_weigh_what_merged_into_them_only_when_asked_to():
    layout = prompt(((4, 4),))
    for proportional in (False, True):
        method = TEAMVLA(keep=4, context=1.0, proportional=proportional)
        seen, select = [], method.select
        method.select = lambda at, seen=seen, select=select: seen.append(select(at)) or seen[-1]
        Episode(method, layout).call(attend(0, 16))
        size = seen[-1].multiplicity
        assert (size is not None and abs(float(size.sum()) - 16) < 1e-4) if proportional else size is None


def test_layer_of_the_authors():
    assert Episode(TEAMVLA(), prompt(), layers=32).plan.layers == (0, 16)


@pytest.mark.parametrize("cameras", [("one",), ("left", "right")])
def test_remembers_nothing(cameras):
    check_memoryless(TEAMVLA, cameras)


def test_laws():
    check_pruner(TEAMVLA)
    check_pruner(lambda: TEAMVLA(proportional=True, keep=5, layer=2))


@pytest.mark.parametrize("bad", [{"window": 2}, {"tau": 0}, {"layer": 0}, {"context": 1.5}, {"keep": 0}])
def test_bad_parameters(bad):
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))) as error:
        TEAMVLA(**bad)
    assert "\n" not in str(error.value)


def test_config():
    check_config(TEAMVLA)
