"""Laws that single wrong signs, dropped factors and forgotten arguments break: found by mutating the code."""

import numpy as np
import pytest
import torch
from doubles import Scripted

from vlaprune.methods.dense import Dense
from vlaprune.models.backends import BACKENDS, kernel, order, with_backend
from vlaprune.models.tiny import Tiny
from vlaprune.models.toy import Toy
from vlaprune.policy import Policy, episode_seed
from vlaprune.profile import micro, speed
from vlaprune.profile.machine import Nvml, Watch
from vlaprune.profile.recording import synthetic
from vlaprune.profile.roofline import Device, Work
from vlaprune.pruner import Plan, PruneContext, Selection
from vlaprune.records import StepRecord
from vlaprune.testing import random_observations
from vlaprune.trace import Layout, QueryGroup, Trace, View

CPU = torch.device("cpu")


@pytest.fixture
def trace():
    """Two cameras of 2 x 2 patches of 2 px behind one row; patch i is filled with the number 10 i."""
    layout = Layout(11, range(1, 9), range(9, 11), range(9, 11), 10, (View("b", 0, 2, 2), View("a", 4, 2, 2)))
    grids = [torch.arange(start, start + 4).view(2, 2) * 10 for start in (0, 4)]
    images = [g.repeat_interleave(2, 0).repeat_interleave(2, 1)[..., None].expand(4, 4, 3).byte() for g in grids]
    return Trace(layout, images, 0)


def context(trace, alive):
    empty = torch.zeros(len(alive), 3)
    return PruneContext(1, 0, empty, alive, empty[:0], empty[:0], torch.zeros(len(alive), dtype=torch.bool), trace)


def test_pixels_and_tower_attention_are_those_of_the_rows_alive_in_the_order_of_the_views(trace):
    trace.vision_attention = torch.arange(8.0)
    alive = torch.tensor([1, 4, 7])
    shown = context(trace, alive)
    assert shown.pixels[:, 0, 0, 0].tolist() == [10, 40, 70] and shown.pixels.shape == (3, 2, 2, 3)
    assert shown.vision_attention.tolist() == [1, 4, 7]


def test_means_over_heads_and_rows_are_means(trace):
    """Weights of sum one in every row stay of sum one, whatever is averaged; two groups are weighted by their rows."""
    torch.manual_seed(0)
    for layer in (0, 1):
        for group, rows in ((QueryGroup.TEXT, 2), (QueryGroup.LAST, 1)):
            weights = torch.zeros(4, rows, 11)
            weights[..., 1:9] = torch.rand(4, rows, 8).softmax(-1)
            trace.add_weights(layer, group, weights)
    per_row = trace.per_row((0, 1), QueryGroup.TEXT)
    assert per_row.shape == (2, 8) and per_row.sum(1).tolist() == pytest.approx([1, 1])
    both = trace.received(0, QueryGroup.TEXT | QueryGroup.LAST)
    assert float(both.sum()) == pytest.approx(1)
    heads = trace.per_head((0, 1), QueryGroup.TEXT)
    assert heads.shape == (2, 4, 8) and torch.allclose(heads.sum(-1), torch.ones(2, 4))
    parts = [trace.received(0, g) for g in (QueryGroup.TEXT, QueryGroup.LAST)]
    assert torch.allclose(both, (2 * parts[0] + parts[1]) / 3)


def test_cameras_come_in_the_order_of_the_model_and_not_of_the_alphabet():
    torch.manual_seed(0)
    model = Tiny("random", ("b", "a"), width=32, layers=4, heads=2, vision_width=64, image=64, chunk=2, device="cpu")
    seen = random_observations(model.interface, 64, 1)[0]
    policy = Policy(model, Dense)
    policy.act({0: seen})
    assert [v.camera for v in policy.trace(0).layout.views] == ["b", "a"]
    for view, image in zip("ba", policy.trace(0).images, strict=True):
        assert np.array_equal(image.numpy(), seen.images[view])


def test_seed_task_and_episode_each_change_the_randomness():
    base = episode_seed(7, "reach", 0)
    assert base == 1342243565  # the same on every machine
    others = {episode_seed(8, "reach", 0), episode_seed(7, "reach", 1), episode_seed(7, "push", 0), base}
    assert len(others) == 4


