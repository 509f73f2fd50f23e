"""Decides from the journals alone whether some runs had their machines to themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from vlaprune.records import Run

Span = tuple[float, float]  # start and end, seconds since 1970
SLACK = 0.05  # seconds: two clocks of one process differ by less


def shared(runs: Sequence[Run]) -> str:
    """The first reason why milliseconds of these runs do not compare; empty if there is none."""
    return next(_reasons(runs), "")


def devices(run: Run) -> tuple[str, ...]:
    """The devices that computed a run, such as cpu or NVIDIA H200; those of a run of another harness are not known."""
    return tuple(sorted({str(s.hardware["device"]) for s in _starts(run) if s.spans and "device" in s.hardware}))


def _reasons(runs: Sequence[Run]) -> Iterator[str]:
    every = [(run, _starts(run)) for run in runs]
    for run, starts in every:
        yield from _own(run, starts)
    for (a, ours), (b, theirs) in combinations(every, 2):
        together = sum(_overlap(x.spans, y.spans) for x in ours for y in theirs if x.machine == y.machine)
        if together > SLACK:
            yield f"{a.folder.name} and {b.folder.name} ran on one machine at the same time, for {together:.3g} s"
    kinds = {start.kind for _, starts in every for start in starts}
    if len(kinds) > 1:
        yield f"the runs were made on different hardware ({'; '.join(sorted(map(_said, kinds)))})"


def _own(run: Run, starts: Sequence[_Start]) -> Iterator[str]:
    """The reasons that lie in one run."""
    name = run.folder.name
    for start in starts:
        told, cores = start.told, start.hardware.get("cores")
        if not told.get("host") or not all(r.ended for r in run.episodes.values()):
            yield f"where and when {name} ran is not recorded"
        if _deepest(start.spans) > int(told.get("slots") or 1):
            yield f"several processes made {name} side by side"
        if int(told.get("device_users") or 0) > 1:
            yield f"another process used the device when {name} began"
        if (told.get("load") or 0.0) > (cores or float("inf")):
            yield f"its machine was busy when {name} began (load {told['load']:.1f} on {cores} cores)"
        if told.get("video") in ("all", "failures"):
            yield f"{name} was filmed (the encoder ran beside the policy)"
    if any(a.machine == b.machine and _overlap(a.spans, b.spans) > SLACK for a, b in combinations(starts, 2)):
        yield f"several processes made {name} side by side"
    kinds = {start.kind for start in starts}
    if len(kinds) > 1:
        yield f"{name} was begun on one machine and went on on another ({'; '.join(sorted(map(_said, kinds)))})"


@dataclass(frozen=True)
class _Start:
    """One start of a run: its provenance, and when the episodes that it finished began and ended, in order."""

    told: Mapping[str, Any]
    spans: Sequence[Span]

    @property
    def hardware(self) -> Mapping[str, Any]:
        return self.told.get("hardware") or {}

    @property
    def machine(self) -> tuple[str, str]:
        return str(self.told.get("host")), str(self.told.get("boot"))

    @property
    def kind(self) -> tuple[tuple[str, str], ...]:
        """The hardware that decides times: the device; on a CPU also its name and the number of threads."""
        found = self.hardware
        matters = ("device", "cpu", "threads") if str(found.get("device", "cpu")).startswith("cpu") else ("device",)
        return tuple((key, str(found[key])) for key in matters if key in found)


def _starts(run: Run) -> list[_Start]:
    """Every start of a run that finished an episode."""
    out = []
    for header in run.starts:
        own = [r for key, r in run.episodes.items() if run.made.get(key, header) is header and r.ended]
        out.append(_Start(header.provenance, sorted((r.ended - r.seconds, r.ended) for r in own)))
    return out


def _said(kind: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{key} {value}" for key, value in kind)


def _deepest(spans: Sequence[Span]) -> int:
    """The largest number of episodes that ran at once."""
    turns = sorted([(start + SLACK, 1) for start, end in spans if end - start > 2 * SLACK])
    turns += [(end, -1) for start, end in spans if end - start > 2 * SLACK]
    deep = most = 0
    for _, turn in sorted(turns):
        deep += turn
        most = max(most, deep)
    return most


def _overlap(a: Sequence[Span], b: Sequence[Span]) -> float:
    """Seconds during which both runs were at work; spans of one run are joined first."""
    ours, theirs = _joined(a), _joined(b)
    total, i, j = 0.0, 0, 0
    while i < len(ours) and j < len(theirs):
        total += max(0.0, min(ours[i][1], theirs[j][1]) - max(ours[i][0], theirs[j][0]))
        i, j = (i + 1, j) if ours[i][1] < theirs[j][1] else (i, j + 1)
    return total


def _joined(spans: Sequence[Span]) -> list[Span]:
    out: list[Span] = []
    for start, end in sorted(spans):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out
