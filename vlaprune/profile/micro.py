"""The micro arm: recorded observations replayed in order, every method against dense, in interleaved blocks.

A block is one episode (or its first calls), replayed from a reset. Each of a method's blocks has a dense block of the
same observations beside it, before and after in turn, so a machine that grows slower slows both; a speed-up is the
median of the blocks' ratios. Beside wall time stands the processor's time of this process, which neighbours on a shared
CPU lengthen far less.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import inf

import numpy as np
import torch

from vlaprune.errors import UserError
from vlaprune.models.backends import kernel
from vlaprune.policy import Policy, episode_seed
from vlaprune.profile.machine import WINDOW, Nvml, Watch, allocated, bytes_held, forget_peak, peak_memory
from vlaprune.profile.products import Products, Watched
from vlaprune.profile.recording import Frame
from vlaprune.profile.roofline import Stages
from vlaprune.records import StepRecord

Block = Sequence[Frame]
AGAIN = "dense again"  # the arm that is dense, too: what a page can tell apart
AWAKE = 4  # calls after which a device that was idle runs at its own clock again


@dataclass(frozen=True)
class TimingConfig:
    """How long to measure.

    warmup   calls of each arm that are thrown away
    calls    calls of each arm at least
    seconds  seconds of each arm at least
    block    calls of a block at most
    look     count products and memory in calls that are not timed
    windows  of two seconds or more in which a board's energy is taken
    limit    seconds for all arms together, warm-up included, half of them at most; None for no limit
    seed     of the policies
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
        """The first calls of every episode, over and over."""
        while True:
            yield from (episode[: self.block] for episode in episodes)


@dataclass(frozen=True)
class Launches:
    """What the host launches in a mean call.

    operators  of the call as eager runs it; views and bare allocations left out
    outside    those of them that are in no segment
    segments   runs of segments, under the arm's own backend
    replayed   those of them that replayed a captured graph
    launched   by these replays: graphs, and copies of their inputs
    """

    operators: float = 0.0
    outside: float = 0.0
    segments: float = 0.0
    replayed: float = 0.0
    launched: float = 0.0


@dataclass
class TimedArm:
    """One way to run the model, and what was seen of it.

    label    what it is called in the table
    policy   one slot
    backend  of the dense arm, which it runs under
    blocks   milliseconds of each call, by block; the first call of a block follows a reset
    busy     milliseconds of processor time of each block
    calls    the records of each block
    launches  of a call: operators, segments and replays
    products  of some calls, as many as `counted`, as torch dispatched them
    joules   energy of the board per call, in windows of two seconds or more
    refused  why it has no speed-up: what the call raised
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
    memory: tuple[float, float | None] = (0.0, None)
    cache_bytes: int = 0
    state_bytes: int = 0
    refused: str | None = None

    def replay(self, block: Block, seed: int) -> tuple[list[float], list[StepRecord]]:
        """Milliseconds and records of the calls of one block: issue to actions on the host."""
        policy, took = self.policy, []
        policy.reset(0, episode_seed(seed, block[0].task, block[0].episode))
        with kernel(self.backend):
            for frame in block:
                start = time.perf_counter()
                policy.act({0: frame.observation})
                took.append((time.perf_counter() - start) * 1e3)
        return took, list(policy.drain(0))

    def refuse(self, error: Exception) -> None:
        """No speed-up for this arm, for the reason that the error gives in its first line; the others go on."""
        self.refused = (str(error).strip() or type(error).__name__).splitlines()[0]
        self.policy.model.backend.clear()
        if isinstance(error, torch.OutOfMemoryError):
            self.refused = f"out of memory: {self.refused}"
            torch.cuda.empty_cache()

    def run(self, block: Block, seed: int) -> None:
        """Replays and keeps what was seen. An arm that raises, or breaks its own budget, is refused, not fatal."""
        busy = time.process_time()
        try:
            took, records = self.replay(block, seed)
        except (ValueError, RuntimeError) as error:
            self.refuse(error)
            return
        self.busy.append((time.process_time() - busy) * 1e3)
        self.blocks.append(took)
        self.calls.append(records)

    def warm(
        self,
        blocks: Iterator[Block],
        rules: TimingConfig,
        deadline: float = inf,
        others: float = 0.0,
        same: TimedArm | None = None,
    ) -> None:
        """Throws calls away, then looks at one block's products and memory.

        deadline  of time.perf_counter, after which the arm is refused
        others    MB that other arms hold on the device: their caches and graphs
        same      an arm whose calls have the same products and operators: they are not counted again
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
            self.memory = peak - others, reserved
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
        """Counts the products of a block. Its segments run as they are: of a replayed graph nothing would be seen."""
        policy, model = self.policy, self.policy.model
        clock = policy.clock
        policy.model = copy.copy(model)
        seen = Products(lambda: next((n for n in reversed(clock.open) if n != "other"), "other"))
        policy.model.backend = Watched(seen)
        try:
            with seen:
                self.replay(block, seed)
        finally:
            policy.model = model
        self.products, self.counted = seen.found, len(block)
        self.launches = Launches(seen.operators / len(block), seen.outside / len(block))

    @property
    def ms(self) -> np.ndarray:
        """[n] milliseconds of every timed call."""
        return np.array([t for block in self.blocks for t in block])

    @property
    def records(self) -> list[StepRecord]:
        """Of every call that was timed."""
        return [r for block in self.calls for r in block]

    @property
    def first(self) -> float:
        """Median milliseconds of the calls right after a reset."""
        return float(np.median([block[0] for block in self.blocks]))

    def enough(self, rules: TimingConfig) -> bool:
        """Whether it was measured for long enough."""
        return self.refused is not None or (len(self.ms) >= rules.calls and self.ms.sum() >= 1e3 * rules.seconds)


