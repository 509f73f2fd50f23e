"""An audit: what a method's criterion is worth beside other choices of as many tokens (experiment=audit).

Its arms are runs of their own. `own` is the method itself and comes first: the others replay its counts, call by call,
from its journal, and `other` its scores, which `own` keeps in `scores` below its folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlaprune.benchmark import Observation
from vlaprune.delay import Guide
from vlaprune.errors import UserError
from vlaprune.evaluation.audit_controls import (
    Choice,
    ControlArm,
    OtherEpisode,
    Recorded,
    Scores,
    at_random,
    in_a_grid,
    lowest,
    shuffled,
)
from vlaprune.evaluation.rollout import Watcher
from vlaprune.files import replacing
from vlaprune.methods.dense import Dense
from vlaprune.policy import VLA, Guided, episode_seed
from vlaprune.pruner import Pruner
from vlaprune.records import EpisodeRecord, Header, Run, StepRecord, differences, read
from vlaprune.report.audit import WITHOUT
from vlaprune.session import Session
from vlaprune.trace import Trace

DRAWS = 3  # of the random control
RANDOM = tuple(f"random-{i}" for i in range(DRAWS))
SCORED = ("bottom", "shuffled", "other")
ARMS = ("own", *WITHOUT, *RANDOM, "uniform", *SCORED)
GREY = 128


def check(arm: str | None) -> None:
    """Raises UserError for an arm that no audit has."""
    if arm is not None and arm not in ARMS:
        raise UserError(f"audit.arm={arm}; use one of {', '.join(ARMS)}, or leave it out")


def named(header: Header, arm: str) -> Header:
    """The header of a run that is an arm of an audit."""
    method = {"name": "dense"} if arm in WITHOUT else header.identity["method"]
    return replace(header, identity={**header.identity, "method": {**method, "audit": arm}})


def blind(observation: Observation) -> Observation:
    """The observation with all cameras showing the same grey."""
    return replace(observation, images={c: np.full_like(i, GREY) for c, i in observation.images.items()})


def wordless(observation: Observation) -> Observation:
    """The observation with an empty instruction."""
    return replace(observation, instruction="")


SEES: dict[str, Callable[[Observation], Observation]] = {"blind": blind, "wordless": wordless}


class AlteredInputs:
    """A model that gets observations changed by `change`."""

    def __init__(self, model: VLA, change: Callable[[Observation], Observation]) -> None:
        self.info = model.info
        self.decoder = model.decoder
        self.backend = model.backend
        self.interface = model.interface
        self.chunk = model.chunk
        self.device = model.device
        self._model = model
        self._change = change

    def predict(self, observations: Sequence[Observation], sessions: Sequence[Session]) -> Sequence[torch.Tensor]:
        """The model's actions on the changed observations."""
        return self._model.predict([self._change(o) for o in observations], sessions)

    def predict_guided(
        self, observations: Sequence[Observation], sessions: Sequence[Session], guides: Sequence[Guide | None]
    ) -> Sequence[torch.Tensor]:
        """The model's actions on the changed observations, going on from the chunks before (delay.mode=rtc)."""
        assert isinstance(self._model, Guided)  # config.delay says so in one line where it is not
        return self._model.predict_guided([self._change(o) for o in observations], sessions, guides)


def alter_inputs(model: VLA, arm: str | None) -> VLA:
    """The model with the changed observations of an arm that is blind or wordless; else the model itself."""
    return AlteredInputs(model, SEES[arm]) if arm in SEES else model


@dataclass
class ScoreBook:
    """The scores of the audited run's episodes; as a watcher it writes each to a file when the episode is over.

    seed  of the run
    """

    folder: Path
    seed: int
    _open: dict[int, list[Scores]] = field(default_factory=dict)

    def take(self, seed: int, scores: Scores) -> None:
        """Takes the scores of one call of the episode with this seed."""
        self._open.setdefault(seed, []).append(dict(scores))

    def on_call(self, task: str, episode: int, trace: Trace) -> None:
        """Does nothing: scores come through `take`."""

    def on_episode(self, task: str, episode: int, record: EpisodeRecord | None) -> None:
        """Writes the scores of an episode; without a record the world raised, and they are forgotten."""
        calls = self._open.pop(episode_seed(self.seed, task, episode), [])
        if record is None or not any(calls):
            return
        kept: dict[str, Any] = {
            f"{i} {layer}": s.cpu().numpy() for i, call in enumerate(calls) for layer, s in call.items()
        }
        path = self.folder / f"{episode_seed(self.seed, task, episode)}.npz"
        with replacing(path) as part, part.open("wb") as file:
            np.savez_compressed(file, **kept | {"calls": np.array(len(calls))})

    def has(self, seed: int) -> bool:
        """Whether the method gave a score in any call of an episode."""
        return (self.folder / f"{seed}.npz").is_file()

    def read(self, seed: int) -> Sequence[Scores]:
        """The scores of each call of an episode that has a file: layer -> [V] score."""
        with np.load(self.folder / f"{seed}.npz") as data:
            calls: list[dict[int, torch.Tensor]] = [{} for _ in range(int(data["calls"]))]
            for key in data.files:
                if key != "calls":
                    call, layer = map(int, key.split())
                    calls[call][layer] = torch.from_numpy(data[key])
        return calls


