"""Conformance checks that any method or benchmark, ours or a third party's, must pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from vlaprune.bench.toy import Toy as ToyBench
from vlaprune.benchmark import Benchmark, Env, Interface, Observation
from vlaprune.methods.dense import Dense
from vlaprune.models.toy import STYLES, Toy
from vlaprune.nn.backend import Backend, Compiled
from vlaprune.policy import VLA, Policy
from vlaprune.pruner import Budget, ModelInfo, Plan, PruneContext, Pruner, PrunerWrapper, Selection
from vlaprune.trace import QueryGroup, Trace


class SimulatedGraphs(Backend):
    """Does on any device what captured CUDA graphs do: a segment reads copies of its inputs and overwrites its outputs.

    An input that is another segment's output is read where it lies, and must stay as it is. Whoever keeps an output for
    longer than allowed sees it change here too.
    """

    name = "graph"
    static = True

    def __init__(self) -> None:
        super().__init__()
        self._outputs: dict[Hashable, Any] = {}
        self._written: set[int] = set()

    def run(self, key: Hashable, segment: Callable[..., Any], *inputs: Any) -> Any:
        """Runs a segment on copies; the outputs of an earlier run with the same shapes get the new values."""
        leaves, spec = pytree.tree_flatten(inputs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        placed = {id(t): t.clone() for t in tensors if t.data_ptr() in self._written}
        static = [leaf.clone() if isinstance(leaf, Tensor) and id(leaf) not in placed else leaf for leaf in leaves]
        new = super().run(key, segment, *pytree.tree_unflatten(static, spec))
        kept = all(torch.equal(t, placed[id(t)]) for t in tensors if id(t) in placed)
        assert kept, f"segment {key} writes to its inputs; a captured graph would spoil what another one reads"
        places = (leaf.data_ptr() if id(leaf) in placed else None for leaf in leaves)
        kinds = zip(leaves, places, strict=True)
        shapes = (key, *((x.shape, x.dtype, at) if isinstance(x, Tensor) else x for x, at in kinds))
        if shapes not in self._outputs:
            self.captured += 1
            self._outputs[shapes] = new
            self._written |= {t.data_ptr() for t in pytree.tree_leaves(new) if isinstance(t, Tensor)}
            return new
        self.replayed += 1
        self.launched += 1 + len({t.dtype for t in tensors if id(t) not in placed})
        old = self._outputs[shapes]
        for a, b in zip(pytree.tree_leaves(old), pytree.tree_leaves(new), strict=True):
            if isinstance(a, Tensor):
                a.copy_(b)
        return old


Model = TypeVar("Model", bound=VLA)
Answer = TypeVar("Answer")


def with_segments(model: Model, backend: Backend) -> Model:
    """A shallow copy of a model that runs its segments through `backend`."""
    twin = copy.copy(model)
    twin.backend = backend
    return twin


class CheckedPruner(PrunerWrapper):
    """Forwards to a pruner, notes which tokens it keeps, and catches it writing to what it was lent."""

    def __init__(self, inner: Pruner) -> None:
        super().__init__(inner)
        self.kept: list[tuple[tuple[int, tuple[int, ...]], ...]] = []
        self.outputs: frozenset[int] = frozenset()
        self.says_twice = False

    def plan(self, info: ModelInfo) -> Plan:
        """The inner pruner's plan with a second pass allowed; asked for twice, because it must not change."""
        first, second = self.inner.plan(info), self.inner.plan(info)
        assert first == second, f"plan() answers {first}, then {second}; a plan is fixed"
        self.outputs = first.outputs
        self.says_twice = first.second_pass
        return replace(first, second_pass=True)  # so that a wish which the plan does not announce is noticed

    def select(self, context: PruneContext) -> Selection | None:
        """The inner pruner's selection, checked for writes to the context."""
        return self._unwritten(context, self.inner.select)

    def wants_second_pass(self, context: PruneContext) -> bool:
        """Whether the inner pruner wants a second pass, which its plan must announce."""
        again = self._unwritten(context, self.inner.wants_second_pass)
        assert not again or self.says_twice, "wants_second_pass says True, but the plan has second_pass=False"
        return again

    def _unwritten(self, context: PruneContext, ask: Callable[[PruneContext], Answer]) -> Answer:
        """The answer of the inner pruner, which must leave its context as it is."""
        read = [context.outputs(n) for n in sorted(self.outputs) if n < context.layer]
        shown = [context.visual, context.alive, context.text, *read]
        before = [t.clone() for t in shown]
        answer = ask(context)
        for old, new in zip(before, shown, strict=True):
            assert torch.equal(old, new), f"{type(self.inner).__name__} wrote to a tensor of its context"
        return answer

    def observe(self, trace: Trace) -> None:
        """Notes what was kept at every planned layer of the call."""
        self.kept.append(tuple((layer, tuple(kept.tolist())) for layer, kept in sorted(trace.kept.items())))
        self.inner.observe(trace)


