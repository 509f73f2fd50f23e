"""Every published way of counting reproduces its published number; floors and ceilings obey their laws."""

import math
from dataclasses import replace

import pytest
import torch

from vlaprune.meter import block_flops, decoder_flops, vit_block_flops
from vlaprune.nn.block import DecoderConfig
from vlaprune.profile.conventions import CONVENTIONS, prefill_macs, rosetta
from vlaprune.profile.published import LLAMA, MODELS, PATCHES, flow, prismatic, siglip
from vlaprune.profile.roofline import (
    DEVICES,
    Device,
    Work,
    attention,
    block,
    ceiling,
    decoder,
    device,
    linear,
    measure,
    total,
    vit,
)
from vlaprune.profile.times import TIMES
from vlaprune.records import StepRecord

T = 1e12


def dense(n, ffn=3):
    return prefill_macs(LLAMA, [n] * 32, ffn)


def near(value, target, digits=3):
    """Equal to a number printed with so many digits behind the point."""
    assert round(value, digits) == pytest.approx(target, abs=1.01 * 10**-digits), (value, target)


def test_one_openvla_call_has_three_published_numbers():
    near(dense(291) / T, 1.907)
    near(dense(291, ffn=2) / T, 1.487)
    near(2 * dense(291) / T, 3.81, 2)


@pytest.mark.parametrize(
    ("macs", "length"),
    [(1.864, 284.6), (1.862, 284.3), (1.906, 290.9), (3.970, 598.5), (4.013, 604.9), (3.95, 595.6), (7.91 / 2, 596.3)],
)
def test_prompt_lengths_behind_published_dense_numbers(macs, length):
    assert dense(length - 0.06) < macs * T < dense(length + 0.06)


@pytest.mark.parametrize(("keep", "macs", "full"), [(128, 1.139, 2.92), (64, 0.758, 2.91), (32, 0.571, 2.97)])
def test_vla_pruner_steady_state_is_pruned_from_layer_three(keep, macs, full):
    rest = 290.9 - PATCHES + keep
    between = (macs * T - dense(rest)) / (dense(290.9) - dense(rest)) * 32
    assert between == pytest.approx(full, abs=0.04)


def test_56_of_256_tokens_before_layer_two_and_before_layer_zero():
    assert prefill_macs(LLAMA, [290] * 2 + [90] * 30) / dense(290) == pytest.approx(0.351, abs=5e-4)
    assert prefill_macs(LLAMA, [90] * 32) / dense(290) == pytest.approx(0.308, abs=1.1e-3)


@pytest.mark.parametrize(("reused", "macs"), [(82, 1.355)])
def test_vla_caches_number_counts_computed_rows_only(reused, macs):
    near(prefill_macs(LLAMA, [284.6] * 2 + [284.6 - reused] * 30) / T, macs, 2)


def test_vla_acl_fits_152_positions_and_not_605():
    near(dense(605 - 512 + 64) / T, 1.023)  # its own 64 tokens at n = 605
    near(dense(152) / T, 0.991, 2)


def test_lightvla_counts_twice_and_adds_the_towers():
    towers, projector = prismatic(2)
    vision = sum(w.flops for w in towers + projector)
    assert vision / 2 == pytest.approx(0.405 * T, rel=2e-3)
    assert 2 * dense(603) / T == pytest.approx(8.0, abs=0.05)
    assert (2 * dense(603) + vision) / T == pytest.approx(8.8, abs=0.06)


@pytest.mark.parametrize(("kept", "ours", "published"), [(256, 4.17, 4.19), (112, 2.39, 2.45), (56, 1.71, 1.76)])
def test_efficientvla_counts_the_whole_model_twice_per_multiply(kept, ours, published):
    flops = total(MODELS["cogact"].call(kept, layer=2)).flops / T
    near(flops, ours, 2)
    assert flops == pytest.approx(published, rel=0.035)


WHOLE = {  # 100 / 50 / 35 / 22 % before layer 0, then before layer 2, in TFLOP
    "openvla": ((4.159, 2.486, 1.991, 1.562), (2.591, 2.127, 1.724)),
    "oft": ((8.718, 5.277, 4.269, 3.385), (5.492, 4.547, 3.718)),
    "cogact": ((4.150, 2.477, 1.982, 1.553), (2.582, 2.118, 1.715)),
    "pi0": ((3.073, 2.007, 1.694, 1.419), (2.125, 1.847, 1.603)),
}


