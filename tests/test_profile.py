"""The profiler: recordings come back as they were, times add up, ratios are honest, a bad comparison is refused."""

import gc
import json
import subprocess
import sys
import time
import weakref
from csv import DictReader
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from doubles import Scripted

from vlaprune import cli, config
from vlaprune.bench.toy import Toy as ToyBench
from vlaprune.control import Control
from vlaprune.meter import Clock
from vlaprune.methods.dense import Dense
from vlaprune.methods.divprune import DivPrune
from vlaprune.methods.fastv import FastV
from vlaprune.methods.ties.calibration import Calibration
from vlaprune.methods.ties.ties import TIES
from vlaprune.methods.vlacache import VLACache
from vlaprune.models.backends import kernel, missing, with_backend
from vlaprune.models.tiny import Tiny
from vlaprune.models.toy import STYLES, Toy
from vlaprune.nn.backend import Backend
from vlaprune.policy import Policy
from vlaprune.profile import check, job, measured, micro, speed
from vlaprune.profile.calibrate import ready
from vlaprune.profile.machine import Nvml, Watch, bytes_held, idle_power
from vlaprune.profile.page import Page
from vlaprune.profile.products import Products
from vlaprune.profile.recording import Recording, actions, closes, origin, phases, record, synthetic
from vlaprune.profile.roofline import Device
from vlaprune.profile.speed import COMPLETE, against, described, speedup
from vlaprune.pruner import Budget, Plan
from vlaprune.stats.measured import median_interval
from vlaprune.testing import SimulatedGraphs, with_segments

HERE = Device("here", 1e11, 1e10, "test")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return Tiny("random", ("a", "b"), width=32, layers=4, heads=2, vision_width=64, image=64, chunk=5, device="cpu")


@pytest.fixture(scope="module")
def seen():
    return record(Policy(Toy(), Dense, control=Control(execute=1)), ToyBench(), episodes=3, seed=7, origin="here")


def test_a_recording_comes_back_as_it_was(tmp_path, seen):
    seen.save(tmp_path / "seen.npz")
    back = Recording.load(tmp_path / "seen.npz")
    assert back.card == seen.card and len(back.frames) == len(seen.frames)
    for a, b in zip(seen.frames, back.frames, strict=True):
        assert (a.task, a.episode, a.step, a.phase) == (b.task, b.episode, b.step, b.phase)
        assert a.observation.instruction == b.observation.instruction
        assert np.array_equal(a.observation.state, b.observation.state)
        assert np.array_equal(a.observation.images["main"], b.observation.images["main"])
    assert [e[0].step for e in back.episodes] == [0] * 6 and list(tmp_path.iterdir()) == [tmp_path / "seen.npz"]


