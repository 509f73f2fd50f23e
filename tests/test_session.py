"""What a session does to a model call: original positions, caches, reuse, replacement, reads, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from doubles import Reuser, Scripted, decoded, same
from test_decoder import SHAPE, pair

from vlaprune.benchmark import Observation
from vlaprune.control import Control
from vlaprune.meter import Clock
from vlaprune.methods.dense import Dense
from vlaprune.methods.divprune import DivPrune
from vlaprune.methods.fastv import FastV
from vlaprune.methods.random import Random
from vlaprune.methods.uniform import Uniform
from vlaprune.models.toy import STYLES, Toy
from vlaprune.nn import extend as suffix
from vlaprune.nn.block import rope
from vlaprune.nn.decoder import Tokens
from vlaprune.policy import Policy
from vlaprune.pruner import Budget, ModelInfo, Plan, Selection
from vlaprune.session import Session
from vlaprune.testing import scenes
from vlaprune.trace import AttentionRows, Layout, QueryGroup, Trace, View

INFO = ModelInfo("llama", 4, 4, 64, 16)
V, P, D = 8, 12, 2  # visual tokens 1..8 of a prompt of 12, two decoded actions


def layout(decoded=D, words=2):
    text = range(1 + V, 1 + V + words)
    action = range(P, P + decoded) if decoded else range(text.stop, P)
    return Layout(P, range(1, 1 + V), text, action, P - 1, (View("main", 0, 2, 4),))


def open_session(plan, choose, causal=True):
    session = Session(Scripted(plan, choose), INFO, type(SHAPE)(**{**vars(SHAPE), "causal": causal}), Clock())
    return session


def forward(decoder, session, x, where=None):
    """One model call: the prompt's final rows, then one row for each further row of x [P + D, 64]."""
    where = where or layout(len(x) - P)
    call = session.begin(where, (), x)
    rows = decoder([Tokens(x[:P], torch.arange(P))], [call])[0]
    return torch.cat([rows, decoded(decoder, call, x[P:])]) if len(x) > P else rows


def masked(llama, x, gone, causal=True, sizes=None):
    """Llama on all rows at once; from layer `n` on nobody attends to the positions gone[n], and the keys of the
    positions in sizes[n] count so often. Gives rows, attentions.
    """
    n = len(x)
    hidden, often = set(), {}
    handles = []
    for i, layer in enumerate(llama.layers):
        hidden |= set(gone.get(i, ()))
        often |= (sizes or {}).get(i, {})
        mask = torch.full((n, n), float("-inf")).triu(1) if causal else torch.zeros(n, n)
        mask[:, list(often)] += torch.tensor(list(often.values())).log()
        mask[:, sorted(hidden)] = float("-inf")
        mask[list(hidden), list(hidden)] = 0.0  # a dropped row may look at itself: nobody sees what becomes of it

        def put(module, args, kwargs, mask=mask):
            return args, {**kwargs, "attention_mask": mask[None, None]}

        handles.append(layer.register_forward_pre_hook(put, with_kwargs=True))
    out = llama(inputs_embeds=x[None], output_attentions=True, use_cache=False)
    for handle in handles:
        handle.remove()
    return out.last_hidden_state[0], out.attentions


STAGES = {1: torch.tensor([0, 1, 3, 4, 6, 7]), 3: torch.tensor([1, 2, 4])}  # rows kept; the second among the first's
GONE = {1: [3, 6], 3: [1, 5, 8]}  # the positions that leave thereby


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "rows",
    [
        QueryGroup.ALL,
        QueryGroup.VISUAL | QueryGroup.TEXT,
        QueryGroup.TEXT | QueryGroup.LAST,
        QueryGroup.VISUAL | QueryGroup.LAST,
        QueryGroup.PREFIX | QueryGroup.LAST,
        QueryGroup.PROMPT | QueryGroup.TEXT,
    ],
)
def test_rows_that_are_read_together_are_those_read_alone(rows, causal):
    _, ours = pair(causal)
    x = torch.randn(P, 64)

    def read(wanted):
        session = open_session(Plan((1,), {2: wanted}), lambda context: Selection(STAGES[1]), causal)
        forward(ours, session, x)
        return session

    together = read(rows)
    for group in rows.groups:
        if together.trace.has(2, group):
            same(together.trace.rows(2, group), read(group).trace.rows(2, group), 1e-6)
            same(together.trace.received(2, group), together.trace.visual(2, group).mean((0, 1)), 1e-6)


