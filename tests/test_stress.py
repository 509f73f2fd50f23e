"""Perturbations: functions of kind, severity and episode; the published ones as published; the rest left alone."""

import numpy as np
import pytest
from golden import load, scene

from vlaprune.bench.libero.benchmark import Libero
from vlaprune.bench.mujoco import stress
from vlaprune.bench.mujoco.pixels import FILTERS
from vlaprune.bench.robosuite.benchmark import Robosuite

PICTURE = scene(3, 64, 64)
PLACE = np.array([0.6586131746834771, 0.0, 1.6103500240372423])
QUAT = np.array([0.6380177736282349, 0.3048497438430786, 0.30484986305236816, 0.6380177736282349])


def parameters(kind, severity, episode):
    """What decides a perturbed episode, as numbers."""
    if kind in FILTERS:
        return stress.draws(kind, episode, 0, 0).standard_normal(4)
    if kind == "camera":
        return np.concatenate(stress.pose(stress.view(severity, episode), PLACE, QUAT))
    if kind == "light":
        change = stress.light(severity, episode)
        return np.array([*change.axis, change.degrees, *change.factors])
    if kind == "robot":
        return stress.joints(severity, episode)
    return stress.paint(severity, episode, 3)


@pytest.mark.parametrize("kind", stress.KINDS)
def test_a_perturbation_is_a_function_of_kind_severity_and_episode(kind):
    first = parameters(kind, 2, 5)
    np.random.seed(1)  # nothing outside decides it
    for episode in (0, 49, 1000):
        parameters(kind, 5, episode)
    np.testing.assert_array_equal(parameters(kind, 2, 5), first)
    assert len({parameters(kind, 2, e).tobytes() for e in range(50)}) > 5


def test_severity_says_how_much_and_the_episode_in_which_direction():
    for episode in range(20):
        sizes = [np.linalg.norm(stress.joints(s, episode)) for s in stress.SEVERITIES]
        np.testing.assert_allclose(sizes, [0.1, 0.2, 0.3, 0.4, 0.5])  # radians: LIBERO-Plus
        np.testing.assert_allclose(stress.joints(5, episode), 5 * stress.joints(1, episode))
        views = [stress.view(s, episode) for s in stress.SEVERITIES]
        assert {abs(v.orbit) for v in views} in ({0.0}, {15.0, 30.0, 45.0, 60.0, 75.0})
        away, turns = [v.away for v in views], [abs(v.pan) for v in views]
        assert np.allclose(away, 1) or np.allclose(away, [1.2, 1.4, 1.6, 1.8, 2.0])
        assert not any(turns) or np.allclose(turns, [2, 4, 6, 8, 10])
        assert {(v.orbit != 0) + (v.away != 1) + (v.pan != 0) for v in views} == {1}  # one way at a time
        for change in (stress.light(s, episode).factors for s in stress.SEVERITIES):
            assert (change > 0).all()
        weak, strong = (stress.paint(s, episode, 4) for s in (1, 5))
        assert (strong <= weak).all() and (strong >= 0.25).all() and np.allclose(weak.max(axis=1), 1)


@pytest.mark.parametrize("kind", FILTERS)
def test_filters_are_pure_and_grow_with_severity(kind):
    before, apart = PICTURE.copy(), []
    for severity in stress.SEVERITIES:
        seen, again = (FILTERS[kind](PICTURE, severity, stress.draws(kind, 4, 2, 1)) for _ in range(2))
        assert seen.dtype == np.uint8 and seen.shape == PICTURE.shape
        np.testing.assert_array_equal(seen, again)
        apart.append(np.abs(seen.astype(float) - PICTURE).mean())
    np.testing.assert_array_equal(PICTURE, before)
    assert apart == sorted(apart) and apart[0] > 0
    flat = np.full((64, 64, 3), 128, np.uint8)
    seen = FILTERS[kind](flat, 1, stress.draws(kind, 0, 0, 0)).astype(float)
    spread = seen.std() / 255
    assert abs(spread - 0.08) < 0.01 if kind == "noise" else np.abs(seen - 128).max() <= 1


