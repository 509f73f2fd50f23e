import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stepwise import Episode, attend, check_config, constant, play, prompt

from vlaprune.methods.dense import Dense
from vlaprune.methods.safe import SAFE
from vlaprune.methods.shared.scoring import nearest_rows, scaled
from vlaprune.models.toy import STYLES, Toy
from vlaprune.testing import check_pruner
from vlaprune.trace import QueryGroup


class Reference:
    """The method in numpy, on [V] maps. `act` gives the kept numbers, or None on key calls."""

    def __init__(self, keep, gamma, lam):
        self.keep, self.gamma, self.lam, self.key = keep, gamma, lam, None

    def act(self, features, detector, shallow, deep):
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        if self.key is not None:
            old, old_detector, old_deep = self.key
            match = [max(range(len(old)), key=lambda j: (u @ old[j], -j)) for u in unit]
            guess = old_detector[match]
            kappa = detector @ guess / np.linalg.norm(detector) / np.linalg.norm(guess)
            if kappa >= self.gamma:
                score = (1 - self.lam) * shallow + self.lam * old_deep[match]
                return sorted(np.argsort(-score, kind="stable")[: self.keep].tolist())
        self.key = unit, detector, deep
        return None


def mean(attention, layer, group, layout):
    return attention(layer, group, len(layout.group(group))).mean((0, 1)).numpy()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    grids=st.sampled_from([((4, 4),), ((3, 5), (2, 4)), ((1, 7),)]),
    keep=st.integers(1, 7),
    lam=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    decoded=st.booleans(),
    deep=st.sampled_from(["action", "prompt"]),
)
def test_agrees_with_the_reference(seed, grids, keep, lam, decoded, deep):
    layout = prompt(grids, decoded=decoded)
    acting = QueryGroup.LAST if decoded else QueryGroup.ACTION
    lasting = acting if deep == "prompt" else QueryGroup.ACTION
    episode = Episode(SAFE(keep=keep, gamma=0.6, fusion=lam, deep_rows=deep), layout)
    reference = Reference(keep, 0.6, lam)
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(layout.total, 16, generator=generator)
    for step in range(6):
        features = features + 0.3 * torch.randn(layout.total, 16, generator=generator)
        attention = attend(seed + step // 2, layout.total)
        maps = [mean(attention, n, g, layout) for n, g in ((0, QueryGroup.LAST), (2, acting), (5, lasting))]
        assert episode.call(attention, features)[3] == reference.act(features.numpy(), *maps)


def keys(pruner, maps, visual=None, layout=None, **call):
    """Which of a row of calls are key; `maps` are the detector's."""
    episode = Episode(pruner, layout or prompt())
    return [episode.call(constant(m), visual, **call)[episode.pruner.layer] is None for m in maps]


def test_first_call_is_key_and_an_identical_one_is_not():
    score = torch.rand(16)
    assert keys(SAFE(), [score] * 3) == [True, False, False]
    assert keys(SAFE(gamma=1.0001), [score] * 3) == [True] * 3
    assert keys(SAFE(gamma=float("inf")), [score] * 3) == [True] * 3


def test_orthogonal_detector_is_key_unless_gamma_never_asks():
    one, other = torch.eye(16)[:2]
    assert keys(SAFE(), [one, one, other, other, one]) == [True, False, True, False, True]
    assert keys(SAFE(gamma=-1.0), [one, other, one]) == [True, False, False]


def test_zero_and_broken_maps_are_key():
    zero, nan, one = torch.zeros(16), torch.full((16,), torch.nan), torch.ones(16)
    assert keys(SAFE(), [zero, zero, one, one, nan, one]) == [True, True, True, False, True, True]
    assert keys(SAFE(), [one] * 3, torch.zeros(16, 16)) == [True, False, False]
    assert keys(SAFE(), [one] * 3, torch.full((16, 16), torch.nan)) == [True, False, False]


def test_permuted_tokens_give_the_permuted_choice():
    generator = torch.Generator().manual_seed(5)
    features, order = torch.randn(16, 16, generator=generator), torch.randperm(16, generator=generator)
    score = {0: torch.rand(16), 2: torch.rand(16), 5: torch.rand(16)}
    moved = {layer: s[order] for layer, s in score.items()}
    episode = Episode(SAFE(), prompt())
    episode.call(constant(score), features)
    straight = episode.call(constant(score), features)[3]
    permuted = episode.call(constant(moved), features[order])[3]
    assert sorted(order[permuted].tolist()) == straight


def test_convex_and_additive_fusion_rank_alike():
    shallow, forecast = torch.rand(64), torch.rand(64)
    for lam in (0.1, 0.5, 0.8):
        convex, additive = (1 - lam) * shallow + lam * forecast, shallow + lam / (1 - lam) * forecast
        assert torch.equal(convex.argsort(), additive.argsort())


def test_published_counts():
    for keep, kept in ((0.2, 102), (0.25, 128), (0.1, 51), (0.3, 154)):
        episode = Episode(SAFE(keep=keep), prompt(((16, 16), (16, 16))), layers=32)
        calls = [episode.call(constant(torch.rand(512))), episode.call(constant(torch.ones(512)))]
        assert calls[0][3] is None and len(episode.call(constant(torch.ones(512)))[3]) == kept


def test_fusion_zero_is_attention_alone_and_one_is_the_forecast():
    score = {0: torch.ones(16), 2: torch.arange(16.0), 5: torch.arange(16.0).flip(0)}
    for fusion, expected in ((0.0, [12, 13, 14, 15]), (1.0, [0, 1, 2, 3])):
        episode = Episode(SAFE(fusion=fusion), prompt())
        episode.call(constant(score))
        assert episode.call(constant(score))[3] == expected


def test_reads_are_no_more_than_needed():
    episode = Episode(SAFE(deep=[0, 4, -1]), prompt())
    episode.call(constant(torch.ones(16)))
    assert episode.reads == {0: QueryGroup.LAST, 4: QueryGroup.ACTION, 5: QueryGroup.ACTION}
    episode.call(constant(torch.ones(16)))
    assert episode.reads == {0: QueryGroup.LAST, 2: QueryGroup.ACTION}


def test_deep_maps_are_averaged_and_layer_0_gives_the_detector():
    maps = {0: torch.rand(16), 4: torch.rand(16), 5: torch.rand(16), 2: torch.zeros(16)}
    episode = Episode(SAFE(deep=[0, 4, -1], keep=3), prompt())
    episode.call(constant(maps))
    expected = sum(maps[n] for n in (0, 4, 5)).argsort(descending=True)[:3]
    assert episode.call(constant(maps))[3] == sorted(expected.tolist())


def test_instruction_layout_and_episode_start_anew():
    flat, episode = constant(torch.ones(16)), Episode(SAFE(), prompt())
    one, other = torch.ones(3, 16), torch.zeros(3, 16)
    texts = [one, one, other, other, one]
    assert [episode.call(flat, text=t)[3] is None for t in texts] == [True, False, True, False, True]
    assert [episode.call(flat, layout=prompt(words=n))[3] is None for n in (3, 4, 4, 3)] == [False, True, False, True]
    narrow, longer = constant(torch.ones(12)), prompt(((3, 4),))
    assert [episode.call(narrow, layout=longer)[3] is None for _ in range(2)] == [True, False]
    episode.reset()
    assert [episode.call(flat)[3] is None for _ in range(2)] == [True, False]
    bare = Episode(SAFE(), prompt(words=0))
    assert [bare.call(flat, text=torch.ones(0, 16))[3] is None for _ in range(2)] == [True, False]


def test_interval():
    assert keys(SAFE(interval=2), [torch.ones(16)] * 5) == [True, False, True, False, True]


def test_matching_within_a_camera():
    features = torch.eye(4)
    swapped = features[[2, 3, 0, 1]]
    camera = torch.tensor([0, 0, 1, 1])
    assert nearest_rows(swapped, features).tolist() == [2, 3, 0, 1]
    assert all(camera[i] == camera[j] for i, j in enumerate(nearest_rows(swapped, features, camera).tolist()))
    layout = prompt(((2, 4), (3, 3)))
    for within in (True, False):
        assert keys(SAFE(within_camera=within, keep=3), [torch.ones(17)] * 2, layout=layout) == [True, False]


def test_a_token_that_moved_to_the_other_camera_carries_the_forecast_only_where_it_may():
    """Token 0 of the second camera shows what token 2 of the first one showed, which alone mattered to deep layers."""
    layout, before = prompt(((1, 4), (1, 4))), torch.eye(8, 16)
    now = before.clone()
    now[[2, 4]] = before[[4, 2]]
    score = {0: torch.ones(8), 2: torch.zeros(8), 5: torch.eye(8)[2]}
    for within, kept in ((False, [4]), (True, None)):
        episode = Episode(SAFE(fusion=1.0, keep=1, within_camera=within), layout)
        episode.call(constant(score), before)
        found = episode.call(constant(score), now)[3]
        assert found == kept if kept else found != [4]


def test_agreement_of_exactly_gamma_is_no_key_call():
    assert keys(SAFE(gamma=1.0), [torch.eye(16)[3]] * 3) == [True, False, False]


def test_scaled():
    score = torch.tensor([1.0, 3.0, 0.0])
    assert torch.equal(scaled(score, "none"), score)
    assert torch.allclose(scaled(score, "sum1"), score / 4) and torch.allclose(scaled(score, "minmax"), score / 3)
    for how in ("sum1", "minmax"):
        assert (scaled(torch.zeros(4), how) == 0).all()
        assert keys(SAFE(normalize=how), [torch.ones(16)] * 2) == [True, False]


def test_ties_nan_and_extreme_budgets():
    episode = Episode(SAFE(keep=5), prompt())
    assert [episode.call(constant(torch.ones(16)))[3] for _ in range(2)] == [None, [0, 1, 2, 3, 4]]
    broken = {0: torch.ones(16), 2: torch.full((16,), torch.nan), 5: torch.ones(16)}
    assert episode.call(constant(broken))[3] == [0, 1, 2, 3, 4]
    for keep, kept in ((1, 1), (16, 16), (1.0, 16)):
        episode = Episode(SAFE(keep=keep), prompt())
        episode.call(attend(0, 16))
        assert len(episode.call(attend(0, 16))[3]) == kept


@pytest.mark.parametrize("style", STYLES)
def test_laws_and_the_toy(style):
    check_pruner(SAFE, [style])
    check_pruner(lambda: SAFE(deep=[0, -2, -1], normalize="sum1", within_camera=True, interval=3, layer=2), [style])
    records, _ = play(lambda: SAFE(gamma=-1.0), style)
    assert [r.visual for r in records] == [(64,) * 6] + 5 * [(64, 64, 64, 16, 16, 16)]
    _, dense = play(Dense, style)
    for same in ({"keep": 1.0}, {"gamma": float("inf")}):
        _, actions = play(lambda options=same: SAFE(**options), style)
        assert all(np.array_equal(a, b) for a, b in zip(dense, actions, strict=True))


def test_a_key_call_reads_more_and_only_it():
    records, _ = play(lambda: SAFE(gamma=-1.0), "parallel")
    match = 2 * 64 * 64 * Toy().info.hidden_size  # every token with every one of the key call
    assert records[1].flops["method"] - records[0].flops["method"] == match > 0
    deep, _ = play(lambda: SAFE(gamma=-1.0, deep=[-3, -2, -1]), "parallel")
    assert deep[0].flops["method"] > deep[1].flops["method"] - match


BAD = [
    {"keep": 1.5},
    {"layer": 1},
    {"gamma": float("nan")},
    {"interval": -1},
    {"fusion": 2.0},
    {"normalize": "x"},
    {"deep_rows": "x"},
]


@pytest.mark.parametrize("bad", BAD)
def test_bad_parameters(bad):
    with pytest.raises(ValueError, match=next(iter(bad))) as error:
        SAFE(**bad)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("deep", [[6], [-7], []])
def test_bad_deep_layers(deep):
    with pytest.raises(ValueError, match=r"safe deep=.*layers 0\.\.5"):
        Episode(SAFE(deep=deep), prompt())


def test_config():
    check_config(SAFE)
