"""TIES: tau-b against scipy, the choice against an independent reference, calibration files, the toy."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from doubles import SIGMA, calibration
from scipy.stats import kendalltau

from vlaprune import config
from vlaprune.benchmark import Observation
from vlaprune.methods.dense import Dense
from vlaprune.methods.fastv import FastV
from vlaprune.methods.shared.patches import RESEMBLANCE
from vlaprune.methods.ties.agreement import Estimator, neighbours, tau_b
from vlaprune.methods.ties.calibration import Calibrate, Calibration, weight
from vlaprune.methods.ties.ties import TIES
from vlaprune.models.oft import OFT
from vlaprune.models.toy import STYLES, Toy
from vlaprune.policy import Policy
from vlaprune.pruner import ModelInfo, Plan, PruneContext
from vlaprune.testing import check_pruner, random_observations, scenes
from vlaprune.trace import Layout, QueryGroup, Trace, View

TOKENS = ("topk_ref", "all", "topk_fixed", "topk_union", "topk_union_tied")
INFO, TOY = ModelInfo("hand", 4, 2, 8, 4), Toy().info
SMALL = {  # oft_tiny's
    **{"image": 112, "dino_width": 64, "dino_depth": 3, "dino_heads": 2, "siglip_width": 64, "siglip_depth": 3},
    **{"siglip_heads": 2, "siglip_ffn": 96, "width": 64, "layers": 8, "heads": 4, "ffn": 96},
}


def make(info=TOY, total=64, **options):
    """TIES with a calibration for a model, the toy if none is named."""
    return TIES(**{"calibration": calibration(TIES(**options).estimator, info, total), **options})


def hand(probs, images=None, grid=((4, 4),), words=3, step=0):
    """A trace whose attention to the visual tokens is `probs` [L, H, V], on the row of the last prompt token."""
    starts = np.cumsum([0] + [h * w for h, w in grid])
    views = tuple(View(f"c{i}", int(s), h, w) for i, (s, (h, w)) in enumerate(zip(starts, grid, strict=False)))
    total = int(starts[-1])
    end = 1 + total + words
    layout = Layout(end, range(1, 1 + total), range(1 + total, end), range(end, end + 4), end - 1, views)
    if images is None:
        images = [torch.zeros(2 * h, 2 * w, 3, dtype=torch.uint8) for h, w in grid]
    trace = Trace(layout, images, step)
    for layer, weights in enumerate(torch.as_tensor(probs, dtype=torch.float32)):
        row = torch.zeros(weights.shape[0], 1, layout.end)
        row[:, 0, 1 : 1 + total] = weights
        trace.add_weights(layer, QueryGroup.LAST, row)
    return trace


def site(trace, layer):
    total = trace.layout.total
    visual = torch.randn(total, 8, generator=torch.Generator().manual_seed(total))
    return PruneContext(
        layer,
        5,
        visual,
        torch.arange(total),
        torch.zeros(3, 8),
        torch.zeros(3, 8),
        torch.zeros(total, dtype=torch.bool),
        trace,
    )


def call(method, trace, layer=2):
    """One model call: both sites and the end. What went on, or None for everything."""
    method.select(site(trace, 0))
    chosen = method.select(site(trace, layer))
    method.observe(trace)
    return None if chosen is None else chosen.keep.sort().values.tolist()


def ready(info=INFO, total=16, **options):
    method = make(info, total, **options)
    method.plan(info)
    return method


def attention(seed, layers=4, heads=2, total=16):
    return np.random.default_rng(seed).dirichlet(np.ones(total), (layers, heads)).astype(np.float32)


# -- tau ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 4, 1000])
def test_tau_b_equals_scipy_with_ties_and_gaps(levels):
    rng = np.random.default_rng(levels)
    x, y = (rng.integers(0, levels, (3, 5, 40)).astype(np.float32) for _ in range(2))
    x[0, :, 3:6] = np.nan
    y[1, 2, :20] = np.nan
    x[2, 0], x[2, 1, :38], y[2, 3, 0] = 1.0, np.nan, -np.inf
    ours = tau_b(torch.tensor(x), torch.tensor(y)).numpy()
    for i, j in np.ndindex(3, 5):
        known = ~(np.isnan(x[i, j]) | np.isnan(y[i, j]))
        assert ours[i, j] == pytest.approx(kendalltau(x[i, j][known], y[i, j][known]).statistic, abs=1e-12, nan_ok=True)


def test_tau_b_laws():
    x = torch.rand(512)
    assert tau_b(x, x) == 1 and tau_b(x, -x) == -1 and tau_b(x, x.exp() * 3) == 1
    assert tau_b(torch.ones(9), x[:9]).isnan() and tau_b(x[:1], x[:1]).isnan()
    tiny = torch.arange(5) * 1e-45  # differences that vanish in fp32 still rank
    assert tau_b(tiny, torch.arange(5.0)) == 1


def test_only_the_unions_are_biased_under_independence():
    scores = torch.rand(60, 256, generator=torch.Generator().manual_seed(0))
    mean = {t: float(tau_b(*neighbours(scores, 56, t)).mean()) for t in TOKENS}
    assert abs(mean["all"]) < 0.03 and abs(mean["topk_ref"]) < 0.05
    assert mean["topk_union"] == pytest.approx(-0.39, abs=0.03)
    assert mean["topk_union_tied"] == pytest.approx(-0.48, abs=0.03)


def reference_tau(s, k, tokens):
    """The same statistic, one pair at a time, through scipy."""
    best = [np.lexsort((np.arange(len(r)), -r))[:k] for r in s]
    fixed, out = np.lexsort((np.arange(s.shape[1]), -s.mean(0)))[:k], []
    for a in range(len(s) - 1):
        x, y = s[a], s[a + 1]
        union = np.union1d(best[a], best[a + 1])
        if tokens == "topk_union_tied":
            x = np.where(np.isin(np.arange(len(x)), best[a]), x, -1)
            y = np.where(np.isin(np.arange(len(y)), best[a + 1]), y, -1)
        which = {"all": np.arange(len(x)), "topk_ref": best[a], "topk_fixed": fixed}.get(tokens, union)
        out.append(kendalltau(x[which], y[which]).statistic)
    return np.nanmean(out)


@pytest.mark.parametrize("heads", ["mean", "max"])
@pytest.mark.parametrize("tokens", TOKENS)
def test_estimator_equals_the_reference(tokens, heads):
    for seed in range(4):
        probs = attention(seed).round(2 if seed % 2 else 6)  # with and without ties
        s = probs.mean(1) if heads == "mean" else probs.max(1)
        ours = Estimator(keep=6, tokens=tokens, heads=heads).tau(hand(probs), range(4))
        assert ours == pytest.approx(reference_tau(s, 6, tokens), abs=1e-6)


def test_a_layer_of_ties_is_left_out_of_the_mean():
    probs = attention(2)
    probs[3] = 1 / 16
    assert Estimator(tokens="all").tau(hand(probs), range(4)) == Estimator(tokens="all").tau(hand(probs), range(3))


def test_auto_reads_the_rows_that_emit_the_action():
    assert Estimator().group(hand(attention(0)).layout) is QueryGroup.LAST
    assert Estimator().group(Toy("parallel").layout(3)) is QueryGroup.ACTION
    assert Estimator(rows="text").group(Toy("parallel").layout(3)) is QueryGroup.TEXT


# -- weight ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["quantiles", "linear", "ecdf", "hard"])
def test_weight_falls_within_zero_and_one(how):
    known = np.random.default_rng(0).beta(2, 5, 101).tolist()
    curve = [weight(t, known, how) for t in np.linspace(-1, 1, 201)]
    assert curve == sorted(curve, reverse=True) and curve[0] == 1 and curve[-1] == 0
    if how == "hard":
        assert weight(np.median(known), known, how) == 1 and weight(np.median(known) + 1e-9, known, how) == 0
        assert weight(0.3, known, how, threshold=0.4) == 1 and weight(0.5, known, how, threshold=0.4) == 0
    else:
        assert weight(float(np.median(known)), known, how) == pytest.approx(0.5)
        assert weight(float("nan"), known, how) == pytest.approx(0.5)
    if how == "quantiles":
        low, high = np.quantile(known, (0.05, 0.95))
        assert weight(low, known, how) == pytest.approx(1) and weight(high, known, how) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("how", ["quantiles", "linear", "ecdf"])
def test_weight_knows_little(how):
    assert weight(float("nan"), [0.3], how) == weight(0.3, [0.3], how) == weight(0.3, [0.3] * 4, how) == 0.5


# -- choice ------------------------------------------------------------------------------------------------------


def reference_keep(score, share, count):
    """The top floor(w K), then an even stride through what is left."""
    order = sorted(range(len(score)), key=lambda i: (-score[i], i))
    first = order[: int(share * count + 1e-9)]
    rest = sorted(set(range(len(score))) - set(first))
    left = count - len(first)
    return sorted(first + [rest[int((i + 0.5) * len(rest) / left)] for i in range(left)])


@pytest.mark.parametrize("grid", [((4, 4),), ((5, 3),), ((4, 4), (2, 3))])
@pytest.mark.parametrize("count", [1, 2, 7, 14, 15])
def test_keeps_what_the_reference_keeps(count, grid):
    total = sum(h * w for h, w in grid)
    for seed in range(8):
        method, probs = ready(total=total, keep=count), attention(seed, total=total)
        assert call(method, hand(probs, grid=grid)) is None  # the anchor
        method.share = seed / 7
        kept = call(method, hand(probs, grid=grid, step=1))
        assert kept == reference_keep(probs[1].mean(0), seed / 7, count)
        assert len(set(kept)) == count and set(
            np.argsort(-probs[1].mean(0), kind="stable")[: seed * count // 7]
        ) <= set(kept)


def test_full_trust_is_fastv_and_none_is_an_even_stride():
    probs, method, fastv = attention(3), ready(keep=5), FastV(layer=2, keep=5)
    call(method, hand(probs))
    method.share = 1.0
    assert call(method, hand(probs)) == fastv.select(site(hand(probs), 2)).keep.tolist()
    method.share = 0.0
    assert call(method, hand(probs)) == [1, 4, 8, 11, 14]


@pytest.mark.parametrize("uniform", ["stride", "random", "diverse"])
def test_every_filling_fills_the_budget_without_repeats(uniform):
    for share in (0.0, 0.5, 1.0):
        method = ready(keep=6, uniform=uniform)
        call(method, hand(attention(1)))
        method.share = share
        kept = call(method, hand(attention(1), step=1))
        assert len(set(kept)) == 6 and kept == call(method, hand(attention(1), step=1))
        again = call(method, hand(attention(1), step=2))
        assert (kept != again) == (uniform == "random" and share < 1)  # drawn anew in every call


def test_polarity():
    probs = attention(0)
    shares = []
    for trusts in (True, False):
        method = ready(keep=6, low_tau_trusts_attention=trusts)
        call(method, hand(probs))
        shares.append(method.share)
    tau = Estimator(keep=6).tau(hand(probs), range(4))
    assert (
        shares[0] == weight(tau, SIGMA, "quantiles") and shares[1] == pytest.approx(1 - shares[0]) and shares[0] != 0.5
    )


# -- the anchor --------------------------------------------------------------------------------------------------


def picture(changed, of=16):
    """A 4 x 4 grid of patches of which `changed` differ from the plain grey picture."""
    patches = torch.full((of, 2, 2, 3), 120, dtype=torch.uint8)
    patches[:changed, 0, :, 0] = 0
    return [patches.reshape(4, 4, 2, 2, 3).transpose(1, 2).reshape(8, 8, 3)]


def test_a_frame_less_like_the_anchor_than_gamma_is_the_next_anchor():
    method = ready(keep=6)
    dense = [call(method, hand(attention(i), picture(n))) is None for i, n in enumerate((0, 0, 4, 5, 5, 4, 0))]
    assert dense == [True, False, False, True, False, False, True]  # 12/16 >= 0.7 > 11/16; then counted from 5
    method.reset()
    assert call(method, hand(attention(0), picture(0))) is None


def two_cameras(changed_a, changed_b):
    return [*picture(changed_a), *picture(changed_b)]


def test_a_frame_exactly_as_like_as_gamma_is_no_anchor():
    """8 of 16 patches are as they were: 0.5 of them."""
    now = torch.full((8, 8, 3), 90, dtype=torch.uint8)
    then = now.clone()
    then[:4] = torch.randint(0, 255, (4, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for gamma, kept in ((0.5, 4), (0.51, None)):
        method = ready(gamma=gamma)
        assert call(method, hand(attention(0), [now])) is None
        found = call(method, hand(attention(0), [then], step=1))
        assert (found and len(found)) == kept


def test_tau_of_a_range_that_ends_at_the_choice_needs_all_tokens_there():
    _, calls, _ = run("parallel", lambda: make(layers=[0, 2]), [scenes(0, 1)[0]] * 2)
    assert [r.visual[-1] for r in calls] == [64, 14]


def test_reset_forgets_the_weight():
    method = ready()
    call(method, hand(attention(0)))
    assert method.share != 0.5
    method.reset()
    assert method.share == 0.5


def test_similarity_is_taken_for_each_camera():
    """Of 16 patches of each camera so many differ from the first frame; a new anchor is compared with from then on."""
    grid, calls = ((4, 4), (4, 4)), [(0, 0), (4, 16), (4, 15), (5, 16)]
    for over, gamma, dense in (
        ("max", 0.7, [True, False, False, True]),
        ("mean", 0.7, [True, True, False, False]),
        ("mean", 0.3, [True, False, False, False]),
        ("min", 0.3, [True, True, False, False]),
    ):
        method = ready(total=32, keep=6, over_cameras=over, gamma=gamma)
        traces = [hand(attention(i, total=32), two_cameras(*n), grid) for i, n in enumerate(calls)]
        assert [call(method, trace) is None for trace in traces] == dense, (over, gamma)


def test_a_camera_at_rest_lets_oft_prune_while_the_wrist_moves():
    """Documented default: most calls prune; with pooled cameras none does."""
    model = OFT("random", sizes=SMALL, device="cpu", dtype="float32")
    rng, ground = np.random.default_rng(0), np.full((224, 224, 3), 90, dtype=np.uint8)
    frames = []
    for step in range(7):
        rest, ground[60:90, 60 + 5 * step : 90 + 5 * step] = ground.copy(), 200
        frames.append(
            Observation(
                {"primary": rest, "wrist": rng.integers(0, 255, (224, 224, 3), dtype=np.uint8)},
                np.zeros(8),
                "lift the cube",
            )
        )
    total = model.layout(9).total
    pruned = {}
    for over in ("max", "mean"):
        policy = Policy(model, lambda over=over: make(model.info, total, over_cameras=over))
        for frame in frames:
            policy.act({0: frame})
        pruned[over] = [r.visual[-1] < total for r in policy.drain(0)]
    assert sum(pruned["max"]) >= 4 and not any(pruned["mean"])


@pytest.mark.parametrize("similarity", ["patches", "ssim", "embedding", "embedding_patches"])
def test_every_similarity_is_one_for_equal_frames(similarity):
    method = ready(keep=6, similarity=similarity, gamma=0.999)
    trace = hand(attention(0), picture(3))
    assert call(method, trace) is None and call(method, trace) is not None


@pytest.mark.parametrize("similarity", RESEMBLANCE)
def test_an_anchor_keeps_no_view_of_the_tokens(similarity):
    """They are a graph's output, which the next call writes over; in fp32, too, where nothing is converted."""
    method, trace = ready(keep=6, similarity=similarity), hand(attention(0), picture(3))
    lent = site(trace, 0)
    method.select(lent)
    kept = method._anchor[1]
    kept = [kept] if isinstance(kept, torch.Tensor) else list(kept)
    before = [t.clone() for t in kept]
    lent.visual.fill_(7)
    assert all(map(torch.equal, kept, before))


