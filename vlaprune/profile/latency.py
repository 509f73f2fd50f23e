"""Sources of a call's latency: a number, a distribution, a measured table, a model of time, or this machine's time.

A call's latency is a function of its episode's seed, its number and what it computed, so that a run is the same on
every machine; `Measured` alone is not.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vlaprune.errors import UserError
from vlaprune.profile.published import MODELS, Model
from vlaprune.profile.roofline import Stages, decoder, device, total
from vlaprune.records import StepRecord

P99 = 2.3263478740408408  # 99th percentile of a standard normal distribution
SHARE = 0.6  # default share of the roofline that an implementation reaches


@dataclass(frozen=True)
class Fixed:
    """A fixed latency, or a lognormal one.

    p50  milliseconds
    p99  milliseconds; None where every call takes p50
    """

    p50: float
    p99: float | None = None

    def __post_init__(self) -> None:
        """Raises UserError for impossible times."""
        if not (math.isfinite(self.p50) and self.p50 >= 0):
            raise UserError(f"delay.ms={self.p50}; use a number of milliseconds from 0 on, or measured")
        if self.p99 is not None and not self.p50 < self.p99 < math.inf:
            raise UserError(f"delay.jitter={self.p99} with delay.ms={self.p50}; the p99 is above the p50, both in ms")
        if self.p99 is not None and not self.p50:
            raise UserError("delay.jitter needs delay.ms above 0")

    @property
    def expected(self) -> float:
        """The p50, in milliseconds."""
        return self.p50

    def ms(self, seed: int, call: int, record: StepRecord) -> float:
        """The milliseconds of a call, drawn from a generator seeded by episode and call."""
        if self.p99 is None:
            return self.p50
        z = np.random.default_rng([seed, call]).standard_normal()
        return float(self.p50 * math.exp(math.log(self.p99 / self.p50) / P99 * z))

    @property
    def note(self) -> str:
        """A sentence for a footnote: where the milliseconds come from."""
        spread = "" if self.p99 is None else f", p99 {self.p99:g} ms (lognormal)"
        return f"every call takes {self.p50:g} ms{spread}"


class Measured:
    """The measured time of the call on this machine. Not reproducible."""

    expected = 0.0
    note = "each call's own wall time on this machine, that of the steady call before if it was cold: not reproducible"

    def ms(self, seed: int, call: int, record: StepRecord) -> float | None:
        """The sum of the call's stages, in milliseconds; None for a cold call.

        UserError if it shared a packed call or was not timed.
        """
        if record.packed > 1 or not record.ms:
            raise UserError("delay.ms=measured needs calls of one sequence each; set slots=1")
        return None if record.cold else sum(record.ms.values())


def observed(model: Model, record: StepRecord) -> Stages:
    """The stages of a published model that keeps the same shares of visual tokens as an observed call.

    Its layer i takes the shares of the observed layer at the same relative depth. If the method computed the
    prompt twice, the first pass is added.
    """
    layers, own = model.config.num_layers, len(record.visual)
    at = [i * own // layers for i in range(layers)]
    scale = model.visual / record.total
    others = [r - v for r, v in zip(record.rows, record.visual, strict=True)]
    visual = [round(record.visual[i] * scale) for i in at]
    seen = [round((record.columns[i] - others[i]) * scale) for i in at]
    stages = dict(model.build(model, visual, seen))
    if record.first_rows:
        first = [round((record.first_rows[i] - others[i]) * scale) for i in at]
        stages["prompt"] = [*stages["prompt"], *decoder(model.config, model.counts(first, first))]
    return stages


@dataclass(frozen=True)
class Modelled:
    """The roofline floor of a full-size model on a device, divided by a share. A model of time, not a measurement.

    model   name in `published.MODELS`; it may differ from the acting model, whose shares of tokens it keeps
    device  name in `roofline.DEVICES`
    share   share of the roofline that the implementation reaches
    guided  the steps of a flow are guided (rtc): each goes forward and backward, which is twice the work (without the
            few hundredths that attention takes more)
    """

    model: str
    device: str
    share: float = SHARE
    guided: bool = False

    def __post_init__(self) -> None:
        """Raises UserError for a model or a device without a floor, or a share outside (0, 1]."""
        device(self.device)
        if self.model not in MODELS:
            raise UserError(
                f"delay.device={self.device} needs a floor, and model {self.model} has none; there are floors of "
                f"{', '.join(MODELS)}: name one with delay.model, or give delay.table"
            )
        if not 0 < self.share <= 1:
            raise UserError(f"delay.share={self.share}; use a share of the roofline above 0, up to 1")

    def _ms(self, stages: Stages) -> float:
        floors = device(self.device).floors(stages)
        return (sum(floors.values()) + self.guided * floors.get("head", 0.0)) / self.share

    @cached_property
    def expected(self) -> float:
        """The milliseconds of a dense call."""
        return self._ms(MODELS[self.model].call())

    def ms(self, seed: int, call: int, record: StepRecord) -> float:
        """The milliseconds of a call, from the visual tokens that it computed and attended to at each layer."""
        return self._ms(observed(MODELS[self.model], record))

    @property
    def note(self) -> str:
        """A sentence for a footnote: where the milliseconds come from."""
        return (
            f"modelled, not measured: roofline floor of {self.model} on {device(self.device).name} divided by "
            f"{self.share:g}, without a method's own work; a dense call takes {self.expected:.1f} ms"
        )


@dataclass(frozen=True)
class LatencyRow:
    """One arm of a table: its method, and FLOPs and milliseconds of a call."""

    method: str
    flops: float
    ms: float


@dataclass(frozen=True)
class Table:
    """Milliseconds from a CSV of vlaprune-profile mode=speed, piecewise-linear in a call's FLOPs between its arms.

    path    path of the CSV
    model   name of the model whose times it must hold
    method  the method that runs: only its arms and dense are used, or all arms if the table has none of it
    scaled  FLOPs are those of the full-size `model` (delay.model), not those of the acting model
    """

    path: Path
    model: str
    method: str
    scaled: bool = False

    @cached_property
    def arms(self) -> list[LatencyRow]:
        """The arms of the table, sorted by FLOPs. UserError for a file that is no such table, or of another model."""
        rows = self._rows()
        dense = [r for r in rows if r["method"].split()[0] == "dense"]
        if not dense:
            raise UserError(f"{self.path} has no dense arm; make it with vlaprune-profile mode=speed")
        kernel = min(dense, key=lambda r: self._number(r, "ms_p50"))["kernel"]
        rows = [r for r in rows if r["kernel"] == kernel]
        base = [
            LatencyRow("dense", self._number(r, "flops_call"), self._number(r, "ms_p50")) for r in rows if r in dense
        ]
        pruned = [
            LatencyRow(r["method"].split()[0], self._number(r, "steady_flops"), self._number(r, "ms_pruned"))
            for r in rows
            if r not in dense and r["ms_pruned"]  # empty: no call of it dropped tokens
        ]
        own = [arm for arm in pruned if arm.method == self.method]
        return sorted([*base, *(own or pruned)], key=lambda arm: arm.flops)

    def _number(self, row: Mapping[str, str], column: str) -> float:
        """A number of the table. UserError for one that is none, not finite or below 0."""
        try:
            found = float(row[column])
        except ValueError:
            found = math.nan
        if not 0 <= found < math.inf:
            raise UserError(
                f"delay.table={self.path}: {column} of {row['method']} is {row[column]!r}, no number from 0 on; make "
                "the table anew with vlaprune-profile mode=speed"
            )
        return found

    def _rows(self) -> Sequence[Mapping[str, str]]:
        if not self.path.is_file():
            raise UserError(f"delay.table={self.path} is no file; make one with vlaprune-profile mode=speed")
        try:
            with self.path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if (row.get("method") or "").strip()]
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"delay.table={self.path} is no CSV file ({error}); use one of vlaprune-profile") from None
        needed = ("model", "method", "kernel", "ms_p50", "ms_pruned", "flops_call", "steady_flops")
        if not rows or (lacks := [k for k in needed if k not in rows[0]]):
            said = f"lacks {', '.join(lacks)}" if rows else "is empty"
            raise UserError(f"delay.table={self.path} {said}; make it anew with vlaprune-profile mode=speed")
        own = [r for r in rows if r["model"] == self.model]
        if not own:
            others = sorted({r["model"] for r in rows})
            raise UserError(
                f"delay.table={self.path} holds times of {', '.join(others)}, and the calls are those of {self.model}; "
                f"give its table, or set delay.model={others[0]}"
            )
        return own

    @cached_property
    def _curve(self) -> tuple[list[float], list[float]]:
        """The FLOPs of the arms without repeats, and the mean milliseconds at each."""
        return curve(self.arms)

    @property
    def expected(self) -> float:
        """The milliseconds of a dense call."""
        return next(arm.ms for arm in self.arms if arm.method == "dense")

    def ms(self, seed: int, call: int, record: StepRecord) -> float:
        """The milliseconds of a call, interpolated between the arms; constant below the first and above the last."""
        flops = sum(record.flops.values())
        if self.scaled:
            flops = total(observed(MODELS[self.model], record)).flops
        return float(np.interp(flops, *self._curve))

    @property
    def error(self) -> float:
        """The largest relative error of an inner arm's time if it is interpolated from the others; 0 for two arms."""
        worst = 0.0
        for i in range(1, len(self.arms) - 1):
            others = curve([*self.arms[:i], *self.arms[i + 1 :]])
            arm = self.arms[i]
            worst = max(worst, abs(float(np.interp(arm.flops, *others)) - arm.ms) / arm.ms)
        return worst

    @property
    def note(self) -> str:
        """A sentence for a footnote: where the milliseconds come from."""
        return (
            f"measured times of {self.model} in {self.path.name}: {len(self.arms)} arms, linear in FLOPs between them, "
            f"an arm left out is missed by at most {100 * self.error:.0f} %; a dense call takes {self.expected:.1f} ms"
        )


