"""How long a call takes on a device: sources of latency, and what is refused."""

import json
import sys

import numpy as np
import pytest

from vlaprune import cli, config
from vlaprune.bench.toy import Toy as ToyBench
from vlaprune.config.compose import suffix
from vlaprune.delay import Delay
from vlaprune.errors import UserError
from vlaprune.methods.dense import Dense
from vlaprune.models.toy import Toy
from vlaprune.nn.backend import Backend
from vlaprune.policy import Policy
from vlaprune.profile.latency import Fixed, LatencyRow, Measured, Modelled, Table, curve, observed, source
from vlaprune.profile.published import MODELS
from vlaprune.profile.roofline import device
from vlaprune.records import StepRecord, read
from vlaprune.testing import scenes


def call(visual, total=128, others=10, columns=None, flops=1e9, **more):
    rows = tuple(v + others for v in visual)
    columns = rows if columns is None else tuple(c + others for c in columns)
    return StepRecord(rows, columns, total, tuple(visual), 0, {"prompt": flops}, {}, **more)


DENSE = call([128] * 6)


def test_a_number_is_the_time_of_every_call():
    assert {Fixed(80.0).ms(s, c, DENSE) for s in range(3) for c in range(3)} == {80.0}


def test_a_spread_is_a_function_of_episode_and_call_alone_and_has_the_percentiles_that_it_says():
    spread = Fixed(100.0, 250.0)
    np.random.seed(0)
    drawn = np.array([[spread.ms(seed, number, DENSE) for number in range(40)] for seed in range(50)])
    np.random.seed(1)
    spread.ms(99, 99, DENSE)
    assert spread.ms(7, 3, call([5] * 6)) == drawn[7, 3]
    assert np.percentile(drawn, 50) == pytest.approx(100, rel=0.05)
    assert np.percentile(drawn, 99) == pytest.approx(250, rel=0.12)
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.4


@pytest.mark.parametrize("name", MODELS)
def test_a_dense_call_takes_the_floor_by_the_share_and_a_pruned_one_less(name):
    modelled = Modelled(name, "orin64", 0.5)
    assert modelled.ms(0, 0, DENSE) == pytest.approx(modelled.expected)
    assert modelled.expected == pytest.approx(2 * Modelled(name, "orin64", 1.0).expected)
    pruned = [modelled.ms(0, 0, call([128, 128, *[kept] * 4])) for kept in (96, 64, 32, 8)]
    assert modelled.expected > pruned[0] and pruned == sorted(pruned, reverse=True)


def test_tokens_that_are_reused_are_attended_to_and_cost_less_than_computed_ones():
    modelled = Modelled("oft", "thor")
    half = [64] * 6
    dropped, reused = (modelled.ms(0, 0, call(half, columns=c)) for c in (half, [128] * 6))
    assert dropped < reused < modelled.expected


def test_a_second_pass_of_the_prompt_is_paid_for():
    modelled = Modelled("oft", "thor")
    twice = call([64] * 6, first_rows=(138,) * 6)
    assert modelled.ms(0, 0, twice) > modelled.expected > modelled.ms(0, 0, call([64] * 6))


@pytest.mark.parametrize("name", ["pi0", "pi05"])
def test_the_backward_pass_of_a_guided_flow_takes_as_long_as_its_forward_pass(name):
    longer, shorter = (Modelled(name, "orin64", 1.0, guided=guided).expected for guided in (True, False))
    assert longer - shorter == pytest.approx(device("orin64").floors(MODELS[name].call())["head"])


def test_shares_are_taken_at_the_same_relative_depth():
    model = MODELS["oft"]
    half = observed(model, call([128] * 3 + [64] * 3))
    by_hand = model.call(kept=256, layer=16)
    assert half["prompt"] == by_hand["prompt"] and half["vision"] == by_hand["vision"]


HEAD = "model,method,kernel,ms_p50,ms_pruned,flops_call,steady_flops\n"
LINES = (
    "oft,dense,eager,200,200,10,10\noft,dense,compile,100,100,10,10\n"
    "oft,fastv keep=0.5,compile,80,60,7,6\noft,fastv keep=0.25,compile,70,40,5,2\noft,divprune,compile,52,52,6,6\n"
)


def table(tmp_path, text=HEAD + LINES, **settings):
    path = tmp_path / "oft-orin64.csv"
    path.write_text(text)
    return source({"mode": "hold", "table": str(path), **settings}, "oft", "fastv")