def test_reads_deep_layers_on_anchors_only():
    method, trace = ready(), hand(attention(0))
    assert set(method.select(site(trace, 0)).reads) == {0, 1, 2, 3}
    method.observe(trace)
    assert set(method.select(site(trace, 0)).reads) == {1}
    early = ready(layers=[0, 1])  # tau is known at the site: no dense call at all
    assert set(early.select(site(trace, 0)).reads) == {0, 1}
    assert early.select(site(trace, 2)).keep.shape[0] == round(0.21875 * 16)


def test_another_prompt_layout_is_a_new_anchor():
    method = ready()
    trace = hand(attention(0))
    assert call(method, trace) is None and call(method, trace) is not None
    assert call(method, hand(attention(0), words=5)) is None


# -- degenerate input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["quantiles", "hard"])
def test_constant_or_broken_attention_is_trusted_by_half(how):
    for value in (1 / 16, float("nan"), 0.0):
        method = ready(keep=4, interpolate=how)
        trace = hand(np.full((4, 2, 16), value))
        assert call(method, trace) is None and method.share == 0.5
        kept = call(method, trace)
        assert len(kept) == 4 and {0, 1} <= set(kept)


def test_nan_in_some_tokens_is_kept_last_and_left_out_of_tau():
    probs = attention(0)
    probs[:, :, 5] = np.nan
    method = ready(keep=15)
    call(method, hand(probs))
    assert np.isfinite(method.share)
    method.share = 1.0
    assert 5 not in call(method, hand(probs))


