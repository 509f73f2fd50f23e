"""A race over settings of a method: which settings get episodes, when one is out, and which are on the front."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from vlaprune.errors import UserError
from vlaprune.stats.paired import EProcess, Key

DRAWS, SURE = 2000, 0.95  # bootstrap draws; share of them that must agree


@dataclass(frozen=True)
class Entrant:
    """One setting before it has run an episode.

    cost    cost of a call, in any unit; less is better
    prior   distance of its actions from dense ones on recorded observations, rmse; less is better
    errors  squared errors of every call, by recorded episode; prior is the root of their mean. Empty if not known
    """

    name: str
    cost: float
    prior: float
    errors: tuple[tuple[float, ...], ...] = ()

    def strays_less(self, other: Entrant) -> bool:
        """Whether its actions are at least as near to dense as the other's, in a share `SURE` of bootstrap draws.

        Episodes are drawn. False for a single recorded episode; without errors to draw from, priors are compared.
        """
        if len(self.errors) == len(other.errors) == 1:
            return False
        if not self.errors or len(self.errors) != len(other.errors):
            return self.prior <= other.prior
        drawn = np.random.default_rng(0).multinomial(len(self.errors), [1 / len(self.errors)] * len(self.errors), DRAWS)
        ours, theirs = (drawn @ np.array([sum(own) for own in one.errors]) for one in (self, other))
        return bool((ours <= theirs).mean() >= SURE)


@dataclass
class RaceStatus:
    """The state of an entrant: success of each episode that it ran, and why it is out (empty while it is in)."""

    entrant: Entrant
    success: dict[object, bool] = field(default_factory=dict)
    out: str = ""

    @property
    def rate(self) -> float:
        """Share of its episodes that succeeded."""
        return sum(self.success.values()) / len(self.success)


def promising(entrants: Sequence[Entrant]) -> list[Entrant]:
    """The entrants for which no cheaper one has actions at least as near to dense; the cheapest first.

    An entrant is left out only if the recorded episodes are sure of it (`Entrant.strays_less`).
    """
    out: list[Entrant] = []
    for one in sorted(entrants, key=lambda e: (e.cost, e.prior, e.name)):
        if not any(cheaper.strays_less(one) for cheaper in out):
            out.append(one)
    return out


def race(
    entrants: Sequence[Entrant],
    keys: Sequence[Key],
    dense: Mapping[Key, bool],
    play: Callable[[Entrant, Sequence[Key]], Mapping[Key, bool]],
    budget: int,
    batch: int,
    alpha: float = 0.05,
) -> list[RaceStatus]:
    """Runs episodes of the entrants until all are out or complete, or the budget is spent.

    keys    the episodes, in the order in which they are run
    dense   success of each without a method
    play    returns the success of an entrant on the given first episodes; those run before are not run again
    budget  episodes of all entrants together
    batch   episodes between two looks

    In every round the promising entrants that are still in run one more batch. An entrant is out as soon as an
    e-process says that it is worse than dense, or worse than another one that costs no more. Each comparison of two is
    wrong in at most `alpha` of all races, whenever it is looked at (Ville 1939); a race of many equal settings makes
    many comparisons. When the promising are complete, the entrant whose prior is nearest to theirs at its cost runs,
    while the budget lasts. Returns the entrants that ran.
    """
    if batch < 1 or budget < batch:
        raise UserError(f"budget={budget} batch={batch}; use a batch of 1 or more episodes, within the budget")
    every = {e.name: RaceStatus(e) for e in entrants}
    spent, over = 0, False
    while True:
        within = [s for s in every.values() if not s.out]
        wave = promising([s.entrant for s in within])
        running = [every[e.name] for e in wave if len(every[e.name].success) < len(keys)]
        if not running:
            waiting = [s for s in within if len(s.success) < len(keys)]
            running = sorted(waiting, key=lambda s: (_beyond(s.entrant, wave), s.entrant.name))[:1]
        for one in running:
            count = min(batch, len(keys) - len(one.success))
            if spent + count > budget:
                over = True
                break
            found = play(one.entrant, keys[: len(one.success) + count])
            one.success = {key: found[key] for key in found}
            spent += count
        judge([s for s in every.values() if s.success], keys, dense, alpha)
        if over or not running:
            return [s for s in every.values() if s.success]


def judge(standings: Sequence[RaceStatus], keys: Sequence[Key], dense: Mapping[Key, bool], alpha: float) -> None:
    """Marks the entrants that are out, with the reason."""
    for one in standings:
        if one.out or not one.success:
            continue
        if worse(one.success, dense, keys, alpha):
            one.out = "worse than dense"
            continue
        rivals = [o for o in standings if o is not one and not o.out and o.entrant.cost <= one.entrant.cost]
        better = next((o for o in rivals if worse(one.success, o.success, keys, alpha)), None)
        one.out = f"worse than {better.entrant.name}, which costs no more" if better else ""


def worse(ours: Mapping[object, bool], theirs: Mapping[Key, bool], keys: Sequence[Key], alpha: float) -> bool:
    """Whether an e-process over the common episodes, in order, shows that `ours` lose more than they gain."""
    state = EProcess(alpha)
    for key in keys:
        if key in ours and key in theirs:
            state = state.after(theirs[key], ours[key])
    return state.stopped and state.lost > state.gained


def front(standings: Sequence[RaceStatus]) -> list[RaceStatus]:
    """The entrants still in that beat every cheaper one on the front, on common episodes; the cheapest first."""
    out: list[RaceStatus] = []
    for one in sorted((s for s in standings if not s.out and s.success), key=lambda s: (s.entrant.cost, -s.rate)):
        if all(_ahead(one, cheaper) > 0 for cheaper in out):
            out.append(one)
    return out


def _ahead(one: RaceStatus, other: RaceStatus) -> float:
    """Successes of one minus those of the other on common episodes; without any, the difference of their rates."""
    both = one.success.keys() & other.success.keys()
    return sum(one.success[k] - other.success[k] for k in both) if both else one.rate - other.rate


def _beyond(entrant: Entrant, front: Sequence[Entrant]) -> float:
    """The prior of an entrant minus the least prior on the front at no higher cost; 0 without one."""
    return entrant.prior - min((f.prior for f in front if f.cost <= entrant.cost), default=entrant.prior)
