"""VLA-Cache: the schedule and the choice against independent references, exact reuse on a frozen world."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import entropy

from vlaprune.benchmark import Observation
from vlaprune.methods.dense import Dense
from vlaprune.methods.shared.scoring import attention_entropy, sharpness
from vlaprune.methods.vlacache import VLACache
from vlaprune.models.toy import STYLES, Toy
from vlaprune.policy import Policy
from vlaprune.pruner import ModelInfo, PruneContext
from vlaprune.testing import check_pruner, scenes
from vlaprune.trace import Layout, QueryGroup, Trace, View

DEPTH = 5
INFO = ModelInfo("hand", DEPTH, 2, 8, 4)
OPTIONS = {"static": 10, "relevant": 4, "layer": 1, "stages": [1, 2, 4], "threshold": 0.95}


def hand(patches, probs, grid=((4, 4),), words=3):
    """A trace of patches [V, p, p, 3] and full attention `probs` [L, H, 1 + V + words, 1 + V + words]."""
    starts = np.cumsum([0] + [h * w for h, w in grid])
    views = tuple(View(f"c{i}", int(s), h, w) for i, (s, (h, w)) in enumerate(zip(starts, grid, strict=False)))
    total, p = int(starts[-1]), patches.shape[1]
    end = 1 + total + words
    layout = Layout(end, range(1, 1 + total), range(1 + total, end), range(end, end), end - 1, views)
    images = []
    for view in views:
        own = torch.as_tensor(patches[view.slice]).reshape(view.height, view.width, p, p, 3)
        images.append(own.transpose(1, 2).reshape(view.height * p, view.width * p, 3))
    trace = Trace(layout, images, 0)
    for layer, weights in enumerate(torch.as_tensor(probs, dtype=torch.float32)):
        trace.counts.append((end, end))
        trace.add_weights(layer, QueryGroup.PROMPT, weights)
        if words:
            trace.add_weights(layer, QueryGroup.TEXT, weights[:, 1 + total :])
    return trace


def call(method, trace, reusable=None):
    """One model call: what each stage lets go, in order, and what goes on to the end."""
    total = trace.layout.total
    alive, filled, left = torch.arange(total), torch.ones(total, dtype=torch.bool), []
    filled = filled if reusable is None else reusable
    for layer in method._stages:
        chosen = method.select(
            PruneContext(
                layer, 5, torch.zeros(len(alive), 8), alive, torch.zeros(3, 8), torch.zeros(3, 8), filled[alive], trace
            )
        )
        left.append([] if chosen is None else alive[chosen.reuse].tolist())
        alive = alive if chosen is None else alive[chosen.keep]
    method.observe(trace)
    return left, alive.tolist()


def ready(**options):
    method = VLACache(**{**OPTIONS, **options})
    method.plan(INFO)
    return method


def world(seed, total=16, words=3, moved=0.25):
    """Two frames, a part of whose patches moved, and full attention sharper in some layers than in others."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 256, (total, 4, 4, 3), dtype=np.uint8)
    second, some = first.copy(), rng.random(total) < moved
    second[some] = 255 - second[some]
    sharp = rng.uniform(0.1, 3, DEPTH)
    probs = np.stack([rng.dirichlet(np.full(1 + total + words, s), (2, 1 + total + words)) for s in sharp])
    return first, second, probs.astype(np.float32)


# -- the schedule ------------------------------------------------------------------------------------------------


def reference_shares(probs, growth):
    mean = probs.astype(float).mean(1)  # [L, rows, columns]
    flat = np.array([np.mean([entropy(row) for row in layer]) for layer in mean])
    out = list(1 - (flat - flat.min()) / (flat.max() - flat.min()))
    for i in range(1, len(out)):
        if out[i] > out[i - 1]:
            out[i] = (1 - growth) * out[i - 1] + growth * out[i]
    return out


@pytest.mark.parametrize("growth", [0.0, 0.55, 1.0])
def test_shares_equal_the_reference(growth):
    for seed in range(5):
        probs = world(seed)[2]
        ours = sharpness(torch.stack([attention_entropy(p) for p in torch.tensor(probs)]), growth)
        assert np.allclose(ours, reference_shares(probs, growth), atol=1e-5)
        assert all(0 <= s <= 1 for s in ours) and min(ours) == pytest.approx(0, abs=1e-6)