def test_a_damaged_recording_is_named(tmp_path):
    (tmp_path / "seen.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(ValueError, match=r"seen\.npz is no whole recording"):
        Recording.load(tmp_path / "seen.npz")


def test_replaying_a_recording_gives_the_recorded_course(seen):
    """The recorded episodes are those of a rollout: acting again leads to the same next observation."""
    policy = Policy(Toy(), Dense)
    bench = ToyBench()
    for episode in seen.episodes[:2]:
        first = [chunk[0] for chunk in actions(policy, episode, 7)]
        with bench.open(bench.tasks()[0]) as world:
            world.reset(episode[0].episode)
            for frame, action in zip(episode, first, strict=True):
                assert np.array_equal(world.observe().state, frame.observation.state)
                done = world.step(action)
        assert done


@pytest.mark.parametrize(
    ("gripper", "shut", "open_"), [("close_positive", 0.4, -0.3), ("open_positive", -0.4, 0.3), ("zero_one", 0.1, 0.9)]
)
def test_what_closes_the_gripper_depends_on_the_interface(gripper, shut, open_):
    """As Interface has it: zero_one closes at 0."""
    assert closes(np.array([[0, shut]]), gripper).all() and not closes(np.array([[0, open_]]), gripper).any()


def test_a_change_of_the_gripper_lasts_until_the_next():
    moves = np.array([0.0, 0.0, 0.5, 0.0, -0.2, 0.0])
    assert closes(np.stack((moves, moves), -1), "close_delta").tolist() == [False, False, True, True, False, False]


class Grips(Toy):
    """The toy, which closes its gripper in the second call and opens it in the third."""

    def predict(self, observations, sessions):
        (chunk,), (session,) = super().predict(observations, sessions), sessions
        chunk[:, -1] = 1.0 if session.trace.step == 1 else -1.0
        return [chunk]


@pytest.mark.parametrize("gripper", [None, "flip", "push"])
def test_the_phase_of_a_call_is_the_same_in_every_convention_of_the_robot(gripper):
    policy = Policy(Grips(), Dense, control=Control(gripper=gripper, execute=1))
    told = [frame.phase for frame in record(policy, ToyBench(), 1, 7, "here").episodes[0]]
    assert told[:3] == ["approach", "switch", "switch"]


def test_phases_follow_the_gripper():
    off, on, flip = np.zeros(3, bool), np.ones(3, bool), np.array([False, True, True])
    assert phases([off, off, flip, on, on, off, off]) == [
        *["approach"] * 2, "switch", "carry", "carry", "switch", "after"
    ]  # fmt: skip
    assert phases([on]) == ["switch"]


def test_synthetic_observations_fit_the_interface_and_move_little(tiny):
    frames = synthetic(tiny.interface, 64, episodes=2, steps=3).frames
    a, b = (f.observation.images["a"] for f in frames[:2])
    assert 0 < (a != b).any(-1).mean() < 0.05
    assert len(actions(Policy(tiny, Dense), frames[:3], 0)) == 3


def arm(model, make, label="arm", rung="sdpa"):
    return micro.TimedArm(label, Policy(model, make), rung)


RULES = micro.TimingConfig(warmup=2, calls=8, seconds=0.0, block=4)


def test_every_block_of_a_method_has_a_dense_block_of_the_same_calls(tiny):
    episodes = synthetic(tiny.interface, 64, episodes=2, steps=4).episodes
    base = arm(tiny, Dense)
    (pair,) = micro.compare(base, [arm(tiny, lambda: DivPrune(keep=0.25))], episodes, RULES, Watch(CPU, Nvml(CPU)))
    assert len(pair.arm.ms) >= RULES.calls and len(pair.beside) == len(pair.arm.blocks) == len(pair.busy_ratios)
    assert all(len(base.blocks[i]) == len(m) == 4 for i, m in zip(pair.beside, pair.arm.blocks, strict=True))
    assert np.isfinite(pair.stage_ratios("prompt")).all() and np.isnan(pair.stage_ratios("decode")).all()
    assert pair.ratios.shape == (len(pair.beside),) and (pair.ratios > 0).all() and (pair.busy_ratios > 0).all()


class Late(Backend):
    """Captures anew in its fifth run, however long ago the warm-up was."""

    def run(self, key, segment, *inputs):
        self.captured += self.entered in (0, 5)
        return super().run(key, segment, *inputs)


def test_calls_that_capture_are_in_no_block_and_are_counted():
    """Of one arm or of all: blocks stay of the same observations."""
    rules = micro.TimingConfig(warmup=0, calls=6, seconds=0.0, block=2, look=False)
    episodes = synthetic(Toy().interface, 64, episodes=2, steps=2).episodes
    late = arm(with_segments(Toy("parallel"), Late()), Dense, "late", "compile")
    (pair,) = micro.compare(arm(Toy("parallel"), Dense), [late], episodes, rules, Watch(CPU, Nvml(CPU)))
    assert late.cold == 2 and len(late.records) == len(late.ms) == 6 and not any(r.cold for r in late.records)
    assert len(pair.beside) == len(late.blocks) == len(late.busy) == 3
    both = [arm(with_segments(Toy("parallel"), Late()), Dense, "dense", "compile"), arm(Toy("parallel"), Dense)]
    micro.fastest_backend(both, episodes, rules, Watch(CPU, Nvml(CPU)))
    assert len(both[0].blocks) == len(both[1].blocks) and both[0].cold == 2
    assert speed.beside_sdpa(both)["compile"]["sdpa_blocks"] == 3


def test_energy_is_measured_while_the_method_has_its_graphs(monkeypatch):
    built = []

    class Forgets(Late):
        def clear(self):
            built.append("cleared")

    monkeypatch.setattr(micro, "energy", lambda arm, *rest: built.append(arm.label))
    episodes = synthetic(Toy().interface, 64, episodes=1, steps=2).episodes
    ours = arm(with_segments(Toy("parallel"), Forgets()), Dense, "ours")
    micro.compare(arm(Toy("parallel"), Dense), [ours], episodes, RULES, Watch(CPU, Nvml(CPU)))
    assert built == ["ours", "cleared"]


def test_memory_of_other_arms_is_what_was_made_since_the_watch_began(monkeypatch):
    now = {"memory_allocated": 5e6, "memory_reserved": 8e6}
    for name in now:
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name: now[name])
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    watch = Watch(torch.device("cuda"), Nvml(CPU))
    assert watch.others() == (0, 0)
    now.update(memory_allocated=7e6, memory_reserved=18e6)
    assert watch.others() == (2, 10) and Watch(CPU, Nvml(CPU)).others() == (0, 0)