@torch.no_grad()
def test_pruning_in_stages_and_decoding_equal_llama_with_columns_masked():
    """Decoding goes on at the ORIGINAL length and attends, at each layer, to the columns that layer ended with."""
    llama, ours = pair()
    x = torch.randn(P + D, 64)
    session = open_session(
        Plan((1, 3), {2: QueryGroup.ALL, 3: QueryGroup.ALL | QueryGroup.PROMPT}),
        lambda context: Selection(STAGES[context.layer]),
    )
    rows = forward(ours, session, x)
    expected, attentions = masked(llama, x, GONE)
    stay = [i for i in range(P + D) if i not in (*GONE[1], *GONE[3])]
    same(rows, expected[stay])

    trace = session.trace
    record = session.finish()
    assert record.visual == (8, 6, 6, 3) and record.rows == (12, 10, 10, 7) and record.decoded == D
    assert trace.passes[:D] == [[13, 11, 11, 8], [14, 12, 12, 9]]
    same(trace.rows(2, QueryGroup.TEXT | QueryGroup.LAST), attentions[2][0][:, [11, 9, 10]], 1e-6)
    same(trace.rows(3, QueryGroup.VISUAL), attentions[3][0][:, [2, 4, 7]], 1e-6)
    same(trace.rows(3, QueryGroup.ACTION), attentions[3][0][:, [12, 13]], 1e-6)
    same(trace.rows(3, QueryGroup.PROMPT), attentions[3][0][:, stay[:7]], 1e-6)


@torch.no_grad()
def test_the_prefix_ends_where_the_slots_of_the_prompt_begin():
    """Slots at 11: before them 11 rows, of which two are dropped. Actions decoded after the prompt: all of it."""
    _, ours = pair(causal=False)
    for slots, count in ((0, 9), (D, 10)):
        plan = Plan((1,), {2: QueryGroup.PREFIX | QueryGroup.PROMPT})
        session = Session(Scripted(plan, lambda context: Selection(STAGES[1])), INFO, ours.config, Clock())
        call = session.begin(layout(slots), (), torch.zeros(1))
        ours([Tokens(torch.randn(P, 64), torch.arange(P))], [call])
        every = session.trace.rows(2, QueryGroup.PROMPT)
        assert every.shape[1] == 10 and torch.equal(session.trace.rows(2, QueryGroup.PREFIX), every[:, :count])


SIZES = {1: torch.tensor([3.0, 1.0, 2.0, 1.0, 1.0, 5.0]), 3: torch.tensor([4.0, 1.0, 7.0])}  # of the rows in STAGES


