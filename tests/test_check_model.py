"""Every model keeps the laws of check_model, and a model that breaks one is caught."""

from dataclasses import replace

import pytest
import torch

from vlaprune.methods.dense import Dense
from vlaprune.methods.fastv import FastV
from vlaprune.models.backends import with_backend
from vlaprune.models.tiny import Tiny
from vlaprune.models.toy import STYLES, Toy
from vlaprune.nn.backend import Backend
from vlaprune.nn.decoder import NullHooks
from vlaprune.policy import Policy
from vlaprune.testing import check_model, random_observations
from vlaprune.trace import QueryGroup

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
        self.decoder.forward = lambda prompts, calls, backend: run(prompts, [NullHooks()])
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


class Uncompiled(Toy):
    """Runs its segments through its backend, which has nothing to compile or to capture in them."""

    def predict(self, observations, sessions):
        own, self.backend = self.backend, Backend()
        try:
            return super().predict(observations, sessions)
        finally:
            own.entered += self.backend.entered
            self.backend = own


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


class Short(Toy):
    """Leaves the last action of its chunk out."""

    def predict(self, observations, sessions):
        return [chunk[:-1] for chunk in super().predict(observations, sessions)]


class Moody(Toy):
    """Answers differently under another backend."""

    def predict(self, observations, sessions):
        return [o + 0.01 * (self.backend.name != "sdpa") for o in super().predict(observations, sessions)]


class Tampering(Toy):
    """Lets `tamper` change every call that it opens."""

    def predict(self, observations, sessions):
        for session in sessions:

            def opened(*args, begin=session.begin):
                call = begin(*args)
                self.tamper(call)
                return call

            session.begin = opened
        return super().predict(observations, sessions)


class Deaf(Tampering):
    """Asks the method, and computes all tokens whatever it answers."""

    def tamper(self, call):
        enter = call.enter

        def asked(layer, tokens):
            enter(layer, tokens)
            return tokens

        call.enter = asked


class Autoregressive(Tampering):
    def __init__(self):
        super().__init__("autoregressive")


class Sparing(Autoregressive):
    """Records the attention of all actions but one."""

    def tamper(self, call):
        def record(layer, rows, record=call.record_attention):
            record(layer, replace(rows, queries=rows.queries[:, 1:], index=rows.index[1:]))

        call.record_attention = record


class Loud(Autoregressive):
    """Records twice the attention that it computed."""

    def tamper(self, call):
        def record(layer, rows):
            call.trace.add_weights(layer, QueryGroup.ACTION, 2 * rows.weights)
            call.charge("method", 2.0 * rows.queries.numel() * rows.keys.shape[1])

        call.record_attention = record


class Scribbling(Toy):
    """Writes into the keys that the prompt left, which are another segment's outputs."""

    def __init__(self):
        super().__init__("autoregressive")

    def decoded(self, layers, query, prompt, lengths):
        for own in prompt:
            for keys, _, _ in own:
                keys.mul_(0.5)
        return super().decoded(layers, query, prompt, lengths)


@pytest.mark.parametrize(
    ("model", "law"),
    [
        (Short, "a chunk has shape"),
        (Moody, "backend graph changes the actions"),
        (Deaf, "64 visual tokens reach the last layer, 32 were kept"),
        (Sparing, "3 action rows are recorded of a layout with 4"),
        (Loud, "attention rows sum to more than one"),
        (Scribbling, "writes to its inputs"),
        (Unsegmented, "does not run its segments"),
        (Uncompiled, "does not run its segments through backend graph"),
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
