"""The world does not wait: which action a robot executes at each control step while its policy thinks. numpy only.

Time is simulated. A call observes at control step k and takes L ms; its chunk arrives at step k + d with
d = ceil(L / (1000 dt) - 1e-9), so the same delays give the same episodes on every machine.

    wait     the world stands still while the policy thinks: d is 0 whatever the call takes
    hold     the robot holds for d steps, then executes the chunk from action 0 on
    overlap  the robot goes on with the chunk before; action i of a chunk belongs to step k + i, so the first d actions
             of a late chunk are dropped. The next call starts as many steps before its actions run out as the longest
             of the last ten calls took, never before the chunk that it follows has begun
    stale    as overlap, but nothing is dropped: action 0 of a late chunk is executed first
    rtc      as overlap; the model draws the new chunk so that it goes on from the old one (models/guidance.py)

Where there is no action to go on with (the first call of an episode or of an instruction, a chunk that is exhausted),
the robot holds. Held steps count against the task's max_steps.

Sources: arXiv:2506.07339 for overlap, rtc and the last ten delays (its d is a floor; ours a ceiling, as in
huggingface/lerobot@7427f31:src/lerobot/policies/rtc); stale is what strands-labs/robots and arXiv:2606.28529 do.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from vlaprune.errors import UserError
from vlaprune.records import StepRecord

Mode = Literal["wait", "hold", "overlap", "stale", "rtc"]
MODES: tuple[Mode, ...] = ("wait", "hold", "overlap", "stale", "rtc")
ALIGNED = ("overlap", "rtc")  # action i of a chunk belongs to the i-th step after its observation
RECENT = 10  # calls whose longest delay says how early the next one starts

Hold = Callable[[np.ndarray | None], np.ndarray]  # the last executed action [A], None before the first -> an action [A]


def steps_late(ms: float, hz: float) -> int:
    """d, the control steps after which the chunk of a call of `ms` milliseconds arrives."""
    return max(0, math.ceil(ms * hz / 1000 - 1e-9))


class Latency(Protocol):
    """How long calls take on the robot's device.

    expected  ms of a dense call; what must fit is checked with it before a run
    note      where the milliseconds come from, in words, for a footnote
    """

    @property
    def expected(self) -> float: ...  # noqa: D102

    @property
    def note(self) -> str: ...  # noqa: D102

    def ms(self, seed: int, call: int, record: StepRecord) -> float | None:
        """Milliseconds of one call: a function of these alone, never of a global generator. None if nobody can tell.

        seed    of the episode: itself a function of the run's seed, the task and the episode number
        call    number of the call in its episode
        record  what the call computed
        """


@dataclass(frozen=True)
class Delay:
    """How a run treats the time that calls take.

    hz    control steps per second
    hold  the action that keeps the robot where it is, as the benchmark declares it
    beta  bound of the guidance of `rtc`
    """

    mode: Mode
    latency: Latency
    hz: float
    hold: Hold
    beta: float = 5.0

    def period(self, execute: int) -> int:
        """Control steps from one look to the next, where every call takes what is expected."""
        late = 0 if self.mode == "wait" else steps_late(self.latency.expected, self.hz)
        return late + execute if self.mode == "hold" else max(late, execute)

    def late(self, seed: int, call: int, record: StepRecord) -> tuple[float, int] | None:
        """Milliseconds and control steps that a call takes; None where the latency cannot tell it."""
        ms = self.latency.ms(seed, call, record)
        return None if ms is None else (ms, steps_late(ms, self.hz))


@dataclass(frozen=True)
class Guide:
    """What the next chunk of one slot goes on from (rtc).

    previous  [chunk, A] the chunk before as the model emitted it, its first row for this observation, zeros behind its
              end
    weights   [chunk] how much each row counts: 1 for those that will be executed before the new chunk arrives
    beta      bound of the guidance
    """

    previous: np.ndarray
    weights: np.ndarray
    beta: float


def soft_mask(length: int, frozen: int, end: int) -> np.ndarray:
    """Weights [length]: 1 for the `frozen` first rows, falling to 0 at row `end` (arXiv:2506.07339, equation 5)."""
    rows = np.arange(length)
    frozen = min(frozen, end)
    share = (end - rows) / (end - frozen + 1)
    soft = share * (np.exp(share) - 1) / (np.e - 1)
    return np.where(rows < frozen, 1.0, np.where(rows < end, soft, 0.0))


def check_chunk(mode: Mode, late: int, execute: int, chunk: int) -> None:
    """Raises UserError in one line where a chunk is too short to go on with for `late` steps."""
    if mode in ALIGNED and chunk < execute + late:
        room = chunk - late
        other = f"set execute={room} or less" if room > 0 else "use delay.mode=hold or stale"
        raise UserError(
            f"delay.mode={mode} drops {late} actions of a chunk and then executes {execute}, but the model plans "
            f"{chunk}; {other}"
        )


@dataclass(frozen=True)
class Step:
    """What one control step executes.

    rows   (call, index) of the planned actions that are averaged, the newest chunk first; none where the robot holds
    waits  the call that is under way, or None
    """

    rows: tuple[tuple[int, int], ...]
    waits: int | None = None


@dataclass
class _Chunk:
    call: int
    origin: int  # the step that index 0 belongs to
    length: int


@dataclass(frozen=True)
class Waited:
    """What the delay of one call did.

    late     d, in control steps; held and stale of them were executed before the episode ended
    held     steps on which the robot held
    stale    steps on which it went on with an older chunk
    dropped  actions of the late chunk that were out of date
    """

    late: int
    held: int
    stale: int
    dropped: int


@dataclass
class Timeline:
    """Which action of which chunk each control step of one slot executes. It stores indices and no actions.

    depth  chunks that an ensemble averages for one action
    """

    mode: Mode = "wait"
    depth: int = 1
    steps: list[Step] = field(default_factory=list, init=False)
    _calls: list[tuple[int, int]] = field(default_factory=list, init=False)  # late and dropped, by call
    _chunks: deque[_Chunk] = field(init=False)
    _recent: deque[int] = field(init=False)

    def __post_init__(self) -> None:
        """Starts the first episode."""
        self.reset()

    def reset(self) -> None:
        """Starts a new episode."""
        self.steps = []
        self._calls = []
        self._chunks = deque(maxlen=self.depth)
        self._recent = deque(maxlen=RECENT)

    def forget(self) -> None:
        """Forgets the chunks that are under way, because the instruction changes."""
        self._chunks.clear()

    @property
    def calls(self) -> int:
        """Calls of this episode so far."""
        return len(self._calls)

    @property
    def longest(self) -> int:
        """The longest of the last ten delays of this episode, in steps; 0 before the first call."""
        return max(self._recent, default=0)

    @property
    def rest(self) -> tuple[int, int] | None:
        """The newest chunk's call, and the index of its action for the present step; None if nothing is left of it."""
        if not self._chunks:
            return None
        newest = self._chunks[0]
        now = len(self.steps)
        return (newest.call, now - newest.origin) if now - newest.origin < newest.length else None

    def call(self, late: int, execute: int, chunk: int) -> list[Step]:
        """Adds the steps from this call's observation up to the next one's, at least one, and returns them.

        late     d of this call
        execute  actions executed per call
        chunk    actions that it planned
        """
        late = 0 if self.mode == "wait" else late
        number = len(self._calls)
        seen = len(self.steps)
        for _ in range(late):
            self._step(number)
        aligned = self.mode in ALIGNED
        dropped = min(late, chunk) if aligned else 0
        self._calls.append((late, dropped))
        self._recent.append(late)
        self._chunks.appendleft(_Chunk(number, seen if aligned else len(self.steps), chunk))
        early = 0 if self.mode in ("wait", "hold") else self.longest
        for _ in range(max(min(execute, chunk - dropped) - early, 0 if late else 1)):
            self._step(None)
        return self.steps[seen:]

    def _step(self, waits: int | None) -> None:
        now = len(self.steps)
        if self.mode == "hold" and waits is not None:
            rows: tuple[tuple[int, int], ...] = ()
            for chunk in self._chunks:
                chunk.origin += 1  # the plan stands still with the robot
        else:
            rows = tuple((c.call, now - c.origin) for c in self._chunks if now - c.origin < c.length)
        self.steps.append(Step(rows, waits))

    def waited(self, steps: int) -> list[Waited]:
        """What each call's delay did in an episode that ended after so many steps."""
        out = []
        for number, (late, dropped) in enumerate(self._calls):
            waiting = [(at, s) for at, s in enumerate(self.steps) if s.waits == number]
            done = [s for at, s in waiting if at < steps]
            arrived = len(done) == late and (not waiting or waiting[-1][0] + 1 < steps)
            held = sum(not s.rows for s in done)
            out.append(Waited(late, held, len(done) - held, dropped if arrived else 0))
        return out
