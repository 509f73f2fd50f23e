"""The world does not wait: hand-made timelines, and episodes that prove them. A step is written as the planned action
(call.index) that it executes, `-` where the robot holds; `|` is a look."""

import runpy
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from doubles import Bench

from vlaprune import config
from vlaprune.bench.libero.benchmark import Libero
from vlaprune.bench.robosuite.benchmark import Robosuite
from vlaprune.bench.simpler.benchmark import Simpler
from vlaprune.bench.toy import Toy as ToyBench
from vlaprune.benchmark import SupportsHold
from vlaprune.control import Control, Controller
from vlaprune.delay import Delay, Timeline, Waited, check_chunk, steps_late
from vlaprune.evaluation.motion import motion
from vlaprune.evaluation.rollout import RolloutConfig, Shard, rollout
from vlaprune.methods.dense import Dense
from vlaprune.models.toy import Toy
from vlaprune.policy import Policy
from vlaprune.records import MOTION, REAL, Header, episode_row


class Constant:
    """Every call takes the same time, or the next of a course."""

    def __init__(self, *ms):
        self.course, self.expected = ms, max(ms)

    def ms(self, seed, call, record):
        return self.course[min(call, len(self.course) - 1)]


def drawn(steps):
    return " ".join("+".join(f"{c}.{i}" for c, i in s.rows) or "-" for s in steps)


def course(mode, lates, execute, chunk=8, depth=1):
    timeline = Timeline(mode, depth)
    return " | ".join(drawn(timeline.call(late, execute, chunk)) for late in lates)


WHOLE = "0.0 0.1 0.2 0.3 0.4 0.5 0.6 0.7"


@pytest.mark.parametrize(
    ("mode", "late", "execute", "said"),
    [
        ("hold", 1, 4, "- 0.0 0.1 0.2 0.3 | - 1.0 1.1 1.2 1.3 | - 2.0 2.1 2.2 2.3"),
        ("hold", 3, 4, "- - - 0.0 0.1 0.2 0.3 | - - - 1.0 1.1 1.2 1.3 | - - - 2.0 2.1 2.2 2.3"),
        ("hold", 1, 8, f"- {WHOLE} | - {WHOLE.replace('0.', '1.')} | - {WHOLE.replace('0.', '2.')}"),
        ("overlap", 1, 4, "- 0.1 0.2 0.3 | 0.4 1.1 1.2 1.3 | 1.4 2.1 2.2 2.3"),
        ("overlap", 3, 4, "- - - 0.3 | 0.4 0.5 0.6 1.3 | 1.4 1.5 1.6 2.3"),
        ("stale", 1, 4, "- 0.0 0.1 0.2 | 0.3 1.0 1.1 1.2 | 1.3 2.0 2.1 2.2"),
        ("stale", 3, 4, "- - - 0.0 | 0.1 0.2 0.3 1.0 | 1.1 1.2 1.3 2.0"),
        (
            "stale",
            3,
            8,
            "- - - 0.0 0.1 0.2 0.3 0.4 | 0.5 0.6 0.7 1.0 1.1 1.2 1.3 1.4 | 1.5 1.6 1.7 2.0 2.1 2.2 2.3 2.4",
        ),
    ],
)
def test_which_action_is_executed_at_which_step(mode, late, execute, said):
    assert course(mode, [late] * 3, execute) == said


@pytest.mark.parametrize("mode", ["wait", "hold", "overlap", "stale", "rtc"])
@pytest.mark.parametrize("execute", [4, 8])
def test_without_delay_every_mode_is_wait(mode, execute):
    waits = course("wait", [5, 5, 5], execute)  # however long a call takes
    assert course(mode, [0, 0, 0], execute) == waits
    assert waits == " | ".join(" ".join(f"{c}.{i}" for i in range(execute)) for c in range(3))