def curve(arms: Sequence[LatencyRow]) -> tuple[list[float], list[float]]:
    """FLOPs of the arms, ascending without repeats, and their mean milliseconds at each."""
    found: dict[float, list[float]] = {}
    for arm in sorted(arms, key=lambda arm: arm.flops):
        found.setdefault(arm.flops, []).append(arm.ms)
    return list(found), [sum(ms) / len(ms) for ms in found.values()]


Source = Fixed | Measured | Modelled | Table


def source(settings: Mapping[str, Any], model: str, method: str) -> Source:
    """The source of latency that the keys of `delay` name. UserError if there is none, or more than one.

    model, method  short names of the acting model and method
    """
    ms, on, table, jitter = (settings.get(key) for key in ("ms", "device", "table", "jitter"))
    timed = str(settings.get("model") or model)
    if table is None and settings.get("model") is not None and on is None:
        raise UserError(f"delay.model={timed} says whose time a device takes; add delay.device or delay.table")
    if (ms is None) == (on is None and table is None):
        raise UserError(
            f"delay.mode={settings['mode']} needs one of delay.ms, delay.device and delay.table, got "
            f"ms={ms}, device={on}, table={table}"
        )
    if jitter is not None and (ms is None or ms == "measured"):
        raise UserError(f"delay.jitter={jitter} goes with delay.ms=NUMBER only")
    if ms == "measured":
        return Measured()
    if ms is not None:
        return Fixed(_number("ms", ms), None if jitter is None else _number("jitter", jitter))
    if table is None:
        share = _number("share", settings.get("share", SHARE))
        return Modelled(timed, str(on), share, guided=settings["mode"] == "rtc")
    found = Table(Path(str(table)), timed, method, scaled=settings.get("model") is not None and timed != model)
    if found.scaled and timed not in MODELS:
        raise UserError(f"delay.model={timed} has no full-size counts here; there are {', '.join(MODELS)}")
    assert found.arms
    return found


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"delay.{key}={value}; use a number" + (", or measured" if key == "ms" else ""))
    return float(value)
