import numpy as np
import pytest
import torch
from handmade import INFO, check_keeps_all, check_memoryless, kept, prune_context

from vlaprune.methods.bottomk import BottomK
from vlaprune.methods.fastv import FastV
from vlaprune.testing import check_pruner
from vlaprune.trace import QueryGroup


def read(attention, cameras=((2, 4),), alive=None):
    visual = torch.randn(attention.shape[-1] if alive is None else len(alive), 16)
    return prune_context(visual, layer=3, cameras=cameras, read=[(2, QueryGroup.LAST, attention)], alive=alive)


def test_laws():
    check_pruner(BottomK)


@pytest.mark.parametrize("cameras", [("one",), ("left", "right")])
def test_remembers_nothing_and_keeps_its_budget(cameras):
    total = 16 * len(cameras)
    assert check_memoryless(BottomK, cameras).visual == (*[total] * 3, *[total // 4] * 3)
    check_keeps_all(lambda: BottomK(keep=1.0), cameras)


@pytest.mark.parametrize("seed", range(4))
def test_keeps_the_least_attended(seed):
    torch.manual_seed(seed)
    attention = torch.rand(2, 1, 35)
    at = read(attention, ((3, 5), (4, 5)))
    assert kept(BottomK(keep=9), at) == sorted(np.argsort(attention.mean((0, 1)).numpy(), kind="stable")[:9].tolist())
    assert set(kept(BottomK(keep=9), at)) | set(kept(FastV(keep=26), at)) == set(range(35))


def test_degenerate_inputs():
    assert kept(BottomK(keep=3), read(torch.ones(2, 1, 8))) == [0, 1, 2]
    assert kept(BottomK(keep=1), read(torch.full((2, 1, 8), float("nan")))) == [0]
    some = torch.zeros(2, 1, 8)
    some[..., :6] = float("nan")
    assert kept(BottomK(keep=2), read(some)) == [6, 7]
    assert kept(BottomK(keep=2), read(torch.arange(8.0).expand(2, 1, 8), alive=torch.tensor([2, 5, 7]))) == [0, 1]
    with pytest.raises(ValueError, match="more than the 8"):
        BottomK(keep=9).select(read(torch.ones(2, 1, 8)))


@pytest.mark.parametrize("wrong", [{"layer": 0}, {"keep": 1.5}])
def test_bad_parameters(wrong):
    with pytest.raises(ValueError, match=r"bottomk|budget"):
        BottomK(**wrong)


def test_a_layer_too_deep():
    with pytest.raises(ValueError, match="layers"):
        BottomK(layer=6).plan(INFO).check(INFO, "BottomK")