def test_noise_is_another_in_each_step_camera_and_episode():
    noisy = [
        FILTERS["noise"](PICTURE, 1, stress.draws("noise", *where)).tobytes()
        for where in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))
    ]
    assert len(set(noisy)) == 4


def test_blur_zoom_and_camera_are_those_of_libero_plus(parity):
    theirs, picture = load("libero_plus"), scene(7, 256, 256)
    for name in ("blur1", "blur3", "blur5", "zoom1", "zoom3", "zoom5"):
        ours = FILTERS[name[:4]](picture, int(name[4]), stress.draws(name[:4], 0))[112:144, 112:144]
        parity("stress", f"{name[:4]}, 256 px, LIBERO-Plus, recorded", ours, theirs[name], atol=0)
    for name in (key for key in theirs if key.startswith("view")):
        orbit, tilt, away, pan, pitch = map(float, name.split("_")[1:])
        place, quat = stress.pose(stress.View(orbit, tilt, away / 100, pan, pitch), PLACE, QUAT)
        quat *= np.sign(quat @ theirs[name][3:])
        quat *= np.linalg.norm(theirs[name][3:])
        ours = np.concatenate([place, quat])
        parity("stress", "camera pose, LIBERO-Plus, recorded", ours, theirs[name], atol=1e-4)


def test_a_blurred_picture_looks_the_same_at_every_size():
    """An edge is spread over the same share of the picture: 2 px of 256 and a severity."""
    for side in (64, 128, 256):
        edge = np.zeros((side, side, 3), np.uint8)
        edge[:, side // 2 :] = 255
        slope = np.diff(FILTERS["blur"](edge, 3, stress.draws("blur", 0))[side // 2, :, 0].astype(float))
        place = np.arange(side - 1) - np.average(np.arange(side - 1), weights=slope)
        assert np.sqrt(np.average(place**2, weights=slope)) == pytest.approx(6 * side / 256, rel=0.1)


@pytest.mark.parametrize("make", [Libero, Robosuite])
def test_what_does_not_exist_is_refused_in_one_line(make):
    with pytest.raises(ValueError, match=r"stress=fog is unknown; use null or one of camera, robot, light, .*zoom"):
        make(stress="fog")
    for severity in (0, 6, 2.0):
        with pytest.raises(ValueError, match=rf"severity={severity}; use 1 \(least\) to 5 \(most\)"):
            make(stress="noise", severity=severity)


def course(bench, *episodes):
    """What is seen after a step of each episode, and the bits that decide what comes next."""
    (task,) = bench.tasks()
    with bench.open(task) as env:
        out = []
        for episode in episodes:
            env.reset(episode)
            env.step(np.zeros(7))
            bits = env.state_bits() if hasattr(env, "state_bits") else env.snapshot().physics.tobytes()
            out.append((env.observe(), bits))
    return out


@pytest.fixture(scope="module")
def plain():
    """Stack's episode 2, not perturbed."""
    return course(Robosuite(names=["Stack"], worker=False), 2)[0]


@pytest.mark.parametrize("kind", stress.KINDS)
def test_only_what_is_perturbed_changes_and_no_earlier_episode_matters(kind, plain):
    found = course(Robosuite(names=["Stack"], worker=False, stress=kind, severity=3), 2, 0, 2)
    (first, bits), _, (again, bits_again) = found
    assert bits == bits_again and first.instruction == plain[0].instruction
    assert (bits == plain[1]) == (kind != "robot")
    changed = {c for c in first.images if not np.array_equal(first.images[c], plain[0].images[c])}
    assert "primary" in changed and (kind != "camera" or changed == {"primary"})
    assert kind not in FILTERS or changed == set(first.images)
    for camera, image in first.images.items():
        np.testing.assert_array_equal(image, again.images[camera])


def test_the_arm_starts_elsewhere_in_libero_and_stays_there():
    plain, perturbed = (
        course(Libero("libero_object", [2], image=64, fast=True, worker=False, stress=kind, severity=2), 0)[0][0]
        for kind in (None, "robot")
    )
    assert 0.01 < np.linalg.norm(plain.state[:3] - perturbed.state[:3]) < 0.3
