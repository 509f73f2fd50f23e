import numpy as np
import pytest
import torch
from handmade import INFO, check_memoryless, kept, merged, prune_context

from vlaprune.methods.sparsevlm import SparseVLM, density_peaks, raters
from vlaprune.pruner import ModelInfo
from vlaprune.testing import check_pruner
from vlaprune.trace import QueryGroup


def stage(pruner, visual, text, attention, layer=3, alive=None, cameras=((8, 5),)):
    """The site of a stage, after the raters were chosen at site 0."""
    pruner.plan(INFO)
    first = torch.randn(attention.shape[2], visual.shape[1]) if alive is not None else visual
    assert pruner.select(prune_context(first, text, cameras=cameras)) is None
    return prune_context(
        visual, text, layer=layer, cameras=cameras, read=[(layer - 1, QueryGroup.TEXT, attention)], alive=alive
    )


def random_stage(pruner, seed, cameras=((8, 5),)):
    torch.manual_seed(seed)
    visual, text = torch.randn(40, 16), torch.randn(6, 16)
    return stage(pruner, visual, text, torch.rand(2, 6, 40), cameras=cameras)


def rating(visual, text):
    logits = visual.double().numpy() @ text.double().numpy().T
    look = np.exp(logits - logits.max(1, keepdims=True))
    look = (look / look.sum(1, keepdims=True)).mean(0)
    return look >= look.mean()


def peaks(rows, count):
    """The authors' rule with their noise of 1e-6 made a strict order: of equal densities the lower index is denser."""
    x = rows.double().numpy()
    far = np.linalg.norm(x[:, None] - x[None], axis=-1)
    density = [np.exp(-np.mean(np.sort(d)[:count] ** 2) / x.shape[1]) for d in far]
    order = sorted(range(len(x)), key=lambda i: (-density[i], i))
    apart = {i: min([far[i, j] for j in order[:place]], default=far.max()) for place, i in enumerate(order)}
    return sorted(range(len(x)), key=lambda i: (-apart[i] * density[i], i))[:count], far


def recycled(rows, count):
    """Density peaks, written out: centres, and the mean of the members of each."""
    centres, far = peaks(rows, count)
    x = rows.double().numpy()
    homes = [centres.index(i) if i in centres else int(np.argmin(far[i, centres])) for i in range(len(x))]
    return {c: x[[i for i, h in enumerate(homes) if h == k]].mean(0) for k, c in enumerate(centres)}


def test_laws():
    check_pruner(SparseVLM)
    check_pruner(lambda: SparseVLM(recycle=0.0))


def test_remembers_nothing():
    record = check_memoryless(lambda: SparseVLM((1, 2, 4), (16, 8, 4), 0.0))
    assert record.visual == (32, 16, 8, 8, 4, 4)
    record = check_memoryless(lambda: SparseVLM((1, 2, 4), (16, 8, 4), 1.0), cameras=("one",))
    assert record.visual[0] == 16 and list(record.visual) == sorted(record.visual, reverse=True)


def test_stages_follow_the_depth():
    for layers, sites in ((32, (0, 3, 7, 16)), (6, (0, 1, 2, 3)), (24, (0, 3, 6, 12))):
        plan = SparseVLM().plan(ModelInfo("x", layers, 2, 16, 8))
        assert tuple(plan.layers) == sites and set(plan.reads) == {n - 1 for n in sites[1:]} and not plan.budget
    assert set(SparseVLM(recycle=0.0).plan(INFO).budget) == {1, 2, 3}


@pytest.mark.parametrize("seed", range(4))
def test_raters_are_the_words_at_or_above_the_mean(seed):
    torch.manual_seed(seed)
    visual, text = torch.randn(20, 16), torch.randn(7, 16)
    weights, rates = raters(visual, text), rating(visual, text)
    assert 0 < rates.sum() < 7 and torch.allclose(weights, torch.tensor(rates / rates.sum()).float())


@pytest.mark.parametrize("words", [1, 3])
def test_equal_words_all_rate(words):
    assert torch.allclose(raters(torch.randn(9, 16), torch.ones(words, 16)), torch.full((words,), 1 / words))


