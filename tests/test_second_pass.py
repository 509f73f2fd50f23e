"""Attention outputs that a method reads, and the second pass of a prompt that it may ask for."""

from dataclasses import replace

import pytest
import torch
from test_decoder import pair
from test_session import GONE, INFO, STAGES, P, layout, masked, same

from vlaprune.meter import Clock, decoder_flops
from vlaprune.models.toy import Toy
from vlaprune.nn.backend import EAGER, Compiled
from vlaprune.nn.decoder import Tokens
from vlaprune.policy import Policy
from vlaprune.pruner import Budget, Plan, Pruner, Selection
from vlaprune.session import Session
from vlaprune.testing import SimulatedGraphs, check_pruner, scenes
from vlaprune.trace import QueryGroup


class Twice(Pruner):
    """Computes the prompt in full, then from layer 2 on only the tokens whose attention output there was largest."""

    def __init__(self, again=True):
        self.again, self.first = again, None

    def plan(self, info):
        budget = {2: Budget(5)} if self.again else {}
        return Plan((2,), {1: QueryGroup.LAST}, budget, outputs=frozenset({1}), second_pass=True)

    def wants_second_pass(self, context):
        assert context.layer == 4 or context.layer == 6
        self.first = context.outputs(1)
        return self.again

    def select(self, context):
        assert context.attention(1, QueryGroup.LAST).shape[1] == 1  # looked at in both passes, so charged in both
        if self.again and not context.second_pass:
            return Selection.all(context, {})  # the budget is held against the second pass only
        assert not self.again or torch.allclose(context.outputs(1), self.first)  # layer 1 sees the same rows again
        return Selection.top(context.outputs(1).float().norm(dim=1), Budget(5), context.total)


def opened(pruner, causal=True):
    _, ours = pair(causal)
    return Session(pruner, INFO, ours.config, Clock()), ours


@torch.inference_mode()
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("how", ["eager", "graph", "compile", "packed"])
def test_outputs_are_those_of_the_library_on_rows_alive(how, causal):
    """Before and after rows were dropped: what self_attn adds to the residual in transformers' Llama."""
    llama, _ = pair(causal)
    x, seen, shown = torch.randn(P, 64), {}, {}

    class Reads(Pruner):
        def plan(self, info):
            return Plan((1, 3), outputs=frozenset({0, 1, 2}))

        def select(self, context):
            shown.update({(context.layer, n): context.outputs(n) for n in range(context.layer)})
            return Selection(STAGES[context.layer])

    handles = [
        layer.self_attn.register_forward_hook(lambda m, a, out, i=i: seen.update({i: out[0][0]}))
        for i, layer in enumerate(llama.layers)
    ]
    masked(llama, x, GONE, causal)
    for handle in handles:
        handle.remove()
    session, ours = opened(Reads(), causal)
    other, _ = opened(Reads(), causal)
    backend = {"graph": SimulatedGraphs(), "compile": Compiled("eager")}.get(how, EAGER)
    sessions = [session, other] if how == "packed" else [session]
    calls = [s.begin(layout(0), (), x) for s in sessions][::-1]
    ours([Tokens(x, torch.arange(P))] * len(calls), calls, backend)
    first, third = torch.arange(8) + 1, STAGES[1] + 1
    same(shown[1, 0], seen[0][first])
    same(shown[3, 0], seen[0][third])
    same(shown[3, 1], seen[1][third])
    same(shown[3, 2], seen[2][third])
    with pytest.raises(KeyError, match=r"outputs of layer 3 were not read in this call; read were \[0, 1, 2\]"):
        session.trace.outputs_of(3, torch.arange(8))
    for s in sessions:
        s.finish()


@torch.inference_mode()
@pytest.mark.parametrize("backend", [EAGER, SimulatedGraphs(), Compiled("eager")])
def test_the_second_pass_begins_with_all_tokens_and_both_are_charged(backend):
    session, ours = opened(Twice())
    x = torch.randn(P, 64)
    call = session.begin(layout(0), (), x)
    rows = ours([Tokens(x, torch.arange(P))], [call], backend)[0]
    record = session.finish()
    assert record.first_rows == (12,) * 4 and record.rows == (12, 12, 9, 9) and record.visual == (8, 8, 5, 5)
    both = decoder_flops(ours.config, [(12, 12)] * 4), decoder_flops(ours.config, [(12, 12)] * 2 + [(9, 9)] * 2)
    assert record.flops["prompt"] == sum(both)
    assert record.flops["method"] == 2 * (2 * 12 * ours.config.num_heads * ours.config.head_dim)  # a row in each pass
    kept = session.trace.kept[2]
    gone = sorted(set(range(8)) - set(kept.tolist()))
    llama, _ = pair()
    stay = [i for i in range(P) if i - 1 not in gone]
    same(rows, masked(llama, x, {2: [i + 1 for i in gone]})[0][stay])
    assert session.trace.rows(1, QueryGroup.LAST).shape[1] == 1  # the second reading replaces the first


@torch.inference_mode()
def test_only_the_sequences_that_ask_are_computed_again():
    asks, rests = opened(Twice()), opened(Twice(again=False))
    x = torch.randn(P, 64)
    calls = [s.begin(layout(0), (), x) for s, _ in (asks, rests)]
    packed = asks[1]([Tokens(x, torch.arange(P))] * 2, calls)
    for (session, ours), rows in zip((asks, rests), packed, strict=True):
        record = session.finish()
        assert bool(record.first_rows) == (session is asks[0])
        alone = ours([Tokens(x, torch.arange(P))], [session.begin(layout(0), (), x)])[0]
        same(alone, rows)


def test_a_promise_is_held_in_the_second_pass():
    class Breaks(Twice):
        def select(self, context):
            return Selection.all(context, {}) if context.second_pass else super().select(context)

    policy = Policy(Toy(), Breaks)
    with pytest.raises(ValueError, match="promised 5 of 64 visual tokens from layer 2 on, but 64 were computed"):
        policy.act({0: scenes(0, 1, 1)[0]})


def test_outputs_and_second_passes_keep_every_law():
    check_pruner(Twice)
    check_pruner(lambda: Twice(again=False))


def test_a_second_pass_that_the_plan_does_not_announce_breaks_a_law():
    class Silent(Twice):
        def plan(self, info):
            return replace(super().plan(info), second_pass=False)

    with pytest.raises(AssertionError, match="wants_second_pass says True, but the plan has second_pass=False"):
        check_pruner(Silent)


def test_what_is_not_asked_for_is_neither_kept_nor_charged():
    class Plain(Twice):
        def plan(self, info):
            return replace(super().plan(info), budget={}, outputs=frozenset(), second_pass=False)

        def wants_second_pass(self, context):
            raise AssertionError("asked without Plan.second_pass")

        def select(self, context):
            with pytest.raises(KeyError, match="outputs of layer 1"):
                context.outputs(1)

    policy = Policy(Toy(), Plain)
    policy.act({0: scenes(0, 1, 1)[0]})
    assert policy.drain(0)[0].first_rows == ()
    with pytest.raises(ValueError, match=r"reads outputs of layers \[9\], but toy has layers"):
        Plan(outputs=frozenset({9})).check(Toy().info, "x")