def test_a_dropped_policy_is_gone_at_once():
    """Without the collector of cycles: what it held is no other arm's memory."""
    policy = Policy(Toy(), Dense)
    policy.act({0: synthetic(Toy().interface, 64, 1, 1).frames[0].observation})
    gone = weakref.ref(policy)
    gc.disable()
    try:
        del policy
        assert gone() is None
    finally:
        gc.enable()


def test_what_is_shared_by_heads_is_moved_once():
    """A key head that serves eight query heads without a copy: its bytes are those of one head."""
    q, k = torch.randn(8, 4, 16), torch.randn(1, 16, 5)
    with Products(lambda: "prompt") as seen:
        torch.bmm(q, k.expand(8, 16, 5))
        torch.bmm(q, k.repeat(8, 1, 1))
    once, each = seen.found["prompt"]
    assert once.flops == each.flops and each.bytes - once.bytes == 7 * k.numel() * 4


def test_a_slow_method_is_slower_by_what_it_sleeps(tiny):
    """The clock holds the method's scoring: no part of a call is outside."""

    def sleepy(site):
        time.sleep(0.02)

    episodes = synthetic(tiny.interface, 64, episodes=1, steps=4).episodes
    base, slow = arm(tiny, Dense), arm(tiny, lambda: Scripted(Plan((1,)), sleepy))
    (pair,) = micro.compare(base, [slow], episodes, RULES, Watch(CPU, Nvml(CPU)))
    assert min(pair.arm.ms) > 20 and min(pair.arm.ms) - min(base.ms) > 15
    assert np.median([r.ms["method"] for r in slow.records]) > 20
    row = described(tiny, slow, HERE)
    assert row["ms_method"] > 20 and row["spans_share"] >= COMPLETE


def test_a_method_that_breaks_its_budget_gets_no_speed_up(tiny):
    def few(site):
        return DivPrune(keep=0.25).select(site)

    liar = arm(tiny, lambda: Scripted(Plan((0,), budget={0: Budget(0.5)}), few))
    episodes = synthetic(tiny.interface, 64, episodes=1, steps=4).episodes
    (pair,) = micro.compare(arm(tiny, Dense), [liar], episodes, RULES, Watch(CPU, Nvml(CPU)))
    assert "promised 16 of 32 visual tokens" in pair.arm.refused and not pair.arm.blocks


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("make", [Dense, lambda: FastV(layer=2)])
def test_products_seen_are_the_flops_charged(style, make):
    policy = Policy(Toy(style), make)
    frame = synthetic(Toy().interface, 64, episodes=1, steps=1).frames[0]
    clock = policy.clock
    with Products(lambda: next((n for n in reversed(clock.open) if n != "other"), "other")) as found:
        policy.act({0: frame.observation})
    (record_,) = policy.drain(0)
    assert {k: v for k, v in record_.flops.items() if v} == {k: sum(w.flops for w in v) for k, v in found.found.items()}


def test_products_of_a_method_that_nobody_charged_are_seen(tiny):
    base = arm(tiny, lambda: DivPrune(keep=0.5))
    base.warm(RULES.blocks(synthetic(tiny.interface, 64, 1, 4).episodes), RULES)
    assert sum(w.flops for w in base.products["method"]) > 0 and base.counted == 2


