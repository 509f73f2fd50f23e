"""Controls of a method: what it would do if it chose other tokens, as many of them, at the same layers, calls and cost.

A control runs the method as it is, reads and computes what it does, and then puts other rows in place of those that the
method chose. How many go on at a layer is replayed from a recorded run of the method, call by call, so that a method
whose counts depend on what is seen has the same counts in every control. Kept rows have their own hidden states: what a
method merges into them is part of its criterion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from vlaprune.errors import UserError
from vlaprune.methods.shared.selecting import even_strides, random_subset, split_budget
from vlaprune.pruner import ModelInfo, Plan, PruneContext, Pruner, PrunerWrapper, Scored, Selection, top
from vlaprune.trace import Layout, Trace

Scores = Mapping[int, Tensor]  # of one call: layer -> [V] score of each visual token, NaN for those that were gone


class RecordedCounts(Protocol):
    """What a recorded run of the method did in a call of the episode with a seed."""

    def count(self, seed: int, call: int, layer: int) -> int:
        """The number of visual tokens computed from a layer on; where there are two passes, in the second."""

    def had_two_passes(self, seed: int, call: int) -> bool:
        """Whether the prompt was computed twice."""


class Choice(Protocol):
    """A choice of the rows that go on instead of those that the method chose."""

    def __call__(self, context: PruneContext, count: int, score: Tensor | None) -> Tensor:
        """Chooses rows [count] of the context. `score` [n] is the method's own, where the control needs one."""


def draw_seed(context: PruneContext, draw: int) -> int:
    """The seed of a random draw at one layer of one call; `draw` tells several draws apart."""
    return (context.call_seed * 131 + context.layer) * 131 + draw


def at_random(draw: int) -> Choice:
    """A choice of rows at random, uniform without replacement; `draw` tells several such choices apart."""

    def choose(context: PruneContext, count: int, score: Tensor | None) -> Tensor:
        rows = torch.arange(context.alive.shape[0], device=context.alive.device)
        return random_subset(rows, count, draw_seed(context, draw))

    return choose


def rows_of_cameras(alive: Tensor, layout: Layout) -> list[Tensor]:
    """The rows of each camera among the tokens `alive` [n]."""
    ends = torch.tensor([v.tokens.stop for v in layout.views], device=alive.device)
    bounds = torch.searchsorted(alive, ends).tolist()
    rows = torch.arange(alive.shape[0], device=alive.device)
    return [rows[start:stop] for start, stop in zip([0, *bounds], bounds, strict=False)]


def in_a_grid(context: PruneContext, count: int, score: Tensor | None) -> Tensor:
    """Chooses rows in even strides through what is left of each camera, from each in proportion."""
    each = rows_of_cameras(context.alive, context.layout)
    counts = split_budget(count, [len(rows) for rows in each])
    return torch.cat([even_strides(rows, k) for rows, k in zip(each, counts, strict=True)])


def lowest(context: PruneContext, count: int, score: Tensor | None) -> Tensor:
    """Chooses the rows with the lowest scores of the method."""
    assert score is not None
    return top(-score, count)


def shuffled(context: PruneContext, count: int, score: Tensor | None) -> Tensor:
    """Chooses the rows with the highest scores, after the tokens of each camera have exchanged theirs at random."""
    assert score is not None
    mixed = score.clone()
    for i, rows in enumerate(rows_of_cameras(context.alive, context.layout)):
        mixed[rows] = score[random_subset(rows, rows.shape[0], draw_seed(context, 1000 + i))]
    return top(mixed, count)


class OtherEpisode:
    """Chooses the rows whose places got the highest scores of the method in the same call of another episode.

    donors  seed of the episode -> the scores of each call of another one
    """

    def __init__(self, donors: Callable[[int], Sequence[Scores]]) -> None:
        self.donors = donors

    def __call__(self, context: PruneContext, count: int, score: Tensor | None) -> Tensor:
        """Chooses rows by that call's score, or, where it has none at this layer, by that of the nearest call that has.

        Earlier calls come first, then later ones.
        """
        calls = self.donors(context.seed)
        at = context.step % len(calls)
        order = [*range(at, -1, -1), *range(at + 1, len(calls))]
        scores = next((calls[i][context.layer] for i in order if context.layer in calls[i]), None)
        if scores is None or scores.shape[0] != context.total:
            raise UserError(
                f"the audited run recorded no score of {context.total} tokens at layer {context.layer} in another "
                "episode; run its arm audit.arm=own anew"
            )
        return top(scores.to(context.alive.device)[context.alive], count)


