import numpy as np
import pytest
import torch
from handmade import check_memoryless, kept, merged, prune_context

from vlaprune.methods.lightvla import LightVLA
from vlaprune.methods.thinkproprio import ThinkProprio
from vlaprune.testing import check_pruner


def reference(visual, queries):
    """The vote, row by row, in float64: tokens with at least one vote."""
    v, values = (x.double().numpy() for x in (visual, queries))
    v, q = (x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-6) for x in (v, values))
    out = set()
    for row in v:
        weights = np.exp(q @ row / np.sqrt(len(row)))
        looked = weights / weights.sum() @ values
        looked /= np.sqrt((looked**2).mean() + 1e-6)
        out.add(int(np.argmax(v @ looked)))
    return sorted(out)


@pytest.mark.parametrize("seed", range(6))
def test_the_winners_of_the_vote_and_the_mean_of_all(seed):
    generator = torch.Generator().manual_seed(seed)
    visual, guidance = torch.randn(15, 16, generator=generator), torch.randn(5, 16, generator=generator)
    at = prune_context(visual, guidance, cameras=((3, 5),))
    won = reference(visual, guidance)
    assert kept(ThinkProprio(mean=False), at) == won and 1 <= len(won) < 15
    values = merged(ThinkProprio(), at)
    (extra,) = set(values) - set(won)
    assert extra == min(set(range(15)) - set(won))
    assert torch.allclose(values[extra], visual.mean(0), atol=1e-6)
    assert all(torch.equal(values[i], visual[i]) for i in won)


def test_a_loud_word_counts_for_more_than_a_quiet_one_which_lightvla_does_not_hear():
    """What is looked at has its own length; only the weights are of words of one length."""
    generator = torch.Generator().manual_seed(3)
    visual, guidance = torch.randn(64, 16, generator=generator), torch.randn(5, 16, generator=generator)
    loud = guidance * torch.tensor([0.1, 0.3, 1.0, 3.0, 10.0])[:, None]
    even, uneven = (prune_context(visual, g, cameras=((8, 8),)) for g in (guidance, loud))
    assert kept(LightVLA(), even) == kept(LightVLA(), uneven)
    assert kept(ThinkProprio(mean=False), uneven) == reference(visual, loud) != reference(visual, guidance)


def test_the_order_of_the_guidance_does_not_matter():
    visual, guidance = torch.randn(15, 16), torch.randn(6, 16)
    one, other = (prune_context(visual, g, cameras=((3, 5),)) for g in (guidance, guidance.flip(0)))
    assert kept(ThinkProprio(), one) == kept(ThinkProprio(), other)


def test_where_every_token_has_a_vote_there_is_no_mean():
    assert kept(ThinkProprio(min_keep=8), prune_context(torch.randn(8, 16))) == list(range(8))


def test_without_noise_training_picks_what_test_picks():
    pruner, at = ThinkProprio(), prune_context(torch.randn(15, 16), cameras=((3, 5),))
    tested = set(pruner.select(at).keep.tolist())
    pruner.train()
    pruner.noise_scale = 0.0
    trained = pruner.select(at)
    assert set(trained.keep.tolist()) == tested and len(trained.keep) == 16 == len(trained.values)


def test_a_winner_that_counts_once_for_each_vote_is_what_training_shows():
    """Attention over the winners with their votes equals that over training's rows, duplicates and mean included."""
    at, query = prune_context(torch.randn(15, 16), cameras=((3, 5),)), torch.randn(16)
    pruner = ThinkProprio(multiplicity_bias=True)
    tested = pruner.select(at)
    assert tested.multiplicity.sum() == 16 and ThinkProprio().select(at).multiplicity is None
    few = (tested.values @ query + tested.multiplicity.log()).softmax(0) @ tested.values
    pruner.train()
    pruner.noise_scale = 0.0
    rows = pruner.select(at).values
    assert torch.allclose(few, (rows @ query).softmax(0) @ rows, atol=1e-5)


@pytest.mark.parametrize("cameras", [("one",), ("left", "right")])
def test_remembers_nothing(cameras):
    check_memoryless(ThinkProprio, cameras)


def test_laws():
    check_pruner(ThinkProprio)
    with pytest.raises(ValueError, match="thinkproprio noise=white"):
        ThinkProprio(noise="white")
