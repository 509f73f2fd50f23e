from dataclasses import replace

import numpy as np
import pytest
from doubles import Bench, Scripted
from scipy.spatial.transform import Rotation

from vlaprune.bench.toy import Toy as ToyBench
from vlaprune.benchmark import Interface, Observation, axis_angle
from vlaprune.control import Control, Controller, euler_quat
from vlaprune.errors import UserError
from vlaprune.methods.dense import Dense
from vlaprune.models.toy import Toy
from vlaprune.policy import Policy
from vlaprune.pruner import Plan


def driven(control, openings):
    """The gripper commands for a course of openings, one model call each."""
    controller = Controller(control)
    return [float(controller.actions(np.array([[0.0] * 6 + [g]]))[0, -1]) for g in openings]


def test_a_control_changes_nothing_by_default():
    chunk = np.random.default_rng(0).normal(size=(8, 7))
    assert np.array_equal(Controller(Control()).actions(chunk), chunk)
    assert np.array_equal(Controller(Control(execute=3)).actions(chunk), chunk[:3])


def test_liberos_gripper_is_doubled_shifted_signed_and_negated():
    assert driven(Control(gripper="sign"), [0.0, 0.2, 0.5, 0.51, 1.0]) == [1, 1, 0, -1, -1]


def test_the_widowx_gripper_opens_above_a_half():
    assert driven(Control(gripper="binary"), [0.0, 0.5, 0.50001, 1.0]) == [-1, -1, 1, 1]


def test_a_signed_gripper_is_flipped_or_pushed():
    assert driven(Control(gripper="flip"), [-1, 1]) == [1, -1]
    assert driven(Control(gripper="push"), [-1, 1]) == [-1, 1]


def sticky(openings, hold, latched):
    """The published wrappers' bookkeeping, step by step as simpler.md 5.6 words it."""
    out, previous, on, count, value = [], None, False, 0, 0.0
    for now in openings:
        if previous is None:
            relative, previous = 0.0, now
        else:
            relative = previous - now
            if not latched:
                previous = now
        if abs(relative) > 0.5 and not on:
            on, value = True, relative
            previous = now
        if on:
            count += 1
            relative = value
        if count == hold:
            on, count, value = False, 0, 0.0
        out.append(relative)
    return out


def test_a_closing_hand_is_held_closed_for_the_hold_and_then_released():
    openings = [1.0] * 2 + [0.0] * 20
    for rule, hold in (("sticky", 15), ("latched", 10)):
        assert driven(Control(gripper=rule, hold=hold), openings) == [0, 0] + [1] * hold + [0] * (20 - hold)


def test_what_happens_while_a_change_is_held_is_lost_to_openvla_and_kept_by_cogact():
    openings = [1.0, 0.0, 1.0, 1.0, 1.0, 1.0]  # closes, and opens again while the closing is held
    assert driven(Control(gripper="sticky", hold=3), openings) == [0, 1, 1, 1, 0, 0]
    assert driven(Control(gripper="latched", hold=3), openings) == [0, 1, 1, 1, -1, -1]


def test_slow_closing_is_seen_by_cogacts_rule_only():
    openings = [1.0, 0.7, 0.4, 0.1, 0.1]
    assert driven(Control(gripper="sticky", hold=2), openings) == pytest.approx([0, 0.3, 0.3, 0.3, 0])
    assert driven(Control(gripper="latched", hold=2), openings) == pytest.approx([0, 0.3, 0.6, 0.6, 0.3])


@pytest.mark.parametrize(("rule", "hold"), [("sticky", 15), ("latched", 10), ("sticky", 1), ("latched", 2)])
def test_sticky_grippers_agree_with_the_wrappers_on_any_course(rule, hold):
    rng = np.random.default_rng(0)
    for openings in (rng.integers(0, 2, 200).astype(float), rng.uniform(0, 1, 200)):
        assert driven(Control(gripper=rule, hold=hold), openings) == sticky(openings, hold, rule == "latched")


