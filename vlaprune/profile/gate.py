"""The page of `vlaprune-profile mode=fidelity`: scores of every arm, and how well they predict closed-loop success."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from vlaprune import report
from vlaprune.errors import UserError
from vlaprune.methods.dense import Dense
from vlaprune.policy import VLA
from vlaprune.profile.fidelity import Fidelity, LossCorrelation, Replay, correlate_losses, overlap, replay, score
from vlaprune.profile.micro import AGAIN
from vlaprune.profile.page import Page, percent
from vlaprune.profile.recording import PHASES, Recording
from vlaprune.pruner import Pruner
from vlaprune.records import Run, differences, without
from vlaprune.stats import paired as stats

RESEEDED = "dense, another seed"
LEAST = 150  # fewest episodes that an arm must share with dense for its loss to count


@dataclass
class Judged:
    """An arm: its fidelity and, if a run was given, the loss of success on the episodes shared with dense."""

    label: str
    replay: Replay
    fidelity: Fidelity
    episodes: int = 0
    loss: float | None = None

    @property
    def scores(self) -> dict[str, float]:
        """The scores that may predict a loss; higher is worse. The last one ignores the actions, for comparison."""
        f = self.fidelity
        out = {"rmse": f.rmse, "1 - cosine": 1 - f.cosine, "gripper flips": f.flips, "1 - agreement": 1 - f.agreement}
        out |= {f"rmse in {phase}": value for phase, value in f.phases.items()}
        return out | {"visual tokens not computed": 1 - float(self.replay.visual.mean()) / self.replay.total}


def draws_noise(model: VLA, recording: Recording, seed: int) -> bool:
    """Whether another seed changes the dense actions of the first call, as it does where a flow starts from noise."""
    first = replace(recording, frames=recording.frames[:1])
    one, other = (replay(recording.policy(model, Dense), first, own).chunks for own in (seed, seed + 1))
    return not np.array_equal(one, other)


def judge(
    model: VLA,
    recording: Recording,
    methods: Sequence[tuple[str, Callable[[], Pruner]]],
    seed: int,
    reseed: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Judged]:
    """Replays dense, dense again with the same seed (the effect of a repeat), and every method.

    reseed  replay dense under another seed too: the effect of the policy's own noise
    """
    dense = replay(recording.policy(model, Dense), recording, seed)
    own = [(AGAIN, Dense, seed), *([(RESEEDED, Dense, seed + 1)] if reseed else [])]
    out = []
    for label, make, drawn in [*own, *((label, make, seed) for label, make in methods)]:
        tell(label)
        answers = replay(recording.policy(model, make), recording, drawn)
        out.append(Judged(label, answers, score(recording, model.interface, dense, answers)))
    return out


def arms(
    runs: Sequence[Run], dense: Run, make: Callable[[Mapping[str, Any]], Pruner], weights: object
) -> list[tuple[str, Callable[[], Pruner], Run]]:
    """Label, method and run of every run but dense; of runs with the same settings only the longest.

    UserError for runs of other weights, and for those that differ from the dense run in more than the method.
    """
    out: dict[str, tuple[str, Callable[[], Pruner], Run]] = {}
    for run in sorted(runs, key=lambda run: (len(run.episodes), str(run.folder))):
        if run.header.identity.get("weights") != weights:
            raise UserError(f"{run.folder} ran with weights {run.header.identity.get('weights')}, not {weights}")
        if differing := differences(*(without(r.header, "method") for r in (dense, run))):
            raise UserError(f"{run.folder} differs from {dense.folder} in more than the method ({differing})")
        if report.name(run.header) != "dense":
            node = run.header.identity["method"]
            label = report.label(run.header, [other.header for other in runs])
            out[label] = (label, partial(make, node), run)
    return [out[label] for label in sorted(out)]


def losses(judged: Sequence[Judged], runs: Mapping[str, Run], dense: Run) -> None:
    """Notes for each arm the loss of success on the episodes that its run shares with dense."""
    for arm in judged:
        run = runs.get(arm.label)
        both = [] if run is None else [k for k in run.episodes if k in dense.episodes]
        arm.episodes = len(both)
        if run is not None and both:
            theirs, ours = ({k: r.episodes[k].success for k in both} for r in (dense, run))
            arm.loss = -stats.pair(theirs, ours).difference


def correlations(judged: Sequence[Judged]) -> dict[str, LossCorrelation]:
    """The correlation of each score with the loss, over arms with enough episodes; empty for fewer than 4 arms."""
    told = [a for a in judged if a.loss is not None and a.episodes >= LEAST]
    if len(told) < 4:
        return {}
    names = list(told[0].scores)
    tokens, lost = [float(a.replay.visual.mean()) for a in told], [a.loss or 0.0 for a in told]
    return {n: correlate_losses([a.scores[n] for a in told], lost, tokens) for n in names}


def fill(page: Page, judged: Sequence[Judged], foretold: Mapping[str, LossCorrelation], tolerance: float = 0.1) -> None:
    """Adds the tables of fidelity, correlations and overlaps to the page."""
    page.table("Fidelity", [_row(a) for a in judged])
    page.text(
        "*rmse*: motion numbers in units of their standard deviation in the dense actions. *flips*: gripper commands "
        f"that are the other one. *agreement*: share of an episode's calls before the first whose rmse is above "
        f"{tolerance:g} (100 % is never). *steady*: tokens kept in one call and in the next, intersection over union. "
        "*in ...*: rmse in that phase of the task. *loss*: points of success lost in closed loop on the same episodes "
        "as dense.",
    )
    if any(a.label == RESEEDED for a in judged):
        page.text(
            f"*{RESEEDED}*: what the policy's own noise does to its actions, the scale for what a method does to them. "
            "Methods have the noise of dense."
        )
    page.table("Does it foretell the loss of success?", [_told(n, f) for n, f in foretold.items()])
    pruning = [a for a in judged if not a.replay.kept.all()]
    if 1 < len(pruning) <= 16:
        page.table("Tokens kept by two methods, intersection over union", _overlaps(pruning))


def _row(arm: Judged) -> dict[str, str]:
    f = arm.fidelity
    out = {
        "arm": arm.label,
        "visual tokens": f"{arm.replay.visual.mean():.1f} of {arm.replay.total}",
        "rmse": f"{f.rmse:.3f}",
        "cosine": f"{f.cosine:.3f}",
        "flips": percent(f.flips),
        "agreement": percent(f.agreement),
        "steady": f"{f.steady:.2f}",
    }
    out |= {f"in {p}": f"{f.phases[p]:.3f}" if p in f.phases else "" for p in PHASES}
    return out | {"loss": "" if arm.loss is None else f"{100 * arm.loss:+.1f} of {arm.episodes}"}


def _told(name: str, found: LossCorrelation) -> dict[str, str]:
    return {
        "score": name,
        "rank correlation with the loss": _signed(found.rho),
        "95 % interval over arms": f"{_signed(found.low)} to {_signed(found.high)}",
        "at a given token count": _signed(found.beyond),
        "arms": str(found.arms),
    }


def _signed(value: float) -> str:
    return "none" if value != value else f"{value:+.2f}"


def _overlaps(judged: Sequence[Judged]) -> list[dict[str, str]]:
    return [
        {"arm": a.label} | {b.label: f"{overlap(a.replay.kept, b.replay.kept):.2f}" for b in judged} for a in judged
    ]


def rows(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """The plain numbers of every arm."""
    return [
        {"arm": a.label, "visual": float(np.mean(a.replay.visual)), **a.scores, "steady": a.fidelity.steady}
        | {"episodes": a.episodes, "loss": a.loss}
        for a in judged
    ]