def scenes(task: int, episode: int, steps: int = 6) -> list[Observation]:
    """What a point that drifts right sees in the toy world: frames that change a little from step to step."""
    bench = ToyBench()
    rng = np.random.default_rng(episode)
    with bench.open(bench.tasks()[task]) as world:
        world.reset(episode)
        frames = []
        for _ in range(steps):
            seen = world.observe()
            image = seen.images["main"].copy()
            row, column = rng.integers(0, 56, 2)
            image[row : row + 8, column : column + 8] = rng.integers(0, 255, 3)
            frames.append(Observation({"main": image}, seen.state, seen.instruction))
            world.step(np.array([0.3, 0, 0, 0, 0, 0, 0]))
    return frames


def check_pruner(make: Callable[[], Pruner], styles: Sequence[str] = STYLES) -> None:
    """Raises AssertionError where a method breaks a law that every method must keep.

    A plan is fixed; select writes to nothing; dropped tokens never come back within a call; reset forgets the episode;
    several episodes in different phases, packed into one call, choose what each chooses alone; the fast path, running
    layers in segments, chooses what the layer loop chooses; the FLOPs that are charged are those that torch counts. All
    of this also where it reads attention outputs or asks for a second pass.
    """
    for style in styles:
        first, second = scenes(0, 1), scenes(1, 2)
        alone_first = _run(make, style, [first])
        alone_second = _run(make, style, [second])
        again = _run(make, style, [first], earlier=second)
        _same(again[0], alone_first[0], f"{style}: reset must forget the previous episode")
        fast = _run(make, style, [first], fast=True)
        _same(fast[0], alone_first[0], f"{style}: layers run in segments changed the choice")
        packed = _run(make, style, [first, second], lag=2)
        _same(packed[0], alone_first[0], f"{style}: a neighbour in the pack changed the choice")
        _same(packed[1], alone_second[0], f"{style}: a neighbour in the pack changed the choice")
        _check_charges(make, style, first)


def _check_charges(make: Callable[[], Pruner], style: str, episode: Sequence[Observation]) -> None:
    """Checks the FLOPs that the method is charged in every call against torch's counter."""
    policy = Policy(Toy(style), make)
    for frame in episode:
        with flop_counter() as counter:
            policy.act({0: frame})
        flops = policy.drain(0)[-1].flops
        counted = counter.get_total_flops() - (sum(flops.values()) - flops["method"])
        assert flops["method"] == counted, (
            f"{style}: the method is charged {flops['method']:.0f} FLOPs in a call, torch counts {counted:.0f}; tell "
            "context.charge of every matrix product, and of no other"
        )


Outcome = tuple[list[tuple[tuple[int, tuple[int, ...]], ...]], list[np.ndarray]]


def _same(a: Outcome, b: Outcome, law: str) -> None:
    assert a[0] == b[0], f"{law} (kept {a[0]} against {b[0]})"
    for x, y in zip(a[1], b[1], strict=True):
        assert np.allclose(x, y, atol=1e-4), f"{law} (actions differ by {np.abs(x - y).max()})"


