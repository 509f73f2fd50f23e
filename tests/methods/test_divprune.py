import numpy as np
import pytest
import torch
from handmade import check_keeps_all, check_memoryless, kept, prune_context

from vlaprune.methods.divprune import DivPrune
from vlaprune.testing import check_pruner


def reference(visual, count):
    x = visual.double().numpy()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    far = 1 - x @ x.T
    chosen = [int(np.argmax((far + np.diag([np.inf] * len(x))).min(1)))]
    while len(chosen) < count:
        nearest = far[:, chosen].min(1)
        nearest[chosen] = -np.inf
        chosen.append(int(nearest.argmax()))
    return sorted(chosen)


def test_laws():
    check_pruner(DivPrune)


@pytest.mark.parametrize("cameras", [("one",), ("left", "right")])
def test_remembers_nothing_and_keeps_its_budget(cameras):
    assert check_memoryless(DivPrune, cameras).visual == (4 * len(cameras),) * 6
    check_keeps_all(lambda: DivPrune(keep=1.0), cameras)


@pytest.mark.parametrize("count", [1, 2, 9, 34, 35])
def test_equals_the_loop(count):
    torch.manual_seed(count)
    visual = torch.randn(35, 16)
    assert kept(DivPrune(count), prune_context(visual, cameras=((3, 5), (4, 5)))) == reference(visual, count)


def test_length_of_features_and_text_do_not_matter():
    visual = torch.randn(8, 16)
    rows = kept(DivPrune(4), prune_context(visual))
    assert kept(DivPrune(4), prune_context(visual * (0.5 + torch.rand(8, 1)), torch.zeros(0, 16))) == rows


def test_duplicates_come_last():
    visual = torch.eye(8, 16)
    visual[4:] = visual[:4]
    assert sorted(i % 4 for i in kept(DivPrune(4), prune_context(visual))) == [0, 1, 2, 3]


def test_degenerate_inputs():
    for visual in (torch.ones(8, 16), torch.zeros(8, 16), torch.full((8, 16), float("nan"))):
        for count in (1, 5, 8):
            assert len(kept(DivPrune(count), prune_context(visual))) == count
    assert kept(DivPrune(1), prune_context(torch.randn(1, 16), cameras=((1, 1),))) == [0]
    with pytest.raises(ValueError, match="more than the 8"):
        DivPrune(9).select(prune_context(torch.randn(8, 16)))
    with pytest.raises(ValueError, match="budget"):
        DivPrune(1.01)
