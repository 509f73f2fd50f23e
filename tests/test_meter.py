"""FLOPs from observed shapes equal torch's own counter, exactly; the parts of a call's time add up to the whole."""

import time

import numpy as np
import pytest
import torch
from doubles import Reuser, Scripted
from test_decoder import Remembering

from vlaprune.benchmark import Observation
from vlaprune.meter import Clock, block_flops, decoder_flops
from vlaprune.methods.dense import Dense
from vlaprune.methods.divprune import DivPrune
from vlaprune.methods.fastv import FastV
from vlaprune.methods.random import Random
from vlaprune.models.tiny import Tiny
from vlaprune.models.toy import STYLES, Toy
from vlaprune.nn.block import DecoderConfig
from vlaprune.nn.decoder import Decoder, NullHooks, Tokens
from vlaprune.nn.extend import Suffix
from vlaprune.policy import Policy
from vlaprune.pruner import Plan
from vlaprune.records import STAGES
from vlaprune.testing import flop_counter, scenes
from vlaprune.trace import QueryGroup


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return Tiny("random", ("a", "b"), width=32, layers=4, heads=2, vision_width=64, image=64, chunk=5, device="cpu")


def look(instruction="lift the cube"):
    rng = np.random.default_rng(0)
    return Observation({c: rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for c in "ab"}, np.zeros(8), instruction)


def counted(policy, frames):
    """What torch counts in a call and the call's records; methods' own arithmetic is not in either's product list."""
    with flop_counter() as flops:
        policy.act(frames)
    return flops.get_total_flops(), [policy.drain(slot)[-1] for slot in frames]


@pytest.mark.parametrize(
    "make", [Dense, lambda: Random(layer=0, keep=0.25), lambda: Random(layer=2, keep=0.5), lambda: Random(keep=1)]
)
def test_a_whole_call_of_tiny_counts_what_torch_counts(tiny, make):
    total, (record,) = counted(Policy(tiny, make), {0: look()})
    assert sum(record.flops.values()) == total
    assert set(record.flops) == set(STAGES) and record.flops["decode"] == record.flops["method"] == 0
    counts = list(zip(record.rows, record.columns, strict=True))
    assert record.flops["prompt"] == decoder_flops(tiny.decoder.config, counts)


def test_packed_and_reusing_calls_count_what_torch_counts(tiny):
    policy = Policy(tiny, Reuser, slots=2)
    for frames in ({0: look()}, {0: look(), 1: look("stack the red cube")}):
        total, records = counted(policy, frames)
        assert sum(sum(r.flops.values()) for r in records) == total
    assert records[0].visual == (16,) * 4 and records[0].columns[0] == records[1].columns[0]


def test_attention_rows_read_for_a_method_are_charged_to_it(tiny):
    total, (record,) = counted(Policy(tiny, lambda: FastV(layer=2, keep=0.25)), {0: look()})
    assert sum(record.flops.values()) == total
    assert (
        record.flops["method"] == 2 * 1 * record.columns[1] * tiny.decoder.config.hidden_size
    )  # one row of queries, all heads


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("group", "rows"), [("LAST", 1), ("TEXT", 4), ("VISUAL", 64), ("ACTION", 4)])
@pytest.mark.parametrize("looks", [True, False])
def test_every_attention_row_looked_at_is_charged_its_product_with_all_keys(style, group, rows, looks):
    """Rows of the prompt and, in a policy that decodes, those behind it, which also see each other. Others are free."""

    class Looks(Scripted):
        def observe(self, trace):
            if looks:
                trace.received(1, QueryGroup[group])
                trace.rows(1, QueryGroup[group])  # looked at twice, computed once

    model = Toy(style)
    policy = Policy(model, lambda: Looks(Plan((), {1: QueryGroup[group]})))
    policy.act({0: scenes(0, 1, 1)[0]})
    (record,), config = policy.drain(0), model.decoder.config
    behind = model.chunk if group == "ACTION" and style == "autoregressive" else 0
    columns = record.columns[1] + behind
    assert record.flops["method"] == looks * 2 * config.num_heads * config.head_dim * rows * columns


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("make", [Dense, lambda: FastV(), lambda: Random(layer=1)])
def test_prompt_and_decode_of_the_toy_count_what_torch_counts(style, make):
    total, (record,) = counted(Policy(Toy(style), make), {0: scenes(0, 0, 1)[0]})
    assert sum(record.flops.values()) == total
    assert (record.flops["decode"] > 0) == (style == "autoregressive") == (record.decoded > 0)


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
def test_the_decoder_formula_with_grouped_keys(causal):
    shape = DecoderConfig(
        hidden_size=64, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=24, intermediate_size=96, causal=causal
    )
    decoder, session = Decoder(shape), Remembering()
    with flop_counter() as prompt:
        decoder([Tokens(torch.randn(9, 64), torch.arange(9))], [session])
    assert prompt.get_total_flops() == decoder_flops(shape, [(9, 9)] * 3)
    suffix = Suffix(decoder.blocks, session.left(3), [9], 1)
    with flop_counter() as step:
        suffix.extend(torch.randn(1, 64), 0)
    assert step.get_total_flops() == decoder_flops(shape, [(1, 10)] * 3)
    with flop_counter() as packed:
        decoder([Tokens(torch.randn(n, 64), torch.arange(n)) for n in (5, 7)], [NullHooks()] * 2)
    assert packed.get_total_flops() == decoder_flops(shape, [(5, 5)] * 3) + decoder_flops(shape, [(7, 7)] * 3)