def test_the_seed_of_the_episode_reaches_the_method():
    drawn = []
    policy = Policy(Toy(), lambda: Scripted(Plan((0,)), lambda c: drawn.append(c.seed)))
    for seed in (3, 4):
        policy.reset(0, seed)
        policy.act({0: synthetic(policy.model.interface, 64, episodes=1, steps=1).episodes[0][0].observation})
    assert drawn == [3, 4]


def test_kernels_are_those_of_their_name_inside_and_torchs_own_outside():
    """What torch is allowed to use: only the plain product under `eager`, and never cuDNN, which plans anew."""
    on = torch.backends.cuda
    outside = on.flash_sdp_enabled(), on.mem_efficient_sdp_enabled(), on.math_sdp_enabled()
    for name in BACKENDS:
        with kernel(name):
            assert on.math_sdp_enabled() and on.flash_sdp_enabled() == (name != "eager")
            assert not on.cudnn_sdp_enabled()
            assert torch._C._get_sdp_priority_order()[: len(order(name))] == [one.value for one in order(name)]
    assert outside == (on.flash_sdp_enabled(), on.mem_efficient_sdp_enabled(), on.math_sdp_enabled())


def test_a_compiled_copy_leaves_the_original_as_it_was():
    model = Toy()
    before = model.backend
    twin = with_backend(model, "compile", "eager")
    assert model.backend is before and model.backend.name == "sdpa" and twin.backend.name == "compile"
    assert twin.decoder is model.decoder
    frame = synthetic(model.interface, 64, episodes=1, steps=1).episodes[0][0].observation
    Policy(twin, Dense).act({0: frame})
    entered = twin.backend.entered
    Policy(model, Dense).act({0: frame})
    assert twin.backend.entered == entered and twin.backend.compiled and not model.backend.compiled


def test_blocks_of_dense_and_method_take_turns_in_being_first():
    order, model = [], Toy()
    noted = lambda name: lambda: Scripted(Plan((0,)), lambda c: order.append(name))  # noqa: E731
    episodes = synthetic(model.interface, 64, episodes=1, steps=2).episodes
    arms = [micro.TimedArm(n, Policy(model, noted(n)), "sdpa") for n in ("dense", "method")]
    rules = micro.TimingConfig(warmup=2, calls=8, seconds=0.0, block=2, look=False)
    micro.compare(arms[0], arms[1:], episodes, rules, Watch(CPU, Nvml(CPU)))
    assert order[:2] == ["method"] * 2  # warm-up
    rounds = [order[i : i + 6] for i in range(2, len(order), 6)]  # two dense calls thrown away, then two blocks
    assert len(order) == 26 and all(one[:2] == ["dense"] * 2 for one in rounds)
    assert [one[2] for one in rounds] == ["dense", "method", "dense", "method"]


def test_a_ratio_is_dense_time_over_the_methods(monkeypatch):
    """Two hand-made arms: dense takes 8 ms, the method 2 ms and half of the FLOPs."""
    model = Toy()
    dense, ours = (micro.TimedArm(n, Policy(model, Dense), "sdpa") for n in ("dense", "method"))
    dense.blocks, ours.blocks = [[8.0, 8.0]] * 3, [[2.0, 2.0]] * 3
    dense.busy, ours.busy = [8.0] * 3, [4.0] * 3
    pair = micro.Pair(ours, dense, [0, 1, 2])
    assert pair.ratios.tolist() == [4, 4, 4] and pair.busy_ratios.tolist() == [2, 2, 2]


def timed(label, blocks, busy, calls):
    """An arm with these milliseconds, processor times and records; it has run nothing."""
    return micro.TimedArm(label, Policy(Toy(), Dense), "sdpa", blocks, busy, calls)


def called(gflops, kept, **ms):
    """The record of a call of two layers, of 8 visual tokens, with so many GFLOPs in the prompt and one in vision."""
    return StepRecord((9, 9), (9, 9), 8, (8, kept), 0, {"vision": 1e9, "prompt": gflops * 1e9}, ms)