def test_backends_act_alike(tiny):
    every = (("sdpa", None), ("eager", None), ("compile", "eager")), (("sdpa", None), ("compile", None))
    for model, rungs in zip((tiny, Toy("parallel")), every, strict=True):  # inductor takes long: of the smallest one
        frames, chunks = synthetic(model.interface, 64, episodes=1, steps=2).frames, []
        for rung, backend in rungs:
            with kernel(rung):
                policy = Policy(with_backend(model, rung, backend), Dense)
                chunks.append(actions(policy, frames, 0))
            assert sum(policy.drain(0)[-1].flops.values()) == sum(policy.drain(0)[0].flops.values()) > 0
        for other in chunks[1:]:
            assert np.allclose(chunks[0], other, atol=1e-5)
    assert missing("graph", CPU) and missing("flash", CPU) and missing("sdpa", CPU) is None
    with pytest.raises(ValueError, match="fastest"), kernel("fastest"):
        pass


def test_a_compiled_prompt_pass_leaves_a_cache_that_decoding_can_use():
    frames = synthetic(Toy().interface, 64, 1, 2).frames
    plain, compiled = (Policy(with_backend(Toy("autoregressive"), r, "eager"), Dense) for r in ("sdpa", "compile"))
    for a, b in zip(actions(plain, frames, 0), actions(compiled, frames, 0), strict=True):
        assert np.allclose(a, b, atol=1e-5)
    assert [r.flops for r in plain.drain(0)] == [r.flops for r in compiled.drain(0)]


class Told(Nvml):
    """A board that says what it is told to."""

    def __init__(self, clocks=(1000,), processes=1):
        self.reason, self.told, self._processes = None, list(clocks), processes

    def clock(self):
        return self.told[0]

    def processes(self):
        return self._processes


@pytest.mark.parametrize(
    ("nvml", "why"),
    [
        (Told([1000, 1049]), None),
        (Told([1000, 1060]), "clocks moved from 1000 to 1060 MHz between neighbouring blocks"),
        (Told([1000, 1000], processes=2), "2 processes on the GPU"),
    ],
)
def test_a_disturbed_gpu_gives_no_speed_up(nvml, why):
    watch = Watch(torch.device("cuda"), nvml)
    watch.clocks = nvml.told
    watch.check()
    assert watch.refusal == why


def test_what_a_machine_cannot_say_is_none_with_a_reason():
    nvml = Nvml(CPU)
    assert nvml.energy() is None and nvml.clock() is None and nvml.processes() is None and idle_power(nvml) is None
    assert nvml.reason.startswith("no NVML")
    watch = Watch(CPU, nvml, load=9.0)
    assert watch.refusal is None and "shared machine: load 9.0" in watch.shared


def test_memory_that_a_method_holds_is_counted():
    pruner = Scripted(Plan())
    pruner.past = {"a": [torch.zeros(4), torch.zeros(2, dtype=torch.float64)]}
    assert bytes_held(pruner) == 32


def test_memory_is_counted_once_under_two_names_and_as_a_part_of_another():
    """As where a method keeps the frame of this call as that of the call before."""
    pruner = Scripted(Plan())
    pruner.now = (torch.zeros(4), torch.zeros(2, dtype=torch.float64))
    pruner.before, pruner.part = pruner.now, pruner.now[0][:2]
    assert bytes_held(pruner) == 32


def test_the_interval_of_a_median_holds_the_median():
    values = np.random.default_rng(0).normal(1.5, 0.1, 40)
    low, high = median_interval(values)
    assert low < np.median(values) < high and high - low < 0.15


def test_spans_know_which_is_open():
    clock = Clock()
    with clock.span("a"), clock.span("b"):
        assert clock.open == ["a", "b"]
    assert clock.open == []


def run(monkeypatch, *argv):
    monkeypatch.setattr(sys, "argv", ["vlaprune-profile", *argv])
    cli.profile()


TOY = ("model=toy", "bench=toy", "calls=4", "seconds=0", "warmup=1", "record=2", "hydra.run.dir=.")