@torch.no_grad()
@pytest.mark.parametrize("sized", [(1,), (3,), (1, 3)])
@pytest.mark.parametrize("causal", [True, False])
def test_sizes_make_keys_count_so_often_from_their_layer_on(causal, sized):
    llama, ours = pair(causal)
    x = torch.randn(P + D * causal, 64)

    def choose(context):
        order = torch.arange(len(STAGES[context.layer])).flip(0)  # any order, as for values
        sizes = SIZES[context.layer][order] if context.layer in sized else None
        return Selection(STAGES[context.layer][order], multiplicity=sizes)

    session = open_session(Plan((1, 3), {3: QueryGroup.LAST}), choose, causal=causal)
    rows = forward(ours, session, x)
    positions = {1: [1, 2, 4, 5, 7, 8], 3: [2, 4, 7]}
    sizes = {n: dict(zip(positions[n], SIZES[n].tolist(), strict=True)) for n in sized}
    expected, attentions = masked(llama, x, GONE, causal, sizes)
    same(rows, expected[[i for i in range(len(x)) if i not in (*GONE[1], *GONE[3])]])
    same(session.trace.rows(3, QueryGroup.LAST), attentions[3][0][:, [11]], 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("order", [(1, 2), (2, 1), (1, 1), (0, 3), (3, 0)])
@pytest.mark.parametrize("causal", [True, False])
def test_sizes_of_one_change_nothing_before_beside_or_after_reuse(causal, order):
    _, ours = pair(causal)
    x = torch.randn(P + D * causal, 64)

    def choose(sizing):
        def select(context):
            keep = torch.arange(len(context.alive))
            old = (context.alive % 2 == 0) if context.step and context.layer == order[0] else keep < 0
            sizes = torch.ones(int((~old).sum())) if sizing and context.layer == order[1] else None
            return Selection(keep[~old], keep[old], multiplicity=sizes)

        return select

    found = []
    for sizing in (False, True):
        session = open_session(Plan(sorted({*order}), reuses=True), choose(sizing), causal=causal)
        for _ in range(2):
            rows = forward(ours, session, x)
            session.finish()
        found.append(rows)
    same(*found)


@torch.no_grad()
def test_bidirectional_pruning_equals_llama_with_columns_masked():
    llama, ours = pair(causal=False)
    x = torch.randn(P, 64)
    session = open_session(Plan((1, 3)), lambda context: Selection(STAGES[context.layer]), causal=False)
    expected, _ = masked(llama, x, GONE, causal=False)
    same(forward(ours, session, x), expected[[0, 2, 4, 7, 9, 10, 11]])


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("causal", [True, False])
def test_reuse_is_exact_on_a_frozen_world(causal, layer):
    _, ours = pair(causal)
    x = torch.randn(P + D * causal, 64)
    session = Session(Reuser(layer), INFO, ours.config, Clock())
    dense = forward(ours, session, x)
    session.finish()
    rows = forward(ours, session, x)
    record = session.finish()
    assert record.rows[layer:] == (P - 4,) * (4 - layer) and record.columns == (P,) * 4
    same(rows, dense[[i for i in range(len(x)) if i not in (1, 3, 5, 7)]])


@torch.no_grad()
def test_growing_reuse_is_exact_and_keeps_every_column():
    _, ours = pair(causal=False)
    x = torch.randn(P, 64)

    def choose(context):
        if context.step == 0:
            return None
        old = context.alive < {1: 2, 2: 5, 3: 7}[context.layer]
        return Selection((~old).nonzero().flatten(), old.nonzero().flatten())

    session = open_session(Plan((1, 2, 3), reuses=True), choose, causal=False)
    dense = forward(ours, session, x)
    session.finish()
    rows = forward(ours, session, x)
    assert session.finish().visual == (8, 6, 3, 1)
    same(rows, dense[[0, 8, 9, 10, 11]])
    assert session.trace.counts == [(12, 12), (10, 12), (7, 12), (5, 12)]


@torch.no_grad()
def test_reused_rows_speak_with_their_old_keys_and_values():
    """From layer 0 on, what a reused row looks like now does not matter."""
    _, ours = pair(causal=False)
    x = torch.randn(P, 64)
    now = x.clone()
    now[[1, 3, 5, 7]] = torch.randn(4, 64)  # the rows that Reuser reuses
    found = []
    for second in (x, now):
        session = Session(Reuser(), INFO, ours.config, Clock())
        forward(ours, session, x)
        session.finish()
        found.append(forward(ours, session, second))
        session.finish()
    assert torch.equal(*found)


@torch.no_grad()
def test_only_rows_that_ran_through_every_layer_are_reusable_and_a_reset_or_new_prompt_forgets_them():
    _, ours = pair(causal=False)
    seen = []

    def choose(context):
        seen.append(context.reusable.tolist())
        return Selection(torch.tensor([0, 2, 5]))

    session = open_session(Plan((2,), reuses=True), choose, causal=False)
    longer = layout(0, words=3)
    for where in (layout(0), layout(0), longer, longer):
        forward(ours, session, torch.randn(P, 64), where)
        session.finish()
    session.reset(0)
    forward(ours, session, torch.randn(P, 64), longer)
    kept = [i in (0, 2, 5) for i in range(V)]
    assert seen == [[False] * V, kept, [False] * V, kept, [False] * V]


def refused(plan, selection, calls=1, match="", layer=0):
    """The message a selection is refused with, made on the last of some calls."""
    _, ours = pair(causal=False)

    def choose(context):
        return selection if context.step == calls - 1 and context.layer == layer else None

    session = open_session(plan, choose, causal=False)
    with torch.no_grad(), pytest.raises(ValueError, match=match) as error:
        for _ in range(calls):
            forward(ours, session, torch.randn(P, 64))
            session.finish()
    assert str(error.value).startswith("Scripted ") and "\n" not in str(error.value)


rows = torch.tensor
REUSES = Plan((0,), reuses=True)


@pytest.mark.parametrize(
    ("plan", "selection", "calls", "match"),
    [
        (REUSES, Selection(rows([0, 1]), rows([2])), 1, "layer 0 that no earlier call has cached"),
        (Plan((0,)), Selection(rows([0, 1]), rows([2])), 2, "does not say reuses=True"),
        (Plan((0,)), Selection(rows([0, 3, 3])), 1, "names a row twice at layer 0"),
        (REUSES, Selection(rows([0, 3]), rows([4, 4])), 2, "names a row twice"),
        (REUSES, Selection(rows([0, 3]), rows([3, 4])), 2, "one fate"),
        (Plan((0,)), Selection(rows([0, 8])), 1, r"outside 0\.\.7"),
        (Plan((0,)), Selection(rows([-1, 0])), 1, r"outside 0\.\.7"),
        (REUSES, Selection(rows([0]), rows([9])), 2, r"outside 0\.\.7"),
        (Plan((0,)), Selection(rows([0, 0, 1, 2, 3, 4, 5, 6])), 1, "names a row twice"),
        (Plan((0,)), Selection(rows([0, 1]), values=torch.zeros(3, 64)), 1, "3 values for 2 kept rows"),
        (Plan((0,)), Selection(rows([0, 1]), multiplicity=torch.ones(3)), 1, "3 multiplicity for 2 kept rows"),
        (Plan((0,), budget={0: Budget(0.5)}), Selection(rows([0, 1, 2])), 1, "promised 4 of 8 .* but 3 were computed"),
        (Plan((0,), budget={0: Budget(2)}), Selection(rows([0, 1, 2])), 1, "promised 2 of 8 .* but 3 were computed"),
    ],
)
def test_refused_by_name(plan, selection, calls, match):
    refused(plan, selection, calls, match)


@pytest.mark.parametrize("extra", [1, 4, -1])
def test_reads_wanted_in_one_call_must_lie_ahead(extra):
    everything = Selection(torch.arange(V), reads={extra: QueryGroup.LAST})
    refused(Plan((2,)), everything, match=rf"asks to read layer {extra}; layers still to run are 2\.\.3", layer=2)


@torch.no_grad()
def test_reads_wanted_in_one_call_are_made_in_that_call_only():
    _, ours = pair(causal=False)
    session = open_session(
        Plan((1,), {1: QueryGroup.TEXT}),
        lambda context: Selection.all(context, {3: QueryGroup.LAST, 1: QueryGroup.LAST}) if context.step == 0 else None,
        causal=False,
    )
    x = torch.randn(P, 64)
    forward(ours, session, x)
    first = session.trace
    session.finish()
    forward(ours, session, x)
    second = session.trace
    assert first.has(3, QueryGroup.LAST) and first.has(1, QueryGroup.LAST | QueryGroup.TEXT)
    assert second.has(1, QueryGroup.TEXT) and not second.has(3, QueryGroup.LAST) and not second.has(1, QueryGroup.LAST)
    with pytest.raises(KeyError, match="LAST of layer 3 were not read"):
        second.rows(3, QueryGroup.LAST)
    planned = open_session(Plan(reads={3: QueryGroup.LAST}), None, causal=False)
    forward(ours, planned, x)
    assert torch.equal(first.rows(3, QueryGroup.LAST), planned.trace.rows(3, QueryGroup.LAST))


def test_values_stand_in_the_place_of_their_rows_whatever_the_order():
    session = open_session(Plan((0,)), lambda context: Selection(rows([5, 0, 3]), values=values))
    values = torch.randn(3, 64)
    x = torch.randn(P, 64)
    out = session.begin(layout(), (), x).enter(0, Tokens(x, torch.arange(P)))
    assert out.index.tolist() == [0, 1, 4, 6, 9, 10, 11]  # ascending, original
    assert torch.equal(out.hidden, torch.cat((x[:1], values[[1, 2, 0]], x[9:])))


@torch.no_grad()
def test_values_equal_to_the_rows_change_nothing_and_others_do():
    _, ours = pair()
    x, keep = torch.randn(P + D, 64), rows([6, 1, 2])

    def run(values):
        session = open_session(Plan((1,)), lambda context: Selection(keep, values=values(context.visual[keep])))
        return forward(ours, session, x)

    plain = run(lambda old: None)
    assert torch.equal(plain, run(lambda old: old))
    assert not torch.allclose(plain, run(lambda old: old + 1))
    everything = open_session(Plan((1,)), lambda context: Selection(torch.arange(V), values=context.visual * 2))
    assert not torch.allclose(forward(ours, everything, x), forward(ours, open_session(Plan(), None), x))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "make",
    [
        *(lambda r=r: FastV(keep=1.0, rows=r) for r in ("last", "text", "prefix_mean")),
        lambda: FastV(keep=64),
        lambda: Random(layer=2, keep=1.0),
        lambda: DivPrune(keep=1.0),
        lambda: Uniform(keep=1.0),
        lambda: Scripted(Plan(reads=dict.fromkeys(range(6), QueryGroup.ALL), reuses=True)),
    ],
)
def test_keeping_everything_is_bit_identical_to_dense(make, style):
    frames = scenes(0, 0, 3)
    dense, kept = Policy(Toy(style), Dense), Policy(Toy(style), make)
    for frame in frames:
        assert np.array_equal(dense.act({0: frame})[0], kept.act({0: frame})[0])
    assert all(set(r.visual) == {64} for r in kept.drain(0))