def test_keeping_all_is_dense():
    method = ready(keep=1.0)
    call(method, hand(attention(0)))
    assert call(method, hand(attention(0))) == list(range(16))
    with pytest.raises(ValueError, match="more than the 16 visual tokens"):
        call(ready(keep=17), hand(attention(0)))
    frames = scenes(0, 1, 3)
    for a, b in zip(run("parallel", lambda: make(keep=1.0), frames)[0], run("parallel", Dense, frames)[0], strict=True):
        assert np.array_equal(a, b)


# -- on the toy --------------------------------------------------------------------------------------------------


def run(style, make, frames):
    policy = Policy(Toy(style), make)
    policy.reset(0, seed=3)
    actions = [policy.act({0: frame})[0] for frame in frames]
    return actions, policy.drain(0), policy.sessions[0].pruner


@pytest.mark.parametrize("style", STYLES)
def test_runs_on_the_toy(style):
    _, calls, _ = run(style, make, scenes(0, 1))
    assert calls[0].visual == (64,) * 6
    for record in calls[1:]:
        assert record.visual in ((64,) * 6, (64, 64, 14, 14, 14, 14))


@pytest.mark.parametrize("style", STYLES)
def test_an_anchor_call_may_act_on_the_tokens_that_its_own_tau_selects(style):
    """Its first pass is dense and tells tau; the second keeps what a pruned call of the same frame would keep."""
    frames = [scenes(0, 1)[0]] * 3
    full, dense_first, _ = run(style, make, frames)
    pruned, twice_first, _ = run(style, lambda: make(anchor_action="pruned"), frames)
    few = (64, 64, 14, 14, 14, 14)
    assert [r.visual for r in dense_first] == [(64,) * 6, few, few]
    assert [r.visual for r in twice_first] == [few] * 3
    assert [len(r.first_rows) for r in twice_first] == [6, 0, 0]
    assert np.array_equal(full[1], pruned[1]) and np.array_equal(pruned[0], pruned[1])
    assert twice_first[0].flops["prompt"] == dense_first[0].flops["prompt"] + dense_first[1].flops["prompt"]