def test_a_sweep_is_one_run_with_all_arms_in_one_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, *TOY, "method=fastv,divprune", "method.keep=0.5,0.25", "output=out", "observations=seen.npz")
    page, csv = (tmp_path / "out" / f"toy-cpu.{e}" for e in ("md", "csv"))
    rows = list(DictReader(csv.read_text().splitlines()))
    assert {row["model"] for row in rows} == {"toy"}
    assert [row["method"] for row in rows] == [
        *["dense"] * 2, *(f"{m} keep={k}" for m in ("fastv", "divprune") for k in (0.5, 0.25))
    ]  # fmt: skip
    text = page.read_text()
    for heading in ("Speed", "Stages", "Counted", "Floors", "Memory and energy"):
        assert f"## {heading}" in text
    assert "method=fastv,divprune method.keep=0.5,0.25" in text and "no NVML" in text
    assert (tmp_path / "seen.npz").is_file()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("mode=fast",), "mode=fast is not one of speed"),
        (("backends=[turbo]",), "backend 'turbo' is not one of eager"),
        (("method=fastv", "method.keep=3.5"), "keep=3.5"),
        (("block=0",), "block=0"),
        (("bench=robosuite", "observations=none.npz"), "do not fit"),
    ],
)
def test_wrong_settings_are_one_clear_line(tmp_path, monkeypatch, capsys, argv, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *TOY, "observations=noise", *argv)
    error = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and said in error[-1]


def test_a_calibration_is_written_from_recorded_dense_frames(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    said = (*TOY, "mode=calibrate", "observations=seen.npz", "output=out", "name=toy", "execute=1")
    said = [*said, "record=8"]
    run(monkeypatch, *said, "method=ties", "method.tokens=all")
    taus = json.loads((tmp_path / "out" / "toy.json").read_text())["tau"]
    frames = Recording.load(tmp_path / "seen.npz").frames
    assert len(taus) == min(100, len(frames))
    config = {"tokens": "all", "calibration": str(tmp_path / "out" / "toy.json")}
    policy = Policy(Toy(), lambda: TIES(**config))  # a calibration of this model and this estimator
    actions(policy, Recording.load(tmp_path / "seen.npz").episodes[0], 7)
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *said, "method=fastv")
    assert stop.value.code == 2 and "nothing to calibrate; use method=ties" in capsys.readouterr().err


def test_methods_are_calibrated_before_they_are_measured(tmp_path):
    """One file for each estimator; a method that has a calibration, or needs none, is left as it is."""
    wide, frames = partial(TIES, keep=0.5), synthetic(Toy().interface, 64, episodes=4, steps=6)
    arms = [("ties", TIES), ("hard", partial(TIES, interpolate="hard")), ("wide", wide), ("dense", Dense)]
    methods = dict(ready([*arms, ("own", partial(TIES, calibration="own.json"))], Toy(), frames, 7, tmp_path))
    files = {label: make().calibration for label, make in methods.items() if label != "dense"}
    assert methods["dense"] is Dense and files["own"] == "own.json"
    assert files["ties"] == files["hard"] != files["wide"] and len(list(tmp_path.iterdir())) == 2
    actions(Policy(Toy(), methods["wide"]), frames.episodes[0], 7)


def test_the_calibration_that_is_shipped_fits_the_policy_that_is():
    info = Tiny(device="cpu").info
    assert len(Calibration.read("robosuite", TIES().estimator, info).taus) == 100
    with pytest.raises(ValueError, match=r"keep=0\.21875, here 0\.5"):
        Calibration.read("robosuite", TIES(keep=0.5).estimator, info)


def test_a_recording_of_other_cameras_is_refused(tmp_path, monkeypatch, capsys, tiny):
    monkeypatch.chdir(tmp_path)
    synthetic(tiny.interface, 64, 1, 1).save(tmp_path / "seen.npz")
    with pytest.raises(SystemExit):
        run(monkeypatch, *TOY, "observations=seen.npz")
    assert "seen.npz has cameras ['a', 'b'], toy reads ['main']; delete it" in capsys.readouterr().err


def test_a_recording_of_other_tasks_or_episodes_is_refused(tmp_path):
    """A file of another suite has the same cameras; a larger `record` was ignored."""
    bench = ToyBench()
    seen = record(Policy(Toy(), Dense), bench, 1, seed=7, origin="here")
    seen.check(tmp_path / "seen.npz", bench, 1, 7, "here")
    for episodes, seed, said in ((2, 7, "recorded with episodes 1, now it is 2"), (1, 8, "with seed 7, now it is 8")):
        with pytest.raises(ValueError, match=f"{said}; delete it to record anew"):
            seen.check(tmp_path / "seen.npz", bench, episodes, seed, "here")
    (first, *_) = bench.tasks()
    part = replace(seen, frames=[f for f in seen.frames if f.task == first.name])
    with pytest.raises(ValueError, match=r"has tasks \['reach-[a-z]+'\], bench toy has \['reach-blue', 'reach-red'\]"):
        part.check(tmp_path / "seen.npz", bench, 1, 7, "here")


