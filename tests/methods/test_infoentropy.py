"""VLA-InfoEntropy: entropies by hand, the choice against an independent reference, the paper's FLOPs, exact reuse."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy.special import softmax
from scipy.stats import entropy, kendalltau

from vlaprune.benchmark import Observation
from vlaprune.methods.dense import Dense
from vlaprune.methods.infoentropy import InfoEntropy
from vlaprune.methods.shared.patches import Patches, grey_entropy, patch_cosine, static_patches
from vlaprune.methods.shared.scoring import blend_quotas, focus
from vlaprune.models.toy import STYLES, Toy
from vlaprune.policy import Policy
from vlaprune.pruner import ModelInfo, PruneContext
from vlaprune.testing import check_pruner, scenes
from vlaprune.trace import Layout, QueryGroup, Trace, View

INFO = ModelInfo("hand", 3, 2, 8, 4)


def hand(patches, probs, grid=((4, 4),), step=0, elapsed=None):
    """A trace of patches [V, p, p, 3] and text attention `probs` [L, H, W, V]."""
    starts = np.cumsum([0] + [h * w for h, w in grid])
    views = tuple(View(f"c{i}", int(s), h, w) for i, (s, (h, w)) in enumerate(zip(starts, grid, strict=False)))
    total, words, p = int(starts[-1]), np.shape(probs)[2], patches.shape[1]
    end = 1 + total + words
    layout = Layout(end, range(1, 1 + total), range(1 + total, end), range(end, end + 4), end - 1, views)
    images = []
    for view in views:
        own = torch.as_tensor(patches[view.slice]).reshape(view.height, view.width, p, p, 3)
        images.append(own.transpose(1, 2).reshape(view.height * p, view.width * p, 3))
    trace = Trace(layout, images, step, elapsed=step if elapsed is None else elapsed)
    for layer, weights in enumerate(torch.as_tensor(np.asarray(probs), dtype=torch.float32)):
        rows = torch.zeros(weights.shape[0], words, layout.end)
        rows[..., 1 : 1 + total] = weights
        if words:
            trace.add_weights(layer, QueryGroup.TEXT, rows)
    return trace


def call(method, trace, reusable=True):
    """One model call; (kept, reused), or None for everything."""
    total = trace.layout.total
    filled = torch.full((total,), reusable) if isinstance(reusable, bool) else reusable
    context = PruneContext(
        method.layer, 5, torch.zeros(total, 8), torch.arange(total), torch.zeros(3, 8), torch.zeros(3, 8), filled, trace
    )
    chosen = method.select(context)
    method.observe(trace)
    if chosen is None:
        return None
    return sorted(chosen.keep.tolist()), [] if chosen.reuse is None else sorted(chosen.reuse.tolist())


def ready(**options):
    method = InfoEntropy(**options)
    method.plan(INFO)
    return method


def world(seed, total=16, words=3, moved=0.4, size=4):
    """Two frames of which a part of the patches moved, and text attention."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 256, (total, size, size, 3), dtype=np.uint8) // rng.integers(
        1, 64, (total, 1, 1, 1), dtype=np.uint8
    )
    second = first.copy()
    some = rng.random(total) < moved
    second[some] = rng.integers(0, 256, (int(some.sum()), size, size, 3), dtype=np.uint8)
    return first, second, rng.dirichlet(np.ones(total), (3, 2, words)).astype(np.float32)


# -- the two entropies -------------------------------------------------------------------------------------------


def test_grey_entropy_by_hand():
    flat = torch.full((1, 14, 14, 3), 77, dtype=torch.uint8)
    board = (torch.arange(14)[:, None] + torch.arange(14)).remainder(2)[None, ..., None].expand(1, 14, 14, 3) * 255
    ramp = torch.arange(196).reshape(1, 14, 14, 1).expand(1, 14, 14, 3)
    assert grey_entropy(Patches.of(flat), 256) == 0
    assert grey_entropy(Patches.of(board.to(torch.uint8)), 256) == pytest.approx(1 / 8)
    assert grey_entropy(Patches.of(ramp.to(torch.uint8)), 256) == pytest.approx(
        np.log2(196) / 8
    )  # the most that 196 pixels can have