def test_overlap_executes_action_i_of_a_chunk_i_steps_after_its_look_without_gap_or_repeat():
    rng = np.random.default_rng(0)
    for _ in range(50):
        chunk = int(rng.integers(4, 12))
        late = int(rng.integers(1, chunk // 2 + 1))
        execute = int(rng.integers(late, chunk - late + 1))
        timeline, looks = Timeline("overlap"), []
        for _ in range(6):
            looks.append(len(timeline.steps))
            timeline.call(late, execute, chunk)
        assert all(not s.rows for s in timeline.steps[:late])  # the first call has nothing to go on with
        for at, step in enumerate(timeline.steps[late:], late):
            ((call, index),) = step.rows
            assert looks[call] + index == at
        assert set(np.diff(looks[1:])) == {execute}  # the re-plan rate is kept


def test_stale_executes_every_chunk_from_its_first_action_on_though_it_is_late():
    timeline = Timeline("stale")
    for _ in range(5):
        timeline.call(3, 4, 8)
    order = [s.rows[0] for s in timeline.steps if s.rows]
    assert order == sorted(order) and {c for c, _ in order} == set(range(5))
    assert [i for c, i in order if c < 4] == [0, 1, 2, 3] * 4


def test_where_the_old_chunk_runs_out_the_robot_holds():
    assert course("stale", [6, 6], 4, chunk=4).endswith("| 0.0 0.1 0.2 0.3 - -")
    assert course("stale", [6, 6], 4, chunk=8).endswith(
        "| 0.0 0.1 0.2 0.3 0.4 0.5"
    )  # it has more actions to go on with
    assert course("overlap", [4, 4, 4], 4, chunk=6) == "- - - - | 0.4 0.5 - - | 1.4 1.5 - -"


def test_the_next_call_starts_as_early_as_the_longest_of_the_last_ten_calls_needed():
    timeline = Timeline("overlap")
    looks = [len(timeline.call(late, 4, 8)) for late in [1, 3, *[1] * 12]]
    assert looks[:2] == [4, 4]  # the second call came late: one step more of the first chunk than was planned
    assert drawn(timeline.steps[4:8]) == "0.4 0.5 0.6 1.3"
    assert looks[2:11] == [2] * 9 and looks[11:] == [4] * 3  # three steps early while that call is among the last ten
    assert all(s.rows for s in timeline.steps[1:])


def test_an_ensemble_averages_what_the_chunks_say_of_the_same_step():
    assert course("wait", [0] * 3, 1, depth=3) == "0.0 | 1.0+0.1 | 2.0+1.1+0.2"
    assert course("hold", [2] * 3, 1, depth=3) == "- - 0.0 | - - 1.0+0.1 | - - 2.0+1.1+0.2"  # the plan waits with it
    overlap = course("overlap", [2] * 4, 1, depth=3)
    assert overlap == "- - | 0.2 0.3 | 1.2+0.4 1.3+0.5 | 2.2+1.4+0.6 2.3+1.5+0.7"


def test_a_new_instruction_has_nothing_to_go_on_with():
    timeline = Timeline("overlap")
    timeline.call(2, 4, 8)
    timeline.forget()
    assert drawn(timeline.call(2, 4, 8)) == "- - 1.2 1.3"


def test_what_the_delay_did_counts_executed_steps_only():
    timeline = Timeline("overlap")
    for _ in range(3):
        timeline.call(3, 4, 8)
    assert timeline.waited(12) == [Waited(3, 3, 0, 3), Waited(3, 0, 3, 3), Waited(3, 0, 3, 3)]
    assert timeline.waited(10)[2] == Waited(3, 0, 2, 0)  # over while the third call was under way
    assert timeline.waited(2) == [Waited(3, 2, 0, 0), Waited(3, 0, 0, 0), Waited(3, 0, 0, 0)]


@pytest.mark.parametrize(("ms", "late"), [(0, 0), (0.01, 1), (50, 1), (50.001, 2), (100, 2), (150, 3), (300, 6)])
def test_a_latency_is_rounded_up_to_control_steps(ms, late):
    assert steps_late(ms, 20.0) == late


def test_a_chunk_that_is_too_short_is_refused_in_one_line():
    check_chunk("overlap", 4, 4, 8)
    check_chunk("hold", 9, 8, 8)
    with pytest.raises(ValueError, match=r"drops 3 actions .* but the model plans 8; set execute=5 or less"):
        check_chunk("overlap", 3, 8, 8)
    with pytest.raises(ValueError, match=r"use delay.mode=hold or stale"):
        check_chunk("rtc", 9, 1, 8)


def test_the_picture_of_the_documentation_is_what_the_timeline_does():
    root = Path(__file__).resolve().parents[1]
    drawn = runpy.run_path(str(root / "scripts" / "timeline.py"))["drawn"]()
    assert drawn == (root / "docs" / "pictures" / "delay.svg").read_text(encoding="utf-8")


# -- actions ---------------------------------------------------------------------------------------------------------


def counting(look, chunk=8):
    """A policy whose action is the step of its observation plus its index; the gripper closes from step 5 on."""
    numbers = look + np.arange(chunk, dtype=float)
    return np.stack([numbers] * 6 + [np.where(numbers < 5, -1.0, 1.0)], 1)


def delayed(mode, *ms, bench=None):
    bench = bench or ToyBench()
    return Delay(mode, Constant(*ms or (0.0,)), bench.control_hz, bench.hold)


def executed(mode, late, execute, calls=5, control=None):
    controller = Controller(control or Control(execute=execute), delayed(mode))
    for _ in range(calls):
        controller.actions(counting(len(controller.executed)), late)
    return np.stack(controller.executed)


def test_a_counting_policy_counts():
    hand = executed("overlap", 2, 4)[:, 0]
    assert hand.tolist() == [0, 0, *range(2, len(hand))]
    late = executed("stale", 2, 4)[:, 0]
    assert late.tolist() == [0, 0, *range(len(late) - 2)]  # every action belongs to the step two before
    assert executed("hold", 2, 4)[:9, 0].tolist() == [0, 0, 0, 1, 2, 3, 0, 0, 6]


def test_holding_is_no_motion_and_the_grippers_last_command():
    actions = executed("hold", 2, 4)
    assert not actions[:2].any() and not actions[6:8, :6].any()
    assert actions[6:8, 6].tolist() == [actions[5, 6]] * 2
    assert actions[12:14, 6].tolist() == [1.0, 1.0]


def test_a_sticky_grippers_course_is_that_of_the_actions_that_are_executed():
    control = Control(gripper="sticky", hold=3, execute=4)
    chunk = np.zeros((8, 7))
    chunk[:, -1] = [1, 1, 0, 0, 0, 0, 0, 0]  # closes at index 2
    waits = Controller(control).actions(chunk)
    held = Controller(control, delayed("hold")).actions(chunk, 2)
    assert np.array_equal(held[2:], waits) and waits[2, -1] == 1.0
    dropped = Controller(control, delayed("overlap")).actions(chunk, 3)
    assert not dropped[:, -1].any()  # the change at index 2 was dropped, and no change is seen after it


@pytest.mark.parametrize(
    ("bench", "start", "after"),
    [
        (ToyBench(), 0.0, 1.0),
        (Robosuite(), 0.0, 1.0),  # the fingers stay where the reset put them
        (Libero(), -1.0, 1.0),  # opens, as the protocol's settling steps do
        (Simpler(suite="widowx"), 1.0, 1.0),  # begins open
        (Simpler(suite="google_vm"), 0.0, 0.0),  # moved by changes: no change leaves it
    ],
    ids=lambda b: getattr(b, "name", None),
)
def test_every_benchmark_says_what_holding_is(bench, start, after):
    assert isinstance(bench, SupportsHold) and bench.interface.frame == "delta"
    last = np.array([0.3, -0.2, 0.1, 0.5, 0.5, 0.5, 1.0])
    for action, gripper in ((bench.hold(None), start), (bench.hold(last), after)):
        assert action.tolist() == [0.0] * 6 + [gripper]
    assert last[0] == 0.3  # what was executed stays as it was


# -- episodes ----------------------------------------------------------------------------------------------------------


class Memory:
    """A journal in memory."""

    folder = None

    def __init__(self, tasks):
        self.header, self.records = Header({}, {}, tasks), {}

    def has(self, task, episode):
        return False

    def attempt(self, task, episode):
        return nullcontext()

    def write(self, record):
        self.records[record.task, record.episode] = record


def ran(delay, model=None, bench=None, control=None, slots=1, make=Dense, episodes=3):
    bench = bench or ToyBench()
    policy = Policy(model or Toy(), make, slots, control, delay)
    journal = Memory({t.name: episodes for t in bench.tasks()})
    rollout(policy, bench, journal, Shard(), RolloutConfig(7))
    return journal.records


def plain(records):
    return {
        k: replace(r, calls=tuple(replace(c, ms={}, packed=1, cold="", delay={}) for c in r.calls))
        for k, r in records.items()
    }


@pytest.mark.parametrize("mode", ["hold", "overlap", "stale"])
@pytest.mark.parametrize("control", [None, Control(execute=2), Control(ensemble=3)], ids=["chunk", "two", "ensemble"])
def test_no_delay_gives_the_episodes_of_a_world_that_waits(mode, control):
    waits = plain(ran(None, control=control))
    late = ran(delayed(mode, 0.0), control=control, slots=2)
    assert plain(late) == waits
    assert all(
        c.delay == {"ms": 0.0, "late": 0, "held": 0, "stale": 0, "dropped": 0} for r in late.values() for c in r.calls
    )


SMALL = sorted(p.stem for p in (Path(config.config_path()) / "model").glob("*_tiny.yaml"))


@pytest.mark.parametrize("name", SMALL)
def test_no_delay_is_a_world_that_waits_for_every_model(name):
    cfg, _ = config.composed([f"model={name}", "bench=toy", "method=dense"])
    (model, _, _), world = config.build(cfg), Bench(limit=5)
    world.cameras, world.image = model.interface.cameras, 32
    waits = plain(ran(None, model, world, Control(execute=1), episodes=1))
    for mode in ("hold", "overlap", "stale"):
        assert plain(ran(delayed(mode, 0.0, bench=world), model, world, Control(execute=1), episodes=1)) == waits
    assert plain(ran(delayed("hold", 200.0, bench=world), model, world, Control(execute=1), episodes=1)) != waits


def test_a_film_plays_in_the_worlds_time():
    periods = {mode: delayed(mode, 600.0).period(2) for mode in ("wait", "hold", "overlap", "stale")}
    assert periods == {"wait": 2, "hold": 5, "overlap": 3, "stale": 3}


def test_held_steps_count_against_the_limit_and_an_episode_may_end_while_it_holds():
    bench = Bench(limit=5, stop=False)
    records = ran(delayed("hold", 600.0, bench=bench), bench=bench, control=Control(execute=1))
    for record in records.values():
        assert record.steps == 5 and record.motion["world_seconds"] == 1.0
        assert [(c.delay["late"], c.delay["held"]) for c in record.calls] == [(3, 3), (3, 1)]


def test_a_delay_costs_time_and_is_told_call_by_call():
    bench = ToyBench()
    waits, late = ran(None), ran(delayed("hold", 200.0, bench=bench))
    for key, record in late.items():
        assert record.success and record.steps > waits[key].steps
        assert sum(c.delay["held"] for c in record.calls) == record.steps - waits[key].steps


def test_a_delay_sees_the_seed_of_the_episode_and_the_number_of_the_call_whichever_slot_runs_it():
    class Told(Constant):
        def ms(self, seed, call, record):
            seen.setdefault(seed, []).append(call)
            return 0.0

    runs = []
    for slots in (1, 3):
        seen = {}
        ran(Delay("hold", Told(0.0), 5.0, ToyBench().hold), slots=slots)
        runs.append(seen)
    assert runs[0] == runs[1] and all(calls == list(range(len(calls))) for calls in seen.values())


def test_motion_of_a_straight_line_is_its_length_without_jerk():
    actions = np.zeros((10, 7))
    actions[:, :3], actions[:5, -1], actions[5:, -1] = [0.3, 0.0, 0.4], -1, 1
    told = motion(actions, 20.0, "delta")
    assert told["world_seconds"] == 0.5 and told["path_hand"] == pytest.approx(5.0) and told["flips"] == 1
    assert told["jerk_hand"] == pytest.approx(0.0, abs=1e-9) and told["path_turn"] == 0
    places = np.cumsum(actions, 0)
    same = motion(np.vstack((np.zeros(7), places)), 20.0, "absolute")
    assert same["path_hand"] == pytest.approx(told["path_hand"])


def test_the_hands_own_motion_is_measured_where_the_world_tells_it():
    """A hand that stays behind its commands: its own path and jerk, in metres, whatever was commanded."""
    at, actions = np.arange(41) / 20.0, np.zeros((40, 7))
    actions[:, 0] = 1.0
    hands = np.stack([at**3, np.zeros(41), np.zeros(41)], 1)
    told = motion(actions, 20.0, "delta", hands.tolist())
    assert told["path_real"] == pytest.approx(8.0) and told["jerk_real"] == pytest.approx(6.0)
    assert told["jerk_hand"] == pytest.approx(0.0, abs=1e-9) and set(told) == {*MOTION, *REAL}
    assert set(motion(actions, 20.0, "delta")) == set(MOTION)


def test_an_episodes_row_holds_its_delay_and_motion():
    (record, *_), (waits, *_) = (list(ran(d).values()) for d in (delayed("hold", 200.0), None))
    row, plain_row = episode_row(record), episode_row(waits)
    assert set(record.motion) == set(MOTION) and list(row) == list(plain_row)
    assert row["delay_ms"] == 200 and row["late"] == 1 and row["held"] == len(record.calls) and row["dropped"] == 0
    assert plain_row["held"] == "" and plain_row["world_seconds"] == waits.steps / 5


def test_jerk_is_the_third_derivative_of_the_path():
    at = np.arange(50) / 20.0
    places = np.zeros((50, 7))
    places[:, 0] = 5.0 * at**3  # whose third derivative is 30
    assert motion(places, 20.0, "absolute")["jerk_hand"] == pytest.approx(30.0)
    assert motion(np.diff(places, axis=0), 20.0, "delta")["jerk_hand"] == pytest.approx(30.0)


def test_a_gripper_that_is_not_commanded_flips_nothing():
    actions = np.zeros((6, 7))
    actions[:, -1] = [0, -1, 0, 0, -1, 1]
    assert motion(actions, 5.0, "delta")["flips"] == 1