def test_a_recording_of_another_world_policy_or_control_is_refused(tmp_path):
    """Its card names them; its tasks, episodes and seed may be the same."""
    model, control = Toy(), Control()
    world = {"name": "toy", "image": 64, "stress": None, "only": None}
    here = origin(world, model, control)
    seen = record(Policy(model, Dense), ToyBench(), 1, 7, here)
    seen.check(tmp_path / "seen.npz", ToyBench(), 1, 7, origin(world | {"only": [0]}, model, control))
    other = Toy()
    other.info = replace(other.info, weights="others")
    elsewhere = (
        origin(world | {"stress": "light"}, model, control),
        origin(world, other, control),
        origin(world, model, Control(execute=1)),
    )
    for made in elsewhere:
        with pytest.raises(ValueError, match="delete it to record anew"):
            seen.check(tmp_path / "seen.npz", ToyBench(), 1, 7, made)


@pytest.mark.parametrize("execute", [None, 1, 3])
def test_methods_are_told_in_a_replay_what_the_robot_executes_in_evaluation(execute):
    told = []
    seen = replace(synthetic(Toy().interface, 64, 1, 3), execute=execute)
    policy = seen.policy(Toy(), lambda: Scripted(Plan((0,)), lambda c: told.append(c.trace.executed.shape[0])))
    actions(policy, seen.episodes[0], 7)
    assert told == [0, *2 * [execute or Toy().chunk]]


def test_a_page_is_written_with_what_made_it(tmp_path):
    page = Page("title")
    page.table("numbers", [{"a": "1", "b": "2"}])
    made = {"command": "c", "commit": "x", "versions": {"torch": "2", "none": None}, "hardware": {"cores": 2}}
    md, csv = page.write(tmp_path, "p", [{"a": 1}], made)
    assert "| 1   | 2   |" in md.read_text() and "torch 2" in md.read_text() and csv.read_text() == "a\n1\n"


@pytest.mark.parametrize(
    ("speedup", "low", "blocks", "doubted"), [(2.27, 2.27, 1, True), (1.6, 1.6, 1, False), (2.0, 1.4, 8, False)]
)
def test_a_speedup_above_what_the_flops_promise_is_flagged(speedup, low, blocks, doubted):
    """Two calls without warm-up: 2.27x where the FLOPs promise 1.58x. A wide interval that holds less is no proof."""
    row = {"method": "m", "kernel": "sdpa", "visual_mean": 32.0, "visual": 64, "dense_share": 0.0, "flops_call": 1e9}
    row |= {
        "flops_cut": 1 - 1 / 1.58,
        "speedup_flops": 1.58,
        "bound": 1.58,
        "speedup": speedup,
        "speedup_low": low,
        "speedup_high": 2.9,
    }
    row |= {"blocks": blocks, "cold": 0, "speedup_busy": None, "prompt": 1.0, "prompt_flops": 1.0}
    row |= dict.fromkeys(("ms_p50", "ms_p90", "ms_p99", "ms_jitter", "ms_first"), 1.0)
    assert ("? above what is possible" in speed._speed(row, None)["speed-up [95 %]"]) == doubted


def test_an_arm_that_raises_or_has_no_memory_leaves_the_others(tiny):
    def broken(error):
        def choose(site):
            raise error

        return lambda: Scripted(Plan((0,)), choose)

    episodes = synthetic(tiny.interface, 64, episodes=1, steps=4).episodes
    arms = [
        arm(tiny, broken(RuntimeError("no kernel\nlong trace"))),
        arm(tiny, broken(torch.OutOfMemoryError("2 GiB"))),
    ]
    arms.append(arm(tiny, lambda: DivPrune(keep=0.25)))
    pairs = micro.compare(arm(tiny, Dense), arms, episodes, RULES, Watch(CPU, Nvml(CPU)))
    assert [p.arm.refused for p in pairs] == ["no kernel", "out of memory: 2 GiB", None] and pairs[2].arm.blocks


