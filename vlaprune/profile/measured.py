"""One model, measured: dense under several backends, then every method under its fastest backend, beside it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vlaprune.errors import UserError
from vlaprune.methods.dense import Dense
from vlaprune.models.backends import forked, missing, order, with_backend
from vlaprune.policy import VLA
from vlaprune.profile import micro, roofline, speed
from vlaprune.profile.machine import Nvml, Watch, idle_power
from vlaprune.profile.recording import Recording
from vlaprune.profile.roofline import Device
from vlaprune.pruner import Pruner

Methods = Sequence[tuple[str, Callable[[], Pruner]]]


@dataclass(frozen=True)
class Measured:
    """The result: rows of the tables, notes, the reason why no speed-up may be printed, and the machine's peaks."""

    rows: list[dict[str, Any]]
    notes: list[str]
    refusal: str | None
    here: Device


def check_backends(backends: Sequence[str], device: torch.device) -> None:
    """Raises UserError for a backend that is not known, or if none of them runs on the device."""
    if all([missing(backend, device) for backend in backends]):
        raise UserError(f"backends={list(backends)} has no backend that runs on {device}; use sdpa")


def measure(
    model: VLA,
    methods: Methods,
    recording: Recording,
    rules: micro.TimingConfig,
    backends: Sequence[str],
    tell: Callable[[str], None] = lambda text: None,
    quick: micro.TimingConfig | None = None,
    save: Callable[[Measured], None] = lambda found: None,
) -> Measured:
    """Measures latency, stages, FLOPs, floors, memory and energy of every method against the fastest dense backend.

    quick  other settings for the dense backends
    save   is called with the results so far: after the dense backends, and after every round of the methods

    UserError if no backend runs here.
    """
    nvml = Nvml(model.device)
    gc.collect()  # before the memory is looked at: what earlier policies left in cycles is nobody's
    watch, idle = Watch(model.device, nvml), idle_power(nvml)
    matrices = (weight for weight in model.decoder.parameters() if weight.ndim == 2)  # norms may be in fp32
    here = roofline.measure(model.device, next(matrices).dtype)
    check_backends(backends, model.device)
    skipped = {f"dense under {backend}": why for backend in backends if (why := missing(backend, model.device))}
    here_too = [backend for backend in backends if not missing(backend, model.device)]
    dense = [
        micro.TimedArm("dense", recording.policy(with_backend(model, backend), Dense), backend) for backend in here_too
    ]
    best = micro.fastest_backend(dense, recording.episodes, quick or rules, watch)
    beside = speed.beside_sdpa(dense)
    tell(f"fastest dense: {best.backend}")

    def found(pairs: Sequence[micro.Pair]) -> Measured:
        why = {f"dense under {arm.backend}": arm.refused for arm in dense if arm.refused and arm is not best}
        why |= {p.arm.label: p.arm.refused for p in pairs if p.arm.refused}
        unsteady = [p.arm for p in pairs if p.arm.cold and not p.arm.refused and not p.beside]
        why |= {arm.label: f"no steady block, {arm.cold} calls were cold; allow more time" for arm in unsteady}
        run = [arm for arm in dense if arm is best or not arm.refused]  # the best one ran, even if it failed later
        rows = [speed.described(model, arm, here) | beside.get(arm.backend, {}) for arm in run]
        base = rows[run.index(best)]
        base["baseline"] = True
        told = [p for p in pairs if not p.arm.refused and p.beside]
        rows += [speed.against(speed.described(model, p.arm, here), p, best, base) for p in told]
        for row in rows:
            row["no_energy"] = nvml.reason or "not measured"
        return Measured(rows, _notes(best, recording, rules, watch, skipped | why, idle), watch.refusal, here)

    save(found([]))
    arms = _arms(best.policy.model, methods, recording, best.backend, skipped)
    pairs = micro.compare(best, arms, recording.episodes, rules, watch, tell, lambda pairs: save(found(pairs)))
    micro.energy(best, recording.episodes, rules, nvml)
    return found(pairs)


def _arms(
    model: VLA, methods: Methods, recording: Recording, backend: str, skipped: dict[str, str]
) -> list[micro.TimedArm]:
    """One arm for each method that fits this model; the reasons of the others go into `skipped`."""
    arms = []
    for label, make in methods:
        try:
            arms.append(micro.TimedArm(label, recording.policy(forked(model), make), backend))
        except UserError as error:
            skipped[label] = str(error)
    return arms


def _notes(
    best: micro.TimedArm,
    recording: Recording,
    rules: micro.TimingConfig,
    watch: Watch,
    skipped: Mapping[str, str],
    idle: float | None,
) -> list[str]:
    """The notes beside the tables."""
    least = f"at least {rules.calls} calls and {rules.seconds:g} s of each arm"
    lines = [
        f"- speed-up: against the fastest dense measured here ({best.backend}), median over blocks of {rules.block} "
        "calls of dense time over the method's beside it on the same observations, with a 95 % bootstrap interval",
        f"- observations: {len(recording.frames)} of {recording.card['bench']}, replayed in order, one episode at a "
        "time",
        f"- after {rules.warmup} warm-up calls, {least if rules.limit is None else f'for {rules.limit:.0f} s in all'}; "
        "a call is timed from the observation to actions on the host, at batch 1",
    ]
    kernels = ", ".join(one.name.lower() for one in order(best.backend))
    lines += [f"- attention kernels of {best.backend}, the first that fits is taken: {kernels}"]
    lines += [f"- {watch.shared}; ratios are of neighbouring blocks"] if watch.shared else []
    lines += [f"- not looked at: {watch.unknown}"] if watch.unknown else []
    lines += [f"- no row for {label}: {why}" for label, why in skipped.items()]
    lines += [f"- board idle at {idle:.0f} W, not subtracted"] if idle is not None else []
    return lines