def test_a_gripper_forgets_at_reset():
    controller = Controller(Control(gripper="sticky", hold=15))
    grip = [[0.0] * 6 + [1.0]], [[0.0] * 6 + [0.0]]
    first = [controller.actions(np.array(g))[0, -1] for g in grip]
    controller.reset()
    assert first == [0, 1] and [controller.actions(np.array(g))[0, -1] for g in grip] == [0, 1]


def test_rotations_become_axis_angle_as_scipy_has_it():
    rng = np.random.default_rng(0)
    for euler in (*rng.uniform(-1, 1, (50, 3)), np.zeros(3), np.array([1e-9, 0, 0])):
        turn = Rotation.from_euler("xyz", euler)
        chunk = np.concatenate([[0.1, 0.2, 0.3], euler, [0.4]])[None]
        (out,) = Controller(Control(rotation="euler_xyz")).actions(chunk)
        assert np.allclose(out, [0.1, 0.2, 0.3, *turn.as_rotvec(), 0.4], atol=1e-12)
        quat = np.concatenate([[0.1, 0.2, 0.3], turn.as_quat(), [0.4]])[None]
        assert np.allclose(Controller(Control(rotation="quat_xyzw")).actions(quat)[0], out, atol=1e-12)


def test_a_quarter_turn_and_the_far_side_of_a_full_one_by_hand():
    half = 0.5**0.5
    assert np.allclose(euler_quat(np.array([0, 0, np.pi / 2])), [0, 0, half, half])
    assert np.allclose(axis_angle(np.array([0, 0, half, half])), [0, 0, np.pi / 2])
    assert np.allclose(axis_angle(np.array([0, 0, half, -half])), [0, 0, 3 * np.pi / 2])  # no antipodal flip


def ensembled(chunks, horizon, alpha):
    """What the last `horizon` chunks say of now, weighted by their likeness to the newest: paper, section 3.4."""
    recent = chunks[-horizon:]
    said = [chunk[len(recent) - 1 - i] for i, chunk in enumerate(recent)]
    new = said[-1]
    weights = [np.exp(alpha * (a @ new) / (np.linalg.norm(a) * np.linalg.norm(new) + 1e-7)) for a in said]
    return sum(w * a for w, a in zip(weights, said, strict=True)) / sum(weights)


@pytest.mark.parametrize("horizon", [1, 2, 7])
def test_the_ensemble_averages_what_recent_chunks_say_of_now(horizon):
    chunks = list(np.random.default_rng(0).normal(size=(12, 16, 7)))
    controller = Controller(Control(ensemble=horizon))
    for i, chunk in enumerate(chunks):
        (out,) = controller.actions(chunk)
        assert np.allclose(out, ensembled(chunks[: i + 1], horizon, 0.1), atol=1e-12)
    controller.reset()
    assert np.allclose(controller.actions(chunks[0])[0], chunks[0][0])


def test_an_ensemble_by_hand():
    controller = Controller(Control(ensemble=2, alpha=1.0))
    controller.actions(np.array([[9.0, 9.0], [0.0, 2.0]]))
    out = controller.actions(np.array([[4.0, 0.0], [9.0, 9.0]]))[0]  # at right angles: weights 1 and e
    assert np.allclose(out, [4 * np.e / (1 + np.e), 2 / (1 + np.e)], atol=1e-6)


def test_an_ensemble_comes_before_gripper_and_rotation():
    control = Control(rotation="euler_xyz", gripper="binary", ensemble=2)
    controller = Controller(control)
    rng = np.random.default_rng(0)
    first, second = rng.uniform(-0.5, 0.5, (2, 16, 7))
    first[:, 6], second[:, 6] = 1.0, 0.1
    controller.actions(first)
    out = controller.actions(second)[0]
    mean = ensembled([first, second], 2, 0.1)
    assert mean[6] > 0.5 and out[6] == 1.0
    assert np.allclose(out[3:6], Rotation.from_euler("xyz", mean[3:6]).as_rotvec(), atol=1e-12)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rotation": "rpy"}, "rotation=rpy; use one of axis_angle, euler_xyz, quat_xyzw"),
        ({"gripper": "soft"}, "gripper=soft; use one of sign, binary, sticky, latched"),
        ({"gripper": "sticky"}, "hold=0 with gripper=sticky"),
        ({"gripper": "binary", "hold": 3}, "hold=3 with gripper=binary"),
        ({"ensemble": 7, "execute": 4}, "ensemble=7 with execute=4"),
        ({"execute": 0}, "execute=0; use at least 1"),
    ],
)
def test_contradictions_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        Control(**options)