@pytest.mark.parametrize("style", STYLES)
def test_reuse_in_a_whole_model_is_exact_while_the_world_stands_still(style):
    frame = scenes(1, 4, 1)[0]
    dense, reusing = Policy(Toy(style), Dense), Policy(Toy(style), Reuser)
    for _ in range(3):
        assert np.allclose(dense.act({0: frame})[0], reusing.act({0: frame})[0], atol=1e-5)
    assert [r.visual[0] for r in reusing.drain(0)] == [64, 32, 32]


@pytest.mark.parametrize("style", STYLES)
def test_another_instruction_in_mid_episode_clears_what_could_be_reused(style):
    frame = scenes(0, 4, 1)[0]
    longer = Observation(frame.images, frame.state, "please reach the red light")
    policy = Policy(Toy(style), Reuser)
    for look in (frame, frame, longer, longer):
        policy.act({0: look})
    assert [r.visual[0] for r in policy.drain(0)] == [64, 32, 64, 32]


@pytest.mark.parametrize(
    ("plan", "match"),
    [
        (Plan((4,)), r"it prunes before layers \[4\], but llama has layers 0\.\.3; lower the layer"),
        (Plan((-1, 2)), r"prunes before layers \[-1\]"),
        (Plan((1,), {7: QueryGroup.LAST}), r"it reads layers \[7\]"),
        (Plan((1,), budget={9: Budget(0.5)}), r"it budgets layers \[9\]"),
        (Plan((2, 1)), r"layers \[2, 1\]; they must be sorted and unique"),
        (Plan((1, 1)), r"layers \[1, 1\]"),
    ],
)
def test_a_plan_the_model_cannot_give_is_refused(plan, match):
    with pytest.raises(ValueError, match=match):
        plan.check(INFO, "it")
    with pytest.raises(ValueError, match="Scripted"):
        open_session(plan, None)
    Plan((0, 3), {0: QueryGroup.ALL, 3: QueryGroup.LAST}, {0: Budget(1.0)}).check(INFO, "it")