def whole(model, kept, layer):
    """FLOPs of a call, the first pass of a causal model with half its attention, as that table counts."""
    flops = total(model.call(kept, layer)).flops
    if model.config.causal:
        visual = [model.visual if i < layer else kept for i in range(32)]
        flops -= 0.5 * sum(attention(n, n, 32, 32, 128).flops for n, _ in model.counts(visual, visual))
    return flops / T


@pytest.mark.parametrize("name", WHOLE)
def test_whole_call_flops_of_full_size_models(name):
    model = MODELS[name]
    for layer, targets, keeps in ((0, WHOLE[name][0], (1, 0.5, 0.35, 0.22)), (2, WHOLE[name][1], (0.5, 0.35, 0.22))):
        for keep, target in zip(keeps, targets, strict=True):
            assert whole(model, math.ceil(keep * model.visual), layer) == pytest.approx(target, rel=1e-3)


FLOORS = {  # dense GB, dense ms, ms at 50 / 35 / 22 %, largest speed-up there
    "openvla": (97.0, 23.9, (22.35, 22.27, 22.21), (1.07, 1.07, 1.08)),
    "oft": (19.06, 11.1, (6.77, 5.51, 4.40), (1.64, 2.02, 2.53)),
    "cogact": (18.3, 5.65, (4.15, 4.10, 4.06), (1.36, 1.38, 1.39)),
    "pi0": (13.63, 5.05, (3.70, 3.31, 3.16), (1.36, 1.53, 1.60)),
}


@pytest.mark.parametrize("name", FLOORS)
def test_roofline_floors_of_full_size_models_on_an_h200(name):
    model, h200 = MODELS[name], device("H200")
    moved, floor, pruned, speedups = FLOORS[name]
    dense = model.call()
    assert total(dense).bytes / 1e9 == pytest.approx(moved, rel=5e-3)
    assert h200.floor(w for s in dense.values() for w in s) == pytest.approx(floor, rel=5e-3)
    for keep, ms, speedup in zip((0.5, 0.35, 0.22), pruned, speedups, strict=True):
        call = model.call(math.ceil(keep * model.visual))
        assert sum(h200.floors(call).values()) == pytest.approx(ms, rel=8e-3)
        assert ceiling(h200, dense, call) == pytest.approx(speedup, rel=1e-2)


def test_ridge_points():
    assert DEVICES["H200"].ridge == pytest.approx(184, abs=0.5)
    assert DEVICES["4090"].ridge == pytest.approx(181, abs=0.5)
    assert 150 < DEVICES["A100"].ridge < 200


def test_below_the_ridge_fewer_tokens_save_no_time():
    h200 = device("H200")
    few, fewer = (h200.floor(decoder(LLAMA, [(n, n)] * 32)) for n in (120, 60))
    assert few / fewer < 1.06
    assert h200.floor(decoder(LLAMA, [(600, 600)] * 32)) / few > 3


def test_images_of_one_pass_share_the_weights_and_nothing_else():
    one, two = (vit(9, 32, 4, 64, 3, batch) for batch in (1, 2))
    weights = 2 * 3 * (32 * 96 + 32 * 32 + 2 * 32 * 64)  # bytes of three blocks in 16 bits
    assert sum(w.flops for w in two) == 2 * sum(w.flops for w in one)
    assert sum(w.bytes for w in two) == 2 * sum(w.bytes for w in one) - weights


def test_works_count_the_flops_that_the_meter_counts():
    shape = DecoderConfig(hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=24, intermediate_size=96)
    assert sum(w.flops for w in block(shape, 7, 11)) == block_flops(shape, 7, 11)
    assert sum(w.flops for w in decoder(shape, [(7, 7), (5, 7)])) == decoder_flops(shape, [(7, 7), (5, 7)])
    assert sum(w.flops for w in vit(9, 32, 4, 64, 3)) == 3 * vit_block_flops(9, 32, 64)
    assert sum(w.flops for w in siglip(1)[0]) == pytest.approx(0.219 * T, rel=1e-2)