def test_where_tau_is_known_before_the_choice_no_second_pass_is_needed():
    options = {"layers": [0, 1], "anchor_action": "pruned"}
    _, calls, _ = run("parallel", lambda: make(**options), scenes(0, 1))
    assert all(r.visual[-1] == 14 and not r.first_rows for r in calls)


@pytest.mark.parametrize("style", STYLES)
def test_an_instruction_may_change_or_be_absent(style):
    frames = scenes(0, 1, 4)
    asked = [
        Observation(f.images, f.state, text) for f, text in zip(frames, ("go", "go", "reach the blue", ""), strict=True)
    ]
    _, calls, _ = run(style, make, asked)
    assert [r.visual[-1] for r in calls] == [64, 14, 64, 64]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"interpolate": "hard"},
        {"anchor_action": "pruned"},
        {"layers": [0, 1], "uniform": "random", "layer": 3, "heads": "max"},
        {"uniform": "diverse", "similarity": "embedding_patches", "gamma": 0.99, "tokens": "topk_union_tied"},
    ],
)
def test_conformance(options):
    check_pruner(lambda: make(**options))


def test_costs_little_beside_a_dense_call():
    """FLOPs of an ordinary call's reading, against its prompt; time is measured by vlaprune-profile."""
    _, calls, _ = run("parallel", make, scenes(0, 1, 2))
    assert calls[1].flops["method"] < 0.05 * calls[0].flops["prompt"]


