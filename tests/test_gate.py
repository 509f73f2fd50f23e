"""The gate between worlds and policies: what is wrong is named, costs one episode, and is the same in a worker."""

import time

import numpy as np
import pytest
from doubles import outcomes, play
from worlds import BAD, HANDS, OBSERVATIONS, STEPS, TRUTHS, Bad

from vlaprune.bench.episodes import Episodes
from vlaprune.bench.gate import Gate, check_bool, check_hand
from vlaprune.bench.toy import Toy
from vlaprune.benchmark import Interface, Observation

INTERFACE = Interface("any", "any", "delta", ("a", "b"), "eef_pos3_axisangle3_gripper2")


def look(size=256, **changes):
    images = {c: np.zeros((size, size, 3), np.uint8) for c in "ab"}
    return Observation(**({"images": images, "state": np.zeros(8), "instruction": "lift the cube"} | changes))


def test_there_are_enough_kinds():
    assert len(OBSERVATIONS) >= 40 and len(STEPS) >= 12


@pytest.mark.parametrize("kind", OBSERVATIONS)
def test_a_bad_observation_is_named_for_what_it_is(kind):
    task = next(t for t in Toy().tasks() if t.name == BAD[0])
    with Bad(look=kind).open(task) as env:
        episodes = Episodes(env, task, Bad().interface)
        episodes.start(BAD[1])
        with pytest.raises(ValueError) as error:
            episodes.advance(np.zeros((1, 7)))
    assert OBSERVATIONS[kind][1] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", STEPS)
def test_a_bad_step_result_is_named_for_what_it_is(kind):
    with pytest.raises(ValueError) as error:
        check_bool(STEPS[kind][0])
    assert STEPS[kind][1] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", HANDS)
def test_a_bad_hand_is_named_for_what_it_is(kind):
    with pytest.raises(ValueError) as error:
        check_hand(HANDS[kind][0])
    assert HANDS[kind][1] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("said", [True, False])
def test_truth_values_are_accepted(said):
    for make in TRUTHS.values():
        assert check_bool(make(said)) is said


@pytest.mark.parametrize("truths", ["np.bool_", "array of none"])
def test_a_run_of_truth_values_is_the_run(tmp_path, truths):
    a, b = play(tmp_path / "a", Bad(truth=truths)), play(tmp_path / "b", Bad())
    assert outcomes(a) == outcomes(b) and not a.errors


@pytest.mark.parametrize(
    "bad", [{"look": "rgba"}, {"look": "none"}, {"look": "state nan"}, {"step": "none"}, {"hand": "nan"}]
)
def test_a_bad_one_is_an_episode_that_raised_with_and_without_a_worker(tmp_path, bad):
    said = {}
    for worker in (False, True):
        run = play(tmp_path / str(worker), Bad(worker=worker, **bad), execute=1, say=lambda text: None)
        assert run.missing == [BAD]
        said[worker] = [e["error"] for e in run.errors]
    assert said[False] == said[True] and len(said[True]) == 2 and said[True][0].startswith("UserError: ")


def test_what_passes_is_plain():
    image = np.zeros((8, 8, 3), np.uint8)
    seen = Gate(INTERFACE).check(
        look(8, images={"a": image[::-1], "b": image[:, ::-1], "more": image}, state=np.arange(8))
    )
    assert all(i.flags.c_contiguous for i in seen.images.values()) and set(seen.images) == {"a", "b", "more"}
    assert seen.state.dtype == np.float64


def test_what_was_seen_stays_though_the_simulator_draws_into_one_buffer():
    gate, buffer, state = Gate(INTERFACE), np.zeros((8, 8, 3), np.uint8), np.zeros(8)
    seen = []
    for number in range(3):
        buffer[:], state[:] = number, number
        seen.append(gate.check(look(8, images={"a": buffer, "b": buffer}, state=state)))
    assert [(int(s.images["a"].max()), int(s.images["b"].min()), s.state[0]) for s in seen] == [
        (n, n, n) for n in range(3)
    ]


def test_a_world_without_a_state_shows_none():
    gate = Gate(Interface("any", "any", "delta", (), None))
    assert gate.check(look(8, state=None)).state is None
    with pytest.raises(ValueError, match=r"state is \[8\] float64; the benchmark declares none"):
        gate.check(look(8))


def test_a_look_costs_little():
    """Less than 50 microseconds for two pictures of 256 px and a state."""
    gate, seen, took = Gate(INTERFACE), look(), []
    for _ in range(300):
        began = time.perf_counter()
        gate.check(seen)
        took.append(time.perf_counter() - began)
    assert min(took) < 50e-6