def test_a_floor_is_never_below_either_bound_and_adds_up():
    on = Device("d", 1e9, 1e8, "test")
    works = [Work(3e6, 1e5), Work(1e6, 2e5), *linear(4, 8, 16)]
    assert on.floor(works) == pytest.approx(sum(on.floor([w]) for w in works))
    assert on.floor(works) >= 1e3 * max(sum(w.flops for w in works) / on.flops, sum(w.bytes for w in works) / 1e8)
    assert on.ridge == 10


def test_what_stays_in_fp32_is_held_against_the_peak_of_fp32():
    on = Device("d", 1e9, 1e12, "test", single=1e8)
    assert on.floor([Work(1e6, 1.0)]) == pytest.approx(1.0)
    assert (
        on.floor([Work(1e6, 1.0, single=True)]) == on.floor([Work(5e5, 1.0, single=True).times(2)]) == pytest.approx(10)
    )
    assert replace(on, single=None).floor([Work(1e6, 1.0, single=True)]) == pytest.approx(
        1.0
    )  # not known: a lower bound


def test_an_unknown_device_is_named():
    with pytest.raises(ValueError, match=r"V100.*H100, H200, 4090, A100"):
        device("V100")


def test_this_machine_is_measured_not_looked_up():
    here = measure(torch.device("cpu"), torch.float32, side=256, repeats=5)
    assert here.flops > 1e8 and here.bandwidth > 1e8 and "measured" in here.source and here.single is None
    mixed = measure(torch.device("cpu"), torch.bfloat16, side=256, repeats=5)
    assert mixed.single is not None and mixed.single > 1e8 and "bfloat16" in mixed.source


@pytest.mark.parametrize(("kv_heads", "head_dim"), [(4, 16), (2, 16), (1, 24)])
def test_a_call_in_every_convention(kv_heads, head_dim):
    """Also where heads share keys and values, and where they are wider than the hidden states."""
    shape = DecoderConfig(64, 2, 4, kv_heads, head_dim, intermediate_size=96)
    stages = {"vision": 5.0, "prompt": decoder_flops(shape, [(10, 10), (6, 6)]), "method": 1.0}
    said = rosetta(shape, StepRecord((10, 6), (10, 6), 8, (8, 4), 0, stages, {}))
    assert said.keys() == CONVENTIONS.keys()
    assert said["flops_call"] == sum(stages.values())
    assert said["flops_prefill"] == 2 * said["macs_prefill_paper"] == stages["prompt"]
    q, kv = 4 * head_dim, kv_heads * head_dim  # numbers of a row's queries, and of its keys
    assert said["macs_prefill_paper"] == 16 * (64 * (2 * q + 2 * kv) + 3 * 64 * 96) + 2 * (100 + 36) * q
    assert said["macs_prefill_paper"] - said["macs_prefill_eq9"] == 16 * 64 * 96
    assert said["visual_mean"] == 6


def test_papers_way_of_counting_counts_both_passes_of_a_prompt():
    once = StepRecord((10, 6), (10, 6), 8, (8, 4), 0, {"prompt": 1.0}, {})
    twice = replace(once, first_rows=once.rows)
    for name in ("flops_prefill", "macs_prefill_paper", "macs_prefill_eq9"):
        assert rosetta(LLAMA, twice)[name] == 2 * rosetta(LLAMA, once)[name]


def test_no_published_time_lies_below_our_floor():
    known = [t for t in TIMES if t.floor is not None]
    assert len(known) >= 10 and {t.device for t in known} >= {"4090", "5090", "Orin64", "Thor"}
    for time in known:
        assert time.ratio > 1.0, f"{time} lies below the floor of {time.floor:.1f} ms"
    assert min(t.ratio for t in known) < 1.4  # nor is the floor so low that it says nothing


def test_pi05_costs_what_pi0_costs_without_its_state_row_and_time():
    pi0, pi05 = (flow(name, 2, 48) for name in ("pi0", "pi05"))
    assert total(pi05.call()).flops < total(pi0.call()).flops < 1.02 * total(pi05.call()).flops


def test_a_device_is_found_whatever_its_letters():
    assert device("orin64") is DEVICES["Orin64"] and device("H100") is device("h100")
    with pytest.raises(ValueError, match=r"device 'orin' is not one of H100, .*Thor"):
        device("orin")