def test_the_papers_budget_in_its_own_formula():
    """56 of 256 from layer 2 on, n = 290: the ratio 0.351 of the spec."""
    macs = [4 * n * 4096**2 + 2 * n * n * 4096 + 3 * n * 4096 * 11008 for n in (290, 290 - 256 + 56)]
    assert TIES().budget.count(256) == 56
    assert (2 * macs[0] + 30 * macs[1]) / (32 * macs[0]) == pytest.approx(0.351, abs=5e-4)


# -- calibration -------------------------------------------------------------------------------------------------


def test_calibration_from_a_policy_to_a_run(tmp_path):
    path = tmp_path / "own" / "tau.json"
    frames = [frame for i in range(5) for frame in scenes(i % 2, i)]
    actions, calls, recorder = run("parallel", lambda: TIES().probe(), frames)
    for a, b in zip(actions, run("parallel", Dense, frames)[0], strict=True):
        assert np.array_equal(a, b)
    assert all(r.visual == (64,) * 6 for r in calls) and recorder.calls == 30
    recorder.save(path)
    data = json.loads(path.read_text())
    assert data["tau"] == recorder.taus
    assert (data["model"], data["num_layers"], data["visual_tokens"]) == ("toy", 6, 64)
    assert "_target_" not in path.read_text() and list(path.parent.iterdir()) == [path]
    _, _, method = run("parallel", lambda: TIES(calibration=str(path)), frames[:1])
    assert method.share == weight(recorder.taus[0], data["tau"], "quantiles")
    check_pruner(lambda: TIES(calibration=str(path)))


