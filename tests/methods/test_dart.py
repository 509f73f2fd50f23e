import numpy as np
import pytest
import torch
from handmade import INFO, check_keeps_all, check_memoryless, kept, prune_context

from vlaprune.methods.dart import DART
from vlaprune.testing import check_pruner


def reference(visual, text, count, pivots, words):
    v, t = visual.double().numpy(), text.double().numpy()
    chosen = sorted(np.argsort(-np.abs(v).sum(1), kind="stable")[: min(pivots, count)].tolist())
    anchors = [v[i] for i in chosen] + [t[i] for i in sorted(np.argsort(-np.abs(t).sum(1), kind="stable")[:words])]
    share = -(-(count - len(chosen)) // len(anchors))
    for anchor in anchors:
        near = v @ anchor / np.linalg.norm(v, axis=1) / np.linalg.norm(anchor)
        free = [i for i in np.argsort(near, kind="stable").tolist() if i not in chosen]
        chosen += free[: min(share, count - len(chosen))]
    return sorted(chosen)


def test_laws():
    check_pruner(DART)


@pytest.mark.parametrize("cameras", [("one",), ("left", "right")])
def test_remembers_nothing_and_keeps_its_budget(cameras):
    total = 16 * len(cameras)
    assert check_memoryless(DART, cameras).visual == (total, total, *[total // 4] * 4)
    check_keeps_all(lambda: DART(keep=1.0), cameras)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 11, 20, 34, 35])
@pytest.mark.parametrize("words", [0, 2, 4])
def test_equals_the_loop(count, words):
    torch.manual_seed(count)
    visual, text = torch.randn(35, 16), torch.randn(3, 16)
    at = prune_context(visual, text, layer=2, cameras=((3, 5), (4, 5)))
    rows = kept(DART(keep=count, text_pivots=words), at)
    assert rows == reference(visual, text, count, 4, min(words, 3)) and len(rows) == count


def test_contains_the_visual_pivots():
    visual = torch.randn(8, 16)
    visual[[2, 6]] *= 50
    assert {2, 6} <= set(kept(DART(keep=3, pivots=2), prune_context(visual, layer=2)))


def test_degenerate_inputs():
    assert len(kept(DART(keep=5), prune_context(torch.ones(8, 16), layer=2))) == 5
    assert len(kept(DART(keep=5), prune_context(torch.full((8, 16), float("nan")), layer=2))) == 5
    assert len(kept(DART(keep=5), prune_context(torch.randn(8, 16), torch.zeros(0, 16), layer=2))) == 5
    with pytest.raises(ValueError, match="more than the 8"):
        DART(keep=9).select(prune_context(torch.randn(8, 16), layer=2))


@pytest.mark.parametrize("wrong", [{"pivots": 0}, {"text_pivots": -1}, {"keep": 0.0}])
def test_bad_parameters(wrong):
    with pytest.raises(ValueError, match=r"dart|budget"):
        DART(**wrong)


def test_a_layer_too_deep():
    with pytest.raises(ValueError, match="layers"):
        DART(layer=6).plan(INFO).check(INFO, "DART")
