import numpy as np
import pytest
import torch
from stepwise import Episode, attend, check_config, play, prompt

from vlaprune.methods.dense import Dense
from vlaprune.methods.flashvla import FlashVLA, contribution
from vlaprune.models.toy import STYLES
from vlaprune.testing import check_pruner


def test_hand_made():
    assert torch.allclose(contribution(torch.tensor([[3.0, 0], [0, 1], [0, 0]])), torch.tensor([3.0, 1, 0]).double())


@pytest.mark.parametrize(("n", "d", "rank"), [(12, 5, 5), (6, 20, 6), (15, 8, 3)])
@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_numpys_svd(n, d, rank, seed):
    rng = np.random.default_rng(seed)
    rows = (rng.normal(size=(n, rank)) @ rng.normal(size=(rank, d))).astype(np.float32)
    u, s, _ = np.linalg.svd(rows.astype(float), full_matrices=False)
    want = np.abs(u[:, :rank] * s[:rank]).sum(1)
    assert np.allclose(contribution(torch.from_numpy(rows)).numpy(), want, rtol=2e-4)


def test_turning_scaling_and_order():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(10, 6, generator=generator)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    plain, norm = contribution(rows), rows.double().norm(dim=1)
    assert torch.allclose(contribution(rows @ turn), plain, atol=1e-4)
    assert torch.allclose(contribution(-3 * rows), 3 * plain, atol=1e-4)
    order = torch.randperm(10, generator=generator)
    assert torch.allclose(contribution(rows[order]), plain[order], atol=1e-4)
    assert (norm <= plain + 1e-6).all() and (plain <= 6**0.5 * norm + 1e-6).all()


def test_keeps_the_highest_by_the_outputs_of_the_layer_before():
    visual = torch.diag(torch.arange(16.0))
    episode = Episode(FlashVLA(layer=3, keep=4), prompt())
    assert episode.plan.outputs == {2} and not episode.plan.reads
    assert episode.call(attend(0, 16), visual) == {3: [12, 13, 14, 15]}
    broken = torch.full((16, 16), torch.nan)
    assert episode.call(attend(0, 16), broken) == {3: [0, 1, 2, 3]}


@pytest.mark.parametrize("style", STYLES)
def test_a_budget_of_all_is_dense(style):
    _, dense = play(Dense, style)
    _, kept = play(lambda: FlashVLA(keep=1.0), style)
    assert all(np.array_equal(a, b) for a, b in zip(dense, kept, strict=True))


def test_laws():
    check_pruner(FlashVLA)


@pytest.mark.parametrize("bad", [{"layer": 0}, {"keep": 2.0}])
def test_bad_parameters(bad):
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
        FlashVLA(**bad)


def test_config():
    check_config(FlashVLA)