def test_the_probe_outlives_episodes_and_leaves_out_calls_without_ranks():
    probe = Calibrate()
    probe.plan(INFO)
    for probs in (attention(0), np.full((4, 2, 16), 1 / 16), attention(1)):
        call(probe, hand(probs))
        probe.reset()
    assert probe.taus == [Estimator().tau(hand(attention(i)), range(4)) for i in (0, 1)]


def test_a_hundred_values_are_kept_evenly_spaced(tmp_path):
    probe = Calibrate(taus=np.linspace(-0.5, 0.5, 250).tolist())
    probe.plan(INFO)
    probe.select(site(hand(attention(0)), 0))
    probe.save(tmp_path / "tau.json")
    kept = [probe.taus.index(t) for t in json.loads((tmp_path / "tau.json").read_text())["tau"]]
    assert kept == [int(2.5 * (i + 0.5)) for i in range(100)]


def test_without_a_calibration_it_refuses_in_one_line():
    with pytest.raises(ValueError, match=r"ties has no calibration: .* method.calibration=FILE") as refusal:
        TIES().plan(INFO)
    assert "\n" not in str(refusal.value)


def test_a_calibration_made_otherwise_is_refused_in_one_line():
    toy = ModelInfo("toy", 4, 2, 8, 4, "ab12")
    path = calibration(Estimator(heads="max", layers=(0, 2)), toy, 16)
    assert Calibration.read(path, Estimator(heads="max", layers=[0, 2]), toy).taus == SIGMA
    for options, info, said in (
        ({"heads": "mean"}, toy, "heads=max, here mean"),
        ({"keep": 0.5}, toy, "keep=0.21875, here 0.5"),
        ({"layers": [0, 3]}, toy, r"layers=\[0, 2\], here \[0, 3\]"),
        ({}, ModelInfo("oft", 4, 2, 8, 4, "ab12"), "model=toy, here oft"),
        ({}, ModelInfo("toy", 4, 2, 8, 4, "cd34"), "weights=ab12, here cd34"),
        ({}, ModelInfo("toy", 6, 2, 8, 4, "ab12"), "num_layers=4, here 6"),
    ):
        with pytest.raises(ValueError, match=said) as refusal:
            TIES(**{"heads": "max", "layers": [0, 2], "calibration": path, **options}).plan(info)
        assert "\n" not in str(refusal.value)


