"""Timing of calls: recorded observations are replayed in order, every method against dense, in interleaved blocks.

A block is one episode (or its first calls), replayed from a reset. Each of a method's blocks has a dense block of the
same observations beside it, before and after in turn, so a machine that becomes slower slows both; a speed-up is the
median of the blocks' ratios. Beside wall time stands the processor's time of this process, which neighbours on a shared
CPU lengthen far less.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import inf

import numpy as np
import torch

from vlaprune.errors import UserError
from vlaprune.models.backends import kernel
from vlaprune.policy import Policy, episode_seed
from vlaprune.profile.machine import WINDOW, Nvml, Watch, bytes_held, forget_peak, peak_memory
from vlaprune.profile.products import Products, Watched
from vlaprune.profile.recording import Frame
from vlaprune.profile.roofline import Stages
from vlaprune.records import StepRecord

Block = Sequence[Frame]
AGAIN = "dense again"  # the dense arm measured again: differences below it mean nothing
AWAKE = 4  # calls after which an idle device is back at its full clock


@dataclass(frozen=True)
class TimingConfig:
    """How long to measure.

    warmup   warm-up calls of each arm, not timed
    calls    fewest timed calls of each arm
    seconds  fewest timed seconds of each arm
    block    most calls in a block
    look     count products and memory, in calls that are not timed
    windows  number of windows, of two seconds or more, in which a board's energy is measured
    limit    seconds for all arms together, warm-up included, which takes at most half; None for no limit
    seed     seed of the policies
    """

    warmup: int = 20
    calls: int = 200
    seconds: float = 10.0
    block: int = 20
    seed: int = 7
    look: bool = True
    windows: int = 3
    limit: float | None = None

    def blocks(self, episodes: Sequence[Block]) -> Iterator[Block]:
        """The first calls of every episode, repeated without end."""
        while True:
            yield from (episode[: self.block] for episode in episodes)


@dataclass(frozen=True)
class Launches:
    """The launches of the host in a mean call.

    operators  operators of the call in eager mode, without views and bare allocations
    outside    operators outside of any segment
    segments   runs of segments under the arm's backend
    replayed   runs that replayed a captured graph
    launched   launches by these replays: graphs, and copies of their inputs
    """

    operators: float = 0.0
    outside: float = 0.0
    segments: float = 0.0
    replayed: float = 0.0
    launched: float = 0.0


@dataclass
class TimedArm:
    """One way to run the model, and its measurements.

    label        name in the table
    policy       the policy, with one slot
    backend      name of the backend that it runs under
    blocks       milliseconds of each call, by block; the first call of a block follows a reset
    busy         milliseconds of processor time of each block
    calls        the records of each block
    products     matrix products of `counted` calls, as torch dispatched them
    launches     launches in a mean call: operators, segments and replays
    joules       energy of the board per call, one number per window
    cold         number of calls after warm-up that compiled, captured or took new memory; their blocks are not kept
    memory       peak MB allocated and reserved, without what other arms hold (None reserved on a CPU)
    cache_bytes  bytes of keys and values that the session keeps
    state_bytes  bytes of tensors that the method keeps
    refused      why it has no speed-up; None if it has one
    """

    label: str
    policy: Policy
    backend: str
    blocks: list[list[float]] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    calls: list[list[StepRecord]] = field(default_factory=list)
    products: Stages = field(default_factory=dict)
    counted: int = 1
    launches: Launches = Launches()
    joules: list[float] = field(default_factory=list)
    cold: int = 0
    memory: tuple[float, float | None] = (0.0, None)
    cache_bytes: int = 0
    state_bytes: int = 0
    refused: str | None = None

    def replay(self, block: Block, seed: int) -> tuple[list[float], list[StepRecord]]:
        """Milliseconds and records of the calls of one block, each timed from its start to the actions on the host."""
        policy, took = self.policy, []
        policy.reset(0, episode_seed(seed, block[0].task, block[0].episode))
        with kernel(self.backend):
            for frame in block:
                start = time.perf_counter()
                policy.act({0: frame.observation})
                took.append((time.perf_counter() - start) * 1e3)
        return took, list(policy.drain(0))

    def refuse(self, error: Exception) -> None:
        """Gives this arm no speed-up, for the reason in the first line of the error; other arms go on."""
        self.refused = (str(error).strip() or type(error).__name__).splitlines()[0]
        self.policy.model.backend.clear()
        if isinstance(error, torch.OutOfMemoryError):
            self.refused = f"out of memory: {self.refused}"
            torch.cuda.empty_cache()

    def run(self, block: Block, seed: int) -> None:
        """Replays a block and keeps its measurements, unless one of its calls was cold: then the block tells nothing.

        An arm that raises, or breaks its budget, is refused.
        """
        busy = time.process_time()
        try:
            took, records = self.replay(block, seed)
        except (ValueError, RuntimeError) as error:
            self.refuse(error)
            return
        if cold := sum(bool(record.cold) for record in records):
            self.cold += cold
            return
        self.busy.append((time.process_time() - busy) * 1e3)
        self.blocks.append(took)
        self.calls.append(records)

    def drop(self) -> None:
        """Forgets the last block: there is none beside it."""
        for kept in (self.blocks, self.busy, self.calls):
            kept.pop()

    def warm(
        self,
        blocks: Iterator[Block],
        rules: TimingConfig,
        deadline: float = inf,
        others: tuple[float, float] = (0.0, 0.0),
        same: TimedArm | None = None,
    ) -> None:
        """Runs warm-up calls, then observes the products and the memory of one block.

        deadline  value of time.perf_counter after which the arm is refused
        others    MB that caches and graphs of other arms hold on the device, allocated and reserved
        same      an arm with the same products and operators, whose counts are taken over
        """
        device = self.policy.model.device
        done = 0
        try:
            while done < rules.warmup:
                if time.perf_counter() > deadline:
                    raise UserError("the time was over before it was warm; allow more, or name fewer methods")
                done += len(self.replay(next(blocks), rules.seed)[0])
            if not rules.look:
                return
            forget_peak(device)
            block = next(blocks)
            backend = self.policy.model.backend
            before = backend.entered, backend.replayed, backend.launched
            _, records = self.replay(block, rules.seed)
            after = backend.entered, backend.replayed, backend.launched
            peak, reserved = peak_memory(device)
            self.memory = peak - others[0], None if reserved is None else reserved - others[1]
            if same is None:
                self._count(block[:2] if _alike(records) else block, rules.seed)
            else:
                self.products, self.counted, self.launches = same.products, same.counted, same.launches
            entered, replayed, launched = ((b - a) / len(block) for a, b in zip(before, after, strict=True))
            self.launches = replace(self.launches, segments=entered, replayed=replayed, launched=launched)
        except (ValueError, RuntimeError) as error:
            self.refuse(error)
            return
        session = self.policy.sessions[0]
        self.cache_bytes = session.kv_bytes
        self.state_bytes = bytes_held(session.pruner)

    def _count(self, block: Block, seed: int) -> None:
        """Counts the products of a block. Segments run in eager mode: a replayed graph would hide its products."""
        clock, model = self.policy.clock, self.policy.model
        seen = Products(lambda: next((n for n in reversed(clock.open) if n != "other"), "other"))
        backend, model.backend = model.backend, Watched(seen)
        try:
            with seen:
                self.replay(block, seed)
        finally:
            model.backend = backend
        self.products, self.counted = seen.found, len(block)
        self.launches = Launches(seen.operators / len(block), seen.outside / len(block))

    @property
    def ms(self) -> np.ndarray:
        """[n] milliseconds of every timed call."""
        return np.array([t for block in self.blocks for t in block])

    @property
    def records(self) -> list[StepRecord]:
        """The records of every timed call."""
        return [r for block in self.calls for r in block]

    @property
    def first(self) -> float:
        """Median milliseconds of the calls right after a reset."""
        return float(np.median([block[0] for block in self.blocks]))

    def enough(self, rules: TimingConfig) -> bool:
        """Whether the arm was measured for long enough, or is refused."""
        return self.refused is not None or (len(self.ms) >= rules.calls and self.ms.sum() >= 1e3 * rules.seconds)


@dataclass
class Pair:
    """A method's arm and the dense arm; `beside` holds the number of the dense block beside each of its blocks."""

    arm: TimedArm
    dense: TimedArm
    beside: list[int] = field(default_factory=list)

    @property
    def ratios(self) -> np.ndarray:
        """[blocks] speed-up of each block: dense time over the method's, on the same observations."""
        ours = [np.median(block) for block in self.arm.blocks]
        return np.array([np.median(self.dense.blocks[i]) for i in self.beside]) / np.array(ours)

    @property
    def busy_ratios(self) -> np.ndarray:
        """[blocks] speed-up of each block in processor time: dense time over the method's."""
        return np.array([self.dense.busy[i] for i in self.beside]) / np.array(self.arm.busy)

    def stage_ratios(self, name: str) -> np.ndarray:
        """[blocks] speed-up of each block in one stage; NaN if the method spends no time in it."""
        theirs, ours = ([_stage(arm.calls[i], name) for i in blocks] for arm, blocks in self._both)
        return np.array(theirs) / np.where(np.array(ours) > 0, ours, np.nan)

    @property
    def _both(self) -> tuple[tuple[TimedArm, Sequence[int]], tuple[TimedArm, Sequence[int]]]:
        return (self.dense, self.beside), (self.arm, range(len(self.arm.blocks)))