def test_a_table_is_linear_in_flops_between_the_methods_own_arms(tmp_path):
    found = table(tmp_path)
    assert [a.method for a in found.arms] == ["fastv", "fastv", "dense"] and found.expected == 100
    for flops, ms in ((10, 100), (8, 80), (6, 60), (4, 50), (2, 40), (1, 40), (12, 100)):
        assert found.ms(0, 0, call([1], flops=flops)) == pytest.approx(ms)
    assert found.error == pytest.approx((70 - 60) / 60)  # without the middle arm the line gives 70


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("compile,100,", "compile,,"), "ms_p50 of dense is ''"),
        (("compile,100,", "compile,nan,"), "ms_p50 of dense is 'nan'"),
        ((",60,7,6", ",-60,7,6"), "ms_pruned of fastv keep=0.5 is '-60'"),
        ((",60,7,6", ",60,7,inf"), "steady_flops of fastv keep=0.5 is 'inf'"),
    ],
)
def test_a_number_of_a_table_that_is_no_time_is_named(tmp_path, change, said):
    with pytest.raises(ValueError, match=f"{said}, no number from 0 on; make"):
        _ = table(tmp_path, (HEAD + LINES).replace(*change)).arms


def test_an_arm_whose_calls_dropped_nothing_gives_no_time_of_a_pruned_call(tmp_path):
    text = HEAD + LINES + "oft,fastv keep=1.0,compile,100,,10,10\n,,,,,,\n"
    assert [a.flops for a in table(tmp_path, text).arms] == [2, 6, 10]
    (tmp_path / "latin.csv").write_bytes(b"model,method\xff\n")
    with pytest.raises(ValueError, match="is no CSV file"):
        _ = Table(tmp_path / "latin.csv", "oft", "fastv").arms


def test_without_arms_of_its_own_a_method_lies_between_all(tmp_path):
    found = Table(table(tmp_path).path, "oft", "visionzip")
    assert {a.method for a in found.arms} == {"dense", "fastv", "divprune"}
    assert found.ms(0, 0, call([1], flops=6)) == pytest.approx((60 + 52) / 2)
    assert curve([LatencyRow("a", 1, 4), LatencyRow("b", 1, 6)]) == ([1], [5])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, r"delay.mode=hold needs one of delay.ms, delay.device and delay.table, got"),
        ({"ms": 5, "device": "thor"}, r"needs one of .* got ms=5, device=thor"),
        ({"ms": -1}, r"delay.ms=-1.0; use a number of milliseconds from 0 on"),
        ({"ms": "soon"}, r"delay.ms=soon; use a number, or measured"),
        ({"ms": 100, "jitter": 50}, r"delay.jitter=50.0 with delay.ms=100.0; the p99 is above"),
        ({"device": "thor", "jitter": 50}, r"delay.jitter=50 goes with delay.ms=NUMBER only"),
        ({"ms": 10, "model": "pi0"}, r"delay.model=pi0 says whose time a device takes"),
        ({"device": "orin"}, r"device 'orin' is not one of"),
        ({"device": "thor"}, r"delay.device=thor needs a floor, and model tiny has none; there are floors of openvla"),
        ({"device": "thor", "model": "pi0", "share": 1.5}, r"delay.share=1.5; use a share"),
        ({"table": "nowhere.csv"}, r"delay.table=nowhere.csv is no file; make one with"),
    ],
)
def test_a_source_that_cannot_be_is_one_line(settings, said):
    with pytest.raises(ValueError, match=said) as caught:
        source({"mode": "hold", **settings}, "tiny", "fastv")
    assert "\n" not in str(caught.value)


def test_a_table_of_another_model_or_of_another_kind_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"holds times of pi0, and the calls are those of oft"):
        table(tmp_path, HEAD + LINES.replace("oft", "pi0"))
    with pytest.raises(ValueError, match=r"lacks model, kernel, .*; make it anew"):
        table(tmp_path, "method,ms_p50\ndense,3\n")
    with pytest.raises(ValueError, match="is empty"):
        table(tmp_path, "")
    with pytest.raises(ValueError, match="has no dense arm"):
        table(tmp_path, HEAD + "oft,fastv,sdpa,1,1,1,1\n")


def test_a_table_times_the_calls_of_the_model_that_it_is_told(tmp_path):
    path = table(tmp_path).path
    dense = sum(w.flops for s in MODELS["oft"].call().values() for w in s)
    path.write_text(HEAD + f"oft,dense,sdpa,100,100,{dense},{dense}\noft,fastv,sdpa,40,40,{dense / 2},{dense / 2}\n")
    found = source({"mode": "hold", "table": str(path), "model": "oft"}, "tiny", "fastv")
    assert found.ms(0, 0, DENSE) == pytest.approx(100, rel=0.01)
    assert 99 > found.ms(0, 0, call([100] * 6)) > 40


# -- the command -------------------------------------------------------------------------------------------------------


def evaluate(monkeypatch, tmp_path, *argv):
    monkeypatch.chdir(tmp_path)
    common = ["model=toy", "bench=toy", "logger=[]", "episodes=2", "hydra.run.dir=.", "output=run"]
    monkeypatch.setattr(sys, "argv", ["vlaprune-eval", *common, *argv])
    cli.evaluate()
    return read(tmp_path / "run")