def test_a_calibration_of_other_cameras_is_refused_at_the_first_call():
    method = ready(total=17)
    with pytest.raises(ValueError, match="was made with 17 visual tokens, here are 16"):
        call(method, hand(attention(0)))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"tau": 3}', '{"estimator": 1, "model": "toy", "tau": []}', "\x00", None]
)
def test_a_damaged_calibration_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "tau.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match="cannot be read") as refusal:
        Calibration.read(str(path), Estimator(), INFO)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("taus", "said"),
    [
        ([], "at least 20 values that differ"),
        (SIGMA[:19], "19 different values of 19"),
        ([0.3] * 30, "1 different values of 30"),
        ([*SIGMA, float("nan")], "outside -1 .. 1"),
        ([*SIGMA, 1.5], "outside -1 .. 1"),
    ],
)
def test_a_calibration_that_would_make_every_weight_0_or_1_is_refused(tmp_path, taus, said):
    """On both sides: when it is written, and when it is read."""
    with pytest.raises(ValueError, match=said):
        Calibration.read(calibration(Estimator(), INFO, 16, taus), Estimator(), INFO)
    probe = Calibrate(taus=taus)
    probe.plan(INFO)
    probe.select(site(hand(attention(0)), 0))
    with pytest.raises(ValueError, match=said):
        probe.save(tmp_path / "tau.json")
    assert not list(tmp_path.iterdir())


# -- options -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"layer": 0},
        {"keep": 0.0},
        {"keep": 2.5},
        {"interpolate": "spline"},
        {"rows": "visual"},
        {"heads": "sum"},
        {"tokens": "bottomk"},
        {"layers": [2, 2]},
        {"layers": [3]},
        {"similarity": "mse"},
        {"over_cameras": "median"},
        {"uniform": "grid"},
    ],
)
def test_a_bad_option_is_refused_in_one_line(options):
    with pytest.raises(ValueError) as refusal:
        TIES(**options)
    assert "\n" not in str(refusal.value) and str(next(iter(options.values()))).strip("[]") in str(refusal.value)


def test_layers_the_model_lacks_are_refused():
    with pytest.raises(ValueError, match=r"ties compares layers 2\.\.9, but hand has layers 0\.\.3"):
        TIES(layers=[2, 9]).plan(INFO)
    with pytest.raises(ValueError, match=r"ties compares layers 0\.\.0"):
        TIES().plan(ModelInfo("hand", 1, 2, 8, 4))


@pytest.mark.parametrize("name", ["ties", "ties_hard"])
def test_the_yaml_states_every_parameter(name):
    options = yaml.safe_load((Path(__file__).parents[2] / f"configs/method/{name}.yaml").read_text())
    assert options.pop("_target_") == "vlaprune.methods.ties.TIES"
    defaults = {k: p.default for k, p in inspect.signature(TIES).parameters.items()}
    assert options == {**defaults, **({"interpolate": "hard"} if name == "ties_hard" else {})}


@pytest.mark.parametrize("name", ["openvla_tiny", "pi0_tiny", "oft_tiny", "cogact_tiny", "tiny"])
def test_tau_is_measured_over_the_same_rows_during_a_call_and_when_it_is_over(name, composed):
    """Calibration reads when the call is over; an anchor reads in the prompt pass, before any action is decoded."""
    model = config.build(composed(f"model={name}", "model.weights=random", "model.device=cpu"))[0]
    (seen,) = random_observations(model.interface, 128, 1)
    estimator, during = Estimator(keep=0.25), []

    class Looking(Dense):
        def plan(self, info):
            last = info.num_layers - 1
            return Plan((last,), {n: QueryGroup.LAST | QueryGroup.ACTION for n in range(last)})

        def select(self, context):
            during.append(estimator.tau(context.trace, range(context.layer)))

    policy = Policy(model, Looking)
    policy.act({0: seen})
    assert estimator.tau(policy.trace(0), range(model.info.num_layers - 1)) == pytest.approx(during[0], abs=1e-6)