class Recorded(PrunerWrapper):
    """The method itself; the scores of each call go to `take` with the seed of the episode, if it has any."""

    def __init__(self, inner: Pruner, take: Callable[[int, Scores], None]) -> None:
        super().__init__(inner)
        self._take = take
        self._seed = 0
        self._scores: dict[int, Tensor] = {}

    def select(self, context: PruneContext) -> Selection | None:
        """The method's own selection; its score is noted."""
        chosen = self.inner.select(context)
        if isinstance(self.inner, Scored):
            score = self.inner.score(context)
            self._seed = context.seed
            if score is not None:
                blank = torch.full((context.total,), torch.nan, device=context.alive.device)
                self._scores[context.layer] = blank.index_copy(0, context.alive, score.float())
        return chosen

    def observe(self, trace: Trace) -> None:
        """Hands the scores of the call to `take`."""
        self.inner.observe(trace)
        self._take(self._seed, self._scores)
        self._scores = {}


class ControlArm(PrunerWrapper):
    """The method with other tokens in place of those that it chooses.

    replay  how many visual tokens are computed from a layer on
    scores  `choose` needs the method's score. Where the method gives none, its latest one of this layer counts, and
            where there is none yet, rows are drawn at random
    """

    def __init__(self, inner: Pruner, replay: RecordedCounts, choose: Choice, scores: bool = False) -> None:
        super().__init__(inner)
        self.replay = replay
        self.choose = choose
        self.scores = scores
        if scores and not isinstance(inner, Scored):
            raise UserError(
                f"{type(inner).__name__} has no score to turn round or shuffle; audit it with the arms own, dense, "
                "random-0, random-1, random-2, uniform"
            )
        self._latest: dict[int, Tensor] = {}

    def plan(self, info: ModelInfo) -> Plan:
        """The method's plan without its budget: the recorded counts stand in for it."""
        self._plan = replace(self.inner.plan(info), budget={})
        return self._plan

    def reset(self) -> None:
        """Forgets the episode."""
        self.inner.reset()
        self._latest = {}

    def select(self, context: PruneContext) -> Selection | None:
        """Selects as many rows as the method kept in the recorded run, by `choose` instead of the method's choice."""
        inner = self.inner.select(context)
        rows = context.alive.shape[0]
        score = self._score(context) if self.scores else None
        reads = inner.reads if inner is not None else {}
        count = min(self.replay.count(context.seed, context.step, context.layer), rows)
        first = self.replay.had_two_passes(context.seed, context.step) and not context.second_pass
        if first or count == rows:
            return Selection.all(context, reads)
        choose = self.choose if score is not None or not self.scores else at_random(0)
        keep = choose(context, count, score)
        gone = torch.ones_like(context.reusable).index_fill(0, keep, False)
        reuse = (gone & context.reusable).nonzero()[:, 0] if self._plan.reuses else None
        return Selection(keep, reuse, reads=reads)

    def wants_second_pass(self, context: PruneContext) -> bool:
        """Whether the method computed the prompt of this call twice in the recorded run."""
        self.inner.wants_second_pass(context)
        return self.replay.had_two_passes(context.seed, context.step)

    def _score(self, context: PruneContext) -> Tensor | None:
        """The method's score [n] of the rows of this context, else its latest at this layer; None if there is none."""
        assert isinstance(self.inner, Scored)
        score = self.inner.score(context)
        if score is not None:
            blank = torch.full((context.total,), torch.nan, device=context.alive.device)
            self._latest[context.layer] = blank.index_copy(0, context.alive, score.float())
        latest = self._latest.get(context.layer)
        return None if latest is None else latest[context.alive]
