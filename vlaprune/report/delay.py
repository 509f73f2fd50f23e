"""The report of runs in worlds that do not wait: success against delay, break-even table, motion. No torch.

A setting is one way of delay (mode, and what calls take). Runs of one setting differ in the method only and are paired
with the baseline of the same setting: each method at its own latency against dense at dense's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vlaprune.errors import UserError
from vlaprune.records import EpisodeRecord, Header, Run, differences, mean, without
from vlaprune.report.notes import marks
from vlaprune.report.runs import Arm, Comparison, Key, begun, by_episode, compare, display_name
from vlaprune.report.sources import sources
from vlaprune.report.tables import pairs, shared_episodes, tabulate
from vlaprune.stats.markdown import table as lined
from vlaprune.stats.noise import alike
from vlaprune.stats.paired import tango
from vlaprune.stats.rates import Interval, mean_interval

MOTION = {
    "path_hand": "path",
    "jerk_hand": "jerk, hand",
    "jerk_turn": "jerk, turn",
    "path_real": "path in the world, m",
    "jerk_real": "jerk in the world, m/s^3",
    "flips": "gripper flips",
}
JUDGED = (
    *("success", "episodes", "rate", "low", "high", "difference", "difference_low", "difference_high"),
    *("held_low", "held_high", "verdict", "more", "lost", "gained", "paired", "kept", "visual"),
)  # columns taken from `tabulate`
COST = ("cost", "cost_low", "cost_high", "cost_lost", "cost_gained")  # against the same method without delay
LEAST = 10  # fewest episodes for an interval of a mean
CHANGES = ["sooner_pairs"]
CHANGES += [
    f"{name}{end}" for name in ("sooner", *(f"{key}_change" for key in MOTION)) for end in ("", "_low", "_high")
]


def delayed(runs: Iterable[Run]) -> bool:
    """Whether any of these runs is in a world that did not wait."""
    return any("delay" in run.header.identity for run in runs)


@dataclass(frozen=True)
class DelaySetting:
    """One way of delay and the runs under it.

    mode   wait, hold, overlap, stale or rtc
    where  latency of a call, in words: "100 ms", "Orin64 as oft"
    ms     the latency in milliseconds; None if a device, a table or measurement decides
    note   source of the milliseconds; empty for a world that waits
    """

    mode: str
    where: str
    ms: float | None
    note: str
    comparison: Comparison


def settings(runs: Sequence[Run], baseline: str = "dense", partial: bool = False) -> list[DelaySetting]:
    """Groups runs by their delay, in the order of mode and latency; those without a number of milliseconds last.

    UserError as in `compare`, and if runs differ in more than method, seed and delay.
    """
    runs = begun(runs, partial)
    for run in runs:
        if differing := differences(*(without(r.header, "method", "seed", "delay") for r in (runs[0], run))):
            two = f"{run.folder} and {runs[0].folder}"
            raise UserError(f"{two} differ in more than method and delay ({differing}); make a report of each")
    every = [run.header for run in runs]
    out = [_setting(group, every, baseline, partial) for group in alike(runs)]
    return sorted(out, key=lambda s: (s.ms is None, s.mode, s.ms or 0.0, s.where))


def _setting(group: Sequence[Run], every: Sequence[Header], baseline: str, partial: bool) -> DelaySetting:
    said: Mapping[str, Any] = group[0].header.identity.get("delay", {"mode": "wait", "ms": 0.0})
    note = str(group[0].header.provenance.get("delay", ""))
    return DelaySetting(
        said["mode"], _where(said), _number(said.get("ms")), note, compare(group, baseline, partial, others=every)
    )


def _number(ms: Any) -> float | None:
    return None if ms is None or isinstance(ms, str) else float(ms)


def _where(said: Mapping[str, Any]) -> str:
    timed = f" as {said['model']}" if "model" in said else ""
    if "ms" in said:
        jitter = f", p99 {said['jitter']:g} ms" if "jitter" in said else ""
        return f"{said['ms']}" if isinstance(said["ms"], str) else f"{said['ms']:g} ms{jitter}"
    place = f"{said['device']}" if "device" in said else f"table {said['table'][:6]}"
    return f"{place}{timed}" + ("" if "table" in said else ", modelled")


def table(runs: Sequence[Run], baseline: str = "dense", partial: bool = False) -> pd.DataFrame:
    """A row per setting and arm, the baseline first.

    The columns are always the same. A value that is not known is NaN. Rates and differences are shares from 0 to 1.

    mode, where  mode of delay; latency of a call in words
    set_ms  latency in milliseconds; NaN if a device, a table or measurement decides
    method, marks, family  label of the arm, its marks (`Arm.marks`), short name of the method
    base  whether it is the baseline
    ms, late  milliseconds of a call and control steps by which its actions are late, means over calls
    success, episodes, rate, low, high, kept, visual  as in `tabulate`
    seconds, seconds_low, seconds_high  seconds of the world to success, mean over successes, 95 % interval
    replans  calls per second of the world
    held, stale  shares of steps without an action, and of steps on which an older chunk went on while a call ran
    cost, cost_low, cost_high  rate minus that of the same method without delay, Tango's 95 % interval
    cost_lost, cost_gained  episodes lost and gained against the same method without delay

    There is a column for each key of MOTION, the mean over episodes, in the unit of that key.
    These compare an arm with the baseline of the same setting, on the same episodes:

    difference, difference_low, difference_high, held_low, held_high  as in `tabulate`
    verdict, more, lost, gained, paired  as in `tabulate`
    sooner, sooner_low, sooner_high  seconds that the method succeeds sooner, mean over episodes in which both succeed
    sooner_pairs  number of these episodes

    For each key of MOTION, KEY_change is its paired mean change, with KEY_change_low and KEY_change_high.
    `attrs` holds title, margin, notes (among them the sources of milliseconds) and sources.
    """
    found = settings(runs, baseline, partial)
    undelayed = {arm.label: arm for s in found if s.ms == 0 for arm in s.comparison.arms}
    frames = [pd.DataFrame([_row(s, arm) | _cost(s, arm, undelayed) for arm in s.comparison.arms]) for s in found]
    out = pd.concat([_judged(s, frame) for s, frame in zip(found, frames, strict=True)], ignore_index=True)
    notes = {f"{s.mode}, {s.where}: {s.note}": None for s in found if s.note and s.ms is None}
    out.attrs["notes"] = [*notes, *_footnotes(found)]
    out.attrs["sources"] = sources(runs)
    first = found[0].comparison.arms[0].run
    out.attrs["margin"] = found[0].comparison.margin
    out.attrs["title"] = (
        f"{display_name(first, 'model')} on {display_name(first, 'bench')}, in a world that does not wait"
    )
    return out


def _footnotes(found: Sequence[DelaySetting]) -> list[str]:
    out = [
        "seconds: of the world, held ones included; mean over the episodes that succeed, so compare the paired ones",
        f"intervals of means: 95 % each, over at least {LEAST} episodes",
        "against no delay: the same method on the same episodes without any, in points, Tango's 95 % interval",
    ]
    if any(s.comparison.baseline is not None and s.comparison.others for s in found):
        out += [
            f"verdicts: against a margin of {100 * found[0].comparison.margin:g} points by an exact test, Holm over "
            "the methods of one delay; intervals of differences are at the level of their verdict",
            "sooner: over the episodes in which both succeed",
        ]
    out += dict.fromkeys(f"{s.mode}, {s.where}: {line}" for s in found for line in marks(s.comparison))
    if any(s.mode != "wait" for s in found):
        out.append("held: share of steps without an action; stale: on which an older chunk went on while a call ran")
    return out


def _row(setting: DelaySetting, arm: Arm) -> dict[str, Any]:
    records = list(arm.episodes.values())
    steps, calls = sum(r.steps for r in records), [c for r in records for c in r.calls]
    seconds, interval = _mean({k: _seconds(r) for k, r in arm.episodes.items() if r.success})
    out: dict[str, Any] = {
        "mode": setting.mode,
        "where": setting.where,
        "set_ms": float("nan") if setting.ms is None else setting.ms,
        "method": arm.label,
        "marks": arm.marks,
        "base": arm is setting.comparison.baseline,
        "family": arm.method,
        "ms": np.mean([c.delay.get("ms", 0.0) for c in calls]),
        "late": np.mean([c.delay.get("late", 0) for c in calls]),
        "seconds": seconds,
        "seconds_low": interval.low,
        "seconds_high": interval.high,
        "replans": len(calls) / sum(map(_seconds, records)),
    }
    for key in ("held", "stale"):
        out[key] = sum(c.delay.get(key, 0) for c in calls) / steps
    return out | {key: np.mean([r.motion.get(key, np.nan) for r in records]) for key in MOTION}


def _cost(setting: DelaySetting, arm: Arm, undelayed: Mapping[str, Arm]) -> dict[str, float]:
    """The cost of the delay: an arm against the arm of the same label in `undelayed`, on the same episodes."""
    base = None if setting.ms == 0 else undelayed.get(arm.label)
    if base is None or not (keys := shared_episodes(arm, base)):
        return dict.fromkeys(COST, float("nan"))
    found = pairs(arm, base, keys)
    interval = tango(found)
    values = (found.difference, interval.low, interval.high, found.lost, found.gained)
    return dict(zip(COST, values, strict=True))


def _seconds(record: EpisodeRecord) -> float:
    return float(record.motion.get("world_seconds", np.nan))


def _judged(setting: DelaySetting, frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of one setting, with success, verdicts and paired changes added."""
    labels = {arm.marked: arm.label for arm in setting.comparison.arms}
    told = tabulate(setting.comparison).set_index("method")[list(JUDGED)].rename(index=labels)
    base = setting.comparison.baseline
    rows = [_paired(arm, base) if base is not None and arm is not base else {} for arm in setting.comparison.arms]
    return frame.join(told, on="method").join(pd.DataFrame(rows, columns=CHANGES, dtype=float))


