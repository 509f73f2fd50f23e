"""The hindsight oracle: the tokens that a method should have kept, if it knew the resulting actions.

No method may look at the dense actions; the oracle does. For one observation it searches for the set of `count` tokens
whose actions are nearest to dense ones, and for the set whose actions are farthest. So the fidelity of every method
with as many tokens at that layer has a ceiling and a floor beside it. Both come from a search, so the true
ceiling and floor are further apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vlaprune.benchmark import Observation
from vlaprune.control import Control
from vlaprune.errors import UserError
from vlaprune.methods.dense import Dense
from vlaprune.policy import VLA, Policy, episode_seed
from vlaprune.profile.fidelity import Replay
from vlaprune.profile.page import Page
from vlaprune.profile.recording import Recording
from vlaprune.pruner import ModelInfo, Plan, PruneContext, Pruner, Selection

PACK = 8  # candidates tried in one packed call


class FixedTokens(Pruner):
    """Keeps given tokens at one layer; keeps all if none are given.

    tokens  numbers of the tokens to keep, among the V; None for all
    """

    def __init__(self, layer: int) -> None:
        self.layer = layer
        self.tokens: np.ndarray | None = None

    def plan(self, info: ModelInfo) -> Plan:
        """Acts before one layer; promises no count."""
        return Plan((self.layer,))

    def select(self, context: PruneContext) -> Selection | None:
        """Keeps the given tokens."""
        return None if self.tokens is None else Selection(torch.from_numpy(self.tokens).to(context.alive.device))


@dataclass(frozen=True, eq=False)
class Found:
    """The result of a search for one observation: tokens kept, their actions [chunk, action_dim], error of these."""

    tokens: np.ndarray
    chunk: np.ndarray
    error: float


class Search:
    """Searches on one model for the tokens before `layer`.

    count   tokens kept
    trials  sets tried for each observation and direction, in addition to one for each token
    scale   [action_dim - 1] standard deviation of the motion numbers, in which errors are measured
    execute actions of each chunk that are executed and count; None for all
    """

    def __init__(
        self, model: VLA, layer: int, count: int, trials: int, scale: np.ndarray, execute: int | None = None
    ) -> None:
        if trials < 1:
            raise UserError(f"trials={trials}; use at least 1")
        self._tellers: list[FixedTokens] = []
        self.policy = Policy(model, lambda: self._teller(layer), PACK, Control(execute=execute))
        self.count, self.trials, self.scale = count, trials, scale

    def _teller(self, layer: int) -> FixedTokens:
        self._tellers.append(FixedTokens(layer))
        return self._tellers[-1]

    def chunks(self, observation: Observation, sets: Sequence[np.ndarray | None], seed: int) -> list[np.ndarray]:
        """The actions with each set of tokens, each in the first call of an episode with the same seed."""
        out: list[np.ndarray] = []
        for start in range(0, len(sets), PACK):
            some = sets[start : start + PACK]
            for slot, tokens in enumerate(some):
                self.policy.reset(slot, seed)
                self._tellers[slot].tokens = tokens
            said = self.policy.act(dict.fromkeys(range(len(some)), observation))
            out += [said[slot] for slot in range(len(some))]
        return out

    def error(self, chunk: np.ndarray, dense: np.ndarray) -> float:
        """Root mean square of the differences of the motion numbers, in standard deviations."""
        return float(np.sqrt((((chunk - dense)[:, :-1] / self.scale) ** 2).mean()))

    def best(
        self, observation: Observation, seed: int, farthest: bool = False, start: Sequence[np.ndarray] = ()
    ) -> Found:
        """The tokens whose actions are nearest to dense ones, or farthest from them.

        start  sets [count] to begin with, such as the choices of methods; the result is never worse than these

        The first guess keeps the tokens whose removal alone changes the actions most. Then random swaps of one kept and
        one dropped token are tried, and the best one is accepted if it helps.
        """
        (dense,) = self.chunks(observation, [None], seed)
        total, sign = self.policy.trace(0).layout.total, -1.0 if farthest else 1.0
        if not 0 < self.count <= total:
            raise UserError(f"count={self.count}; keep 1 to {total} of the {total} visual tokens")

        def tried(sets: Sequence[np.ndarray]) -> Found:
            chunks = self.chunks(observation, sets, seed)
            errors = [self.error(chunk, dense) for chunk in chunks]
            at = int(np.argmin(sign * np.array(errors)))
            return Found(np.sort(sets[at]), chunks[at], errors[at])

        rng, everything = np.random.default_rng(seed), np.arange(total)
        without = [np.delete(everything, i) for i in everything]
        missed = [self.error(chunk, dense) for chunk in self.chunks(observation, without, seed)]
        order = np.argsort(-sign * np.array(missed), kind="stable")
        found = tried([order[: self.count], *start, *(rng.permutation(total)[: self.count] for _ in range(PACK - 1))])
        for _ in range(0, self.trials if self.count < total else 0, PACK):
            others = np.setdiff1d(everything, found.tokens)
            swaps = []
            for _ in range(PACK):
                own = found.tokens.copy()
                own[rng.integers(self.count)] = rng.choice(others)
                swaps.append(own)
            new = tried(swaps)
            found = new if sign * new.error < sign * found.error else found
        return found


def bounds(
    model: VLA,
    recording: Recording,
    layer: int,
    count: int,
    trials: int,
    scale: np.ndarray,
    seed: int,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Replay]:
    """Replays of a recording in which every call keeps the tokens that a search found: `nearest` and `farthest`."""
    search = Search(model, layer, count, trials, scale, recording.execute)
    out = {}
    for name in ("nearest", "farthest"):
        chunks, kept, visual = [], [], []
        for frame in recording.frames:
            tell(f"hindsight, {name}")
            found = search.best(frame.observation, episode_seed(seed, frame.task, frame.episode), name == "farthest")
            total, depth = search.policy.trace(0).layout.total, model.info.num_layers
            chunks.append(found.chunk)
            alive = np.zeros(total, bool)
            alive[found.tokens] = True
            kept.append(alive)
            visual.append((layer * total + (depth - layer) * count) / depth)
        out[name] = Replay(np.stack(chunks), np.stack(kept), np.array(visual))
    return out


def alone(model: VLA, recording: Recording, seed: int) -> Replay:
    """The dense replay in which every call is the first of an episode, as in the search."""
    policy, chunks, kept = recording.policy(model, Dense), [], []
    for frame in recording.frames:
        policy.reset(0, episode_seed(seed, frame.task, frame.episode))
        chunks.append(policy.act({0: frame.observation})[0])
        kept.append(np.ones(policy.trace(0).layout.total, bool))
    return Replay(np.stack(chunks), np.stack(kept), np.full(len(chunks), float(kept[0].size)))


def fill(
    page: Page,
    model: VLA,
    recording: Recording,
    arms: Mapping[str, Replay],
    dense: Replay,
    rules: Any,
    seed: int,
    tell: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Adds a table: the nearest and the farthest tokens of some frames, and the error of every arm on the same frames.

    arms   label -> replay of the whole recording; `dense` is the dense one
    rules  count, layer, trials and frames, as in configs/profile.yaml
    """
    picks = np.unique(np.linspace(0, len(recording.frames) - 1, rules.frames).astype(int))
    few = Recording([recording.frames[i] for i in picks], recording.card)
    first = alone(model, few, seed)
    scale = first.chunks[..., :-1].std((0, 1)) + 1e-9
    found = bounds(model, few, rules.layer, rules.count, rules.trials, scale, seed, tell)

    def rmse(chunks: np.ndarray, base: np.ndarray) -> float:
        return float(np.sqrt((((chunks - base)[..., :-1] / scale) ** 2).mean()))

    ends = {name: rmse(own.chunks, first.chunks) for name, own in found.items()}
    rows = [("nearest found", ends["nearest"], float(found["nearest"].visual.mean()))]
    rows += [(n, rmse(r.chunks[picks], dense.chunks[picks]), float(r.visual[picks].mean())) for n, r in arms.items()]
    rows += [("farthest found", ends["farthest"], float(found["farthest"].visual.mean()))]
    span = max(ends["farthest"] - ends["nearest"], 1e-12)
    page.table(
        f"Hindsight: {rules.count} tokens before layer {rules.layer}",
        [
            {
                "arm": name,
                "visual tokens": f"{visual:.1f}",
                "rmse": f"{error:.3f}",
                "place": f"{(ends['farthest'] - error) / span:.2f}",
            }
            for name, error, visual in rows
        ],
    )
    page.text(
        f"The nearest and the farthest of the sets that a search of {rules.trials} trials found for each of "
        f"{len(picks)} frames, told how far the actions stray; no method can know that. *place*: 1 is the nearest, 0 "
        "the farthest. It speaks of methods that keep as many tokens at that layer."
    )
    return [{"arm": name, "rmse": error, "visual": visual, "kind": "hindsight"} for name, error, visual in rows]