def test_the_limit_of_time_holds_in_warm_up_too(tiny):
    slow = arm(tiny, lambda: Scripted(Plan((0,)), lambda site: time.sleep(0.02)))
    rules = replace(RULES, warmup=10**6, limit=0.3)
    episodes = synthetic(tiny.interface, 64, episodes=1, steps=4).episodes
    start = time.perf_counter()
    (pair,) = micro.compare(arm(tiny, Dense), [slow], episodes, rules, Watch(CPU, Nvml(CPU)))
    assert time.perf_counter() - start < 2 and "the time was over before it was warm" in pair.arm.refused


def test_a_speed_up_above_what_is_possible_is_marked(tiny):
    """A dense call that sleeps: a hundred times the speed-up that FLOPs and floors allow."""
    episodes = synthetic(tiny.interface, 64, episodes=1, steps=4).episodes
    base = arm(tiny, lambda: Scripted(Plan((0,)), lambda site: time.sleep(0.05)))
    base.warm(RULES.blocks(episodes), RULES)
    same = lambda: Scripted(Plan((0,)), lambda site: time.sleep(0.05))  # noqa: E731
    for make, marked in ((lambda: DivPrune(keep=0.5), True), (same, False)):
        (pair,) = micro.compare(base, [arm(tiny, make)], episodes, RULES, Watch(CPU, Nvml(CPU)))
        dense = described(tiny, base, HERE)
        row = against(described(tiny, pair.arm, HERE), pair, base, dense)
        assert ("? above what is possible" in speedup(row)) == marked


def test_products_are_counted_where_segments_are_replayed(tiny):
    """A replayed graph shows no operator; floors are counted on the eager backend."""

    class Replays(SimulatedGraphs):
        def run(self, key, segment, *inputs):
            with torch.utils._python_dispatch._disable_current_modes():
                return super().run(key, segment, *inputs)

    episodes = synthetic(tiny.interface, 64, episodes=1, steps=4).episodes
    plain, replayed = arm(tiny, Dense), arm(with_segments(tiny, Replays()), Dense)
    for one in (plain, replayed):
        one.warm(RULES.blocks(episodes), RULES)
    ours, theirs = plain.launches, replayed.launches
    assert plain.products == replayed.products
    assert ours.operators == theirs.operators > ours.outside == theirs.outside > 0
    assert replayed.policy.model.backend.name == "graph"
    assert ours.segments == theirs.segments == theirs.replayed > ours.replayed == ours.launched == 0
    assert theirs.outside + theirs.launched < theirs.operators / 2


def test_backends_stand_beside_sdpa_block_by_block(tiny):
    base, twice, refused = (micro.TimedArm("dense", Policy(tiny, Dense), name) for name in ("sdpa", "compile", "flash"))
    for block in ([1.0, 2.0, 9.0], [4.0, 4.0, 4.0]):
        base.blocks.append(block)
        base.busy.append(sum(block))
        twice.blocks.append([2 * ms for ms in block])
        twice.busy.append(3 * sum(block))
    refused.refused = "no kernel"
    found = speed.beside_sdpa([base, twice, refused])
    assert set(found) == {"sdpa", "compile"} and found["sdpa"]["sdpa_time"] == 1
    told = found["compile"]
    assert told["sdpa_low"] == told["sdpa_time"] == told["sdpa_high"] == 2 and told["sdpa_busy"] == 3
    assert speed.beside_sdpa([twice]) == {}


def test_the_peak_is_that_of_the_matrices_where_norms_stay_in_fp32(monkeypatch, composed):
    """pi0 has norms in fp32. Products in both dtypes are told apart."""
    model = config.build(composed("model=pi0_tiny", "model.dtype=bfloat16"))[0]
    assert next(model.decoder.parameters()).dtype == torch.float32
    asked = []

    def peak(where, dtype):
        asked.append(dtype)
        return replace(HERE, single=1e10)

    monkeypatch.setattr(measured.roofline, "measure", peak)
    rules = micro.TimingConfig(warmup=1, calls=1, seconds=0.0, block=1, windows=0)
    found = measured.measure(model, [], job.noise(model, 0), rules, ["sdpa"])
    assert asked == [torch.bfloat16] and found.here.single == 1e10
    arm = micro.TimedArm("dense", Policy(model, Dense), "sdpa")
    arm.warm(rules.blocks(job.noise(model, 0).episodes), rules)
    works = [work for stage in arm.products.values() for work in stage]
    assert 0 < sum(w.flops for w in works if w.single) < 0.5 * sum(w.flops for w in works)