def test_a_model_must_plan_as_far_as_its_control_looks():
    assert [
        Control().actions_per_call(8),
        Control(execute=5).actions_per_call(8),
        Control(ensemble=7).actions_per_call(16),
    ] == [8, 5, 1]
    for control in (Control(execute=9), Control(ensemble=9)):
        with pytest.raises(ValueError, match=r"the model plans 1\.\.8 actions a call"):
            control.actions_per_call(8)


MODEL = Interface("as_trained", "zero_one", "delta", ("primary",), None)


def test_what_a_robot_receives_follows_from_the_model_and_the_control():
    widowx = Interface("axis_angle", "open_positive", "delta", ("primary",), None)
    google = Interface("axis_angle", "close_delta", "delta", ("primary",), None)
    Control(rotation="euler_xyz", gripper="binary").output_interface(MODEL).check(widowx)
    Control(rotation="euler_xyz", gripper="sticky", hold=15).output_interface(MODEL).check(google)
    with pytest.raises(UserError, match="gripper"):
        Control(rotation="euler_xyz", gripper="binary").output_interface(MODEL).check(google)
    with pytest.raises(UserError, match=r"rotation as_trained vs axis_angle; gripper zero_one vs open_positive"):
        Control().output_interface(MODEL).check(widowx)


def test_a_control_refuses_a_model_that_emits_something_else():
    with pytest.raises(UserError, match="rotation axis_angle goes through a control that reads euler_xyz"):
        Control(rotation="euler_xyz").output_interface(Interface("axis_angle", "zero_one", "delta", (), None))
    with pytest.raises(UserError, match="gripper zero_one goes through control flip, which reads close_positive"):
        Control(gripper="flip").output_interface(MODEL)


class Counts(Scripted):
    """How often it was told to begin anew."""

    resets = 0

    def reset(self):
        self.resets += 1


def test_a_changed_instruction_starts_method_and_controller_anew():
    pruner = Counts(Plan())
    policy = Policy(Toy(), lambda: pruner, control=Control(ensemble=2))
    task = ToyBench().tasks()[0]
    with Bench().open(task) as world:
        world.reset(0)
        look = world.observe()
    policy.reset(0, seed=5)
    pruner.resets = 0
    first = policy.act({0: look})[0]
    assert first.shape == (1, 7) and not pruner.resets
    policy.act({0: look})
    other = Observation(look.images, look.state, "reach the blue light")
    changed = policy.act({0: other})[0]
    assert pruner.resets == 1 and len(policy.drain(0)) == 3
    assert np.array_equal(changed, Policy(Toy(), Dense).act({0: other})[0][:1])  # no older chunk speaks into it


def test_calls_are_counted_on_when_the_instruction_changes_so_no_draw_comes_twice():
    """Else noise and random tokens of the first calls would come again, and an audit would replay the wrong calls."""
    pruner = Scripted(Plan((0,)))
    policy = Policy(Toy(), lambda: pruner, control=Control(execute=1))
    with Bench().open(ToyBench().tasks()[0]) as world:
        world.reset(0)
        look = world.observe()
    for said in ("reach the red light", "reach the blue light", "reach the red light"):
        policy.act({0: replace(look, instruction=said)})
    assert [(trace.step, trace.elapsed) for trace in pruner.traces] == [(0, 0), (1, 1), (2, 2)]
