import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stepwise import Episode, attend, check_config, constant, play, prompt

from vlaprune.methods.dense import Dense
from vlaprune.methods.shared.scoring import decayed_sum
from vlaprune.methods.shared.selecting import farthest_points, split_budget
from vlaprune.methods.vlapruner import VLAPruner
from vlaprune.models.toy import STYLES
from vlaprune.testing import check_pruner
from vlaprune.trace import QueryGroup


def reference(semantic, history, features, spans, counts, gamma=0.8):
    """Numpy, token by token: union of both top sets of every camera, thinned greedily. Gives (kept, unions)."""
    guide = sum(gamma**i * past for i, past in enumerate(history[::-1]))
    kept, unions = [], []
    for (a, b), k in zip(spans, counts, strict=True):
        first, second = (set((np.argsort(-s[a:b], kind="stable")[:k] + a).tolist()) for s in (semantic, guide))
        union = sorted(first | second)
        rows = features[union].astype(np.float64)
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        far = 1 - unit @ unit.T
        far = np.minimum(far, far.T)  # rows that are nearest to each other are equally lonely: the low one is first
        lonely = [min([far[i, j] for j in range(len(union)) if j != i], default=np.inf) for i in range(len(union))]
        picked = [int(np.argmax(lonely))] if k else []
        while len(picked) < k:
            rest = [i for i in range(len(union)) if i not in picked]
            picked.append(max(rest, key=lambda i: (min(far[i, j] for j in picked), -i)))
        kept += [union[i] for i in picked]
        unions.append(union)
    return sorted(kept), unions


def mean(attention, layer, groups, layout):
    rows = [attention(layer, g, len(layout.group(g))) for g in groups]
    return torch.cat(rows, 1).mean((0, 1)).numpy()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6), grids=st.sampled_from([((4, 4),), ((3, 5), (2, 4)), ((1, 7),)]), keep=st.integers(1, 7)
)
def test_agrees_with_the_reference(seed, grids, keep):
    layout = prompt(grids)
    episode = Episode(VLAPruner(keep=keep), layout)
    generator = torch.Generator().manual_seed(seed)
    history = []
    for step in range(6):
        features, attention = torch.randn(layout.total, 16, generator=generator), attend(seed + step, layout.total)
        got = episode.call(attention, features)[3]
        sizes = [len(v.tokens) for v in layout.views]
        if step < 3:
            assert got is None
        else:
            spans = [(v.start, v.tokens.stop) for v in layout.views]
            semantic = mean(attention, 2, (QueryGroup.PREFIX,), layout)
            kept, unions = reference(semantic, history[-3:], features.numpy(), spans, split_budget(keep, sizes))
            assert got == kept
            assert set(got) <= {i for union in unions for i in union}
        history.append(mean(attention, 2, (QueryGroup.ACTION,), layout))


def after_warmup(pruner, layout, guide, semantic, features=None):
    """What is kept once three calls have left `guide` as action rows."""
    episode = Episode(pruner, layout)
    scores = {None: semantic, (2, QueryGroup.ACTION): guide, (2, QueryGroup.LAST): guide}
    for _ in range(3):
        assert episode.call(constant(scores))[3] is None
    return episode.call(constant(scores), features)[3]


def test_exact_count_inside_each_camera():
    layout = prompt(((4, 6), (3, 3)))
    for keep, expected in ((0.5, (12, 4)), (0.25, (6, 2)), (1, (1, 0)), (33, (24, 9)), (1.0, (24, 9))):
        kept = after_warmup(VLAPruner(keep=keep), layout, torch.rand(33), torch.rand(33))
        assert (sum(i < 24 for i in kept), sum(i >= 24 for i in kept)) == expected


def test_identical_scores_give_plain_top():
    score = torch.randperm(16).float()
    kept = after_warmup(VLAPruner(keep=5), prompt(), score, score)
    assert kept == sorted(score.argsort(descending=True)[:5].tolist())


def test_scale_of_the_scores_changes_nothing():
    guide, semantic = torch.rand(16), torch.rand(16)
    kept = after_warmup(VLAPruner(), prompt(), guide, semantic)
    assert kept == after_warmup(VLAPruner(), prompt(), guide * 64, semantic / 32)


def test_ties_and_nan():
    flat = torch.full((16,), 1 / 16)
    assert after_warmup(VLAPruner(keep=5), prompt(), flat, flat) == [0, 1, 2, 3, 4]
    broken = torch.arange(16.0)
    broken[13:] = torch.nan
    assert after_warmup(VLAPruner(keep=3), prompt(), broken, broken) == [10, 11, 12]
    assert len(after_warmup(VLAPruner(keep=3), prompt(), torch.full((16,), torch.nan), flat)) == 3
    assert len(after_warmup(VLAPruner(keep=5), prompt(), flat, torch.rand(16), torch.full((16, 16), torch.nan))) == 5


def test_equal_features_are_never_taken_twice():
    features = torch.randn(20, 8).repeat(5, 1)
    assert len(set(farthest_points(features, 64).tolist())) == 64
    assert len(set(farthest_points(torch.zeros(9, 4), 9).tolist())) == 9


def test_spread_takes_the_two_that_are_far_apart():
    angle = torch.tensor([0.0, 0.1, 0.2, 3.0, 0.15])
    assert sorted(farthest_points(torch.stack((angle.cos(), angle.sin()), 1), 2).tolist()) == [0, 3]
    assert farthest_points(torch.randn(1, 4), 1).tolist() == [0]