def test_equal_layers_share_everything():
    assert sharpness(torch.full((4,), 2.5), 0.55) == [1.0] * 4
    assert sharpness(torch.tensor([2.0]), 0.55) == [1.0]
    assert attention_entropy(torch.full((2, 3, 4), float("nan"))) == 0
    probs = torch.tensor(world(0)[2][0])
    assert attention_entropy(probs * 0.3) == pytest.approx(float(attention_entropy(probs)))  # rows are made to sum to 1


def test_published_layers_scale_with_depth():
    for depth, stages, layer in ((32, (2, 6, 9, 11), 15), (64, (4, 12, 18, 22), 30), (6, (1, 2, 3), 3), (1, (1,), 1)):
        method = VLACache()
        plan = method.plan(ModelInfo("hand", depth, 2, 8, 4))
        assert plan.layers == stages and method._layer == layer and plan.reuses and not plan.budget
    assert set(VLACache(entropy="text").plan(INFO).reads.values()) == {QueryGroup.TEXT}
    reads = VLACache(layer=1, stages=[1]).plan(INFO).reads
    assert reads.pop(1) == QueryGroup.PROMPT | QueryGroup.TEXT and set(reads.values()) == {QueryGroup.PROMPT}


# -- choice ------------------------------------------------------------------------------------------------------


def reference(first, second, probs, words):
    """Sets and loops: what leaves at each stage."""
    total = len(first)
    order = lambda s: sorted(range(total), key=lambda i: (-np.float32(s[i]), i))  # noqa: E731
    x, y = (v.reshape(total, -1).astype(float) for v in (first, second))
    cos = (x * y).sum(1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))
    cos[(x == y).all(1)] = 1
    text = probs.astype(float)[1].mean(0)[1 + total :, 1 : 1 + total].mean(0) if words else None
    static = [i for i in order(cos) if cos[i] >= 0.95][:10]
    reuse = sorted(set(static) - set(order(text)[:4] if words else ()))
    share, gone, out = reference_shares(probs, 0.55), 0, []
    for layer in (1, 2, 4):
        count = max(1, int(share[layer] * len(reuse) + 1e-6)) if reuse else 0
        out.append(reuse[gone:count])
        gone = max(gone, count)
    return out


@pytest.mark.parametrize("words", [0, 3])
@pytest.mark.parametrize(("grid", "total"), [(((4, 4),), 16), (((3, 5),), 15)])
def test_lets_go_what_the_reference_lets_go(grid, total, words):
    some = 0
    for seed in range(12):
        first, second, probs = world(seed, total, words)
        method = ready()
        assert call(method, hand(first, probs, grid, words)) == ([[], [], []], list(range(total)))
        left, kept = call(method, hand(second, probs[:, :, ::-1].copy(), grid, words))
        assert left == reference(first, second, probs, words)
        assert sorted(sum(left, kept)) == list(range(total))
        some += sum(map(len, left))
    assert some > 25


@pytest.mark.parametrize(
    ("grid", "total", "relevant", "static"), [(((16, 16),), 256, 120, 130), (((16, 16), (16, 16)), 512, 200, 300)]
)
def test_published_counts_depend_on_the_cameras(grid, total, relevant, static):
    """OpenVLA: 130 static, 120 relevant; OFT: 150 and 100 of each camera."""
    first = world(0, total)[0]
    probs = np.full((DEPTH, 2, total + 4, total + 4), 0.01, dtype=np.float32)
    method = VLACache(layer=1, stages=[1])
    method.plan(INFO)
    call(method, hand(first, probs, grid))
    method._shares = [1.0] * DEPTH
    assert sum(map(len, call(method, hand(first, probs, grid))[0])) == static - relevant


def test_a_patch_is_static_against_the_call_before_and_not_against_the_first():
    first, second, probs = world(0)
    second = np.roll(first, 1, 0)  # no patch is where it was
    method = ready(relevant=1, static=16)
    for frame in (first, second):
        assert not any(call(method, hand(frame, probs))[0])
    assert any(call(method, hand(second, probs))[0])


def test_only_reusable_tokens_leave():
    first, _, probs = world(0)
    method, filled = ready(relevant=1, static=16), torch.arange(16) % 2 == 0
    call(method, hand(first, probs))
    left, _ = call(method, hand(first, probs), filled)
    gone = [i for stage in left for i in stage]
    assert gone and all(i % 2 == 0 for i in gone)


def test_budgets_are_shared_by_the_cameras():
    first, _, probs = world(0, total=24)
    grid = ((4, 4), (2, 4))
    method = ready(static=24, relevant=6, stages=[1])
    method._shares = [1.0] * DEPTH
    call(method, hand(first, probs, grid))
    method._shares = [1.0] * DEPTH
    left, kept = call(method, hand(first, probs, grid))
    assert len(left[0]) == 18 and sum(i < 16 for i in kept) == 4