def test_preparing_pictures_on_the_host_launches_nothing(composed):
    model, found = config.build(composed("model=pi0_tiny"))[0], set()
    for side in (model.net.sizes.image, 100):
        arm = micro.TimedArm("dense", Policy(model, Dense), "sdpa")
        episodes = synthetic(model.interface, side, episodes=1, steps=2).episodes
        arm.warm(micro.TimingConfig(warmup=1, block=2).blocks(episodes), micro.TimingConfig(warmup=1, block=2))
        found.add((arm.launches.operators, arm.launches.outside))
    assert len(found) == 1


def test_a_block_without_dense_beside_it_tells_nothing():
    """Dense that fails for once, for want of memory, leaves no older block of its own in its place."""
    dense, other = (micro.TimedArm(label, Policy(Toy(), Dense), "sdpa") for label in ("dense", "other"))
    pair, rules = micro.Pair(other, dense), micro.TimingConfig(block=2)
    block = next(rules.blocks(synthetic(Toy().interface, 64, episodes=1, steps=2).episodes))
    watch = Watch(CPU, Nvml(CPU))
    for one in (dense, other):
        one.replay(block, 0)
    micro._beside(pair, block, 0, watch, first=True)

    def fails(block, seed):
        raise torch.OutOfMemoryError("no memory")

    dense.replay = fails
    micro._beside(pair, block, 0, watch, first=False)
    micro._awake(dense, block, 0)
    assert pair.beside == [0] and len(other.blocks) == len(other.calls) == 1 and "no memory" in dense.refused
    assert pair.ratios.shape == (1,)


@pytest.mark.parametrize(("make", "calls"), [(Dense, 2), (lambda: FastV(keep=0.5), 2), (VLACache, 6)])
def test_of_calls_that_are_alike_two_are_counted(monkeypatch, make, calls):
    """Counting runs a call eagerly and slowly. Calls of a steady method have the same products."""
    rules = micro.TimingConfig(warmup=1, block=6)
    episodes = synthetic(Toy().interface, 64, episodes=1, steps=6).episodes
    arms = [micro.TimedArm("a", Policy(Toy(), make), "sdpa") for _ in "ab"]
    arms[0].warm(rules.blocks(episodes), rules)
    monkeypatch.setattr(micro, "_alike", lambda records: False)
    arms[1].warm(rules.blocks(episodes), rules)
    once, all_of_them = ({s: sum(w.flops for w in v) / a.counted for s, v in a.products.items()} for a in arms)
    assert arms[0].counted == calls and arms[1].counted == 6 and once == pytest.approx(all_of_them)
    assert arms[0].launches.operators == pytest.approx(arms[1].launches.operators, abs=2)


def test_a_time_below_its_floor_is_marked():
    assert speed.floor_share({"floor_share": 0.5}) == "50.0 %" and "?" in speed.floor_share({"floor_share": 2.43})


def test_launches_are_told_as_far_as_they_can_be_counted():
    row = {"launch_operators": 900.0, "launch_outside": 12.0, "launch_segments": 5.0}
    told = lambda kernel, replayed: check.launches(  # noqa: E731
        row | {"kernel": kernel, "launch_replayed": replayed, "launch_launched": 3 * replayed}
    )
    assert told("sdpa", 0.0) == "900" and told("compile", 0.0) == "12 + 5.0 compiled segments"
    assert told("graph", 5.0) == "27" and told("graph", 3.5) == "22 + 1.5 compiled segments"


def test_a_page_that_git_tracks_is_left_alone(tmp_path):
    made = {"command": "x", "commit": "y", "versions": {}, "hardware": {}}
    for command in (["init", "-q"], ["add", "."]):
        (tmp_path / "p.md").write_text("kept")
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    written = Page("p").write(tmp_path, "p", [{"a": 1}], made)
    assert (tmp_path / "p.md").read_text() == "kept" and written[0].name.startswith("p-20") and written[0].exists()
    assert Page("q").write(tmp_path, "q", [{"a": 1}], made)[0] == tmp_path / "q.md"
