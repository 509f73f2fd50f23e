import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from handmade import INFO, check_memoryless, kept, prune_context

from vlaprune.methods.lightvla_star import LightVLAStar
from vlaprune.testing import check_pruner


def planned(**options):
    pruner = LightVLAStar(**options)
    pruner.plan(INFO)
    return pruner


def reference(queries, visual):
    q, v = (x.detach().double().numpy() for x in (queries, visual))
    q, v = (x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-6) for x in (q, v))
    return sorted({int(i) for i in (q @ v.T).argmax(1)})


@pytest.mark.parametrize("layer", [0, 1])
def test_laws(layer):
    check_pruner(lambda: LightVLAStar(layer=layer))


@pytest.mark.parametrize("cameras", [("one",), ("left", "right")])
def test_remembers_nothing(cameras):
    record = check_memoryless(lambda: LightVLAStar(layer=1, size=5), cameras)
    assert record.visual[0] == 16 * len(cameras) and 1 <= record.visual[1] <= 5


@pytest.mark.parametrize("seed", range(4))
def test_keeps_the_winner_of_each_query(seed):
    torch.manual_seed(seed)
    pruner, visual = planned(size=6), torch.randn(15, 16)
    assert kept(pruner, prune_context(visual, cameras=((3, 5),))) == reference(pruner.query, visual)


def test_plans_once_and_alike():
    first, second = planned(), planned()
    query = first.query
    first.plan(INFO)
    assert first.query is query and torch.equal(query, second.query)
    assert [n for n, _ in first.named_parameters()] == ["query"]


def test_saved_queries_come_back(tmp_path):
    pruner, path = planned(size=6), str(tmp_path / "star.safetensors")
    torch.nn.init.normal_(pruner.query)
    pruner.save(path, INFO.weights)
    assert torch.equal(planned(size=6, weights=path).query, pruner.query)
    with pytest.raises(ValueError, match="wrong shapes"):
        planned(size=7, weights=path)
    with pytest.raises(ValueError, match="with a policy of weights none, this one has other; set"):
        LightVLAStar(size=6, weights=path).plan(replace(INFO, weights="other"))
    with pytest.raises(ValueError, match="do not exist"):
        planned(weights=str(tmp_path / "none.safetensors"))


def test_the_queries_learn():
    """The gradient is that of the softmax; a few steps make the one query pick the token that is wanted."""
    pruner, visual = planned(size=1).train(), torch.randn(8, 16)
    pruner.noise_scale, at = 0.0, prune_context(visual)
    chosen = pruner.select(at)
    assert torch.equal(chosen.values, visual[chosen.keep])
    (got,) = torch.autograd.grad(chosen.values.sum(), pruner.query)
    (want,) = torch.autograd.grad((pruner.scores(visual).softmax(1) @ visual).sum(), pruner.query)
    assert torch.allclose(got, want, atol=1e-6)
    optimiser = torch.optim.Adam(pruner.parameters(), lr=0.1)
    for _ in range(200):
        optimiser.zero_grad()
        (pruner.select(at).values - visual[5]).pow(2).sum().backward()
        optimiser.step()
    assert kept(pruner.eval(), at) == [5]


def test_noise_repeats_with_the_seed_and_sharing_works():
    pruner, at = planned().train(), prune_context(torch.randn(8, 16))
    pruner.noise_scale = 1e6
    first = pruner.select(at).keep
    assert not torch.equal(pruner.select(at).keep, first)
    pruner.reset()
    assert torch.equal(pruner.select(at).keep, first)
    other = LightVLAStar()
    other.query = pruner.query
    other.plan(INFO)
    assert other.query is pruner.query and copy.copy(pruner).query is pruner.query


def test_degenerate_inputs():
    assert kept(planned(), prune_context(torch.ones(8, 16))) == [0]
    assert kept(planned(min_keep=4), prune_context(torch.ones(8, 16))) == [0, 1, 2, 3]
    assert kept(planned(), prune_context(torch.full((8, 16), float("nan")))) == [0]
    assert kept(planned(size=1), prune_context(torch.randn(8, 16), torch.zeros(0, 16)))
    assert kept(planned(), prune_context(torch.randn(1, 16), cameras=((1, 1),))) == [0]


@pytest.mark.parametrize("wrong", [{"size": 0}, {"noise": "loud"}, {"min_keep": 0}])
def test_bad_parameters(wrong):
    with pytest.raises(ValueError, match="lightvla_star"):
        LightVLAStar(**wrong)


def test_a_layer_too_deep():
    with pytest.raises(ValueError, match="layers"):
        LightVLAStar(layer=6).plan(INFO).check(INFO, "LightVLAStar")
    with pytest.raises(ValueError, match="plan first"):
        LightVLAStar().scores(torch.randn(8, 16))
