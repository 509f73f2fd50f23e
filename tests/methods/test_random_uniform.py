import numpy as np
import pytest
import torch
from handmade import INFO, check_keeps_all, check_memoryless, kept, look, prune_context, tiny

from vlaprune.methods.divprune import DivPrune
from vlaprune.methods.random import Random
from vlaprune.methods.uniform import Uniform
from vlaprune.policy import Policy
from vlaprune.testing import check_pruner

DROPPING = pytest.mark.parametrize("make", [Random, Uniform, lambda layer, *given, **more: DivPrune(*given, **more)])
BOTH = pytest.mark.parametrize("make", [Random, Uniform])


@BOTH
@pytest.mark.parametrize("layer", [0, 2])
def test_laws(make, layer):
    check_pruner(lambda: make(layer))


@BOTH
@pytest.mark.parametrize("cameras", [("one",), ("left", "right")])
def test_budget(make, cameras):
    policy = Policy(tiny(cameras), lambda: make(2, 5))
    policy.act({0: look(0, "lift the cube", cameras)})
    total = 16 * len(cameras)
    assert policy.drain(0)[0].visual == (total, total, 5, 5, 5, 5)
    check_keeps_all(lambda: make(keep=1.0), cameras)


@DROPPING
def test_proportional_tokens_stand_for_all_and_change_no_choice(make):
    """So an attention that looks at all visual tokens alike gives them as much as before, whatever was dropped."""
    check_pruner(lambda: make(2, 5, proportional=True))
    context = prune_context(torch.randn(35, 4), torch.zeros(0, 4), cameras=((3, 5), (4, 5)))
    for count in (2, 9, 35):
        plain, chosen = make(0, count).select(context), make(0, count, proportional=True).select(context)
        assert torch.equal(plain.keep, chosen.keep) and plain.multiplicity is None
        assert chosen.multiplicity.sum().item() == pytest.approx(35)
    views = Uniform(0, 9, proportional=True).select(context)
    first = views.multiplicity[views.keep < 15]
    assert torch.allclose(first, torch.tensor(15 / len(first)))


@BOTH
@pytest.mark.parametrize("count", [1, 2, 20, 35])
def test_any_count(make, count):
    assert (
        len(kept(make(0, count), prune_context(torch.randn(35, 4), torch.zeros(0, 4), cameras=((3, 5), (4, 5)))))
        == count
    )


@BOTH
def test_bad_parameters(make):
    for keep in (0, 0.0, -0.5, 1.5, True, float("nan")):
        with pytest.raises(ValueError, match="budget"):
            make(keep=keep)
    with pytest.raises(ValueError, match="more than the 8"):
        make(keep=9).select(prune_context(torch.randn(8, 4)))
    with pytest.raises(ValueError, match="layers"):
        make(layer=6).plan(INFO).check(INFO, "it")


def test_random_is_a_function_of_seed_and_call():
    draws = {
        (seed, step): tuple(
            kept(Random(keep=4), prune_context(torch.randn(20, 4), cameras=((4, 5),), seed=seed, step=step))
        )
        for seed in range(5)
        for step in range(5)
    }
    assert len(set(draws.values())) > 20
    for (seed, step), rows in draws.items():
        assert (
            tuple(kept(Random(keep=4), prune_context(torch.randn(20, 4), cameras=((4, 5),), seed=seed, step=step)))
            == rows
        )


def test_random_draws_every_token_equally_often():
    pruner, seen = Random(keep=5), np.zeros(20)
    for step in range(2000):
        seen[kept(pruner, prune_context(torch.zeros(20, 4), cameras=((4, 5),), seed=3, step=step))] += 1
    assert ((seen - 500) ** 2 / 500).sum() < 45  # chi-squared, 19 degrees of freedom, p < 0.001


def test_uniform_remembers_nothing():
    check_memoryless(Uniform)


@pytest.mark.parametrize("count", [1, 7, 12, 20])
def test_uniform_is_even_in_each_camera(count):
    rows = kept(Uniform(keep=count), prune_context(torch.randn(20, 4), cameras=((4, 5),)))
    assert rows == [int((i + 0.5) * 20 / count + 1e-9) for i in range(count)]
    rows = np.array(kept(Uniform(keep=count), prune_context(torch.randn(40, 4), cameras=((4, 5), (2, 10)))))
    assert abs((rows < 20).sum() - (rows >= 20).sum()) <= 1
    assert set(np.diff(rows[rows < 20])) <= {np.floor(20 / -(-count // 2)), np.ceil(20 / -(-count // 2))}
