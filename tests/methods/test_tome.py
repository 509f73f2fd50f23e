import numpy as np
import pytest
import torch
from handmade import check_keeps_all, check_memoryless, kept, merged, prune_context

from vlaprune.methods.tome import ToMe, merge
from vlaprune.testing import check_pruner


def reference(x, sizes, count):
    """One round: groups of rows by the row they end in."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    even, odd = range(0, len(x), 2), range(1, len(x), 2)
    pairs = {i: max(odd, key=lambda j: (unit[i] @ unit[j], -j)) for i in even}
    gone = sorted(even, key=lambda i: (-(unit[i] @ unit[pairs[i]]), i))[:count]
    groups = {i: [i] + [g for g in gone if pairs[g] == i] for i in range(len(x)) if i not in gone}
    return {i: (np.average(x[g], axis=0, weights=sizes[g]), sizes[g].sum()) for i, g in groups.items()}


def test_laws():
    check_pruner(ToMe)


@pytest.mark.parametrize("cameras", [("one",), ("left", "right")])
def test_remembers_nothing_and_keeps_its_budget(cameras):
    assert check_memoryless(ToMe, cameras).visual == (4 * len(cameras),) * 6
    check_keeps_all(lambda: ToMe(keep=1.0), cameras)


@pytest.mark.parametrize("total, count", [(20, 1), (20, 10), (21, 10), (7, 2), (3, 1)])
def test_a_round_equals_the_loop(total, count):
    x, sizes = torch.randn(total, 6, dtype=torch.double), torch.randint(1, 5, (total,)).double()
    values, weights, rows = merge(x, sizes, torch.arange(total), count)
    want = reference(x.numpy(), sizes.numpy(), count)
    assert rows.tolist() == sorted(want) and len(rows) == total - count
    for row, value, weight in zip(rows.tolist(), values, weights, strict=True):
        assert np.allclose(value, want[row][0], atol=1e-6) and weight == want[row][1]


def test_rounds_conserve_size_and_weighted_mean():
    x = torch.randn(35, 8)
    values, sizes, rows = x, torch.ones(35), torch.arange(35)
    for count in (17, 9, 4):
        values, sizes, rows = merge(values, sizes, rows, count)
        assert sizes.sum() == 35 and torch.allclose(sizes @ values / 35, x.mean(0), atol=1e-5)
        assert torch.equal(rows, rows.sort().values) and len(rows.unique()) == len(rows)


@pytest.mark.parametrize("count", [1, 2, 5, 17, 34, 35])
def test_any_budget_is_met(count):
    at = prune_context(torch.randn(35, 16), cameras=((3, 5), (4, 5)))
    assert len(kept(ToMe(count), at)) == count


@pytest.mark.parametrize("count", [10, 11, 17])
def test_half_merge_in_one_round(count):
    visual = torch.randn(20, 16)
    got, want = (
        merged(ToMe(count), prune_context(visual, cameras=((4, 5),))),
        reference(visual.numpy(), np.ones(20), 20 - count),
    )
    assert sorted(got) == sorted(want)
    assert all(np.allclose(got[i], want[i][0], atol=1e-5) for i in want)


@pytest.mark.parametrize("count", [3, 9, 20])
def test_a_keys_weight_is_the_number_of_tokens_it_stands_for(count):
    """Proportional attention, the authors' default: sizes add up to V, each mean weighs as many tokens as it has."""
    visual = torch.arange(20.0)[:, None] + torch.randn(20, 16, generator=torch.Generator().manual_seed(count))
    chosen = ToMe(count).select(prune_context(visual, cameras=((4, 5),)))
    sizes = chosen.multiplicity
    assert float(sizes.sum()) == 20 and (sizes >= 1).all() and torch.equal(sizes, sizes.round())
    assert torch.allclose((sizes[:, None] * chosen.values).sum(0), visual.sum(0), atol=1e-3)
    assert (sizes.max() > 1) == (count < 20)
    assert ToMe(count, proportional=False).select(prune_context(visual, cameras=((4, 5),))).multiplicity is None


def test_a_broken_token_merges_last():
    visual = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    visual[2] = torch.nan
    for count in (7, 6, 5):
        assert 2 in kept(ToMe(count), prune_context(visual))


def test_twins_merge_first():
    visual = torch.eye(8, 16)
    visual[4] = visual[7]
    got = merged(ToMe(7), prune_context(visual))
    assert 4 not in got and torch.equal(got[7], visual[7])
    assert all(torch.equal(got[i], visual[i]) for i in got)


def test_degenerate_inputs():
    for visual in (torch.ones(8, 16), torch.zeros(8, 16), torch.full((8, 16), float("nan"))):
        assert len(kept(ToMe(3), prune_context(visual, torch.zeros(0, 16)))) == 3
    everything = merged(ToMe(1), prune_context(torch.arange(8.0)[:, None].repeat(1, 4)))
    assert torch.allclose(next(iter(everything.values())), torch.full((4,), 3.5))
    with pytest.raises(ValueError, match="more than the 8"):
        ToMe(9).select(prune_context(torch.randn(8, 16)))
    with pytest.raises(ValueError, match="budget"):
        ToMe(0.0)