@pytest.mark.parametrize("cameras", [((8, 5),), ((4, 5), (4, 5))])
@pytest.mark.parametrize("seed", range(3))
def test_a_stage_keeps_the_best_and_recycles(seed, cameras):
    pruner = SparseVLM((3,), (10,), 0.6)
    at = random_stage(pruner, seed, cameras)
    vote = rating(at.visual, at.text)
    score = at.attention(2, QueryGroup.TEXT).mean(0).numpy()[vote].mean(0)
    order = np.argsort(-score, kind="stable")
    got = merged(pruner, at)
    assert all(torch.equal(got[i], at.visual[i]) for i in order[:10])
    spare = order[10 : 10 + int(30 * 0.6) + 1]
    want = {int(spare[c]): mean for c, mean in recycled(at.visual[spare], len(spare) // 10 + 1).items()}
    assert sorted(got) == sorted([*order[:10].tolist(), *want])
    for row, mean in want.items():
        assert np.allclose(got[row], mean, atol=1e-5)


def test_recycling_conserves_the_mean_of_what_it_takes_in():
    x = torch.randn(25, 16)
    centres, label = density_peaks(x, 3)
    assert torch.equal(label[centres], torch.arange(3)) and label.min() >= 0 and label.max() == 2
    alike, label = density_peaks(torch.ones(12, 16), 2)
    assert len(alike.unique()) == 2 and torch.equal(label[alike], torch.arange(2))


def test_two_centres_are_the_densest_row_and_a_far_one():
    """Two rows nearest to each other have equal densities here: they must not both be the densest."""
    closest = 0
    for seed in range(500):
        rows = torch.randn(10 + seed % 10, 16, generator=torch.Generator().manual_seed(seed))
        centres, far = peaks(rows, 2)
        assert density_peaks(rows, 2)[0].tolist() == centres, seed
        np.fill_diagonal(far, np.inf)
        closest += far[tuple(centres)] == far.min()
    assert closest < 250  # without an order among equal densities it was every one of them


def test_later_stages_choose_among_the_living():
    pruner = SparseVLM((3,), (4,), 0.0)
    alive = torch.tensor([1, 4, 5, 9, 20, 39])
    attention = torch.zeros(2, 3, 40)
    attention[..., alive] = torch.tensor([3.0, 1, 6, 2, 5, 4])
    at = stage(pruner, torch.randn(6, 16), torch.ones(3, 16), attention, alive=alive)
    assert kept(pruner, at) == [0, 2, 4, 5]


def test_without_recycling_nothing_is_replaced():
    pruner = SparseVLM((3,), (0.25,), 0.0)
    assert pruner.select(random_stage(pruner, 0)).values is None
    everything = SparseVLM((3,), (1.0,), 0.5)
    assert kept(everything, random_stage(everything, 0)) == list(range(40))


def test_degenerate_inputs():
    for recycle in (0.0, 0.5):
        for attention in (torch.ones(2, 3, 8), torch.full((2, 3, 8), float("nan"))):
            pruner = SparseVLM((3,), (2,), recycle)
            at = stage(pruner, torch.ones(8, 16), torch.ones(3, 16), attention, cameras=((2, 4),))
            assert {0, 1} <= set(kept(pruner, at))
    one = SparseVLM((3,), (1,), 1.0)
    at = stage(one, torch.full((2, 16), float("nan")), torch.ones(1, 16), torch.ones(2, 1, 2), cameras=((1, 2),))
    assert len(kept(one, at)) == 2
    with pytest.raises(KeyError, match="TEXT"):  # an instruction without words has no rows to read
        pruner = SparseVLM((3,), (2,))
        pruner.plan(INFO)
        pruner.select(prune_context(torch.randn(8, 16), torch.zeros(0, 16)))
        pruner.select(prune_context(torch.randn(8, 16), torch.zeros(0, 16), layer=3))


def test_reset_forgets_the_raters():
    pruner = SparseVLM()
    random_stage(pruner, 0)
    pruner.reset()
    assert len(pruner.weights) == 0


@pytest.mark.parametrize(
    "wrong", [{"layers": (1, 2)}, {"keep": (0.5,)}, {"layers": (0, 1, 2)}, {"recycle": 1.5}, {"keep": (2.0, 0.5, 0.1)}]
)
def test_bad_parameters(wrong):
    with pytest.raises(ValueError, match=r"sparsevlm|budget"):
        SparseVLM(**wrong)