def _alike(records: Sequence[StepRecord]) -> bool:
    """Whether every call computed the same rows and was charged the same FLOPs, so that two of them represent all."""
    counts = [(r.rows, r.columns, r.first_rows, r.flops) for r in records]
    return all(one == counts[0] for one in counts)


def _stage(records: Sequence[StepRecord], name: str) -> float:
    """The median milliseconds of a stage over the calls of a block."""
    return float(np.median([r.ms.get(name, 0.0) for r in records]))


def fastest_backend(arms: Sequence[TimedArm], episodes: Sequence[Block], rules: TimingConfig, watch: Watch) -> TimedArm:
    """Measures dense under each backend in turn, on the same blocks; returns the fastest arm."""
    counted: TimedArm | None = None
    for arm in arms:
        arm.warm(rules.blocks(episodes), rules, others=watch.others(), same=counted)
        counted = counted or (None if arm.refused else arm)
    for number, block in enumerate(rules.blocks(episodes)):
        if all(arm.enough(rules) for arm in arms):
            break
        before = [len(arm.blocks) for arm in arms]
        for arm in arms[:: -1 if number % 2 else 1]:
            if not arm.refused:
                with watch.running():
                    arm.run(block, rules.seed)
        ran = [(arm, len(arm.blocks) > n) for arm, n in zip(arms, before, strict=True) if not arm.refused]
        for arm, kept in ran:
            if kept and not all(kept for _, kept in ran):
                arm.drop()
        watch.check()
    run = [arm for arm in arms if not arm.refused]
    if not run:
        raise UserError("; ".join(f"dense under {arm.backend}: {arm.refused}" for arm in arms))
    watch.clocks.clear()  # backends are not compared block by block
    best = min(run, key=lambda arm: float(np.median(arm.ms)))
    for arm in arms:
        if arm is not best:
            arm.policy.model.backend.clear()
    return best