@pytest.mark.parametrize("amount", [0, 0.0, -1, -0.5, 1.5, 2.0, float("nan"), float("inf"), True, "0.5", None])
def test_no_budget(amount):
    with pytest.raises(ValueError, match="is no budget; use a fraction in"):
        Budget(amount)


def test_a_budget_is_a_fraction_or_a_count():
    assert [Budget(a).count(64) for a in (1.0, 1, 0.25, 64, 0.001, 0.5)] == [64, 1, 16, 64, 1, 32]
    assert [Budget(0.5).count(n) for n in (1, 3, 5, 7)] == [1, 2, 2, 4]  # half to even, never none
    with pytest.raises(ValueError, match="keep=65 asks for more than the 64"):
        Budget(65).count(64)


def test_a_tower_that_was_not_read_is_refused():
    session = open_session(
        Plan((0,)), lambda context: Selection.top(context.vision_attention, Budget(2), of=context.total)
    )
    x = torch.randn(P, 64)
    call = session.begin(layout(), (), x)
    with pytest.raises(ValueError, match=r"Plan.vision_attention is off"):
        call.enter(0, Tokens(x, torch.arange(P)))
    with pytest.raises(ValueError, match="give one number for each of the 8"):
        call.record_vision_attention(torch.zeros(5))


@pytest.mark.parametrize("make", [Dense, lambda: FastV(layer=2, keep=5), Reuser])
def test_the_toy_decodes_on_at_the_original_length_whatever_was_pruned(make, monkeypatch):
    model, seen = Toy("autoregressive"), []
    monkeypatch.setattr(suffix, "rope", lambda config, index, dtype: seen.append(index) or rope(config, index, dtype))
    policy, frame = Policy(model, make), scenes(0, 0, 1)[0]
    for _ in range(2):
        policy.act({0: frame})
        length = model.layout(len(frame.instruction.split())).length
        assert seen.pop().tolist() == list(range(length, length + model.chunk)) and not seen


