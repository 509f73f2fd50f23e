"""What the modes of vlaprune-profile do, once the model and the methods are built."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vlaprune import report, roofline
from vlaprune.benchmark import Benchmark
from vlaprune.control import Control
from vlaprune.methods.dense import Dense
from vlaprune.policy import VLA, Policy
from vlaprune.profile import gate, micro, speed
from vlaprune.profile.ladder import BACKENDS, dense, missing
from vlaprune.profile.machine import Nvml, Watch, idle_power
from vlaprune.profile.page import Page
from vlaprune.profile.recording import Recording, record, synthetic
from vlaprune.pruner import Pruner

Methods = Sequence[tuple[str, Callable[[], Pruner]]]


@dataclass(frozen=True)
class Setting:
    """What a mode works with.

    cfg      the settings of configs/profile.yaml
    methods  labels and constructors, one per arm
    control  how the model drives the robot of the benchmark
    bench    where observations are recorded, if they are not there yet
    make     a method from the configuration that a journal holds
    made     provenance of this process
    """

    cfg: Any
    model: VLA
    methods: Methods
    control: Callable[[], Control]
    bench: Benchmark
    make: Callable[[Any], Pruner]
    made: Mapping[str, Any]

    @property
    def rules(self) -> micro.Rules:
        """How long to measure."""
        cfg = self.cfg
        return micro.Rules(cfg.warmup, cfg.calls, cfg.seconds, cfg.block, cfg.seed)

    def name(self, otherwise: str) -> str:
        """The page's file name."""
        return str(self.cfg.name or otherwise)

    def observations(self) -> Recording:
        """What is replayed: seeded noise, or a file, made by a dense rollout where it is not there yet."""
        cfg, model = self.cfg, self.model
        if cfg.observations == "noise":
            return synthetic(model.interface, int(getattr(model, "image", 224)), seed=cfg.seed)
        path = Path(cfg.observations)
        if not path.is_file():
            bench = self.bench
            try:
                model.interface.check(bench.interface)
            except TypeError as error:
                raise TypeError(f"model {model.info.name} and bench {bench.name} do not fit: {error}") from None
            print(f"recording {cfg.record} dense episodes of every task of {bench.name} into {path}", flush=True)
            policy = Policy(model, Dense, control=self.control())
            record(policy, bench, cfg.record, cfg.seed).save(path)
        return Recording.load(path)


def speeds(setting: Setting) -> list[Path]:
    """Latency, stages, FLOPs, floors, memory and energy of every method against the fastest dense."""
    cfg, model, rules, recording = setting.cfg, setting.model, setting.rules, setting.observations()
    nvml = Nvml(model.device)
    watch, idle = Watch(model.device, nvml), idle_power(nvml)
    here = roofline.measure(model.device, dtype(model))
    skipped = {rung: why for rung in cfg.ladder if (why := missing(rung, model.device))}
    rungs = [micro.Arm("dense", Policy(dense(model, r), Dense), r) for r in cfg.ladder if r not in skipped]
    best = micro.climb(rungs, recording.episodes, rules, watch)
    print(f"fastest dense: {best.rung}", flush=True)
    arms = [micro.Arm(label, Policy(model, make), plainest(rungs)) for label, make in setting.methods]
    with tqdm(desc="blocks", unit="block") as bar:
        pairs = micro.compare(best, arms, recording.episodes, rules, watch, partial(_advance, bar))
    for arm in (best, *arms):
        micro.energy(arm, recording.episodes, rules, nvml)
    rows = [speed.described(model, arm, here) for arm in rungs]
    base = rows[rungs.index(best)]
    base["baseline"] = True
    rows += [speed.against(speed.described(model, p.arm, here), p, best, base) for p in pairs if p.arm.refused is None]
    for row in rows:
        row["no_energy"] = nvml.reason or "not measured"
    page = Page(f"{model.info.name}: what pruning saves, and what it costs")
    speed.fill(page, rows, watch.refusal, here)
    page.text(*_notes(best, pairs, recording, rules, watch, skipped, idle))
    return page.write(Path(cfg.output), setting.name(f"{model.info.name}-{model.device.type}"), rows, setting.made)