def _paired(arm: Arm, base: Arm) -> dict[str, float]:
    both = {key: (arm.episodes[key], base.episodes[key]) for key in shared_episodes(arm, base)}
    changes = {"sooner": {k: _seconds(b) - _seconds(a) for k, (a, b) in both.items() if a.success and b.success}}
    for name in MOTION:
        changes[f"{name}_change"] = {
            k: a.motion[name] - b.motion[name] for k, (a, b) in both.items() if name in a.motion and name in b.motion
        }
    out: dict[str, float] = {"sooner_pairs": len(changes["sooner"])}
    for name, values in changes.items():
        middle, interval = _mean(values)
        out |= {name: middle, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return out


def _mean(values: Mapping[Key, float]) -> tuple[float, Interval]:
    """The mean over (task, episode), each averaged over its seeds, with Student's 95 % interval.

    The interval is infinite for fewer than LEAST episodes and for values without any spread.
    """
    means = list(map(mean, by_episode(values)))
    middle, interval = mean_interval(means)
    sure = len(means) >= LEAST and max(means) > min(means)
    return middle, interval if sure or not means else Interval(-np.inf, np.inf)


def verdict(row: Any) -> str:
    """The verdict on success and time in words, such as "no worse and sooner"; else "baseline" or "not compared"."""
    if not isinstance(row.verdict, str):
        return "baseline" if row.base else "not compared"
    if row.verdict != "no worse":
        return row.verdict
    if row.sooner_low > 0:
        return "no worse and sooner"
    return "no worse, later" if row.sooner_high < 0 else "no worse"


def markdown(rows: pd.DataFrame) -> str:
    """The report as Markdown: success against delay, the break-even table, motion, notes and sources."""
    parts = [f"# {rows.attrs['title']}"]
    curve, devices = rows[rows["set_ms"].notna()], rows[rows["set_ms"].isna()]
    if len(curve):
        parts += ["## Success and seconds against delay", _lines(curve, "delay")]
    if len(devices):
        said = "Dense at dense's own latency against each method at its own."
        parts += ["## Break-even", said, _lines(devices, "device")]
    if rows["sooner"].notna().any():
        parts += ["## Motion", "Paired mean change against the baseline at the same delay.", _motion(rows)]
    parts.append("\n".join(f"- {line}" for key in ("notes", "sources") for line in rows.attrs[key]))
    return "\n\n".join(parts) + "\n"


def _lines(rows: pd.DataFrame, where: str) -> str:
    judged, priced = rows["difference"].notna().any(), rows["cost"].notna().any()
    heads = ["mode", where, "method", "ms/call", "steps late", "success, %", "seconds", "re-plans/s", "held", "stale"]
    heads += ["against no delay", "lost / gained"] if priced else []
    heads += ["difference", "sooner, s", "verdict"] if judged else []
    body = []
    for r in rows.itertuples():
        cells = [r.mode, r.where, f"{r.method}{r.marks}", f"{r.ms:.1f}", f"{r.late:.2f}"]
        cells.append(_around(100 * r.rate, 100 * r.low, 100 * r.high, ".1f") + f" of {r.episodes:.0f}")
        cells.append(_around(r.seconds, r.seconds_low, r.seconds_high, ".2f"))
        cells += [f"{r.replans:.2f}", f"{100 * r.held:.0f} %", f"{100 * r.stale:.0f} %"]
        if priced:
            cells.append(_around(100 * r.cost, 100 * r.cost_low, 100 * r.cost_high, "+.1f"))
            cells.append("" if pd.isna(r.cost) else f"{r.cost_lost:.0f} / {r.cost_gained:.0f}")
        if judged:
            cells.append(_around(100 * r.difference, 100 * r.held_low, 100 * r.held_high, "+.1f"))
            cells += [_around(r.sooner, r.sooner_low, r.sooner_high, "+.2f"), verdict(r)]
        body.append(cells)
    return lined(heads, body)


def _motion(rows: pd.DataFrame) -> str:
    body, known = [], [key for key in MOTION if rows[key].notna().any()]
    for r in rows[rows["sooner"].notna()].itertuples():
        changes = []
        for key in known:
            change, low, high = (getattr(r, f"{key}_change{k}") for k in ("", "_low", "_high"))
            changes.append(f"{getattr(r, key):.3g}, {_around(change, low, high, '+.3g')}")
        body.append([r.mode, r.where, r.method, *changes])
    return lined(["mode", "delay", "method", *(MOTION[key] for key in known)], body)


def _around(middle: float, low: float, high: float, form: str) -> str:
    if pd.isna(middle):
        return ""
    return f"{middle:{form}}" + (f" [{low:{form}}, {high:{form}}]" if np.isfinite([low, high]).all() else "")


def write(rows: pd.DataFrame, folder: Path, name: str = "delay") -> list[Path]:
    """Writes NAME.md, NAME.csv with plain numbers, and NAME.html with charts; returns their paths."""
    from vlaprune.report.delay_charts import html  # imports matplotlib, so only on demand

    folder.mkdir(parents=True, exist_ok=True)
    md, csv, page = (folder / f"{name}.{ending}" for ending in ("md", "csv", "html"))
    md.write_text(markdown(rows))
    rows.to_csv(csv, index=False)
    page.write_text(html(rows), encoding="utf-8")
    return [md, csv, page]
