"""Every model keeps the laws of check_model, and a model that breaks one is caught."""

import pytest
import torch

from vlaprune.methods.dense import Dense
from vlaprune.methods.fastv import FastV
from vlaprune.models.backends import with_backend
from vlaprune.models.tiny import Tiny
from vlaprune.models.toy import STYLES, Toy
from vlaprune.nn.decoder import NullSession
from vlaprune.policy import Policy
from vlaprune.testing import check_model, random_observations

SMALL = ("openvla_tiny", "oft_tiny", "cogact_tiny", "pi0_tiny", "pi05_tiny")


@pytest.mark.parametrize("style", STYLES)
def test_the_toy_keeps_the_laws(style):
    check_model(lambda: Toy(style))


def test_tiny_keeps_the_laws():
    check_model(lambda: Tiny(weights="random", device="cpu"), image=128)


@pytest.mark.parametrize("name", SMALL)
def test_published_architectures_keep_the_laws(name, composed):
    from vlaprune import config

    cfg = composed(f"model={name}", "bench=toy", "model.device=cpu", "model.dtype=float32")
    check_model(lambda: config.build(cfg)[0])


class Bypassing(Toy):
    """Runs its decoder without the hooks of the call."""

    def predict(self, observations, sessions):
        run = self.decoder.forward
        self.decoder.forward = lambda prompts, calls, backend: run(prompts, [NullSession()])
        return super().predict(observations, sessions)


class Skipping(Toy):
    """Calls the hooks of every layer, but never asks before a layer."""

    def predict(self, observations, sessions):
        for session in sessions:
            begin = session.begin

            def opened(*args, begin=begin):
                call = begin(*args)
                call.enter = lambda layer, tokens: tokens
                return call

            session.begin = opened
        return super().predict(observations, sessions)


@pytest.mark.parametrize("model", [Bypassing, Skipping])
@pytest.mark.parametrize("method", [Dense, lambda: FastV(layer=2, keep=8)])
def test_a_model_that_bypasses_its_hooks_is_stopped_in_the_first_call(model, method):
    policy = Policy(model(), method)
    (observation,) = random_observations(policy.model.interface, 64, 1)
    if model is Skipping and method is Dense:
        policy.act({0: observation})  # nothing was planned
        return
    with pytest.raises(ValueError, match=r"through the hooks of this call|never asked before layers \[2\]"):
        policy.act({0: observation})


class Unsegmented(Toy):
    """Ignores its backend."""

    def predict(self, observations, sessions):
        from vlaprune.nn.backend import EAGER

        backend, self.backend = self.backend, EAGER
        try:
            return super().predict(observations, sessions)
        finally:
            self.backend = backend


class Overcharging(Toy):
    """Charges FLOPs that it does not compute."""

    def _act(self, slots, state):
        return super()._act(slots, state)

    def predict(self, observations, sessions):
        out = super().predict(observations, sessions)
        for session in sessions:
            session._call.charge("head", 1.0)
        return out


class Leaking(Toy):
    """Lets one sequence of a packed call see another."""

    def predict(self, observations, sessions):
        out = super().predict(observations, sessions)
        return [o + 0.01 * (len(out) - 1) for o in out]


class Forgetful(Toy):
    """Answers differently where a method was asked."""

    def predict(self, observations, sessions):
        out = super().predict(observations, sessions)
        return [o + 0.01 * bool(s.trace.kept) for o, s in zip(out, sessions, strict=True)]


@pytest.mark.parametrize(
    ("model", "law"),
    [
        (Unsegmented, "does not run its segments"),
        (Overcharging, "torch counts"),
        (Leaking, "a neighbour in the packed call"),
        (Forgetful, "keeping every token changes the actions"),
    ],
)
def test_a_model_that_breaks_a_law_is_caught(model, law):
    with pytest.raises((AssertionError, ValueError), match=law):
        check_model(model, compiles=False)


def test_the_first_call_says_so_where_no_call_is_opened():
    class Closed(Toy):
        def predict(self, observations, sessions):
            return [torch.zeros(self.chunk, 7) for _ in observations]

    policy = Policy(Closed(), Dense)
    (observation,) = random_observations(policy.model.interface, 64, 1)
    with pytest.raises(ValueError, match="toy opened no call"):
        policy.act({0: observation})


def test_a_run_whose_model_bypasses_its_kernel_ends_in_one_line():
    """Else the journal would say kernel=compile of times that are eager."""
    policy = Policy(with_backend(Unsegmented(), "compile", "eager"), Dense)
    with pytest.raises(ValueError, match="does not run its segments through its backend, so kernel=compile"):
        policy.act({0: random_observations(Toy().interface, 32, 1)[0]})