@pytest.mark.parametrize("levels", [2, 16, 100, 256])
def test_grey_entropy_equals_numpy(levels):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 7, 5, 3), dtype=np.uint8)
    grey = (pixels.astype(int) @ [19595, 38470, 7471] + 32768) // 65536
    expected = [entropy(np.bincount((g.ravel() * levels) // 256), base=2) / np.log2(levels) for g in grey]
    assert np.allclose(grey_entropy(Patches.of(torch.tensor(pixels)), levels), expected)


def test_grey_is_the_luma_of_pillow():
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(1).integers(0, 256, (1, 40, 40, 3), dtype=np.uint8)
    grey = np.asarray(image.fromarray(pixels[0]).convert("L"))
    expected = entropy(np.bincount(grey.ravel()), base=2) / 8
    assert grey_entropy(Patches.of(torch.tensor(pixels)), 256) == pytest.approx(expected)


def test_focus_by_hand():
    even, one = torch.full((20, 3), 0.2), torch.zeros(20, 3)
    one[4] = 1
    for norm in ("softmax", "renorm"):
        assert torch.allclose(focus(even, norm), torch.zeros(3, dtype=torch.float64), atol=1e-15)
    assert torch.allclose(focus(one, "renorm"), torch.ones(3, dtype=torch.float64))
    assert focus(one, "softmax")[0] == pytest.approx(0.014, abs=5e-4)
    assert torch.equal(focus(torch.zeros(5, 2), "renorm"), torch.zeros(2, dtype=torch.float64))
    assert focus(torch.tensor([[0.1, float("nan")], [0.3, 0.2]]), "softmax")[1] == 0


def test_focus_equals_scipy_and_softmax_ranks_by_variance():
    score = np.random.default_rng(2).dirichlet(np.full(256, 0.3), 35) * 0.4
    ours = focus(torch.tensor(score), "softmax").numpy()
    assert np.allclose(ours, 1 - entropy(softmax(score, 0), axis=0) / np.log(35), atol=1e-14)
    assert np.allclose(focus(torch.tensor(score), "renorm"), 1 - entropy(score, axis=0) / np.log(35))
    assert kendalltau(ours, score.var(0)).statistic > 0.99
    assert len(np.unique(ours)) > 250  # fp16 or fp32 would leave a handful of values


def test_quotas_cross():
    assert (
        blend_quotas(0.0, 40, 60) == (60, 40)
        and blend_quotas(0.5, 40, 60) == (50, 50)
        and blend_quotas(1.0, 40, 60) == (40, 60)
    )
    sums = {sum(blend_quotas(t / 100, 40, 60)) for t in range(101)}
    assert sums == {99, 100}
    seen = [blend_quotas(t / 100, 40, 60)[0] for t in range(101)]
    assert seen == sorted(seen, reverse=True) and blend_quotas(0.05, 40, 60) == (59, 41)  # 59.000000000000007 and 41


# -- static patches ----------------------------------------------------------------------------------------------


def test_a_frame_is_static_against_itself_up_to_the_cap():
    frame = torch.tensor(world(0)[0])
    frame[3] = 0  # black
    layout = hand(frame, np.ones((1, 1, 2, 16))).layout
    look = Patches.of(frame)
    assert static_patches(look, look, 0.996, layout, 16).all()
    assert static_patches(look, look, 1.0, layout, 5).nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("side", [8, 14, 16, 17])
def test_sums_over_a_patch_are_exact_whatever_its_size(side):
    """So no machine adds them up to another number: 14 pixels are OpenVLA's and pi0's, 16 the small policies'."""
    bright = np.random.default_rng(side).integers(200, 256, (50, side, side, 3))
    expected = (bright.reshape(50, -1) ** 2).sum(1)
    assert Patches.of(torch.tensor(bright, dtype=torch.uint8)).square.tolist() == expected.tolist()


def test_cosine_equals_numpy_and_black_is_like_nothing_but_black():
    a, b, _ = world(1)
    a[0] = b[0] = b[1] = 0
    x, y = (v.reshape(16, -1).astype(float) for v in (a, b))
    with np.errstate(invalid="ignore"):
        expected = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    expected[:2] = 1, 0
    assert np.allclose(patch_cosine(Patches.of(torch.tensor(a)), Patches.of(torch.tensor(b))), expected)


# -- choice ------------------------------------------------------------------------------------------------------


def reference(first, second, probs, t, k1, k2, cap, norm, threshold=0.9):
    """Sets and loops: which tokens reuse."""
    order = lambda s: sorted(range(len(s)), key=lambda i: (-np.float32(s[i]), i))  # noqa: E731
    grey = (second.astype(int) @ [19595, 38470, 7471] + 32768) // 65536
    texture = [entropy(np.bincount(g.ravel())) for g in grey]
    score = probs.astype(float).mean((0, 1))
    q = softmax(score, 0) if norm == "softmax" else score / score.sum(0)
    bound = 1 - entropy(q, axis=0) / np.log(len(score))
    a = min(1, t / 100)
    important = set(order(texture)[: int((1 - a) * k2 + a * k1 + 1e-9)]) | set(
        order(bound)[: int((1 - a) * k1 + a * k2 + 1e-9)]
    )
    x, y = (v.reshape(len(v), -1).astype(float) for v in (first, second))
    cos = (x * y).sum(1) / np.maximum(np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1), 1)
    cos[(x == y).all(1)] = 1
    static = [i for i in order(cos) if cos[i] >= threshold][:cap]
    return sorted(set(static) - important), important


@pytest.mark.parametrize("norm", ["softmax", "renorm"])
@pytest.mark.parametrize(("grid", "total"), [(((4, 4),), 16), (((3, 5),), 15)])
def test_reuses_what_the_reference_reuses(norm, grid, total):
    some = 0
    for seed in range(12):
        first, second, probs = world(seed, total)
        t = seed * 10
        method = ready(k1=2, k2=4, static=8, norm=norm, threshold=0.9)
        assert call(method, hand(first, probs, grid), reusable=False) is None
        kept, reused = call(method, hand(second, np.roll(probs, 5, -1), grid, step=t))
        expected, important = reference(first, second, probs, t, 2, 4, 8, norm)
        assert reused == expected and sorted(kept + reused) == list(range(total)) and not important & set(reused)
        some += len(reused)
    assert some > 20


def test_a_frame_is_held_against_the_one_before_it():
    first, _, probs = world(0)
    method = ready(k1=1, k2=1, static=16)
    reused = []
    for frame in (first, 255 - first, 255 - first, first):
        chosen = call(method, hand(frame, probs))
        reused.append(len(chosen[1]) if chosen else None)
    assert reused[0] is None and reused[1] == reused[3] == 0 and reused[2] > 0


def test_share_reuses_the_first_by_position():
    first, _, probs = world(0)
    method = ready(k1=1, k2=1, static=16, share=0.5)
    call(method, hand(first, probs))
    whole = ready(k1=1, k2=1, static=16)
    call(whole, hand(first, probs))
    every = call(whole, hand(first, probs))[1]
    assert call(method, hand(first, probs))[1] == every[: len(every) // 2] != []


def test_only_reusable_tokens_are_reused():
    first, _, probs = world(0)
    method, filled = ready(k1=1, k2=1, static=16), torch.arange(16) % 2 == 0
    call(method, hand(first, probs))
    reused = call(method, hand(first, probs), filled)[1]
    assert reused and all(i % 2 == 0 for i in reused)


def test_quotas_are_shared_by_the_cameras():
    first, _, probs = world(0, total=16 + 8)
    first[16:] //= 64  # the second camera is flat, so a common ranking would leave it nothing
    grid = ((4, 4), (2, 4))
    method = ready(k1=3, k2=3, static=24, horizon=0)
    call(method, hand(first, probs, grid))
    kept = call(method, hand(first, probs, grid))[0]
    assert {True, False} == {i < 16 for i in kept} and len(kept) <= 6


def test_time_counts_control_steps():
    first, _, probs = world(4)
    for step, elapsed, clock, horizon, same in (
        (10, 80, "control_step", 100, 80),
        (10, 80, "model_call", 100, 10),
        (63, 500, "control_step", 100, 100),
        (5, 5, "control_step", 0, 100),
    ):
        own, plain = ready(k1=1, k2=8, clock=clock, horizon=horizon, static=16), ready(k1=1, k2=8, static=16)
        call(own, hand(first, probs))
        call(plain, hand(first, probs))
        assert call(own, hand(first, probs, step=step, elapsed=elapsed)) == call(plain, hand(first, probs, step=same))


def test_chunks_swap_the_quotas_by_the_steps_that_the_robot_executed():
    """A chunk of 4 executed whole: the quotas of the third call are those of step 8, half way to 16.

    Nothing moves, so what is computed again is what is important.
    """
    policy = Policy(Toy("parallel"), lambda: InfoEntropy(k1=2, k2=20, static=64, horizon=16))
    (frame,) = scenes(0, 1, 1)
    for _ in range(2):
        policy.act({0: frame})
    before = policy.trace(0)
    probs = np.stack([before.visual(layer, QueryGroup.TEXT).numpy() for layer in range(6)])
    policy.act({0: frame})
    assert (policy.trace(0).step, policy.trace(0).elapsed) == (2, 8)
    pixels = before.pixels.numpy()
    important, by_calls = (
        sorted(reference(pixels, pixels, probs, 100 * t / 16, 2, 20, 64, "softmax")[1]) for t in (8, 2)
    )
    assert policy.trace(0).kept[2].tolist() == important != by_calls


# -- degenerate input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [0, 1])
def test_without_words_texture_takes_both_quotas(words):
    first, _, probs = world(2, words=2)
    method = ready(k1=2, k2=4, static=16)
    trace = hand(first, probs[:, :, :words])
    call(method, trace)
    kept, _ = call(method, trace)
    assert kept == sorted(
        torch.sort(grey_entropy(Patches.of(torch.tensor(first)), 256), descending=True, stable=True)[1][:6].tolist()
    )


@pytest.mark.parametrize("value", [1 / 16, 0.0, float("nan")])
def test_constant_or_broken_input_goes_in_index_order(value):
    blank = np.full((16, 4, 4, 3), 9, dtype=np.uint8)
    probs = np.full((3, 2, 3, 16), value)
    method = ready(k1=2, k2=4, static=16)
    call(method, hand(blank, probs))
    kept, reused = call(method, hand(blank, probs))
    assert kept == [0, 1, 2, 3] and len(reused) == 12


def test_a_camera_cut_and_another_layout_are_dense():
    first, _, probs = world(0)
    method = ready()
    call(method, hand(first, probs))
    assert call(method, hand(255 - first, probs))[1] == []
    other, _, more = world(0, total=15)
    assert call(method, hand(other, more, ((3, 5),))) is None
    method.reset()
    assert call(method, hand(other, more, ((3, 5),))) is None


def test_a_count_above_the_tokens_is_refused():
    first, _, probs = world(0)
    method = ready(k2=60)
    call(method, hand(first, probs))
    with pytest.raises(ValueError, match="keep=60 asks for more than the 16 visual tokens there are"):
        call(method, hand(first, probs))


# -- prune -------------------------------------------------------------------------------------------------------


def test_prune_keeps_the_important_and_fills_up_from_the_favoured_branch():
    for seed in range(6):
        first, _, probs = world(seed)
        method = ready(mode="prune", k1=2, k2=4, keep=7)
        plan = method.plan(INFO)
        assert set(plan.reads) == {0, 1} and plan.budget[2].count(16) == 7 and not plan.reuses
        for t in (0, 100):
            kept, reused = call(method, hand(first, probs, step=t))
            _, important = reference(first, first, probs[:2], t, 2, 4, 16, "softmax")
            assert len(kept) == 7 and important <= set(kept) and not reused
            favoured = (
                grey_entropy(Patches.of(torch.tensor(first)), 256)
                if t == 0
                else focus(torch.tensor(probs[:2].mean((0, 1))), "softmax")
            )
            left = [
                i for i in favoured.float().sort(descending=True, stable=True).indices.tolist() if i not in important
            ]
            assert set(kept) - important == set(left[: 7 - len(important)])


# -- on the toy --------------------------------------------------------------------------------------------------


def run(style, make, frames):
    policy = Policy(Toy(style), make)
    policy.reset(0, seed=3)
    actions = [policy.act({0: frame})[0] for frame in frames]
    return actions, policy.drain(0)


@pytest.mark.parametrize("style", STYLES)
def test_reuse_is_exact_on_a_frozen_world(style):
    frames = scenes(0, 1, 1) * 4
    dense, _ = run(style, Dense, frames)
    actions, calls = run(style, InfoEntropy, frames)
    for a, b in zip(actions, dense, strict=True):
        assert np.allclose(a, b, atol=1e-5)
    assert calls[0].visual == (64,) * 6
    assert all(c.visual[:2] == (64, 64) and c.visual[2] < 45 for c in calls[1:])
    assert all(set(c.columns) == {calls[0].columns[0]} for c in calls)


@pytest.mark.parametrize("style", STYLES)
def test_an_instruction_may_change_or_be_absent(style):
    frames = scenes(0, 1, 4)
    asked = [
        Observation(f.images, f.state, text) for f, text in zip(frames, ("go", "go", "reach the blue", ""), strict=True)
    ]
    _, calls = run(style, InfoEntropy, asked)
    assert calls[1].visual[-1] < 64 and calls[2].visual[-1] == calls[3].visual[-1] == 64
    _, calls = run(style, lambda: InfoEntropy("prune", keep=25), asked)
    assert [c.visual[-1] for c in calls] == [25] * 4


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm": "renorm", "layers": [3], "share": 0.5, "layer": 1},
        {"mode": "prune", "keep": 0.4},
        {"mode": "prune", "keep": 0.4, "layer": 1},
    ],
)
def test_conformance(options):
    check_pruner(lambda: InfoEntropy(**options))


# -- the paper's count -------------------------------------------------------------------------------------------


def macs(tokens):
    """The papers' multiply-accumulates of Llama-2-7B's layers, in T."""
    return sum(4 * n * 4096**2 + 2 * n * n * 4096 + 3 * n * 4096 * 11008 for n in tokens) / 1e12


def test_flops_at_the_shape_of_openvla():
    """Defaults on 256 tokens: 150 static, of which the schedule's tops hold 43, as the spec infers from the paper."""
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 8, (256, 14, 14, 3), dtype=np.uint8)
    score = np.full((3, 2, 20, 256), 0.01, dtype=np.float32)
    textured, bound = np.arange(0, 60), np.arange(40, 80)  # 60 and 40 at t = 0, 20 in both: 80 in the union
    frame[textured] = rng.integers(0, 256, (60, 14, 14, 3), dtype=np.uint8)
    score[:, :, 0, bound] = 0.5
    before = frame.copy()
    before[:37] = 255 - before[:37]  # 43 important tokens stay static, 176 others too; the cap leaves 150
    moved = np.arange(80 + 107, 256)
    before[moved, ..., 0] = 255
    method = ready()
    call(method, hand(before, score, ((16, 16),)))
    kept, reused = call(method, hand(frame, score, ((16, 16),)))
    assert len(reused) == 107 and len(kept) == 149
    dense, ours = macs([284.6] * 32), macs([284.6] * 2 + [284.6 - len(reused)] * 30)
    assert dense == pytest.approx(1.864, abs=0.001)
    assert 1.20 <= ours <= 1.22 and 1.864 / ours == pytest.approx(1.55, abs=0.02)


