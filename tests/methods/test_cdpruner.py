import numpy as np
import pytest
import torch
from handmade import check_keeps_all, check_memoryless, kept, prune_context

from vlaprune.methods.cdpruner import CDPruner, dpp
from vlaprune.testing import check_pruner


def relevant(visual, text, sign):
    v, t = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (visual.double().numpy(), text.double().numpy()))
    r = sign * (v @ t.T).mean(1)
    r = (r - r.min() + 1e-6) / (r.max() - r.min() + 1e-6)
    return v * r[:, None]


def greedy(features, count):
    kernel, chosen = features @ features.T, []
    for _ in range(count):
        gain = [
            -np.inf if i in chosen else np.linalg.slogdet(kernel[np.ix_([*chosen, i], [*chosen, i])])[1]
            for i in range(len(kernel))
        ]
        chosen.append(int(np.argmax(gain)))
    return chosen


def test_laws():
    check_pruner(CDPruner)


@pytest.mark.parametrize("cameras", [("one",), ("left", "right")])
def test_remembers_nothing_and_keeps_its_budget(cameras):
    assert check_memoryless(CDPruner, cameras).visual == (4 * len(cameras),) * 6
    check_keeps_all(lambda: CDPruner(keep=1.0), cameras)


@pytest.mark.parametrize("relevance", ["similar", "dissimilar"])
@pytest.mark.parametrize("seed", range(4))
def test_each_pick_adds_most_to_the_determinant(seed, relevance):
    torch.manual_seed(seed)
    visual, text = torch.randn(21, 16), torch.randn(4, 16)
    features = relevant(visual, text, {"similar": 1, "dissimilar": -1}[relevance])
    assert dpp(torch.tensor(features), 10).tolist() == greedy(features, 10)
    at = prune_context(visual, text, cameras=((3, 5), (2, 3)))
    assert kept(CDPruner(10, relevance), at) == sorted(greedy(features, 10))


def test_relevance_and_diversity():
    visual, text = torch.eye(8, 16), torch.eye(16)[[3]]
    assert kept(CDPruner(1), prune_context(visual, text)) == [3]
    assert 3 not in kept(CDPruner(7, "dissimilar"), prune_context(visual, text))
    visual = torch.eye(8, 16)
    visual[1] = visual[0]
    assert len({0, 1} & set(kept(CDPruner(7), prune_context(visual, torch.ones(2, 16))))) == 1


def test_degenerate_inputs():
    for visual in (torch.ones(8, 16), torch.zeros(8, 16), torch.full((8, 16), float("nan")), torch.randn(8, 2)):
        for count in (1, 5, 8):
            assert len(kept(CDPruner(count), prune_context(visual))) == count
    assert kept(CDPruner(2), prune_context(torch.eye(8, 16), torch.zeros(0, 16))) == [0, 1]
    with pytest.raises(ValueError, match="more than the 8"):
        CDPruner(9).select(prune_context(torch.randn(8, 16)))


@pytest.mark.parametrize("wrong", [{"keep": -1}, {"relevance": "minus"}])
def test_bad_parameters(wrong):
    with pytest.raises(ValueError, match=r"cdpruner|budget"):
        CDPruner(**wrong)


@pytest.mark.parametrize("rank", [1, 3, 8])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e15])
def test_beyond_the_rank_every_row_is_still_named_once(rank, scale):
    torch.manual_seed(rank)
    rows = scale * torch.randn(64, rank) @ torch.randn(rank, 96)
    assert sorted(dpp(rows, 64).tolist()) == list(range(64))