# -- degenerate input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.05, 0.0, float("nan")])
def test_constant_or_broken_attention_goes_in_index_order(value):
    first = world(0)[0]
    probs = np.full((DEPTH, 2, 20, 20), value)
    method = ready()
    call(method, hand(first, probs))
    assert call(method, hand(first, probs)) == ([[4, 5, 6, 7, 8, 9], [], []], [0, 1, 2, 3, *range(10, 16)])


def test_nothing_static_all_relevant_a_cut_or_another_grid_is_dense():
    first, _, probs = world(0)
    for frame, options in ((255 - first, {}), (first, {"relevant": 1.0})):
        method = ready(**options)
        call(method, hand(first, probs))
        assert call(method, hand(frame, probs)) == ([[], [], []], list(range(16)))
    other, _, more = world(0, total=15)
    assert call(method, hand(other, more, ((3, 5),)))[0] == [[], [], []]
    method.reset()
    assert call(method, hand(other, more, ((3, 5),)))[0] == [[], [], []]


def test_equal_black_patches_are_static():
    black = np.zeros((16, 4, 4, 3), dtype=np.uint8)
    probs = world(0)[2]
    method = ready(static=16, relevant=1)
    call(method, hand(black, probs))
    assert sum(map(len, call(method, hand(black, probs))[0])) > 0


def test_a_count_above_the_tokens_is_refused():
    first, _, probs = world(0)
    method = ready(static=150)
    call(method, hand(first, probs))
    with pytest.raises(ValueError, match="keep=150 asks for more than the 16 visual tokens there are"):
        call(method, hand(first, probs))


# -- on the toy --------------------------------------------------------------------------------------------------


def run(style, make, frames):
    policy = Policy(Toy(style), make)
    policy.reset(0, seed=3)
    actions = [policy.act({0: frame})[0] for frame in frames]
    return actions, policy.drain(0)


@pytest.mark.parametrize("options", [{}, {"entropy": "text", "relevant": 8, "static": 64, "stages": [2, 4, 5]}])
@pytest.mark.parametrize("style", STYLES)
def test_reuse_is_exact_on_a_frozen_world(style, options):
    frames = scenes(0, 1, 1) * 4
    dense, _ = run(style, Dense, frames)
    actions, calls = run(style, lambda: VLACache(**options), frames)
    for a, b in zip(actions, dense, strict=True):
        assert np.allclose(a, b, atol=1e-5)
    assert calls[0].visual == (64,) * 6
    assert all(c.visual[0] == 64 and c.visual[-1] < 64 for c in calls[1:])
    assert all(set(c.columns) == {calls[0].columns[0]} for c in calls)


@pytest.mark.parametrize("style", STYLES)
def test_an_instruction_may_change_or_be_absent(style):
    frames = scenes(0, 1, 4)
    asked = [
        Observation(f.images, f.state, text) for f, text in zip(frames, ("go", "go", "reach the blue", ""), strict=True)
    ]
    for options in ({}, {"entropy": "text"}):
        _, calls = run(style, lambda options=options: VLACache(**options), [*asked, asked[-1]])
        assert [c.visual[-1] < 64 for c in calls] == [False, True, False, False, True]


@pytest.mark.parametrize("options", [{}, {"entropy": "text", "growth": 1.0, "layer": 5, "stages": [0, 3]}])
def test_conformance(options):
    check_pruner(lambda: VLACache(**options))


# -- options -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"threshold": 1.5}, {"static": 0.0}, {"relevant": 0}, {"growth": -0.1}, {"growth": 1.5}, {"entropy": "last"}],
)
def test_a_bad_option_is_refused_in_one_line(options):
    with pytest.raises(ValueError) as refusal:
        VLACache(**options)
    assert "\n" not in str(refusal.value) and str(next(iter(options.values()))) in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layer": 9}, r"reads layers \[9\]"),
        ({"stages": [2, 7]}, r"prunes before layers \[7\]"),
        ({"stages": [3, 2]}, "sorted and unique"),
    ],
)
def test_layers_the_model_lacks_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Policy(Toy(), lambda: VLACache(**options))


def test_the_yaml_states_every_parameter():
    options = yaml.safe_load((Path(__file__).parents[2] / "configs/method/vlacache.yaml").read_text())
    assert options.pop("_target_") == "vlaprune.methods.vlacache.VLACache"
    assert options == {k: p.default for k, p in inspect.signature(VLACache).parameters.items()}