def compare(
    dense: TimedArm,
    arms: Sequence[TimedArm],
    episodes: Sequence[Block],
    rules: TimingConfig,
    watch: Watch,
    tell: Callable[[str], None] = lambda text: None,
    seen: Callable[[Sequence[Pair]], None] = lambda pairs: None,
) -> list[Pair]:
    """Measures every method beside the dense arm, block by block; the order is reversed after every block.

    `seen` is called after every round of all arms.
    """
    pairs, began = [Pair(arm, dense) for arm in arms], time.perf_counter()
    limit = inf if rules.limit is None else rules.limit
    for pair in pairs:
        pair.arm.warm(rules.blocks(episodes), rules, began + limit / 2, watch.others())
        tell(f"{pair.arm.label}: {pair.arm.refused or 'warm'}")
    for number, block in enumerate(rules.blocks(episodes)):
        todo = [pair for pair in pairs if not pair.arm.enough(rules)]
        late = number and time.perf_counter() - began > limit
        if not todo or late:
            break
        _awake(dense, block, rules.seed)
        for pair in todo:
            _beside(pair, block, rules.seed, watch, first=number % 2 == 0)
            watch.check()
            if pair.arm.enough(rules):
                energy(pair.arm, episodes, rules, watch.nvml)  # with its graphs, as it was timed
                pair.arm.policy.model.backend.clear()
        tell(f"{len(todo)} of {len(pairs)} arms to measure")
        seen(pairs)
    return pairs


def _awake(dense: TimedArm, block: Block, seed: int) -> None:
    """Runs a few calls that are not timed, since an idle device lowers its clock between rounds."""
    try:
        dense.replay(block[:AWAKE], seed)
    except (ValueError, RuntimeError) as error:
        dense.refuse(error)


def _beside(pair: Pair, block: Block, seed: int, watch: Watch, first: bool) -> None:
    """Runs one dense block and one block of the method. A method's block without a dense one is thrown away."""
    before = len(pair.dense.blocks), len(pair.arm.blocks)
    order = (pair.dense, pair.arm) if first else (pair.arm, pair.dense)
    for arm in order:
        with watch.running():
            arm.run(block, seed)
    ran = [len(one.blocks) > n for one, n in zip((pair.dense, pair.arm), before, strict=True)]
    if all(ran):
        pair.beside.append(len(pair.dense.blocks) - 1)
    elif ran[1]:
        pair.arm.drop()


def energy(arm: TimedArm, episodes: Sequence[Block], rules: TimingConfig, nvml: Nvml) -> None:
    """Measures the joules of the board per call, in windows long enough for its counter; none without a counter."""
    if nvml.energy() is None or arm.refused:
        return
    blocks = rules.blocks(episodes)
    for _ in range(rules.windows):
        torch.cuda.synchronize()
        start, before, calls = time.perf_counter(), nvml.energy(), 0
        while time.perf_counter() - start < WINDOW:
            calls += len(arm.replay(next(blocks), rules.seed)[0])
        torch.cuda.synchronize()
        after = nvml.energy()
        if before is not None and after is not None:
            arm.joules.append((after - before) / calls)
