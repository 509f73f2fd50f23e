"""Conformance checks that any method or benchmark, ours or a third party's, must pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from vlaprune.bench.toy import Toy as ToyBench
from vlaprune.benchmark import Benchmark, Env, Observation
from vlaprune.models.backends import with_backend
from vlaprune.models.toy import STYLES, Toy
from vlaprune.policy import Policy
from vlaprune.pruner import ModelInfo, Plan, PruneContext, Pruner, Selection
from vlaprune.trace import Trace


class Watched(Pruner):
    """Forwards to a pruner, notes which tokens it keeps, and catches it writing to what it was lent."""

    def __init__(self, inner: Pruner) -> None:
        self.inner = inner
        self.kept: list[tuple[tuple[int, tuple[int, ...]], ...]] = []

    def plan(self, info: ModelInfo) -> Plan:
        """The inner plan, asked for twice: it must not change."""
        first, second = self.inner.plan(info), self.inner.plan(info)
        assert first == second, f"plan() answers {first}, then {second}; a plan is fixed"
        return first

    def select(self, context: PruneContext) -> Selection | None:
        """The inner selection."""
        before = [t.clone() for t in (context.visual, context.alive, context.text)]
        chosen = self.inner.select(context)
        for old, new in zip(before, (context.visual, context.alive, context.text), strict=True):
            assert torch.equal(old, new), f"{type(self.inner).__name__} wrote to a tensor of its context"
        return chosen

    def reset(self) -> None:
        """A new episode."""
        self.inner.reset()

    def observe(self, trace: Trace) -> None:
        """Notes what was kept at every site of the call."""
        self.kept.append(tuple((context, tuple(kept.tolist())) for context, kept in sorted(trace.kept.items())))
        self.inner.observe(trace)


def scenes(task: int, episode: int, steps: int = 6) -> list[Observation]:
    """What a point that drifts right sees in the toy world: frames that change a little from step to step."""
    bench = ToyBench()
    lot = np.random.default_rng(episode)
    with bench.open(bench.tasks()[task]) as world:
        world.reset(episode)
        frames = []
        for _ in range(steps):
            seen = world.observe()
            image = seen.images["main"].copy()
            row, column = lot.integers(0, 56, 2)
            image[row : row + 8, column : column + 8] = lot.integers(0, 255, 3)
            frames.append(Observation({"main": image}, seen.state, seen.instruction))
            world.step(np.array([0.3, 0, 0, 0, 0, 0, 0]))
    return frames


def check_pruner(make: Callable[[], Pruner], styles: Sequence[str] = STYLES) -> None:
    """AssertionError where a method breaks a law that every method must keep.

    A plan is fixed; select writes to nothing; dropped tokens never come back within a call; reset forgets the episode;
    several episodes in different phases, packed into one call, choose what each chooses alone; the fast path, running
    layers in segments, chooses what the layer loop chooses.
    """
    for style in styles:
        first, second = scenes(0, 1), scenes(1, 2)
        alone_first, alone_second = _run(make, style, [first]), _run(make, style, [second])
        again = _run(make, style, [first], earlier=second)
        _same(again[0], alone_first[0], f"{style}: reset must forget the previous episode")
        fast = _run(make, style, [first], fast=True)
        _same(fast[0], alone_first[0], f"{style}: layers run in segments changed the choice")
        packed = _run(make, style, [first, second], lag=2)
        _same(packed[0], alone_first[0], f"{style}: a neighbour in the pack changed the choice")
        _same(packed[1], alone_second[0], f"{style}: a neighbour in the pack changed the choice")


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
    """Each episode in its own slot; slot i starts i * lag calls late."""
    model = with_backend(Toy(style), "compile", None) if fast else Toy(style)
    policy = Policy(model, lambda: Watched(make()), slots=len(episodes))
    if earlier:
        policy.reset(0, seed=1)
        for frame in earlier:
            policy.act({0: frame})
    watched: list[Watched] = [s.pruner for s in policy.sessions]  # type: ignore[misc]
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


def check_benchmark(bench: Benchmark, steps: int = 5) -> None:
    """AssertionError where a benchmark breaks a law that every benchmark must keep.

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
    lot = np.random.default_rng(0)
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
        out += [*first, np.array([env.step(lot.uniform(-1, 1, 7))])]
    return out
