import numpy as np
import pytest
import torch
from handmade import INFO, check_memoryless, kept, merged, prune_context

from vlaprune.methods.prumerge import PruMerge, outliers
from vlaprune.testing import check_pruner


def peaked(total, loud, seed=0):
    """Tower attention with `loud` outliers."""
    generator = torch.Generator().manual_seed(seed)
    score = torch.rand(total, generator=generator)
    score[torch.randperm(total, generator=generator)[:loud]] += 10 + torch.rand(loud, generator=generator)
    return score / score.sum()


def reference(x, score, plus, neighbours):
    """One image: row -> value."""
    n, (low, high) = len(x), np.percentile(score, [25, 75])
    order = np.argsort(-score, kind="stable").tolist()
    count = max(1, int((score > high + 1.5 * (high - low)).sum()))
    rows = set(order[:count]) | (set(range(0, n, max(1, n // count // 3))) if plus else set())
    unit, out = x / np.linalg.norm(x, axis=1, keepdims=True), {}
    for i in rows:
        near = sorted((j for j in range(n) if j != i), key=lambda j: -(unit[i] @ unit[j]))[:neighbours]
        out[i] = x[i] + sum(score[j] * x[j] for j in near)
    rest = [i for i in order if i not in rows]
    return out | ({rest[0]: sum(score[j] * x[j] for j in rest)} if rest else {})


@pytest.mark.parametrize("plus", [True, False])
def test_laws(plus):
    check_pruner(lambda: PruMerge(plus))


@pytest.mark.parametrize("cameras", [("one",), ("left", "right")])
def test_remembers_nothing_and_promises_nothing(cameras):
    record = check_memoryless(PruMerge, cameras)
    assert len(set(record.visual)) == 1 and 2 * len(cameras) <= record.visual[0] <= 16 * len(cameras)
    plan = PruMerge().plan(INFO)
    assert plan.vision_attention and not plan.budget


@pytest.mark.parametrize("loud", [0, 1, 3])
@pytest.mark.parametrize("plus", [True, False])
@pytest.mark.parametrize("neighbours", [0, 4, 32])
def test_equals_the_loop_on_each_camera(loud, plus, neighbours):
    torch.manual_seed(loud)
    tower = torch.cat((peaked(15, loud, 1), peaked(20, loud, 2)))
    at = prune_context(torch.randn(35, 16), cameras=((3, 5), (4, 5)), tower=tower)
    x, score, want = at.visual.double().numpy(), tower.numpy(), {}
    for start, stop in ((0, 15), (15, 35)):
        part = reference(x[start:stop], score[start:stop], plus, neighbours)
        want |= {start + i: value for i, value in part.items()}
    got = merged(PruMerge(plus, neighbours), at)
    assert sorted(got) == sorted(want)
    for row, value in want.items():
        assert np.allclose(got[row], value, atol=1e-4)


@pytest.mark.parametrize("loud", [0, 1, 5])
def test_the_count_follows_the_outliers(loud):
    tower = peaked(64, loud)
    assert outliers(tower) == loud
    assert (
        len(kept(PruMerge(plus=False), prune_context(torch.randn(64, 16), cameras=((8, 8),), tower=tower)))
        == max(1, loud) + 1
    )


@pytest.mark.parametrize("seed", range(5))
def test_outliers_by_the_quartiles(seed):
    score = np.random.default_rng(seed).lognormal(size=64).astype(np.float32)
    low, high = np.percentile(score, [25, 75])
    assert outliers(torch.from_numpy(score)) == (score > high + 1.5 * (high - low)).sum() > 0


def test_degenerate_inputs():
    for tower in (torch.full((8,), 1 / 8), torch.full((8,), float("nan"))):
        at = prune_context(torch.ones(8, 16), torch.zeros(0, 16), tower=tower)
        assert kept(PruMerge(plus=False), at) == [0, 1]
        assert kept(PruMerge(), at) == [0, 1, 2, 4, 6]
    assert kept(PruMerge(), prune_context(torch.randn(1, 16), cameras=((1, 1),), tower=torch.ones(1))) == [0]
    with pytest.raises(ValueError, match="vision tower was not read"):
        PruMerge().select(prune_context(torch.randn(8, 16)))
    with pytest.raises(ValueError, match="prumerge"):
        PruMerge(neighbours=-1)
