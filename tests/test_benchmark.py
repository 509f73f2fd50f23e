"""Contracts are checked by name, and the conformance checks catch who breaks them."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from doubles import Reuser, Scripted

from vlaprune.bench.toy import Toy as ToyBench
from vlaprune.benchmark import Interface, Observation
from vlaprune.errors import UserError
from vlaprune.methods.dense import Dense
from vlaprune.methods.fastv import FastV
from vlaprune.pruner import Budget, Plan, Pruner, Selection
from vlaprune.testing import check_benchmark, check_pruner
from vlaprune.trace import Layout, QueryGroup, Trace, View

MODEL = Interface("axis_angle", "close_positive", "delta", ("front", "wrist"), "position2")


def test_every_mismatch_is_named_at_once():
    MODEL.check(replace(MODEL, cameras=["front", "wrist"]))  # a YAML list is as good as a tuple
    with pytest.raises(UserError) as error:
        MODEL.check(Interface("quat_xyzw", "zero_one", "absolute", ("wrist", "side"), None))
    assert str(error.value) == (
        "rotation axis_angle vs quat_xyzw; gripper close_positive vs zero_one; frame delta vs absolute; "
        "cameras ('front', 'wrist') vs ('wrist', 'side'); state position2 vs None"
    )


def test_a_world_may_offer_more_than_a_model_reads():
    MODEL.check(replace(MODEL, cameras=("wrist", "side", "front"), rotation="any", gripper="any"))
    replace(MODEL, state=None).check(MODEL)
    for less in ({"cameras": ("front",)}, {"state": None}, {"state": "joints7"}):
        with pytest.raises(UserError, match=next(iter(less))):
            MODEL.check(replace(MODEL, **less))
    with pytest.raises(UserError, match="rotation any vs axis_angle"):
        replace(MODEL, rotation="any").check(MODEL)


def test_the_toy_world_dresses_for_a_model():
    bench = ToyBench(("primary", "wrist"), "joints7_gripper1", 112)
    MODEL.check(replace(bench.interface, cameras=MODEL.cameras, state=MODEL.state))
    with bench.open(bench.tasks()[0]) as world:
        world.reset(0)
        world.step(np.array([0.5, 0.25, 0, 0, 0, 0, 0]))
        seen = world.observe()
    assert list(seen.images) == ["primary", "wrist"] and seen.images["wrist"].shape == (112, 112, 3)
    assert seen.state.tolist() == pytest.approx([0.1, 0.05, 0, 0, 0, 0, 0, 0])
    with pytest.raises(ValueError, match="state=none; the toy world needs"):
        ToyBench(state="none")
    with pytest.raises(ValueError, match="image=8"):
        ToyBench(image=8)


# benchmarks


def test_the_toy_benchmark_keeps_every_law():
    check_benchmark(ToyBench())


class Broken(ToyBench):
    """The toy world with one of its methods replaced by `how`(world, *args)."""

    def __init__(self, **how):
        self.how = how

    @contextmanager
    def open(self, task):
        with super().open(task) as world:
            for name, how in self.how.items():
                old = getattr(world, name)
                setattr(world, name, lambda *args, how=how, old=old: how(world, old, *args))
            world.resets = 0
            yield world


def counting(world, reset, episode):
    world.resets += 1
    reset(episode + world.resets)


def flicker(world, observe):
    seen = observe()
    return replace(seen, images={"main": seen.images["main"] ^ np.uint8(np.random.default_rng().integers(1, 255))})


def drift(world, observe):
    seen = observe()
    world._at = world._at + 0.01
    return seen


@pytest.mark.parametrize(
    ("bench", "law"),
    [
        (Broken(reset=counting), "episode 0 differs when run again"),
        (Broken(reset=lambda world, reset, episode: reset(0)), "episodes 0 and 1 are the same"),
        (Broken(observe=flicker), "observing twice gave two pictures"),
        (
            Broken(step=lambda world, step, action: step(action + np.random.default_rng().uniform(-1, 1, 7))),
            "run again",
        ),
    ],
)
def test_a_benchmark_that_breaks_a_law_is_caught(bench, law):
    with pytest.raises(AssertionError, match=law):
        check_benchmark(bench)


def test_looking_that_moves_the_world_is_caught():
    with pytest.raises(AssertionError, match="observing"):
        check_benchmark(Broken(observe=drift))


def test_task_names_that_repeat_are_caught():
    bench = ToyBench()
    bench.tasks = lambda: [ToyBench().tasks()[0]] * 2
    with pytest.raises(AssertionError, match="task names repeat"):
        check_benchmark(bench)


# methods


@pytest.mark.parametrize("make", [Dense, FastV, Reuser])
def test_sound_methods_pass(make):
    check_pruner(make)


class Leaky(Pruner):
    """Keeps one token more in every call of its life."""

    calls = 0

    def plan(self, info):
        return Plan((2,))

    def select(self, context):
        self.calls += 1
        return Selection(torch.arange(min(8 + self.calls, len(context.alive))))


class Writer(Leaky):
    """Scales the hidden states it was lent."""

    def select(self, context):
        context.visual.mul_(1.01)
        return None


class Global(Leaky):
    """Remembers in its class what belongs to one episode, so its neighbours matter."""

    last = 0

    def reset(self):
        Global.last = 0

    def select(self, context):
        Global.last += 1
        return Selection(torch.arange(8 + Global.last))


class Wavering(Leaky):
    """Plans another context each time."""

    def plan(self, info):
        self.calls += 1
        return Plan((self.calls % 3,))


class Lottery(Leaky):
    """Draws from a generator that nobody seeded."""

    def select(self, context):
        return Selection(torch.randperm(len(context.alive))[:16])


class Hoarder(Leaky):
    """Keeps what changed since the call before, of which it has no copy: a captured graph writes over it."""

    def reset(self):
        self.last = None

    def select(self, context):
        old, self.last = self.last, context.visual
        change = torch.zeros(len(context.alive)) if old is None else (context.visual - old).norm(dim=1)
        return Selection(change.topk(16).indices.sort().values)


class Blurring(Leaky):
    """Keeps the same tokens each time, and changes them by numbers that nobody seeded."""

    def select(self, context):
        return Selection(torch.arange(64), values=context.visual + torch.randn_like(context.visual))


class Boastful(Leaky):
    """Drops tokens before layer 2, and writes into the trace that the last layer computed all of them."""

    def select(self, context):
        return Selection(torch.arange(8))

    def observe(self, trace):
        trace.counts[-1] = trace.counts[0]


@pytest.mark.parametrize(
    ("make", "law"),
    [
        (Leaky, "reset must forget"),
        (Blurring, "reset must forget.*actions differ"),
        (Hoarder, "layers run in segments changed the choice"),
        (Boastful, "tokens came back inside a forward pass"),
        (Writer, "wrote to a tensor of its context"),
        (Global, "reset must forget|a neighbour in the pack"),
        (Wavering, "a plan is fixed"),
        (Lottery, "reset must forget|a neighbour in the pack"),
    ],
)
def test_a_method_that_breaks_a_law_is_caught(make, law):
    with pytest.raises(AssertionError, match=law):
        check_pruner(make)


class Shared(Pruner):
    """All instances write to one list, and count what is in it."""

    seen: list = []  # noqa: RUF012

    def plan(self, info):
        return Plan((1,))

    def reset(self):
        Shared.seen.clear()

    def select(self, context):
        Shared.seen.append(context.step)
        return Selection(torch.arange(1 + len(Shared.seen)))


class Latecomer(Shared):
    """Is moved only by those who began before it."""

    def reset(self):
        super().reset()
        self.before = None

    def select(self, context):
        self.before = len(Shared.seen) if self.before is None else self.before
        Shared.seen.append(self)
        return Selection(torch.arange(8 + self.before))


class Jealous(Latecomer):
    """Is moved only by those who began after it."""

    def select(self, context):
        super().select(context)
        newest = max(Shared.seen, key=lambda one: one.before)
        return Selection(torch.arange(8 + (newest is not self)))


@pytest.mark.parametrize("make", [Shared, Latecomer, Jealous])
def test_a_method_whose_neighbour_matters_is_caught(make):
    with pytest.raises(AssertionError, match="a neighbour in the pack changed the choice"):
        check_pruner(make)


def test_a_budget_that_is_not_honoured_is_caught():
    with pytest.raises(ValueError, match="promised 32 of 64"):
        check_pruner(lambda: Scripted(Plan((0,), budget={0: Budget(0.5)}), lambda context: Selection(torch.arange(5))))


# layouts and traces


def layout(views):
    return Layout(12, range(1, 9), range(9, 11), range(12, 14), 11, views)


def test_views_must_tile_the_visual_tokens():
    layout((View("a", 0, 2, 2), View("b", 4, 1, 4)))
    for views in (
        (View("a", 0, 2, 2),),
        (View("a", 0, 2, 2), View("b", 3, 1, 4)),
        (View("b", 4, 2, 2), View("a", 0, 2, 2)),
    ):
        with pytest.raises(ValueError, match="do not tile the 8 visual tokens"):
            layout(views)


def test_pixels_are_the_patch_behind_each_token():
    images = [torch.arange(4 * 4 * 3).reshape(4, 4, 3).byte(), torch.randint(0, 255, (2, 8, 3)).byte()]
    trace = Trace(layout((View("a", 0, 2, 2), View("b", 4, 1, 4))), images, 0)
    assert trace.pixels.shape == (8, 2, 2, 3)
    for token, (image, y, x) in enumerate(
        [(0, 0, 0), (0, 0, 2), (0, 2, 0), (0, 2, 2)] + [(1, 0, 2 * i) for i in range(4)]
    ):
        assert torch.equal(trace.pixels[token], images[image][y : y + 2, x : x + 2])


def test_a_trace_names_what_was_not_read():
    trace = Trace(layout((View("a", 0, 2, 4),)), (), 0)
    trace.add_weights(2, QueryGroup.LAST, torch.rand(2, 1, 12))
    assert trace.has(2, QueryGroup.LAST) and not trace.has(2, QueryGroup.LAST | QueryGroup.TEXT)
    assert trace.rows(2, QueryGroup.LAST).shape == (2, 1, 14) and trace.visual(2, QueryGroup.LAST).shape == (2, 1, 8)
    with pytest.raises(KeyError, match=r"rows TEXT of layer 2 were not read in this call; read were \['LAST@2'\]"):
        trace.rows(2, QueryGroup.TEXT)


def test_the_toy_model_says_what_an_observation_lacks():
    from vlaprune.models.toy import Toy
    from vlaprune.policy import Policy

    look = Observation({"main": np.zeros((64, 64, 3), np.uint8)}, None, "reach the red light")
    with pytest.raises(ValueError, match="observation has no state"):
        Policy(Toy(), Dense).act({0: look})


@pytest.mark.parametrize("state, size", [("eef_pos3_axisangle3_gripper2", 8), ("position2", 2), (None, 0)])
def test_a_layout_says_how_many_numbers_a_state_has(state, size):
    assert Interface("any", "any", "delta", (), state).state_size == size
