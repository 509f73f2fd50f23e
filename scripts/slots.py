"""Do results depend on what finishes first? Episodes with 1, 2 and 8 slots and random pauses, compared bit by bit.

    python scripts/slots.py [--only NAME ...] [--output docs/scaling.md]

Simulators pause at random before each look. Each number of slots runs once as it would by default and once with
`deterministic=true`; an episode is equal if success, steps, motion and every count of tokens and FLOPs are. With
--output the table replaces the one between the two marks of that file.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from vlaprune.bench.sleeping import Paused
from vlaprune.bench.toy import Toy as ToyBench
from vlaprune.benchmark import Benchmark
from vlaprune.control import Control
from vlaprune.evaluation.recorder import Recorder
from vlaprune.evaluation.rollout import RolloutConfig, Shard, rollout
from vlaprune.methods.fastv import FastV
from vlaprune.models.tiny import Tiny
from vlaprune.models.toy import Toy
from vlaprune.policy import VLA, Policy
from vlaprune.records import EpisodeRecord, Header

BEGIN, END = "<!-- slots -->\n", "<!-- /slots -->\n"
SLOTS = (1, 2, 8)


class Study(NamedTuple):
    """A benchmark, a policy, how many episodes of each task, how many actions are executed."""

    bench: Benchmark
    model: Callable[[], VLA]
    episodes: int
    execute: int


def studies() -> dict[str, Callable[[], Study]]:
    """By name; simulators are imported when one is asked for."""

    def robosuite() -> Study:
        from vlaprune.bench.robosuite import Robosuite

        return Study(
            Robosuite(names=["Lift", "Stack", "PickPlaceCan", "PickPlaceMilk"]), lambda: Tiny(device="cpu"), 12, 8
        )

    def libero() -> Study:
        from vlaprune.bench.libero import Libero

        bench = Libero(suite="libero_object", image=128, fast=True)
        return Study(bench, lambda: Tiny("libero_object", text=20, device="cpu"), 3, 8)

    return {"toy": lambda: Study(ToyBench(), Toy, 100, 4), "robosuite": robosuite, "libero": libero}


class Kept(Recorder):
    """Keeps what it writes, unrounded."""

    def __init__(self, folder: Path, header: Header) -> None:
        super().__init__(folder, header, say=lambda text: None)
        self.all: dict[tuple[str, int], EpisodeRecord] = {}

    def write(self, record: EpisodeRecord) -> None:
        """Keeps and writes it."""
        self.all[record.task, record.episode] = record
        super().write(record)


def played(study: Study, slots: int, deterministic: bool) -> dict[tuple[str, int], EpisodeRecord]:
    """The episodes of a run."""
    bench = Paused(study.bench, 0.02)
    tasks = {task.name: study.episodes for task in bench.tasks()}
    folder = Path(tempfile.mkdtemp())
    recorder = Kept(folder, Header({}, {}, tasks))
    try:
        policy = Policy(study.model(), FastV, slots, Control(execute=study.execute))
        rollout(policy, bench, recorder, Shard(), RolloutConfig(7, 600.0, deterministic=deterministic))
    finally:
        recorder.close()
        shutil.rmtree(folder, ignore_errors=True)
    assert len(recorder.all) == sum(tasks.values())
    return recorder.all


def bits(record: EpisodeRecord) -> tuple[object, ...]:
    """What must not depend on slots: all but times and how calls were packed."""
    calls = [(call.rows, call.columns, call.visual, call.flops) for call in record.calls]
    return record.success, record.steps, record.motion, calls


def different(
    one: dict[tuple[str, int], EpisodeRecord], many: dict[tuple[str, int], EpisodeRecord]
) -> tuple[int, int, int]:
    """Episodes whose bits, whose steps and whose success are not the same."""
    pairs = [(one[key], many[key]) for key in one]
    return (
        sum(bits(a) != bits(b) for a, b in pairs),
        sum(a.steps != b.steps for a, b in pairs),
        sum(a.success != b.success for a, b in pairs),
    )


def rows(name: str, study: Study) -> list[str]:
    """The table's rows of one benchmark; the run that others are held to has one slot and is deterministic."""
    one, out = played(study, SLOTS[0], True), []
    for deterministic in (True, False):
        for slots in SLOTS[deterministic:]:
            bitwise, steps, success = different(one, played(study, slots, deterministic))
            said = "`deterministic=true`" if deterministic else "default"
            out.append(f"| {name}, {len(one)} episodes | {said} | {slots} | {bitwise} | {steps} | {success} |")
            print(out[-1], flush=True)
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """Runs, prints, writes."""
    known = studies()
    parser = argparse.ArgumentParser(description="Whether results depend on the number of slots.")
    parser.add_argument("--only", nargs="+", choices=known, default=list(known))
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    lines = ["| world, FastV, random pauses | mode | slots | bits differ | steps differ | success differs |"]
    lines.append("|---|---|---|---|---|---|")
    print(*lines, sep="\n", flush=True)
    for name in args.only:
        lines += rows(name, known[name]())
    if args.output is not None:
        head, rest = args.output.read_text().split(BEGIN)
        args.output.write_text(head + BEGIN + "\n".join(lines) + "\n" + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
