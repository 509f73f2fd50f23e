"""The fidelity gate: how far a method's actions stray from dense ones on the same recorded observations, in minutes.

No simulator is stepped: every method sees exactly what dense saw, so a difference comes from the method and not from
another course of the episode. `correlate_losses` measures how well this predicts a loss of success.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from vlaprune.benchmark import Interface
from vlaprune.errors import UserError
from vlaprune.policy import Policy, episode_seed
from vlaprune.profile.recording import PHASES, Recording, closes
from vlaprune.records import StepRecord
from vlaprune.stats.ranks import partial_rank, rank_correlation


@dataclass(frozen=True, eq=False)
class Replay:
    """The answers of a policy to a recording.

    chunks  [n, chunk, action_dim] before any control of the robot
    kept    [n, V] bool: computed in the last layer
    visual  [n] visual tokens computed, mean over layers
    total   V, the number of visual tokens
    ms, gflops  [n] milliseconds and GFLOPs of each call; ms is NaN if not timed, or if the call was cold
    """

    chunks: np.ndarray
    kept: np.ndarray
    visual: np.ndarray
    ms: np.ndarray = field(default_factory=lambda: np.zeros(0))
    gflops: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @property
    def total(self) -> int:
        """V, the number of visual tokens."""
        return int(self.kept.shape[1])


@dataclass(frozen=True)
class Fidelity:
    """How a replay differs from the dense one, over all calls.

    rmse        root of the mean squared difference of the motion numbers, each in units of its standard deviation in
                the dense actions; 0 for equal actions, about 1.4 for unrelated ones
    cosine      cosine of a call's motion with the dense motion, mean over calls
    flips       share of actions with the opposite gripper command
    agreement      share of the calls of an episode before the first that differs by more than the tolerance, mean over
                episodes: 1 is an episode without such a call
    steady      overlap (intersection over union) of the tokens kept in one call and in the next
    errors      squared error of every call, by episode; rmse is the root of their mean
    phases      the rmse by phase of the task
    """

    rmse: float
    cosine: float
    flips: float
    agreement: float
    steady: float
    errors: tuple[tuple[float, ...], ...]
    phases: Mapping[str, float]


def replay(policy: Policy, recording: Recording, seed: int) -> Replay:
    """Replays every episode in order, each from a reset."""
    chunks, kept = [], []
    records: list[StepRecord] = []
    for episode in recording.episodes:
        policy.reset(0, episode_seed(seed, episode[0].task, episode[0].episode))
        for frame in episode:
            chunks.append(policy.act({0: frame.observation})[0])
            trace = policy.trace(0)
            alive = np.ones(trace.layout.total, bool)
            if trace.kept:
                alive[:] = False
                alive[trace.kept[max(trace.kept)].cpu().numpy()] = True
            kept.append(alive)
        records += policy.drain(0)
    visual = np.array([float(np.mean(r.visual)) for r in records])
    ms = np.array([sum(r.ms.values()) if r.ms and not r.cold else np.nan for r in records])
    return Replay(
        np.stack(chunks), np.stack(kept), visual, ms, np.array([sum(r.flops.values()) / 1e9 for r in records])
    )


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of kept tokens [n, V], mean over n."""
    return float(np.mean((a & b).sum(-1) / np.maximum((a | b).sum(-1), 1)))


def score(
    recording: Recording, interface: Interface, dense: Replay, method: Replay, tolerance: float = 0.1
) -> Fidelity:
    """Compares two replays of one recording; `tolerance` is the rmse above which a call counts as different."""
    scale = dense.chunks[..., :-1].std((0, 1)) + 1e-9
    ours, theirs = (r.chunks[..., :-1] / scale for r in (method, dense))
    calls = np.sqrt(((ours - theirs) ** 2).mean((1, 2)))
    flat = [x.reshape(len(x), -1) for x in (ours, theirs)]
    norms = np.linalg.norm(flat[0], axis=1) * np.linalg.norm(flat[1], axis=1)
    phase = np.array([f.phase for f in recording.frames])
    starts = np.array([f.step == 0 for f in recording.frames])
    same, other = (closes(r.chunks, interface.gripper) for r in (dense, method))
    follows = ~starts[1:]
    return Fidelity(
        rmse=float(np.sqrt((calls**2).mean())),
        cosine=float(np.mean((flat[0] * flat[1]).sum(1) / np.maximum(norms, 1e-12))),
        flips=float((same != other).mean()),
        agreement=float(np.mean([_before(c > tolerance) for c in np.split(calls, np.flatnonzero(starts)[1:])])),
        steady=overlap(method.kept[1:][follows], method.kept[:-1][follows]) if follows.any() else float("nan"),
        errors=tuple(tuple(own.tolist()) for own in np.split(calls**2, np.flatnonzero(starts)[1:])),
        phases={p: float(np.sqrt((calls[phase == p] ** 2).mean())) for p in PHASES if (phase == p).any()},
    )


def _before(differs: np.ndarray) -> float:
    """Share of an episode's calls [n] before the first that differs."""
    return float(np.argmax(differs) / len(differs)) if differs.any() else 1.0


@dataclass(frozen=True)
class LossCorrelation:
    """Rank correlation over arms of a score with the loss of success, and its 95 % bootstrap interval.

    beyond  partial rank correlation given the number of visual tokens; NaN if that number explains one of them fully
    """

    rho: float
    low: float
    high: float
    arms: int
    beyond: float


def correlate_losses(
    scores: Sequence[float], losses: Sequence[float], tokens: Sequence[float], seed: int = 0, draws: int = 4000
) -> LossCorrelation:
    """Spearman's rank correlation; the interval is a bootstrap over arms. UserError for fewer than 4 arms."""
    a, b = np.asarray(scores, float), np.asarray(losses, float)
    if len(a) < 4:
        raise UserError(f"{len(a)} arms; a rank correlation needs at least 4")
    picks = np.random.default_rng(seed).integers(0, len(a), (draws, len(a)))
    drawn = rank_correlation(a[picks], b[picks])
    low, high = np.nanpercentile(drawn, [2.5, 97.5]) if np.isfinite(drawn).any() else (np.nan, np.nan)
    given = partial_rank(a, b, np.asarray(tokens, float))
    return LossCorrelation(float(rank_correlation(a, b)), float(low), float(high), len(a), given)
