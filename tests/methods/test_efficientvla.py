import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stepwise import Episode, attend, check_config, constant, play, prompt

from vlaprune.methods.dense import Dense
from vlaprune.methods.efficientvla import EfficientVLA
from vlaprune.models.toy import STYLES
from vlaprune.testing import check_pruner
from vlaprune.trace import QueryGroup


def reference(score, features, count, key, alpha):
    """Three passes in numpy: key set, relevance, distance from the key set."""
    order = np.argsort(-score, kind="stable").tolist()
    key = min(key, count)
    heart, relevant = order[:key], order[: key + int(alpha * (count - key) + 1e-9)]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    rest = [i for i in range(len(score)) if i not in relevant]
    rest.sort(key=lambda i: (-(1 - max(unit[i] @ unit[j] for j in heart)), i))
    return sorted(relevant + rest[: count - len(relevant)])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    grids=st.sampled_from([((4, 4),), ((3, 5), (2, 4)), ((1, 7),)]),
    keep=st.integers(1, 7),
    key=st.integers(1, 9),
    alpha=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)
def test_agrees_with_the_reference(seed, grids, keep, key, alpha):
    layout = prompt(grids)
    features = torch.randn(layout.total, 16, generator=torch.Generator().manual_seed(seed))
    attention = attend(seed, layout.total)
    got = Episode(EfficientVLA(keep=keep, key=key, alpha=alpha), layout).call(attention, features)[2]
    score = attention(1, QueryGroup.TEXT, len(layout.text)).mean((0, 1)).numpy()
    assert got == reference(score, features.numpy(), keep, key, alpha)


def kept(score, features=None, **options):
    return Episode(EfficientVLA(**options), prompt()).call(constant(score), features)[2]


def test_alpha_one_is_attention_alone_and_zero_is_diversity():
    score, features = torch.arange(16.0), torch.eye(16)
    features[:15, 15] = 10.0  # all near token 15, the key, ...
    features[4] = torch.eye(16)[4]  # ... but for one
    assert kept(score, features, keep=3, key=1, alpha=1.0) == [13, 14, 15]
    assert 4 in kept(score, features, keep=3, key=1, alpha=0.0)


def test_scale_of_the_scores_changes_nothing():
    score = torch.rand(16)
    assert kept(score) == kept(score * 37)


def test_published_counts_and_exact_floor():
    assert EfficientVLA().budget.count(256) == 112 and EfficientVLA(keep=0.21875).budget.count(256) == 56
    score, features = torch.arange(64.0), torch.eye(64)
    features[34] = features[63]  # as the key: last by diversity, so it goes on only by relevance, where it is the 30th
    episode = Episode(EfficientVLA(keep=51, key=1, alpha=0.58), prompt(((8, 8),)))
    assert int(0.58 * 50) == 28 and 34 in episode.call(constant(score), features)[2]


@pytest.mark.parametrize("score", [torch.full((16,), 1 / 16), torch.full((16,), torch.nan), torch.zeros(16)])
def test_ties_and_nan(score):
    assert kept(score, torch.ones(16, 16), keep=5, key=2) == [0, 1, 2, 3, 4]
    assert kept(score, torch.full((16, 16), torch.nan), keep=5, key=2) == [0, 1, 2, 3, 4]
    assert kept(score, torch.full((16, 16), torch.inf), keep=16, key=2) == list(range(16))


def test_extreme_budgets_and_no_text():
    for keep, count in ((1, 1), (16, 16), (1.0, 16), (9, 9)):
        assert len(kept(torch.rand(16), keep=keep)) == count
    with pytest.raises(KeyError, match="rows TEXT of layer 1 were not read"):
        Episode(EfficientVLA(), prompt(words=0)).call(attend(0, 16))


@pytest.mark.parametrize("style", STYLES)
def test_laws_and_the_toy(style):
    check_pruner(EfficientVLA, [style])
    check_pruner(lambda: EfficientVLA(layer=4, keep=0.1, key=4, alpha=0.0), [style])
    records, _ = play(EfficientVLA, style)
    assert all(r.visual == (64, 64, 28, 28, 28, 28) for r in records)
    _, dense = play(Dense, style)
    _, all_kept = play(lambda: EfficientVLA(keep=1.0), style)
    assert all(np.array_equal(a, b) for a, b in zip(dense, all_kept, strict=True))


@pytest.mark.parametrize("bad", [{"keep": 0}, {"layer": 0}, {"key": 0}, {"alpha": -0.5}])
def test_bad_parameters(bad):
    with pytest.raises(ValueError, match=next(iter(bad))) as error:
        EfficientVLA(**bad)
    assert "\n" not in str(error.value)


def test_config():
    check_config(EfficientVLA)
