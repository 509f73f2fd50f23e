import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from stepwise import Episode, attend, check_config, play, prompt

from vlaprune.methods.dense import Dense
from vlaprune.methods.dtp import DTP, distracting, smooth
from vlaprune.methods.shared.selecting import split_budget
from vlaprune.models.toy import STYLES
from vlaprune.testing import check_pruner
from vlaprune.trace import QueryGroup


@pytest.mark.parametrize("sigma", [0.3, 0.65, 2.0])
@pytest.mark.parametrize("grids", [((5, 6),), ((4, 4), (3, 7))])
def test_smoothing_agrees_with_scipy(sigma, grids):
    layout = prompt(grids)
    score = torch.rand(layout.total)
    want = []
    for view in layout.views:
        grid = score[view.slice].view(view.height, view.width).double().numpy().copy()
        grid[[0, 0, -1, -1], [0, -1, 0, -1]] = 0
        want.append(gaussian_filter(grid, sigma, mode="reflect").ravel())
    assert np.allclose(smooth(score, layout, sigma, True).numpy(), np.concatenate(want), atol=1e-6)
    assert torch.equal(smooth(score, layout, 0.0, False), score)


def reference(attention, layout, layers, depth, count, tau, sigma, decoded):
    """The steps of the method on float64 arrays, camera by camera and token by token."""
    rows = QueryGroup.LAST if decoded else QueryGroup.ACTION
    slots = 1 if decoded else len(layout.action)
    relevance = sum(attention(n, QueryGroup.TEXT, len(layout.text)).double().mean((0, 1)).numpy() for n in layers)
    important = set()
    for view, k in zip(layout.views, split_budget(count, layout.sizes), strict=True):
        grid = relevance[view.slice].reshape(view.height, view.width).copy()
        grid[[0, 0, -1, -1], [0, -1, 0, -1]] = 0
        blurred = gaussian_filter(grid, sigma, mode="reflect").ravel()
        important |= {view.start + int(i) for i in np.argsort(-blurred, kind="stable")[:k]}
    each = [attention(n, rows, slots)[:, 0].double().mean(0).numpy() for n in range(depth)]
    total = sum(a.sum() for a in each)
    pattern = sum(a.sum() / total * a for a in each)
    limit = tau * max(pattern[i] for i in important)
    return {i for i in range(layout.total) if i not in important and pattern[i] > limit}


@pytest.mark.parametrize("decoded", [False, True])
@pytest.mark.parametrize("grids", [((5, 6),), ((4, 4), (3, 7))])
@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_the_reference(decoded, grids, seed):
    layout = prompt(grids, decoded=decoded)
    attention = attend(seed, layout.total)
    drop = reference(attention, layout, (1, 2), 6, 8, 0.5, 0.65, decoded)
    kept = [i for i in range(layout.total) if i not in drop]
    assert drop and Episode(DTP(important=8, layers=(1, 2)), layout).call(attention)[0] == kept
    late = Episode(DTP(important=8, layers=(1, 2), mode="late"), layout)
    calls = [late.call(attention)[0] for _ in range(4)]
    assert calls == [list(range(layout.total)), kept] * 2


def test_hand_made_and_laws_of_the_rule():
    pattern = torch.tensor([0.1, 0.4, 0.3])
    assert distracting(torch.tensor([False, True, False]), pattern, 0.5).tolist() == [False, False, True]
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        pattern, important = torch.rand(30, generator=generator), torch.rand(30, generator=generator) < 0.4
        few, many = (distracting(important, pattern, tau) for tau in (0.7, 0.3))
        assert not (few & ~many).any() and not (many & important).any()
        assert not distracting(important, pattern, float("inf")).any()
    assert not distracting(torch.ones(30, dtype=torch.bool), pattern, 0.0).any()


@pytest.mark.parametrize("mode", ["second_pass", "late"])
@pytest.mark.parametrize("options", [{"tau": 1e9}, {"important": 1.0}])
@pytest.mark.parametrize("style", STYLES)
def test_where_nothing_distracts_it_is_dense(style, options, mode):
    _, dense = play(Dense, style)
    _, same = play(lambda: DTP(mode=mode, **options), style)
    assert all(np.array_equal(a, b) for a, b in zip(dense, same, strict=True))


def test_a_second_pass_is_charged_and_drops_before_the_first_layer():
    records, _ = play(lambda: DTP(important=4, tau=0.05), "parallel")
    (dense, *_), _ = play(Dense, "parallel")
    twice = [r for r in records if r.visual[0] < 64]
    assert twice and all(r.flops["prompt"] > 1.2 * dense.flops["prompt"] for r in twice)


def test_the_layers_of_spatialvla():
    method = DTP()
    Episode(method, prompt(), layers=26)
    assert method._relevant == [4, 6]


def test_reset_and_another_prompt_are_looked_at_afresh():
    method = DTP(mode="late", important=4)
    episode, other = Episode(method, prompt()), prompt(words=5)
    everything = list(range(16))
    episode.call(attend(0, 16))
    assert episode.call(attend(0, 16), layout=other)[0] == everything
    episode.reset()
    assert episode.call(attend(0, 16), layout=other)[0] == everything
    assert Episode(DTP(), prompt(words=0)).call(attend(0, 16))[0] == everything


def test_laws():
    check_pruner(lambda: DTP(important=4, tau=0.05))
    check_pruner(lambda: DTP(important=4, tau=0.05, mode="late"))


@pytest.mark.parametrize("bad", [{"tau": -1.0}, {"sigma": -0.1}, {"mode": "early"}, {"important": 0}])
def test_bad_parameters(bad):
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))) as error:
        DTP(**bad)
    assert "\n" not in str(error.value)


def test_config():
    check_config(DTP)
