"""The model's side of the contract, and the policy that joins a model with a pruner for each slot."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from vlaprune.benchmark import Interface, Observation
from vlaprune.control import Control, Controller
from vlaprune.delay import Delay, Guide
from vlaprune.errors import UserError
from vlaprune.meter import Clock
from vlaprune.nn.backend import EAGER, Backend
from vlaprune.nn.decoder import Decoder
from vlaprune.pruner import ModelInfo, Pruner
from vlaprune.records import StepRecord
from vlaprune.session import Session
from vlaprune.trace import Trace


@runtime_checkable
class VLA(Protocol):
    """A vision-language-action model: one observation in, one chunk of actions out.

    info       what methods may know of it
    decoder    its language decoder, which pruning shortens
    backend    runs the segments of a call: eager, compiled or captured
    interface  the cameras and state it wants, the conventions of what it emits
    chunk      actions per call
    device     where it computes
    """

    info: ModelInfo
    decoder: Decoder
    backend: Backend
    interface: Interface
    chunk: int
    device: torch.device

    def predict(self, observations: Sequence[Observation], sessions: Sequence[Session]) -> Sequence[Tensor]:
        """One [chunk, action_dim] per observation, in the conventions of `interface`.

        Opens a call of each session with its layout and runs the decoder with these calls as hooks; that is all it
        knows of pruning.
        """


@runtime_checkable
class Guided(Protocol):
    """A model that can draw a chunk that goes on from the one before: real-time chunking, delay.mode=rtc."""

    def predict_guided(
        self, observations: Sequence[Observation], sessions: Sequence[Session], guides: Sequence[Guide | None]
    ) -> Sequence[Tensor]:
        """Predicts as `VLA.predict` does, with a guide for each observation; None where no chunk can be continued."""


@runtime_checkable
class HasImageSize(Protocol):
    """A model that refuses pictures of any other size than its own.

    image  side of a picture, px
    """

    image: int


@runtime_checkable
class HasCard(Protocol):
    """A model that says where its weights come from.

    card  `sha256` of their file; `tuning` and `from` where they were tuned from others; what else is good to know
    """

    card: Mapping[str, Any]


def card_of(model: VLA) -> Mapping[str, Any]:
    """The card of a model's weights; of a model without one, what its `info` says of them."""
    return model.card if isinstance(model, HasCard) else {"sha256": model.info.weights}


@runtime_checkable
class HasTrunk(Protocol):
    """A model whose decoder and towers are one module, beside which adapters can be trained (LoRA)."""

    trunk: nn.Module


@runtime_checkable
class Trainable(Protocol):
    """A model that has a loss; `Learner` is the whole contract."""

    def words(self, instruction: str) -> list[int]:
        """Token ids of an instruction; 0 is padding."""

    def train_loss(
        self,
        images: Tensor,
        state: Tensor,
        words: Tensor,
        labels: Tensor,
        hints: Tensor,
        sessions: Sequence[Session] = (),
    ) -> Tensor:
        """Mean absolute error of the normalised actions, a number.

        images    [B, cameras, h, w, 3] uint8 as the world shows them, in the order of `interface.cameras`
        state     [B, s] raw
        words     [B, w], padded with 0 behind
        labels    [B, chunk, action_dim] in the conventions of `interface`
        hints     [B, h] where the objects are, in metres, NaN for what is not told; a model may leave them
        sessions  one for each frame, through which a method chooses tokens; without, all go on
        """


class Learner(VLA, Trainable, Protocol):
    """A model that vlaprune-train trains: an nn.Module, too."""


@runtime_checkable
class TrainableFromScratch(Protocol):
    """A learner that needs no trained weights: it is told the ranges of states and actions before it learns."""

    def normalise(self, state: tuple[Tensor, Tensor], action: tuple[Tensor, Tensor]) -> None:
        """Takes the (low, high) quantiles that state [s] and action [action_dim] are scaled by."""


def episode_seed(seed: int, task: str, episode: int) -> int:
    """The only source of a policy's randomness: a function of the run's seed and the episode, on every machine."""
    return zlib.crc32(f"{seed}/{task}/{episode}".encode())