def test_layers_cost_the_sum_of_what_each_costs_in_any_order():
    shape = DecoderConfig(4096, 32, 32, 32, 128, 11008)
    counts = [(600, 600)] * 3 + [(600, 700), (150, 600)] + [(150, 150)] * 26 + [(600, 600)]
    each = sum(block_flops(shape, rows, columns) for rows, columns in counts)
    assert decoder_flops(shape, counts) == decoder_flops(shape, counts[::-1]) == each


def test_fewer_tokens_never_cost_more(tiny):
    costs = []
    for keep in (1.0, 0.5, 0.25, 1):
        policy = Policy(tiny, lambda keep=keep: DivPrune(keep=keep))
        policy.act({0: look()})
        costs.append(policy.drain(0)[0].flops["prompt"])
    assert costs == sorted(costs, reverse=True) and len(set(costs)) == 4


def test_spans_exclude_the_spans_inside_them_and_add_up_to_the_whole(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: next(now) / 1e3)  # every look at the clock takes a millisecond
    clock = Clock()
    with clock.span("a"):  # 0 .. 13
        with clock.span("b"):  # 1 .. 6
            with clock.span("c"):  # 2 .. 3
                pass
            with clock.span("c"):  # 4 .. 5
                pass
        with clock.span("d"):  # 7 .. 8
            pass
        with clock.span("b"), clock.span("a"):  # 9 .. 12, 10 .. 11: a span inside its own name
            pass
    ms = clock.read()
    assert ms == pytest.approx({"a": 13 - 5 - 1 - 3 + 1, "b": 5 - 2 + 3 - 1, "c": 2, "d": 1})
    assert sum(ms.values()) == pytest.approx(13)
    assert clock.read() == {}


def test_a_span_that_raises_is_closed():
    clock = Clock()
    with pytest.raises(ZeroDivisionError), clock.span("a"), clock.span("b"):
        1 / 0  # noqa: B018
    assert set(clock.read()) == {"a", "b"}


def test_stages_of_a_call_add_up_to_its_time(tiny):
    policy = Policy(tiny, lambda: FastV(layer=2))
    policy.act({0: look()})
    began = time.perf_counter()
    policy.act({0: look()})
    took = (time.perf_counter() - began) * 1e3
    ms = policy.drain(0)[1].ms
    assert set(ms) == {"pictures", "vision", "projector", "prompt", "head", "method", "other"} and min(ms.values()) >= 0
    assert 0.5 * took < sum(ms.values()) <= took


def test_reads_nobody_planned_cost_nothing(tiny):
    from doubles import Scripted

    policy = Policy(tiny, lambda: Scripted(Plan((1,))))
    policy.act({0: look()})
    assert policy.drain(0)[0].flops["method"] == 0