def _run(
    make: Callable[[], Pruner],
    style: str,
    episodes: Sequence[Sequence[Observation]],
    earlier: Sequence[Observation] = (),
    lag: int = 0,
    fast: bool = False,
) -> list[Outcome]:
    """Runs each episode in a slot of its own; slot i starts i * lag calls late."""
    model = with_segments(Toy(style), SimulatedGraphs()) if fast else Toy(style)
    policy = Policy(model, lambda: CheckedPruner(make()), slots=len(episodes))
    if earlier:
        policy.reset(0, seed=1)
        for frame in earlier:
            policy.act({0: frame})
    watched: list[CheckedPruner] = [s.pruner for s in policy.sessions]  # type: ignore[misc]
    actions: list[list[np.ndarray]] = [[] for _ in episodes]
    for slot in range(len(episodes)):
        policy.reset(slot, seed=slot if not lag else 0)
        watched[slot].kept.clear()
    for step in range(max(len(e) for e in episodes) + lag * (len(episodes) - 1)):
        looks = {i: e[step - i * lag] for i, e in enumerate(episodes) if 0 <= step - i * lag < len(e)}
        for slot, chunk in policy.act(looks).items():
            actions[slot].append(chunk)
    for slot in range(len(episodes)):
        for record in policy.drain(slot):
            assert list(record.visual) == sorted(record.visual, reverse=True), (
                f"tokens came back inside a forward pass: {record.visual}"
            )
    return [(w.kept, a) for w, a in zip(watched, actions, strict=True)]