@dataclass
class Pair:
    """A method's arm, and which of the dense arm's blocks ran beside its own."""

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
        """[blocks] the same by processor time."""
        return np.array([self.dense.busy[i] for i in self.beside]) / np.array(self.arm.busy)

    def stage_ratios(self, name: str) -> np.ndarray:
        """[blocks] the same for one stage; NaN where the method's call spends no time in it."""
        theirs, ours = ([_stage(arm.calls[i], name) for i in blocks] for arm, blocks in self._both)
        return np.array(theirs) / np.where(np.array(ours) > 0, ours, np.nan)

    @property
    def _both(self) -> tuple[tuple[TimedArm, Sequence[int]], tuple[TimedArm, Sequence[int]]]:
        return (self.dense, self.beside), (self.arm, range(len(self.arm.blocks)))


def _alike(records: Sequence[StepRecord]) -> bool:
    """Whether every call computed the same rows and was charged the same FLOPs: then two of them tell of all."""
    counts = [(r.rows, r.columns, r.first_rows, r.flops) for r in records]
    return all(one == counts[0] for one in counts)


def _stage(records: Sequence[StepRecord], name: str) -> float:
    """Median milliseconds of a stage in the calls of a block."""
    return float(np.median([r.ms.get(name, 0.0) for r in records]))


def fastest_backend(arms: Sequence[TimedArm], episodes: Sequence[Block], rules: TimingConfig, watch: Watch) -> TimedArm:
    """Measures dense under each backend in turn; gives the fastest."""
    alone = allocated(arms[0].policy.model.device)
    counted: TimedArm | None = None
    for arm in arms:
        arm.warm(rules.blocks(episodes), rules, others=allocated(arm.policy.model.device) - alone, same=counted)
        counted = counted or (None if arm.refused else arm)
    for number, block in enumerate(rules.blocks(episodes)):
        if all(arm.enough(rules) for arm in arms):
            break
        for arm in arms[:: -1 if number % 2 else 1]:
            if not arm.refused:
                with watch.running():
                    arm.run(block, rules.seed)
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
    """Measures every method beside the dense arm, block by block, the order turned about in every block.

    `seen` is called after every round of all arms.
    """
    pairs, began = [Pair(arm, dense) for arm in arms], time.perf_counter()
    device, limit = dense.policy.model.device, inf if rules.limit is None else rules.limit
    alone = allocated(device)
    for pair in pairs:
        others = allocated(device) - alone
        pair.arm.warm(rules.blocks(episodes), rules, began + limit / 2, others)
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
                pair.arm.policy.model.backend.clear()
        tell(f"{len(todo)} of {len(pairs)} arms to measure")
        seen(pairs)
    return pairs


def _awake(dense: TimedArm, block: Block, seed: int) -> None:
    """Calls that are thrown away: between rounds the device was idle, and clocked down."""
    try:
        dense.replay(block[:AWAKE], seed)
    except (ValueError, RuntimeError) as error:
        dense.refuse(error)


def _beside(pair: Pair, block: Block, seed: int, watch: Watch, first: bool) -> None:
    """One dense block and one of the method. A block that has no other beside it is thrown away."""
    before = len(pair.dense.blocks), len(pair.arm.blocks)
    order = (pair.dense, pair.arm) if first else (pair.arm, pair.dense)
    for arm in order:
        with watch.running():
            arm.run(block, seed)
    ran = [len(one.blocks) > n for one, n in zip((pair.dense, pair.arm), before, strict=True)]
    if all(ran):
        pair.beside.append(len(pair.dense.blocks) - 1)
    elif ran[1]:
        for kept in (pair.arm.blocks, pair.arm.busy, pair.arm.calls):
            kept.pop()


def energy(arm: TimedArm, episodes: Sequence[Block], rules: TimingConfig, nvml: Nvml) -> None:
    """Joules of the board per call, over windows long enough for its counter; nothing where there is none."""
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