class Policy:
    """A model with one session and one controller per slot. Slots that need a chunk share one packed model call.

    control  how chunks become the robot's actions; None leaves them as they are
    delay    time that passes in the world during a call; None for a world that waits
    """

    def __init__(
        self,
        model: VLA,
        make_pruner: Callable[[], Pruner],
        slots: int = 1,
        control: Control | None = None,
        delay: Delay | None = None,
    ) -> None:
        if slots < 1:
            raise UserError(f"slots={slots}; use at least 1")
        self.model = model
        self.clock = Clock(str(model.device))
        self.sessions = [
            Session(make_pruner(), model.info, model.decoder.config, self.clock, backend=lambda: model.backend)
            for _ in range(slots)
        ]
        self.delay = delay
        self.controllers = [Controller(control or Control(), delay) for _ in range(slots)]
        self._calls: list[list[StepRecord]] = [[] for _ in range(slots)]
        self._instructions: list[str | None] = [None] * slots
        self._steady: Mapping[str, float] | None = None  # milliseconds of the latest call that was not cold
        self._largest: dict[int, int] = {}  # rows of the largest call so far, by the number of its sequences

    @property
    def slots(self) -> int:
        """How many episodes run side by side."""
        return len(self.sessions)

    def reset(self, slot: int, seed: int) -> None:
        """Starts a new episode in a slot."""
        self._calls[slot].clear()
        self._instructions[slot] = None
        self.sessions[slot].reset(seed)
        self.controllers[slot].reset()

    def begin(self, slot: int, task: str, episode: int, seed: int) -> None:
        """Starts an episode of a run with this seed in a slot."""
        self.reset(slot, episode_seed(seed, task, episode))

    def _restart_on_new_instruction(self, slot: int, instruction: str) -> None:
        """Restarts the method and forgets older chunks where the instruction changes in an episode, as upstream does.

        SIMPLER's put in drawer changes it.
        """
        if self._instructions[slot] not in (None, instruction):
            self.sessions[slot].restart()
            self.controllers[slot].forget()
        self._instructions[slot] = instruction

    @torch.inference_mode()
    def act(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        """The [n, action_dim] float64 actions to execute until the next look, for each slot that has an observation.

        With a delay they begin with what the robot does while the policy thinks. UserError where the model emits NaN,
        or bypasses a backend that compiles or captures.

        With `delay.ms=measured` the first call may be cold: it compiles or captures, and its time says nothing. Then it
        is made again from the same start, until one is steady. Only that one counts.
        """
        slots = list(observations)
        chunks = self._called(observations)
        while (late := {slot: self._late(slot) for slot in slots}) and None in late.values():
            for slot in slots:
                self.reset(slot, self.sessions[slot].seed)
            chunks = self._called(observations)
        out = {slot: self.controllers[slot].actions(chunk, late[slot] or 0) for slot, chunk in chunks.items()}
        for slot, executed in out.items():
            self.sessions[slot].set_executed(torch.from_numpy(executed))
        return out

    def _called(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        """Makes one model call and notes its records; the chunk of each slot as the model emits it."""
        slots = list(observations)
        for slot in slots:
            self._restart_on_new_instruction(slot, observations[slot].instruction)
            state = observations[slot].state
            self.sessions[slot].set_state(None if state is None else torch.from_numpy(np.asarray(state)))
        sessions = [self.sessions[i] for i in slots]
        backend = self.model.backend
        compiled = backend.compiled
        captured = backend.captured
        entered = backend.entered
        with self.clock.span("other"):
            chunks = self._predict([observations[i] for i in slots], slots)
            actions = {i: chunk.double().cpu().numpy() for i, chunk in zip(slots, chunks, strict=True)}
            if backend is not EAGER and backend.entered == entered:
                raise UserError(
                    f"{self.model.info.name} does not run its segments through its backend, so kernel={backend.name} "
                    "would change nothing; check_model of vlaprune.testing says where"
                )
            self._check(actions)  # before a session moves on, so that a call that failed can be made again
            records = [session.finish() for session in sessions]
        ms = self.clock.read()
        cold = self._cold(records, compiled, captured)
        for slot, record in zip(slots, records, strict=True):
            self._calls[slot].append(replace(record, ms=ms, packed=len(slots), cold=cold))
        self._steady = self._steady if cold else ms
        return actions

    def _check(self, actions: Mapping[int, np.ndarray]) -> None:
        """Raises UserError for an action with a number that is not finite."""
        if not all(np.isfinite(chunk).all() for chunk in actions.values()):
            raise UserError(f"{self.model.info.name} emitted actions that are not finite; check its weights and dtype")

    def _predict(self, observations: Sequence[Observation], slots: Sequence[int]) -> Sequence[Tensor]:
        sessions = [self.sessions[i] for i in slots]
        if self.delay is None or self.delay.mode != "rtc":
            return self.model.predict(observations, sessions)
        assert isinstance(self.model, Guided)  # config.delay says so in one line where it is not
        return self.model.predict_guided(observations, sessions, [self.controllers[i].guide() for i in slots])

    def _cold(self, records: Sequence[StepRecord], compiled: int, captured: int) -> str:
        """Why the time of this call is not that of a steady state; empty where it is.

        compiled, captured  of the backend before the call

        `compile` or `capture`: the backend did so during the call. `allocate`: no earlier call of so many sequences
        computed as many rows, so memory was taken from the system, and kernels ran for the first time.
        """
        rows = sum(sum(record.first_rows) + sum(record.rows) for record in records)
        largest = self._largest.get(len(records), 0)
        self._largest[len(records)] = max(rows, largest)
        if self.model.backend.compiled > compiled:
            return "compile"
        if self.model.backend.captured > captured:
            return "capture"
        return "allocate" if rows > largest else ""

    def trace(self, slot: int) -> Trace:
        """What a slot's latest call computed, read and kept; to look at, after `act`."""
        return self.sessions[slot].trace

    def _late(self, slot: int) -> int | None:
        """Control steps that the slot's latest call takes; its milliseconds go into the call's record.

        A cold call is taken to last as long as the latest steady one. None where there was none and the delay needs it.
        """
        if self.delay is None:
            return 0
        calls = self._calls[slot]
        known = calls[-1]
        if known.cold and self._steady is not None:
            known = replace(known, ms=self._steady, cold="")
        told = self.delay.late(self.sessions[slot].seed, len(calls) - 1, known)
        if told is None:
            return None
        calls[-1] = replace(calls[-1], delay={"ms": told[0]})
        return told[1]

    def drain(self, slot: int, steps: int | None = None) -> tuple[StepRecord, ...]:
        """The records of a slot's calls since its reset.

        steps  control steps after which the episode ended; None where all that was planned is executed
        """
        calls = self._calls[slot]
        timeline = self.controllers[slot].timeline
        if self.delay is None:
            return tuple(calls)
        waited = timeline.waited(len(timeline.steps) if steps is None else steps)
        return tuple(replace(c, delay={**c.delay, **asdict(w)}) for c, w in zip(calls, waited, strict=True))

    def executed(self, slot: int, steps: int) -> np.ndarray:
        """The first `steps` actions [steps, action_dim] that a slot executed since its reset."""
        return np.stack(self.controllers[slot].executed[:steps])