class KeepAll(Pruner):
    """Asked before the first, a middle and the last layer, it keeps every token."""

    def plan(self, info: ModelInfo) -> Plan:
        """Acts before the first, the middle and the last layer, and reads nothing."""
        layers = sorted({0, info.num_layers // 2, info.num_layers - 1})
        return Plan(layers, budget=dict.fromkeys(layers, Budget(1.0)))

    def select(self, context: PruneContext) -> Selection:
        """Keeps all rows."""
        return Selection.all(context, {})


class KeepHalf(Pruner):
    """Keeps every second token before the middle layer, and reads the action rows of the last layer."""

    def plan(self, info: ModelInfo) -> Plan:
        """Acts before the middle layer, and reads the action rows of the last."""
        layer = info.num_layers // 2
        return Plan([layer], {info.num_layers - 1: QueryGroup.ACTION})

    def select(self, context: PruneContext) -> Selection:
        """Keeps rows 0, 2, 4, ..."""
        return Selection(torch.arange(0, context.alive.shape[0], 2, device=context.alive.device))

    def observe(self, trace: Trace) -> None:
        """Checks that the action rows were recorded in the call, and sum to at most one on the visual tokens."""
        weights = trace.visual(len(trace.counts) - 1, QueryGroup.ACTION)
        rows = weights.shape[1]
        action = len(trace.layout.action)
        assert rows and rows % action == 0, f"{rows} action rows are recorded of a layout with {action}"
        assert 0 <= float(weights.sum(-1).max()) <= 1 + 1e-4, "attention rows sum to more than one"


def random_observations(interface: Interface, image: int, count: int, seed: int = 0) -> list[Observation]:
    """Observations of random pixels and states that fit a model's interface; images are [image, image, 3]."""
    rng = np.random.default_rng(seed)
    size = interface.state_size
    return [
        Observation(
            {camera: rng.integers(0, 256, (image, image, 3), np.uint8) for camera in interface.cameras},
            rng.uniform(-0.5, 0.5, size) if size else None,
            ("pick up the red cup", "open the top drawer and put the bowl inside")[i % 2],
        )
        for i in range(count)
    ]


def check_model(make: Callable[[], VLA], image: int = 64, compiles: bool = True) -> None:
    """Raises AssertionError where a model breaks a law that every model must keep; UserError where a run does so too.

    make      builds the model; the same weights each time
    image     side of the square images that it is given, in pixels
    compiles  also check the compiled backend, which takes seconds to minutes

    It opens one call for every observation and emits finite chunks; the FLOPs it charges are those that torch counts;
    several observations in one packed call get what each gets alone; a method that keeps everything changes no bit; a
    method that prunes is obeyed; every backend runs the model's segments and gives the same actions.
    """
    model = make()
    first, second = random_observations(model.interface, image, 2)
    dense = _actions(model, Dense, [[first]])[0][0]
    assert dense.shape == (model.chunk, dense.shape[-1]), f"a chunk has shape {dense.shape}, not [{model.chunk}, ...]"
    _check_flops(model, first)
    other = _actions(model, Dense, [[second]])[0][0]
    together = _actions(model, Dense, [[first], [second]])
    for (got,), alone in zip(together, (dense, other), strict=True):
        assert np.allclose(got, alone, atol=1e-4), "a neighbour in the packed call changes the actions"
    kept = _actions(model, KeepAll, [[first]])[0][0]
    assert np.array_equal(kept, dense), "keeping every token changes the actions"
    both, half = (_actions(model, kind, [[first, second]])[0] for kind in (Dense, KeepHalf))
    backends: list[Backend] = [SimulatedGraphs(), *([Compiled("eager")] if compiles else [])]
    for backend in backends:
        twin = with_segments(model, backend)
        for kind, expected in ((Dense, both), (KeepHalf, half)):
            actions = _actions(twin, kind, [[first, second]])[0]
            for got, want in zip(actions, expected, strict=True):
                assert np.allclose(got, want, atol=1e-4), f"backend {backend.name} changes the actions"
        assert backend.builds, f"the model does not run its segments through backend {backend.name}"


def _actions(
    model: VLA, make: Callable[[], Pruner], episodes: Sequence[Sequence[Observation]]
) -> list[list[np.ndarray]]:
    """The chunks of each episode, all episodes packed into the same calls."""
    policy = Policy(model, make, slots=len(episodes))
    out: list[list[np.ndarray]] = [[] for _ in episodes]
    for observations in zip(*episodes, strict=True):
        for slot, chunk in policy.act(dict(enumerate(observations))).items():
            out[slot].append(chunk)
    return out


def flop_counter() -> FlopCounterMode:
    """Torch's counter of FLOPs, made to count fused attention on a CPU, too, which it counts as nothing by default."""

    def count(q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return int(sdpa_flop_count(q, k, v))

    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={fused: count})


def _check_flops(model: VLA, observation: Observation) -> None:
    """Checks the FLOPs charged in a dense and in a pruned call against torch's counter."""
    for make in (Dense, KeepHalf):
        policy = Policy(model, make)
        with flop_counter() as counter:
            policy.act({0: observation})
        (record,) = policy.drain(0)
        charged = sum(record.flops.values())
        assert charged == counter.get_total_flops(), (
            f"{model.info.name} charges {charged:.0f} FLOPs for a call with {make.__name__}, torch counts "
            f"{counter.get_total_flops()}"
        )
        reached = record.visual[-1]
        expected = record.total if make is Dense else -(-record.total // 2)
        assert reached == expected, f"{reached} visual tokens reach the last layer, {expected} were kept"


def check_benchmark(bench: Benchmark, steps: int = 5) -> None:
    """Raises AssertionError where a benchmark breaks a law that every benchmark must keep.

    Task names are distinct; observing changes nothing; the episode number alone fixes the first frame and the course
    under the same actions, in any order.
    """
    tasks = bench.tasks()
    names = [t.name for t in tasks]
    assert len(set(names)) == len(names), f"task names repeat: {names}"
    for task in tasks:
        with bench.open(task) as env:
            seen: dict[int, list[np.ndarray]] = {}
            for episode, looks in ((0, 2), (1, 2), (0, 1)):
                course = _course(env, episode, steps, looks)
                if episode in seen:
                    for a, b in zip(seen[episode], course, strict=True):
                        assert np.array_equal(a, b), f"{task.name}: episode {episode} differs when run again"
                seen[episode] = course
            assert any(not np.array_equal(a, b) for a, b in zip(seen[0], seen[1], strict=True)), (
                f"{task.name}: episodes 0 and 1 are the same"
            )


def _course(env: Env, episode: int, steps: int, looks: int) -> list[np.ndarray]:
    """Everything seen in an episode under fixed actions, looked at some times per step."""
    rng = np.random.default_rng(0)
    env.reset(episode)
    out: list[np.ndarray] = []
    for _ in range(steps):
        first, *others = (
            [*o.images.values(), np.zeros(0) if o.state is None else o.state]
            for o in (env.observe() for _ in range(looks))
        )
        for other in others:
            same = all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
            assert same, "observing twice gave two pictures or states"
        out += [*first, np.array([env.step(rng.uniform(-1, 1, 7))])]
    return out