def plainest(rungs: Sequence[micro.Arm]) -> str:
    """The kernel that methods run under: the fastest that any call can take, compiled or not at all."""
    open_to_all = [a for a in rungs if a.rung in BACKENDS or a.rung == "sdpa"]
    return min(open_to_all, key=lambda a: float(sorted(a.ms)[len(a.ms) // 2])).rung if open_to_all else "sdpa"


def _advance(bar: Any, text: str) -> None:
    bar.set_postfix_str(text, refresh=False)
    bar.update()


def dtype(model: Any) -> Any:
    """Of the decoder's weights."""
    return next(model.decoder.parameters()).dtype


def _notes(
    best: micro.Arm,
    pairs: Sequence[micro.Pair],
    recording: Recording,
    rules: micro.Rules,
    watch: Watch,
    skipped: Mapping[str, str],
    idle: float | None,
) -> list[str]:
    """What must be said beside the tables."""
    lines = [
        f"- speed-up: against the fastest dense measured here ({best.rung}), median over blocks of {rules.block} calls "
        "of dense time over the method's beside it on the same observations, with a 95 % bootstrap interval",
        f"- observations: {len(recording.frames)} of {recording.card['bench']}, replayed in order, one episode at a "
        "time",
        f"- after {rules.warmup} warm-up calls, at least {rules.calls} calls and {rules.seconds:g} s of each arm; "
        "a call is timed from the observation to actions on the host, at batch 1",
    ]
    lines += [f"- {watch.shared}; ratios are of neighbouring blocks"] if watch.shared else []
    lines += [f"- not looked at: {watch.unknown}"] if watch.unknown else []
    lines += [f"- dense under {rung}: {why}" for rung, why in skipped.items()]
    lines += [f"- {p.arm.label} has no row: {p.arm.refused}" for p in pairs if p.arm.refused]
    lines += [f"- board idle at {idle:.0f} W, not subtracted"] if idle is not None else []
    return lines


def fidelities(setting: Setting) -> list[Path]:
    """How far each method's actions stray from dense ones, and whether that foretold its loss of success."""
    cfg, model, recording = setting.cfg, setting.model, setting.observations()
    methods, ran, base = list(setting.methods), {}, None
    if cfg.runs:
        runs = report.find([Path(folder) for folder in cfg.runs])
        base = next((r for r in runs if report.name(r.header) == "dense"), None)
        if base is None:
            raise ValueError(f"runs={list(cfg.runs)} hold no dense run; a loss needs one")
        found = gate.arms(runs, setting.make, getattr(model, "card", {}).get("sha256", "none"))
        methods, ran = [(label, make) for label, make, _ in found], {label: run for label, _, run in found}
    with tqdm(desc="arms", unit="arm", total=len(methods) + 1) as bar:
        judged = gate.judge(model, recording, methods, cfg.seed, partial(_advance, bar))
    if base is not None:
        gate.losses(judged, ran, base)
    page = Page(f"{model.info.name}: fidelity of pruned actions on recorded observations")
    gate.fill(page, judged, gate.correlations(judged))
    page.text(
        f"- observations: {len(recording.frames)} calls of {len(recording.episodes)} dense episodes of "
        f"{recording.card['bench']}, replayed in order; nothing is stepped",
        f"- the rank correlation is over arms with at least {gate.LEAST} episodes; where many arms lose little, the "
        "order of their losses is noise",
    )
    return page.write(Path(cfg.output), setting.name("fidelity"), gate.rows(judged), setting.made)


MODES: Mapping[str, Callable[[Setting], list[Path]]] = {"speed": speeds, "fidelity": fidelities}
