"""Slots share packed calls and nothing else: S packed episodes are S episodes alone, through the policy."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from doubles import Reuser

from vlaprune.methods.divprune import DivPrune
from vlaprune.methods.fastv import FastV
from vlaprune.methods.random import Random
from vlaprune.models.toy import STYLES, Toy
from vlaprune.policy import Policy
from vlaprune.testing import scenes

METHODS = [lambda: FastV(keep=0.25), lambda: Random(layer=2, keep=9), lambda: DivPrune(keep=0.5), Reuser]
EPISODES = [scenes(0, 1, 5), scenes(1, 2, 3), scenes(0, 3, 4)]
EPISODES[1] = [replace(frame, instruction="please " + frame.instruction) for frame in EPISODES[1]]  # a longer prompt
SEEDS = (11, 12, 13)


def alone(make, style, episode, seed):
    policy = Policy(Toy(style), make)
    policy.reset(0, seed)
    kept, actions = [], []
    for frame in episode:
        actions.append(policy.act({0: frame})[0])
        kept.append({layer: k.tolist() for layer, k in policy.sessions[0].trace.kept.items()})
    return kept, actions, [(r.rows, r.columns, r.flops) for r in policy.drain(0)]


def together(make, style, lag, order=1):
    """All episodes at once, slot i starting i * lag calls late; `order` -1 hands the slots over backwards."""
    policy = Policy(Toy(style), make, slots=3)
    kept, actions = defaultdict(list), defaultdict(list)
    for call in range(5 + 2 * lag):
        looks = {}
        for slot, episode in list(enumerate(EPISODES))[::order]:
            step = call - slot * lag
            if step == 0:
                policy.reset(slot, SEEDS[slot])
            if 0 <= step < len(episode):
                looks[slot] = episode[step]
        for slot, chunk in policy.act(looks).items() if looks else ():
            actions[slot].append(chunk)
            kept[slot].append({layer: k.tolist() for layer, k in policy.sessions[slot].trace.kept.items()})
    return [(kept[s], actions[s], [(r.rows, r.columns, r.flops) for r in policy.drain(s)]) for s in range(3)]


def agree(found, expected):
    assert found[0] == expected[0] and found[2] == expected[2]
    assert len(found[1]) == len(expected[1])
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(found[1], expected[1], strict=True))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("make", METHODS)
def test_packed_episodes_in_different_phases_are_episodes_alone(make, style):
    singles = [alone(make, style, e, s) for e, s in zip(EPISODES, SEEDS, strict=True)]
    for lag, order in ((0, 1), (1, 1), (1, -1), (2, 1)):
        for found, expected in zip(together(make, style, lag, order), singles, strict=True):
            agree(found, expected)


@pytest.mark.parametrize("make", METHODS)
def test_a_reset_in_one_slot_leaves_the_others_untouched(make):
    """Slot 1 begins anew while slot 0 is under way; slot 0 goes on as if nothing had happened, and so does slot 1."""
    policy = Policy(Toy(), make, slots=2)
    for slot in (0, 1):
        policy.reset(slot, SEEDS[slot])
    actions = defaultdict(list)
    for step, frame in enumerate(EPISODES[0]):
        if step == 2:
            policy.reset(1, SEEDS[1])
            actions[1].clear()
        other = EPISODES[1][(step - 2) % 3]
        for slot, chunk in policy.act({0: frame, 1: other}).items():
            actions[slot].append(chunk)
    for slot in (0, 1):
        expected = alone(make, "parallel", EPISODES[slot], SEEDS[slot])
        assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(actions[slot], expected[1], strict=True))
        assert [r.flops for r in policy.drain(slot)] == [f for *_, f in expected[2]]


def test_milliseconds_come_with_the_number_of_sequences_that_shared_them():
    policy = Policy(Toy(), lambda: FastV(), slots=2)
    policy.act({0: EPISODES[0][0], 1: EPISODES[1][0]})
    policy.act({0: EPISODES[0][1]})
    shared, own = policy.drain(0)
    assert (shared.packed, own.packed) == (2, 1)
    assert all(set(r.ms) >= {"prompt", "method", "other"} for r in (shared, own))


@pytest.mark.parametrize("slots", [0, -1])
def test_no_policy_without_a_slot(slots):
    with pytest.raises(ValueError, match=f"slots={slots}; use at least 1"):
        Policy(Toy(), Reuser, slots)
