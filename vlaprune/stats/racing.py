"""A race over settings of a method: which of them deserve episodes, when one is out, and which are on the front."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from vlaprune.errors import UserError
from vlaprune.stats.paired import EProcess, Key

DRAWS, SURE = 2000, 0.95  # of a bootstrap; share of it that must agree


@dataclass(frozen=True)
class Entrant:
    """One setting before it has run an episode.

    cost    of a call, in any unit; less is better
    prior   how far its actions stray from dense ones on recorded observations, rmse; less is better
    errors  the squares that it is the mean of: of every call, by recorded episode. Empty where they are not known
    """

    name: str
    cost: float
    prior: float
    errors: tuple[tuple[float, ...], ...] = ()

    def strays_less(self, other: Entrant) -> bool:
        """Whether it strays no further than another one on most draws of the recorded episodes, not by their luck.

        Of one recorded episode nothing is sure.
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
    """How far an entrant is: success of each episode it ran, and why it is out (empty while it is in)."""

    entrant: Entrant
    success: dict[object, bool] = field(default_factory=dict)
    out: str = ""

    @property
    def rate(self) -> float:
        """Share of its episodes that succeeded."""
        return sum(self.success.values()) / len(self.success)


def promising(entrants: Sequence[Entrant]) -> list[Entrant]:
    """Those that no other one undercuts in cost without straying further; the cheapest first.

    A setting is left out only where the recorded episodes are sure of it: what a few of them do not tell apart, runs.
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
    """Runs episodes of the entrants until all are out or through, or the budget is spent.

    keys    the episodes, in the order in which they are run
    dense   success of each without a method
    play    success of an entrant on the first so many episodes; what it ran before is not run again
    budget  episodes of all entrants together
    batch   episodes between two looks

    In every round the promising of those still in run one batch more. One is out as soon as an e-process says that it
    is worse than dense, or worse than another one that costs no more. Each comparison of two errs in at most `alpha` of
    all races, whenever it is looked at (Ville 1939); a race of many equal settings makes many. Where the promising are
    all through, the entrant nearest to them (by what it strays beyond the promising one of its cost) runs, while the
    budget lasts. Gives those that ran.
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
    """Says who is out."""
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
    """Whether an e-process over the episodes of both, in their order, has seen that ours lose more than they gain."""
    state = EProcess(alpha)
    for key in keys:
        if key in ours and key in theirs:
            state = state.after(theirs[key], ours[key])
    return state.stopped and state.lost > state.gained


def front(standings: Sequence[RaceStatus]) -> list[RaceStatus]:
    """Those in the race that no cheaper one equals in success, on the episodes that both ran; the cheapest first."""
    out: list[RaceStatus] = []
    for one in sorted((s for s in standings if not s.out and s.success), key=lambda s: (s.entrant.cost, -s.rate)):
        if all(_ahead(one, cheaper) > 0 for cheaper in out):
            out.append(one)
    return out


def _ahead(one: RaceStatus, other: RaceStatus) -> float:
    """Successes of one less those of the other, on the episodes that both ran; of rates where there is none."""
    both = one.success.keys() & other.success.keys()
    return sum(one.success[k] - other.success[k] for k in both) if both else one.rate - other.rate


def _beyond(entrant: Entrant, front: Sequence[Entrant]) -> float:
    """How much further it strays than the promising one that costs no more."""
    return entrant.prior - min((f.prior for f in front if f.cost <= entrant.cost), default=entrant.prior)
