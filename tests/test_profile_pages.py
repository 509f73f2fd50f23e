"""The other pages of the profiler, at the size of tests: floors, overhead, every method on every model."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch

from vlaprune import cli
from vlaprune.errors import UserError
from vlaprune.methods.dense import Dense
from vlaprune.methods.fastv import FastV
from vlaprune.methods.infoentropy import InfoEntropy
from vlaprune.methods.vlacache import VLACache
from vlaprune.models.toy import Toy
from vlaprune.nn.block import DecoderConfig
from vlaprune.policy import Policy
from vlaprune.profile import check, floors, micro, overhead
from vlaprune.profile.page import Page
from vlaprune.profile.recording import actions, synthetic
from vlaprune.profile.roofline import DEVICES

SMALL = DecoderConfig(hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=16, intermediate_size=48)


def page(monkeypatch, tmp_path, *argv):
    """Runs vlaprune-profile; its table."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["vlaprune-profile", "bench=toy", "hydra.run.dir=.", "output=out", *argv])
    cli.profile()
    (csv,) = (tmp_path / "out").glob("*.csv")
    return pd.read_csv(csv), csv.with_suffix(".md").read_text()


def test_floors_need_no_model_and_fall_with_the_budget(tmp_path, monkeypatch):
    table, text = page(monkeypatch, tmp_path, "model=toy", "mode=floors", "keeps=[0.5,0.25]")
    assert set(table["device"]) == set(DEVICES) and "largest speed-up" in text
    for _, part in table[table["layer"] == 0].groupby(["device", "model"]):
        assert list(part["keep"]) == [1.0, 0.5, 0.25]
        assert part["ms"].is_monotonic_decreasing and part["ceiling"].is_monotonic_increasing
        assert part["ceiling"].iloc[0] == 1 and (part["ceiling"] <= 1 / (1 - part["flops_cut"])).all()


def test_floors_take_budgets_as_methods_do():
    with pytest.raises(UserError, match=r"keep=2.5 is no budget"):
        floors.fill(Page("t"), [2.5])
    one, whole = (floors.fill(Page("t"), [keep]) for keep in (1, 1.0))
    assert {r["visual"] for r in one if r["keep"] == 1 and r["flops_cut"]} == {1}
    assert all(r["flops_cut"] == 0 for r in whole)


@pytest.mark.parametrize("make", [lambda: FastV(keep=0.25), VLACache])
def test_a_choice_thrown_away_leaves_dense_actions_and_all_the_reading(make):
    frames = synthetic(Toy().interface, 64, episodes=1, steps=4).frames
    dense, idle = (Policy(Toy(), m) for m in (Dense, lambda: overhead.IgnoredChoice(make())))
    for a, b in zip(actions(dense, frames, 0), actions(idle, frames, 0), strict=True):
        assert np.array_equal(a, b)
    assert all(min(r.visual) == r.total for r in idle.drain(0))
    assert idle.drain(0)[-1].flops["method"] > 0 == dense.drain(0)[-1].flops["method"]


def test_our_decoder_is_measured_beside_transformers_with_equal_results():
    sheet = Page("t")
    (row,) = overhead.decoders(sheet, SMALL, [9], rounds=4)
    assert row["difference"] < 1e-4 and row["calls"] == 4 and row["low"] <= row["ratio"] <= row["high"]
    assert "transformers, ms" in sheet.parts[0]


def test_calls_in_turns_are_all_timed():
    seen = []
    times = overhead.alternate([lambda: seen.append("a"), lambda: seen.append("b")], rounds=4, warmup=2)
    assert times.shape == (4, 2, 2) and (times >= 0).all()
    assert "".join(seen) == "baab" * 3


def test_the_overhead_page_has_every_method_once(tmp_path, monkeypatch):
    quick = ("calls=4", "seconds=0", "block=2", "warmup=1", "rounds=2", "lengths=[4]", "observations=noise")
    small = "decoder={hidden_size: 32, num_layers: 2, num_heads: 2, intermediate_size: 48}"
    few = "methods=[fastv,divprune,vlacache,sparsevlm]"
    table, text = page(monkeypatch, tmp_path, "model=toy", "mode=overhead", few, small, *quick)
    assert list(table["arm"]) == [
        "prompt of 4 tokens",
        "dense again",
        "fastv keep=1.0",
        "divprune keep=1.0",
        "vlacache, choice thrown away",
        "sparsevlm, choice thrown away",
    ]
    assert "at most 3 %" in text


def test_the_pictures_page_times_every_way_on_the_benchmarks_own(tmp_path, monkeypatch):
    table, text = page(monkeypatch, tmp_path, "model=toy", "mode=pictures", "calls=2")
    ways = set(table["way"])
    assert {"rlds_crop", "letterbox, torch"} <= ways and "area" not in ways  # toy's are too small for area means
    assert (table["ms_p50"] > 0).all() and (table["ms_busy"] >= 0).all() and "Pictures of toy: main 64x64" in text


def test_the_check_runs_at_reduced_size_on_a_cpu(tmp_path, monkeypatch):
    few = ("models=[cogact_tiny]", "methods=[fastv]", "keeps=[0.5]", "minutes=0.15")
    table, text = page(monkeypatch, tmp_path, "model=toy", "mode=check", *few)
    arms = ["dense", "dense again", "fastv keep=0.5"]
    assert list(table["method"]) == arms and set(table["model"]) == {"cogact_tiny"}
    assert (table["ms_p50"] > 0).all() and (table["floor_ms"] > 0).all() and (table["floor_share"] < 1).all()
    assert "no row for dense under graph" not in text and "hardware" in text


def test_a_check_that_is_stopped_keeps_every_round_that_was_measured(tmp_path, monkeypatch):
    def stopped(dense, arms, episodes, rules, watch, tell, seen):
        pairs = [micro.Pair(arm, dense) for arm in arms]
        pairs[0].arm.warm(rules.blocks(episodes), rules)
        micro._beside(pairs[0], episodes[0], rules.seed, watch, first=True)
        seen(pairs)
        raise KeyboardInterrupt

    monkeypatch.setattr(micro, "compare", stopped)
    with pytest.raises(SystemExit):
        page(monkeypatch, tmp_path, "model=toy", "mode=check", "models=[cogact_tiny]", "methods=[fastv]")
    (csv,) = (tmp_path / "out").glob("*.csv")
    assert list(pd.read_csv(csv)["method"]) == ["dense", micro.AGAIN]
    assert "## Summary" in csv.with_suffix(".md").read_text()


def test_the_check_takes_full_sizes_where_there_is_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert check.models(None) == ["openvla", "oft", "cogact", "pi0"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check.models(None) == ["openvla_tiny", "oft_tiny", "cogact_tiny", "pi0_tiny"]
    assert sum(seconds for _, seconds in check.shares(None, 10)) < 600


def test_a_method_that_promises_no_count_at_full_budget_is_not_heeded():
    arms = [("vlacache", VLACache), ("fastv", FastV), ("fastv keep=1.0", lambda: FastV(keep=1.0))]
    arms += [("infoentropy", InfoEntropy)]
    labels = [label for label, _ in overhead.kept(arms, Toy().info)]
    assert labels == ["fastv keep=1.0", "vlacache, choice thrown away", "infoentropy, choice thrown away"]