def audited(folder: str | None, arm: str, header: Header) -> Run:
    """The run of the arm `own` in a folder. UserError where it is another run, unfinished, or dropped nothing."""
    if folder is None:
        raise UserError(f"audit.arm={arm} replays the method's own run; add audit.run=FOLDER, or experiment=audit")
    if not any(Path(folder).glob("journal*.jsonl")):
        raise UserError(f"audit.run={folder} holds no run yet; run audit.arm=own first")
    run = read(folder)
    if run.header.identity != (wanted := named(header, "own")).identity:
        differing = differences(run.header, wanted)
        raise UserError(f"audit.run={folder} is another run ({differing}); audit it with its own settings")
    absent = [key for key in ((t, e) for t, n in header.tasks.items() for e in range(n)) if key not in run.episodes]
    if absent:
        raise UserError(f"audit.run={folder} lacks {len(absent)} episodes of this run; finish audit.arm=own first")
    if all(v == c.total for r in run.episodes.values() for c in r.calls for v in c.visual):
        raise UserError(f"audit.run={folder} dropped no token, so that there is no choice to audit; lower keep")
    return run


@dataclass(frozen=True)
class Replayed:
    """What the calls of each episode did, by its seed. A longer episode than the recorded one begins them again."""

    calls: Mapping[int, Sequence[StepRecord]]

    def _call(self, seed: int, call: int) -> StepRecord:
        calls = self.calls[seed]
        return calls[call % len(calls)]

    def count(self, seed: int, call: int, layer: int) -> int:
        """The number of visual tokens computed from a layer on; where there are two passes, in the second."""
        return self._call(seed, call).visual[layer]

    def had_two_passes(self, seed: int, call: int) -> bool:
        """Whether the prompt was computed twice."""
        return bool(self._call(seed, call).first_rows)


def controls(make: Callable[[], Pruner], arm: str, folder: str | None, header: Header) -> Callable[[], Pruner]:
    """What makes the methods of one control. UserError in one line where the audited run does not serve it."""
    run = audited(folder, arm, header)
    seed = int(header.identity["seed"])
    replay = Replayed({episode_seed(seed, *key): record.calls for key, record in run.episodes.items()})
    if arm in SCORED:
        ControlArm(make(), replay, lowest, scores=True)  # says so where the method has no score
    book = ScoreBook(run.folder / "scores", seed)
    cache: dict[int, Sequence[Scores]] = {}

    def donors(episode: int) -> Sequence[Scores]:
        if episode not in donor:
            raise UserError(f"audit.run={folder} has no other episode of this task with scores; add episodes")
        if episode not in cache:
            cache[episode] = book.read(donor[episode])
        return cache[episode]

    donor = _donors(run, seed, book) if arm == "other" else {}
    choices: dict[str, Choice] = {
        "uniform": in_a_grid,
        "bottom": lowest,
        "shuffled": shuffled,
        "other": OtherEpisode(donors),
    }
    choices |= {name: at_random(i) for i, name in enumerate(RANDOM)}
    return lambda: ControlArm(make(), replay, choices[arm], scores=arm in ("bottom", "shuffled"))


def _donors(run: Run, seed: int, book: ScoreBook) -> dict[int, int]:
    """Seed of each episode -> seed of the next one of its task in which the method gave a score, if there is one."""
    if not any(book.has(episode_seed(seed, *key)) for key in run.episodes):
        raise UserError(f"{book.folder} holds no scores; run the arm audit.arm=own anew, it records them")
    out: dict[int, int] = {}
    for task in run.header.tasks:
        seeds = [episode_seed(seed, task, e) for e in sorted(e for t, e in run.episodes if t == task)]
        if len(seeds) < 2:
            raise UserError(f"audit.arm=other needs two episodes of {task}; add episodes")
        for i, episode in enumerate(seeds):
            later = [other for other in (*seeds[i + 1 :], *seeds[:i]) if book.has(other)]
            if book.has(episode) and not later:
                raise UserError(f"only one episode of {task} gave scores; audit.arm=other needs two: add episodes")
            out |= {episode: later[0]} if later else {}
    return out


def ready(
    make: Callable[[], Pruner], arm: str, folder: str | None, header: Header, output: Path
) -> tuple[Callable[[], Pruner], list[Watcher]]:
    """What makes the methods of an arm, and its watchers. `folder` holds the audited run, `output` this one."""
    if arm == "own":
        book = ScoreBook(output / "scores", int(header.identity["seed"]))
        return lambda: Recorded(make(), book.take), [book]
    return (Dense if arm in WITHOUT else controls(make, arm, folder, header)), []