def test_every_column_of_a_comparison_by_hand():
    """Dense takes 8 and then 12 ms, with a block between them that ran beside another arm. The method's first call
    after a reset is dense; the others have four tenths of the FLOPs."""
    slow = [[called(9, 8, prompt=p)] * 3 for p in (6.0, 90.0, 8.0)]
    quick = [
        [called(9, 8, prompt=6.0, other=0.5), *[called(3, 2, prompt=p, method=p / 2, other=0.5)] * 2]
        for p in (1.0, 2.0)
    ]
    dense = timed("dense", [[8.0] * 3, [100.0] * 3, [12.0, 12.0, 15.0]], [24.0, 300.0, 36.0], slow)
    ours = timed("ours", [[8.0, 2.0, 2.0], [10.0, 4.0, 4.0]], [12.0, 12.0], quick)
    dense.products = {"prompt": [Work(4 * 989e9, 0)]}  # 4 ms on an H100
    ours.products = {"prompt": [Work(989e9, 0), Work(0, 3.35e9)] * 2, "method": [Work(6e9, 8e9)]}  # 1 + 1 ms a call
    ours.counted, ours.joules, ours.memory = 2, [3.0, 5.0, 4.0], (70.0, 90.0)
    here, pair = Device("here", 2 * 989e12, 3.35e12, "by hand"), micro.Pair(ours, dense, [0, 2])
    base = speed.described(dense.policy.model, dense, here)
    row = speed.against(speed.described(ours.policy.model, ours, here), pair, dense, base)
    times = {"calls": 6, "blocks": 2, "seconds": 0.03, "ms_p50": 4, "ms_p90": 9, "ms_p99": 9.9, "ms_jitter": 5.9}
    times |= {"ms_first": 9, "ms_prompt": 3, "ms_method": 0.5, "ms_other": 0.5, "spans_share": 0.8, "other_share": 0.1}
    flops = {"flops_vision": 1e9, "flops_prompt": 5e9, "flops_call": 6e9, "flops_cut": 0.4, "speedup_flops": 5 / 3}
    flops |= {"steady_flops": 4e9, "ms_pruned": 3, "dense_share": 1 / 3, "visual": 8, "visual_mean": 6}
    ratios = {"speedup": 3.5, "speedup_low": 3, "speedup_high": 4, "speedup_q1": 3.25, "speedup_q3": 3.75}
    ratios |= {"speedup_busy": 2.5, "method_share": 0.5 / 10.5, "prompt": 5, "prompt_flops": 9 / 5, "bound": 5 / 3}
    floors = {"floor_ms": 1.5, "floor_share": 1.5 / 4, "bytes_call": 3.35e9 + 4e9, "flops_method_seen": 3e9}
    floors |= {"ceiling_H100": 2, "ceiling_H200": 2.4656, "ceiling_4090": 2.4797, "ceiling_A100": 2.6344}
    told = {"joules": 4, "mb_peak": 70, "mb_reserved": 90}
    expected = times | flops | ratios | floors | told
    assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-4)
    alone = {"ms_p50": 12, "flops_call": 1e10, "steady_flops": 1e10, "ms_pruned": 12, "dense_share": 1, "floor_ms": 2}
    assert {key: base[key] for key in alone} == pytest.approx(alone) and base["joules"] is None


def test_joules_are_those_of_a_call(monkeypatch):
    """A board that takes 4 J in every call."""
    calls = []
    arm = micro.TimedArm("it", Policy(Toy(), lambda: Scripted(Plan((0,)), calls.append)), "sdpa")

    class Board(Nvml):
        def energy(self):
            return 100.0 + 4 * len(calls)

    monkeypatch.setattr(micro, "WINDOW", 0.02)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    episodes = synthetic(arm.policy.model.interface, 64, episodes=1, steps=3).episodes
    micro.energy(arm, episodes, micro.TimingConfig(block=3), Board(CPU))
    assert arm.joules == [4] * 3 and len(calls) >= 9
    silent = micro.TimedArm("it", arm.policy, "sdpa")
    micro.energy(silent, episodes, micro.TimingConfig(), Nvml(CPU))
    assert silent.joules == []


def test_selections_and_their_values_stay_together_in_any_order():
    """Rows named out of order: each value goes to the row it was named for."""
    policy = Policy(Toy(), lambda: Scripted(Plan((1,)), shuffled))
    frame = synthetic(policy.model.interface, 64, episodes=1, steps=1).episodes[0][0].observation
    chunk = policy.act({0: frame})[0]
    plain = Policy(Toy(), lambda: Scripted(Plan((1,)), lambda c: Selection(torch.arange(0, 64, 2))))
    assert np.allclose(chunk, plain.act({0: frame})[0], atol=1e-5)


def shuffled(c):
    rows = torch.arange(0, 64, 2)[torch.randperm(32, generator=torch.Generator().manual_seed(0))]
    return Selection(rows, values=c.visual[rows])