def test_two_rows_nearest_to_each_other_tie_whatever_their_order():
    for seed in range(200):
        rows = torch.randn(7, 48, generator=torch.Generator().manual_seed(seed))
        first = farthest_points(rows, 1).item()
        unit = torch.nn.functional.normalize(rows.double(), dim=1)
        far = (unit @ unit.T).fill_diagonal_(-1)
        lonely = far.amax(1)
        assert first == min(i for i in range(7) if lonely[i] <= lonely.min() + 1e-9)
        assert farthest_points(rows.flip(0), 1).item() == 6 - max(
            i for i in range(7) if lonely[i] <= lonely.min() + 1e-9
        )


def test_newest_weighs_most():
    unit = torch.eye(3)
    assert torch.allclose(decayed_sum(list(unit), 0.8), torch.tensor([0.64, 0.8, 1.0]))
    episode = Episode(VLAPruner(keep=2), prompt())
    score = torch.arange(16.0)
    for peak in (0, 1, 2):
        guide = torch.zeros(16)
        guide[peak] = 1
        episode.call(constant({None: score, (2, QueryGroup.ACTION): guide}))
    features = torch.zeros(16, 16)
    features[:, 0] = 1
    features[[2, 1]] = torch.eye(16)[1:3]  # the union is {15, 14, 2, 1}: guide 1.0 and 0.8 beat 0.64
    kept = episode.call(constant({None: score, (2, QueryGroup.ACTION): score}), features)[3]
    assert kept == [1, 2]


def test_window_fills_again_after_reset_and_after_another_layout():
    episode = Episode(VLAPruner(window=2), prompt())
    dense = [episode.call(attend(i, 16))[3] is None for i in range(4)]
    episode.reset()
    dense += [episode.call(attend(i, 16))[3] is None for i in range(3)]
    dense += [episode.call(attend(i, 16), layout=prompt(words=5))[3] is None for i in range(3)]
    dense += [episode.call(attend(i, 12), layout=prompt(((3, 4),)))[3] is None for i in range(3)]
    assert dense == [True, True, False, False] + 3 * [True, True, False]


def lock_in(fill):
    """Action rows praise tokens 0..3 for three calls, then 12..15; layer 4 is read, after the pruning at 3."""
    episode = Episode(VLAPruner(keep=4, fill=fill, action="middle"), prompt(), layers=9)
    semantic = torch.zeros(16)
    semantic[:4] = 1
    early, late = torch.arange(16.0).flip(0) / 136, torch.arange(16.0) / 120
    for i in range(9):
        guide = early if i < 3 else late
        episode.call(constant({None: semantic, (4, QueryGroup.ACTION): guide}))
    return episode.pruner._past[-1]


def test_zero_fill_locks_the_action_branch_in_and_carry_does_not():
    assert (lock_in("zero")[4:] == 0).all()
    assert (lock_in("carry")[4:-1] > 0).all()


@pytest.mark.parametrize("rows", ["prefix_mean", "last", "text", "all"])
@pytest.mark.parametrize("action", ["middle", "latter_half"])
@pytest.mark.parametrize("decoded", [False, True])
def test_every_kind_of_rows(rows, action, decoded):
    layout = prompt(decoded=decoded)
    episode = Episode(VLAPruner(rows=rows, action=action, window=1), layout)
    assert episode.call(attend(0, 16))[3] is None
    assert len(episode.call(attend(1, 16))[3]) == 4
    cold = Episode(VLAPruner(rows=rows, action=action, warmup=False), layout)
    assert len(cold.call(attend(0, 16))[3]) == 4


def test_published_layers():
    pruner = VLAPruner()
    assert sorted(Episode(pruner, prompt(), layers=32).plan.reads) == [2, 15]
    assert sorted(Episode(VLAPruner(action="latter_half"), prompt(), layers=32).plan.reads) == [2, *range(16, 32)]
    for keep, kept in ((0.5, 128), (0.25, 64), (0.125, 32)):
        assert VLAPruner(keep=keep).budget.count(256) == kept


def test_no_text():
    assert len(Episode(VLAPruner(warmup=False), prompt(words=0)).call(attend(0, 16))[3]) == 4
    with pytest.raises(KeyError, match="rows TEXT of layer 2 were not read"):
        Episode(VLAPruner(warmup=False, rows="text"), prompt(words=0)).call(attend(0, 16))


@pytest.mark.parametrize("style", STYLES)
def test_laws_and_the_toy(style):
    check_pruner(VLAPruner, [style])
    check_pruner(lambda: VLAPruner(fill="carry", action="latter_half", warmup=False, rows="last", keep=9), [style])
    records, _ = play(VLAPruner, style)
    assert [r.visual for r in records] == 3 * [(64,) * 6] + 3 * [(64, 64, 64, 16, 16, 16)]
    _, dense = play(Dense, style)
    _, all_kept = play(lambda: VLAPruner(keep=1.0), style)
    assert all(np.array_equal(a, b) for a, b in zip(dense, all_kept, strict=True))


def test_more_tokens_than_there_are():
    with pytest.raises(ValueError, match="keep=65 asks for more than the 64"):
        play(lambda: VLAPruner(keep=65), "parallel")


BAD = [{"keep": 0.0}, {"layer": 0}, {"window": 0}, {"gamma": 1.5}, {"rows": "x"}, {"action": "x"}, {"fill": "x"}]


@pytest.mark.parametrize("bad", BAD)
def test_bad_parameters(bad):
    with pytest.raises(ValueError, match=next(iter(bad))) as error:
        VLAPruner(**bad)
    assert "\n" not in str(error.value)


def test_config():
    check_config(VLAPruner)
