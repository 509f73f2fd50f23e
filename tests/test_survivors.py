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
from vlaprune.profile import micro
from vlaprune.profile.machine import Nvml, Watch
from vlaprune.profile.recording import synthetic
from vlaprune.pruner import Plan, PruneContext, Selection
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
    arms = [micro.Arm(n, Policy(model, noted(n)), "sdpa") for n in ("dense", "method")]
    rules = micro.TimingConfig(warmup=0, calls=8, seconds=0.0, block=2, look=False)
    micro.compare(arms[0], arms[1:], episodes, rules, Watch(CPU, Nvml(CPU)))
    rounds = [order[i : i + 6] for i in range(0, len(order), 6)]  # two dense calls thrown away, then two blocks
    assert len(order) == 24 and all(one[:2] == ["dense"] * 2 for one in rounds)
    assert [one[2] for one in rounds] == ["dense", "method", "dense", "method"]


def test_a_ratio_is_dense_time_over_the_methods(monkeypatch):
    """Two hand-made arms: dense takes 8 ms, the method 2 ms and half of the FLOPs."""
    model = Toy()
    dense, ours = (micro.Arm(n, Policy(model, Dense), "sdpa") for n in ("dense", "method"))
    dense.blocks, ours.blocks = [[8.0, 8.0]] * 3, [[2.0, 2.0]] * 3
    dense.busy, ours.busy = [8.0] * 3, [4.0] * 3
    pair = micro.Pair(ours, dense, [0, 1, 2])
    assert pair.ratios.tolist() == [4, 4, 4] and pair.busy_ratios.tolist() == [2, 2, 2]


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