def test_a_benchmark_that_does_not_say_what_holding_is_is_one_line():
    class Bare:
        name = "bare"

    cfg, _ = config.composed(["model=toy", "bench=toy", "method=dense", "delay.mode=hold", "delay.ms=1"])
    with pytest.raises(UserError, match="bench bare does not say what its robot does while it has no action"):
        config.delay(cfg, Bare(), Toy())


class Slow(Toy):
    """Its first two calls compile, and so does its fifth: each takes a second."""

    def __init__(self):
        super().__init__()
        self.backend, self.made = Backend(), 0

    def predict(self, observations, sessions):
        self.made += 1
        self.backend.compiled += self.made in (1, 2, 5)
        return super().predict(observations, sessions)


def test_the_world_does_not_wait_for_a_compiler(monkeypatch):
    model, bench = Slow(), ToyBench()
    delay = Delay("hold", Measured(), bench.control_hz, bench.hold)
    policy, plain = Policy(model, Dense, delay=delay), Policy(Toy(), Dense)
    for one in (policy, plain):
        monkeypatch.setattr(
            one.clock, "read", lambda own=one: {"other": 1000.0 if own is policy and model.made in (1, 2, 5) else 20.0}
        )
        one.reset(0, 7)
    for frame in scenes(0, 1, 3):
        policy.act({0: frame})
        plain.act({0: frame})
    records = policy.drain(0)
    assert model.made == 5 and [r.cold for r in records] == ["", "", "compile"]
    assert [r.delay["ms"] for r in records] == [20.0] * 3 and records[2].ms == {"other": 1000.0}
    assert [r.rows for r in records] == [r.rows for r in plain.drain(0)]
    assert policy.sessions[0].trace.step == plain.sessions[0].trace.step == 2


def test_a_delay_is_recorded_call_by_call_and_stands_in_the_identity(tmp_path, monkeypatch):
    run = evaluate(monkeypatch, tmp_path, "method=fastv", "execute=2", "delay.mode=overlap", "delay.ms=300")
    assert run.header.identity["delay"] == {"mode": "overlap", "ms": 300}
    assert run.header.provenance["delay"] == "every call takes 300 ms"
    record = next(iter(run.episodes.values()))
    assert record.calls[0].delay == {"ms": 300.0, "late": 2, "held": 2, "stale": 0, "dropped": 2}
    assert record.motion["world_seconds"] == record.steps / 5 and json.loads(json.dumps(dict(record.motion)))


def test_a_table_makes_no_folders_in_the_name_of_a_run():
    assert suffix("delay.mode=hold,delay.table=results/oft.csv") == ",delay.mode=hold,delay.table=results-oft.csv"
    assert suffix("") == ""


def test_a_world_that_waits_says_nothing_of_delay(tmp_path, monkeypatch):
    run = evaluate(monkeypatch, tmp_path, "method=dense")
    assert "delay" not in run.header.identity and not any(c.delay for r in run.episodes.values() for c in r.calls)


def test_pruned_calls_arrive_sooner_on_the_device(tmp_path, monkeypatch):
    timed = ["delay.mode=hold", "delay.device=orin64", "delay.model=oft"]
    runs = [
        evaluate(monkeypatch, tmp_path / m, f"method={m}", *timed)
        for m in ("dense", "fastv")
        if not (tmp_path / m).mkdir()
    ]
    dense, fastv = ({c.delay["ms"] for r in run.episodes.values() for c in r.calls} for run in runs)
    assert max(fastv) < min(dense) and "modelled, not measured" in runs[0].header.provenance["delay"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["delay.mode=slow", "delay.ms=1"], "delay.mode=slow; use one of wait, hold, overlap, stale, rtc"),
        (["delay.ms=100"], "delay.ms=100 with delay.mode=wait, where the world waits"),
        (
            ["delay.mode=overlap", "delay.ms=300"],
            "drops 2 actions of a chunk and then executes 4, but the model plans 4",
        ),
        (["delay.mode=rtc", "delay.ms=300"], "delay.mode=rtc guides a flow, and toy has none"),
        (["delay.mode=hold"], "needs one of delay.ms"),
        (["delay.mode=hold", "delay.ms=measured", "slots=2"], "needs slots=1"),
        (["delay.mode=hold", "delay.device=thor"], "model toy has none"),
        (["delay.mode=hold", "delay.ms=100", "delay.share=0.5"], "delay.share=0.5 is read with delay.device alone"),
        (["delay.share=0.5"], "delay.share=0.5 is read with delay.device alone"),
        (["delay.mode=hold", "delay.ms=100", "delay.beta=1"], "delay.beta=1 is read by delay.mode=rtc alone"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_runs(tmp_path, monkeypatch, capfd, argv, said):
    with pytest.raises(SystemExit) as stop:
        evaluate(monkeypatch, tmp_path, "method=dense", *argv)
    error = capfd.readouterr().err.strip()
    assert stop.value.code == 2 and said in error and "\n" not in error
    assert not (tmp_path / "run" / "journal.jsonl").exists()