def test_a_trace_tells_what_the_robot_did_since_the_call_before():
    """State of the observation, actions as they were sent, control steps so far; another episode begins at zero."""
    policy, seen = Policy(Toy(), Dense, control=Control(execute=3)), scenes(0, 1, 3)
    sent = torch.empty(0, 0, dtype=torch.float64)
    for episode in range(2):
        policy.reset(0, seed=episode)
        for step, frame in enumerate(seen):
            actions = policy.act({0: frame})[0]
            trace = policy.trace(0)
            assert torch.equal(trace.state, torch.from_numpy(frame.state)) and trace.elapsed == 3 * step
            assert trace.executed.shape == ((3, 7) if step else (0, 0))
            assert not step or torch.equal(trace.executed, sent)
            sent = torch.from_numpy(actions)


def test_a_call_is_finished_once():
    """A model that opens no new call repeats the old one's numbers; counted again, they would pass for new ones."""
    model, seen = Toy(), scenes(0, 1, 2)
    policy = Policy(model, Dense)
    first = policy.act({0: seen[0]})[0]
    (record,) = policy.drain(0)
    before = dict(record.flops)
    model.predict = lambda observations, sessions: [torch.from_numpy(first)]
    with pytest.raises(ValueError, match=r"toy opened no new call: predict must call Session\.begin"):
        policy.act({0: seen[1]})
    assert record.flops == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"last": 20}, "last ends at 21"),
        ({"text": range(17, 30)}, "text ends at 30"),
        ({"length": 9}, "visual ends at"),
    ],
)
def test_a_layout_that_leaves_its_prompt_is_refused(changes, said):
    views = (View("a", 0, 4, 4),)
    fits = {"length": 20, "visual": range(1, 17), "text": range(17, 20), "action": range(20, 24), "last": 19}
    with pytest.raises(ValueError, match=said):
        Layout(**{**fits, **changes}, views=views)


def test_a_layout_longer_than_the_prompt_is_named():
    """Else a visual token would be missing at every layer, without a word."""

    class Longer(Toy):
        def layout(self, *args):
            right = super().layout(*args)
            return replace(right, length=right.length + 1)

    with pytest.raises(ValueError, match=r"computed \d+ rows at layer 0, but its layout says"):
        Policy(Longer(), Dense).act({0: scenes(0, 1, 1)[0]})


@pytest.mark.parametrize("biased", [0, 1, 2])
@pytest.mark.parametrize("masked_rows", [0, 1, 2])
def test_rows_that_are_looked_at_together_are_what_each_is_alone(biased, masked_rows):
    """Of three layers: some with merged keys, some that see no later position, in any order."""
    one, other = (Trace(layout(0), (), 0) for _ in range(2))
    for n in range(3):
        torch.manual_seed(n)
        queries, keys = torch.randn(2, 2, 4), torch.randn(2, P, 4)
        index = torch.tensor([3, P - 2]) if n == masked_rows else None
        bias = torch.arange(P) / P if n == biased else None
        for trace in (one, other):
            trace.add(n, AttentionRows(queries, keys, None, index, bias), {QueryGroup.LAST: (0, 2)})
    together = one.per_row(range(3), QueryGroup.LAST)
    alone = torch.stack([other.per_row([n], QueryGroup.LAST) for n in range(3)])
    assert torch.allclose(together, alone.mean(0), atol=1e-6)
    for n in range(3):
        assert torch.allclose(one.rows(n, QueryGroup.LAST), other.rows(n, QueryGroup.LAST), atol=1e-6)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("method", [Dense, FastV, Reuser])
def test_the_memory_of_keys_and_values_is_that_of_the_columns_that_rows_behind_the_prompt_see(style, method):
    """And of what a method that reuses keeps from call to call: every column of every layer."""
    model = Toy(style)
    policy, info = Policy(model, method), model.info
    policy.act({0: scenes(0, 1, 1)[0]})
    record, own = policy.drain(0)[0], policy.sessions[0]
    column = 2 * model.decoder.config.num_kv_heads * info.head_dim * 4  # bytes
    behind = sum(record.columns) * column if style == "autoregressive" else 0
    kept = info.num_layers * own.trace.layout.length * column if method is Reuser else 0
    assert own.kv_bytes == behind + kept