# -- options -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "merge"},
        {"norm": "max"},
        {"k1": 0.0},
        {"k2": 1.5},
        {"static": -1},
        {"keep": 0},
        {"threshold": 2},
        {"share": 1.1},
        {"levels": 1},
        {"levels": 512},
        {"clock": "seconds"},
    ],
)
def test_a_bad_option_is_refused_in_one_line(options):
    with pytest.raises(ValueError) as refusal:
        InfoEntropy(**options)
    assert "\n" not in str(refusal.value) and str(next(iter(options.values()))) in str(refusal.value)


def test_layers_that_cannot_be_read_are_refused():
    with pytest.raises(ValueError, match=r"mode=prune layer=2 cannot use layers=\[2\]"):
        ready(mode="prune", layers=[2], keep=0.5)
    with pytest.raises(ValueError, match="cannot use"):
        ready(mode="prune", layer=0, keep=0.5)
    with pytest.raises(ValueError, match=r"reads layers \[9\]"):
        Policy(Toy(), lambda: InfoEntropy(layers=[9]))


def test_the_yaml_states_every_parameter():
    options = yaml.safe_load((Path(__file__).parents[2] / "configs/method/infoentropy.yaml").read_text())
    assert options.pop("_target_") == "vlaprune.methods.infoentropy.InfoEntropy"
    assert options == {k: p.default for k, p in inspect.signature(InfoEntropy).parameters.items()}
    method = InfoEntropy()
    assert [b.count(256) for b in (method._k1, method._k2, method._static)] == [40, 60, 150]


@pytest.mark.parametrize("options", [{"keep": 0.22}, {"mode": "prune"}])
def test_a_budget_is_given_where_there_is_one_and_only_there(options):
    """mode=reuse has quotas; a keep that changes nothing would name arms of a sweep that are all the same."""
    with pytest.raises(ValueError, match=r"infoentropy mode=(reuse|prune) keep=.*; (it has none|give one)"):
        InfoEntropy(**options)
