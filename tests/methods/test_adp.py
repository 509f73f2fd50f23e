import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stepwise import Episode, attend, check_config, constant, play, prompt

from vlaprune.methods.adp import ADP
from vlaprune.methods.dense import Dense
from vlaprune.methods.shared.selecting import split_by_weights
from vlaprune.models.toy import STYLES
from vlaprune.testing import check_pruner
from vlaprune.trace import QueryGroup


def course(pruner, motion, attention=None, layout=None):
    """What is kept before layer 1 on calls whose pictures change by `motion` grey levels each, the hand by as much."""
    layout = layout or prompt()
    episode, level, kept = Episode(pruner, layout), 0, []
    for change in motion:
        level += change
        images = [torch.full((8, 8, 3), level % 256, dtype=torch.uint8) for _ in layout.views]
        there_and_back = torch.tensor([[0.0, change + 9, 0, 5], [0, -9, 0, 5]], dtype=torch.float64)
        done = there_and_back if kept else None
        kept.append(episode.call(attention or attend(0, layout.total), images=images, executed=done)[1])
    return kept


def prunes(moved, **options):
    return [k is not None for k in course(ADP(**options), moved)]


def gate(motion, streak=3):
    """The gate as the paper's words have it: fast prunes, slow is dense, in between prunes, never too long in a row."""
    out, run = [], 0
    for t in range(len(motion)):
        before = motion[max(1, t - 2) : t]
        fast = len(before) == 2 and (motion[t] >= max(before) or not motion[t] < min(before))
        fast = fast and run < streak
        run = run + 1 if fast else 0
        out.append(fast)
    return out


@settings(max_examples=60, deadline=None)
@given(
    motion=st.lists(st.integers(0, 12), min_size=1, max_size=12),
    streak=st.integers(1, 4),
    by=st.sampled_from(["executed", "pixels"]),
)
def test_gate_agrees_with_the_reference(motion, streak, by):
    assert prunes(motion, streak=streak, motion=by) == gate(motion, streak)


def test_gate():
    assert prunes([0, 5, 5]) == [False] * 3  # cold start
    assert prunes([0, 5, 5, 6]) == [False] * 3 + [True]  # fast
    assert prunes([0, 5, 5, 4]) == [False] * 4  # slow
    assert prunes([0, 3, 5, 4]) == [False] * 3 + [True]  # in between
    assert prunes([0, 1, 1, 2, 3, 4, 5, 6]) == [False] * 3 + [True] * 3 + [False, True]  # at most three
    assert prunes([0, 1, 1, 2, 3, 4, 5, 6], streak=0) == [False] * 3 + [True] * 5
    assert prunes([0, 0, 0, 0], gate="always") == [True] * 3 + [False]
    # running means 4, 3, 3.5, 3.25
    assert prunes([0, 8, 0, 2, 4, 3, 4], gate="mean", streak=0) == [False] * 4 + [True, False, True]


def reference(attention, layout, counts):
    """Mean logit over heads and words; softmax is undone up to a number that is the same for every token of a row."""
    rows = attention(0, QueryGroup.TEXT, len(layout.text)).double().numpy()
    logits = np.log(rows / rows[..., :1]).mean((0, 1))
    kept = []
    for view, k in zip(layout.views, counts, strict=True):
        order = np.argsort(-np.round(logits[view.slice], 9), kind="stable")
        kept += sorted((order[:k] + view.start).tolist())
    return kept


@pytest.mark.parametrize("grids", [((4, 4),), ((3, 5), (2, 4)), ((1, 7),)])
@pytest.mark.parametrize("seed", range(10))
def test_choice_agrees_with_the_reference(seed, grids):
    layout, attention = prompt(grids), attend(seed, sum(h * w for h, w in grids))
    counts = {1: [12], 2: [9, 8]}[len(grids)] if layout.total > 7 else [5]
    kept = course(ADP(gate="always"), [0], attention, layout)[0]
    assert kept == reference(attention, layout, counts)


def test_published_counts_and_weights():
    assert split_by_weights(384, [256, 256], [1, 1]) == [192, 192]
    assert split_by_weights(256, [256, 256], [0.4, 0.6]) == [102, 154]
    assert split_by_weights(461, [256, 256], [0.4, 0.6]) == [
        205,
        256,
    ]  # 276 asked of the second, what it lacks goes to the first


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_split_is_exact_and_never_overfills(data):
    sizes = data.draw(st.lists(st.integers(1, 50), min_size=1, max_size=4))
    weights = data.draw(st.lists(st.floats(0.01, 10), min_size=len(sizes), max_size=len(sizes)))
    count = data.draw(st.integers(0, sum(sizes)))
    out = split_by_weights(count, sizes, weights)
    assert sum(out) == count and all(0 <= n <= size for n, size in zip(out, sizes, strict=True))


def test_weights_move_the_budget():
    layout = prompt(((4, 4), (4, 4)))
    for weights, first in (((), 8), ((1, 3), 4), ((9, 1), 15)):
        kept = course(ADP(keep=0.5, weights=weights, gate="always"), [0], None, layout)[0]
        assert sum(i < 16 for i in kept) == first and len(kept) == 16
    with pytest.raises(ValueError, match="there are 2 cameras; give one each"):
        course(ADP(weights=[1.0], gate="always"), [0], None, layout)


@pytest.mark.parametrize("score", [torch.full((16,), 1 / 16), torch.full((16,), torch.nan), torch.zeros(16)])
def test_ties_and_nan(score):
    assert course(ADP(keep=3, gate="always"), [0], constant(score))[0] == [0, 1, 2]


def test_extreme_budgets_and_no_text():
    for keep, kept in ((1, 1), (16, 16), (1.0, 16)):
        assert len(course(ADP(keep=keep, gate="always"), [0])[0]) == kept
    with pytest.raises(KeyError, match="rows TEXT of layer 0 were not read"):
        course(ADP(gate="always"), [0], None, prompt(words=0))


@pytest.mark.parametrize("by", ["executed", "pixels"])
def test_reset_and_another_layout_start_cold(by):
    def image(step):
        return [torch.full((8, 8, 3), step * (step + 1), dtype=torch.uint8)]

    def moved(step):
        return torch.tensor([[float(step), 0, 0]], dtype=torch.float64)

    episode = Episode(ADP(motion=by), prompt())
    for again in (episode.reset, lambda: None):
        pruned = [episode.call(attend(0, 16), images=image(i), executed=moved(i))[1] is not None for i in range(5)]
        assert pruned == [False] * 3 + [True] * 2
        again()
        longer = prompt(words=5)
        other = [
            episode.call(attend(0, 16), images=image(i), layout=longer, executed=moved(i))[1] is not None
            for i in range(4)
        ]
        assert other == [False] * 3 + [True]


def test_text_rows_are_read_only_when_the_gate_is_open():
    records, _ = play(ADP, "parallel")
    for record in records:
        assert (record.flops["method"] > 0) == (record.visual[1] < 64)
    assert {r.visual[1] for r in records} <= {48, 64}


@pytest.mark.parametrize("style", STYLES)
def test_laws_and_the_toy(style):
    check_pruner(ADP, [style])
    check_pruner(lambda: ADP(keep=0.3, gate="always", streak=0), [style])
    check_pruner(lambda: ADP(gate="mean", streak=1, motion="pixels"), [style])
    _, dense = play(Dense, style)
    _, all_kept = play(lambda: ADP(keep=1.0, gate="always"), style)
    assert all(np.array_equal(a, b) for a, b in zip(dense, all_kept, strict=True))


@pytest.mark.parametrize("bad", [{"keep": -1}, {"weights": [0.0, 1.0]}, {"gate": "x"}, {"motion": "x"}, {"streak": -1}])
def test_bad_parameters(bad):
    with pytest.raises(ValueError, match=next(iter(bad))) as error:
        ADP(**bad)
    assert "\n" not in str(error.value)


def test_config():
    check_config(ADP)
