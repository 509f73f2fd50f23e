"""Puts runs into one comparison: which runs fit together, how they are labelled, and what is refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vlaprune.errors import UserError
from vlaprune.records import UNPROVED, EpisodeRecord, Header, Run, StepRecord, differences, read, without
from vlaprune.report.machines import devices
from vlaprune.report.noise import Noise, measure_noise
from vlaprune.stats.anytime import said


def name(header: Header) -> str:
    """The method's short name: that of its YAML."""
    return str(header.identity["method"]["name"])


def label(header: Header, others: Sequence[Header] = ()) -> str:
    """The label of a method: name, budget if any, and options that were typed or differ: "fastv keep=0.25 layer=2".

    Methods of two packages that have one name are told apart by package: "a mine", "b mine".
    """
    method, same = header.identity["method"], [o.identity["method"] for o in others if name(o) == name(header)]
    shared = any(o.get("package") != method.get("package") for o in same)
    called = " ".join([method.get("package", "vlaprune"), name(header)]) if shared else name(header)
    same = [o for o in same if o.get("package") == method.get("package")]
    named, typed = ("name", "package", "keep"), _typed(header)
    differ = [k for k in method if k not in named and (k in typed or any(o.get(k) != method[k] for o in same))]
    budget = [] if method.get("keep") is None else ["keep"]
    return " ".join([called, *(f"{k}={method[k]}" for k in (*budget, *differ))])


def _typed(header: Header) -> set[str]:
    """Options of the method that the command line named: not the file's, even where all arms share them. No files."""
    said = (word.lstrip("+").partition("=") for word in header.provenance.get("overrides") or ())
    return {key.removeprefix("method.") for key, _, value in said if key.startswith("method.") and "/" not in value}


def find(paths: Iterable[Path]) -> list[Run]:
    """Every run in or below the given folders, once. UserError for a folder without any."""
    runs: dict[Path, Run] = {}
    for path in paths:
        folders = sorted({p.parent for p in path.glob("**/journal*.jsonl")}) if path.is_dir() else []
        if not folders:
            raise UserError(f"{path} holds no run; give folders in which vlaprune-eval has written a journal.jsonl")
        runs |= {folder.resolve(): _named(read(folder)) for folder in folders if folder.resolve() not in runs}
    return list(runs.values())


def _named(run: Run) -> Run:
    """The run itself. UserError if its header lacks a name that a table needs."""
    for part, key in (("model", "name"), ("method", "name"), ("bench", "name"), ("bench", "margin")):
        said = run.header.identity.get(part)
        if not isinstance(said, Mapping) or key not in said:
            raise UserError(f"{run.folder}: its header has no {part}.{key}, so it stands in no table; leave it out")
    return run


Key = tuple[str, int, Any]  # task, episode, seed


def by_episode(values: Mapping[Key, float]) -> list[list[float]]:
    """The values grouped by (task, episode): one list per episode, with its values under all seeds."""
    groups: dict[tuple[str, int], list[float]] = {}
    for (task, episode, _), value in values.items():
        groups.setdefault((task, episode), []).append(value)
    return list(groups.values())


@dataclass(frozen=True)
class Arm:
    """Runs that are one row of a report: one method under one or several seeds.

    runs     one run for each seed
    label    name of the arm, unique in the report
    missing  number of episodes that were requested and are not in the journals; 0 for runs that a rule ended
    stopped  in words, the rule that ended it early; empty if none did
    tuned    its weights were tuned from the baseline's, with the method at work: policy and method are judged as one
    mixed    in words, how settings, weights, seeds or episodes differ from the baseline's (without a baseline, from the
             first arm's); empty if they do not
    judged   whether it may be compared with the baseline after a fixed number of episodes; not if more differs than
             which seeds or episodes were asked for, if no seed is shared, or if a rule chose the number
    """

    runs: tuple[Run, ...]
    label: str
    missing: int = 0
    mixed: str = ""
    judged: bool = True
    stopped: str = ""
    tuned: bool = False

    @property
    def run(self) -> Run:
        """The run under the first seed. All runs have the same settings."""
        return self.runs[0]

    @cached_property
    def episodes(self) -> Mapping[Key, EpisodeRecord]:
        """Every finished episode under every seed."""
        return {(*key, _seed(run)): record for run in self.runs for key, record in run.episodes.items()}

    @property
    def calls(self) -> Iterator[StepRecord]:
        """Every model call."""
        return (call for record in self.episodes.values() for call in record.calls)

    @property
    def repeated(self) -> int:
        """The number of episodes that were begun more than once because their simulator raised."""
        return sum(record.attempts > 1 for record in self.episodes.values())

    @property
    def proved(self) -> bool:
        """Whether its token counts prove what was pruned; not those of a black box or of another harness."""
        return self.run.header.proved

    @property
    def seeds(self) -> tuple[Any, ...]:
        """The seeds of the runs, in their order."""
        return tuple(_seed(run) for run in self.runs)

    @property
    def marks(self) -> str:
        """The marks of the arm: * missing episodes, ‡ ended by a rule, § tuned, † `mixed`, ¶ without proof."""
        marks = {"*": self.missing, "‡": self.stopped, "§": self.tuned, "†": self.mixed, "¶": not self.proved}
        return "".join(mark for mark, holds in marks.items() if holds)

    @property
    def marked(self) -> str:
        """The label, with its marks."""
        return self.label + self.marks

    @property
    def method(self) -> str:
        """The method's short name."""
        return name(self.run.header)


@dataclass(frozen=True)
class Criterion:
    """The result of an audit of a method's criterion.

    difference  success of the method minus that of as many tokens at random
    p           p-value of "the method is one more random draw", adjusted over all methods audited together
    verdict     the verdict in words
    audited     number of methods audited together
    """

    difference: float
    p: float
    verdict: str
    audited: int


@dataclass(frozen=True)
class Comparison:
    """The arms of one report, the baseline first if there is one.

    noise     how often the baseline, run again, ends an episode differently; None if not measured
    criteria  label -> result of the audit, for the arms that were audited
    """

    arms: tuple[Arm, ...]
    baseline: Arm | None
    noise: Noise | None = None
    criteria: Mapping[str, Criterion] = field(default_factory=dict)

    @property
    def runs(self) -> list[Run]:
        """The runs of all arms, under every seed."""
        return [run for arm in self.arms for run in arm.runs]

    @property
    def margin(self) -> float:
        """The non-inferiority margin of the benchmark, as a share of episodes."""
        return float(self.arms[0].run.header.identity["bench"]["margin"])

    def with_noise(self, repeats: Sequence[Run]) -> Comparison:
        """A copy with the noise measured from repeats of the baseline. UserError if they are no repeats of it."""
        if self.baseline is None:
            raise UserError("noise needs a baseline among the runs; name one with --baseline")
        return replace(self, noise=measure_noise(repeats, self.baseline.run))

    @property
    def others(self) -> tuple[Arm, ...]:
        """The arms that are not the baseline."""
        return tuple(a for a in self.arms if a is not self.baseline)

    @property
    def title(self) -> str:
        """The models and benchmarks of the arms: "tiny on robosuite"."""
        models, benches = (
            ", ".join(dict.fromkeys(display_name(a.run, of) for a in self.arms)) for of in ("model", "bench")
        )
        return f"{models} on {benches}"

    @property
    def tasks(self) -> list[str]:
        """Every task of the arms, in the order of the first."""
        return list(dict.fromkeys(task for arm in self.arms for task in arm.run.header.tasks))


def short_name(run: Run, of: str) -> str:
    """The short name of a run's model or bench: that of its YAML."""
    return str(run.header.identity[of]["name"])


def display_name(run: Run, of: str) -> str:
    """The name of a run's model or bench for readers: its label ("simpler-ms2 google_vm"), else its short name."""
    return str(run.header.identity[of].get("label") or short_name(run, of))


def context(run: Run) -> Mapping[str, Any]:
    """A run's identity without the method; it must be equal in two runs that are compared."""
    return without(run.header, "method").identity


def compare(
    runs: Sequence[Run],
    baseline: str = "dense",
    partial: bool = False,
    mixed: bool = False,
    others: Sequence[Header] = (),
) -> Comparison:
    """Puts runs into one comparison. UserError says in one line why they do not fit together.

    Runs that differ in the seed only are one row.

    partial  runs with episodes missing are shown, marked *
    mixed    runs of another protocol, other weights, seeds or episodes are shown, marked †
    others   headers of runs in other comparisons of one study, so that a label means the same method in all of them
    """
    runs = begun(runs, partial)
    groups = _over_seeds(runs)
    firsts = [group[0] for group in groups]
    headers = [r.header for r in firsts]
    labels = _labels(firsts, [label(h, [*headers, *others]) for h in headers], mixed)
    at = _baseline(baseline, [name(h) for h in headers], labels, mixed)
    arms = []
    for group, called in zip(groups, labels, strict=True):
        arms.append(_arm(group, groups[at or 0], called, partial, mixed))
    base = None if at is None else arms[at]
    return Comparison(tuple(sorted(arms, key=lambda a: (a is not base, a.label))), base)


def begun(runs: Sequence[Run], partial: bool) -> list[Run]:
    """The runs; with `partial` only those with a finished episode. UserError if no run has one."""
    if not any(r.episodes for r in runs):
        named = ", ".join(str(r.folder) for r in runs[:2]) + (", ..." if len(runs) > 2 else "")
        raise UserError(f"none of these runs has a finished episode: {named}; finish one, or leave them out")
    return [r for r in runs if r.episodes or not partial]


def _baseline(wanted: str, names: Sequence[str], labels: Sequence[str], mixed: bool) -> int | None:
    """The number of the baseline: the arm with that label, else with that method. None if `dense` is not there.

    UserError if another baseline is not there, or if several arms fit and `mixed` is False.
    """
    found = [i for i, one in enumerate(labels) if one == wanted] or [i for i, one in enumerate(names) if one == wanted]
    if not found and wanted != "dense":
        raise UserError(f"baseline {wanted} is none of these runs; use one of {', '.join(labels)}")
    if len(found) > 1 and not mixed:
        raise UserError(f"baseline {wanted} may be {' or '.join(labels[i] for i in found)}; name one with --baseline")
    return found[0] if found else None


def _arm(group: Sequence[Run], base: Sequence[Run], called: str, partial: bool, mixed: bool) -> Arm:
    run, first = group[0], base[0]
    tuned = _tuned(run, first)
    reasons = [
        _protocol(run, first, tuned),
        "" if tuned else _weights(run, first),
        _seeds(group, base),
        *(_episodes(one, first) for one in group),
    ]
    if any(reasons) and not mixed:
        raise UserError(
            f"{run.folder} and {first.folder} {next(filter(None, reasons))}; make a report of each, or pass --mixed to "
            "look anyway"
        )
    stopped = "; ".join(said(one.stopped) for one in group if one.stopped)
    lacks = [one for one in group if one.missing and not one.stopped]
    missing = sum(len(one.missing) for one in lacks)
    if missing and not partial:
        lacking = lacks[0]
        raise UserError(
            f"run {lacking.folder} lacks {len(lacking.missing)} of {sum(lacking.header.tasks.values())} episodes; "
            "finish it, or pass --partial"
        )
    judged = not any(reasons[:2]) and not stopped and bool({*map(_seed, group)} & {*map(_seed, base)})
    mixture = "; ".join(dict.fromkeys(filter(None, reasons)))
    return Arm(tuple(group), called, missing, mixture, judged, stopped, tuned)


def _over_seeds(runs: Sequence[Run]) -> list[list[Run]]:
    """Groups of runs that differ in the seed only, in their order; a seed that comes twice makes two groups."""
    groups: list[list[Run]] = []
    for run in runs:
        own = [g for g in groups if _but_seed(g[0]) == _but_seed(run) and _seed(run) not in map(_seed, g)]
        if own:
            own[0].append(run)
        else:
            groups.append([run])
    return groups


def _but_seed(run: Run) -> Mapping[str, Any]:
    return without(run.header, "seed").identity


def _seed(run: Run) -> Any:
    return run.header.identity.get("seed")


def _seeds(group: Sequence[Run], base: Sequence[Run]) -> str:
    """In words, the seeds of an arm and of the baseline, if they differ; else empty."""
    a, b = (sorted(map(str, map(_seed, runs))) for runs in (base, group))
    return f"differ in more than the method (seed {', '.join(a)} -> {', '.join(b)})" if a != b else ""


def _labels(runs: Sequence[Run], labels: Sequence[str], mixed: bool) -> list[str]:
    for told in (_origin, _device):
        apart = [
            label if labels.count(label) == 1 else f"{label} {told(r)}" for r, label in zip(runs, labels, strict=True)
        ]
        if len(set(apart)) == len(apart):  # labels that came twice now differ by their weights or their device
            return apart
    twice = sorted({one for one in labels if labels.count(one) > 1})
    if twice and not mixed:
        raise UserError(f"{len(runs)} runs, but {twice} comes more than once; name the folders to compare")
    return [f"{one} ({run.folder.name})" if one in twice else one for run, one in zip(runs, labels, strict=True)]


def _origin(run: Run) -> str:
    """The weights of a run: their name, or the folder that vlaprune-train made."""
    given = str(run.header.identity["model"].get("weights"))
    return f"weights={Path(given).parent.name if given.endswith('.safetensors') else given}"


def _device(run: Run) -> str:
    """The devices that computed a run."""
    return f"on {' and '.join(devices(run))}"


def _tuned(run: Run, first: Run) -> bool:
    """Whether a run's weights were tuned from the first run's together with its method."""
    return "tuned_from" in run.header.provenance and run.header.provenance["tuned_from"] == context(first)["weights"]


def _protocol(run: Run, first: Run, tuned: bool) -> str:
    """In words, the settings of model, bench or execution that differ; weights and seeds are compared elsewhere."""
    if run.header.proved != first.header.proved:
        return f"differ in more than the method ({_unproved(run, first)} is {UNPROVED}: its model is not known)"
    a, b = (dict(without(r.header, "method", "weights", "seed").identity) for r in (first, run))
    if tuned:  # the path of its weights is then no difference of protocol
        a, b = (one | {"model": {k: v for k, v in one["model"].items() if k != "weights"}} for one in (a, b))
    return f"differ in more than the method ({differences(Header(a, {}, {}), Header(b, {}, {}))})" if a != b else ""


def _unproved(*runs: Run) -> str:
    """The method's name of the first run without proof."""
    return next(name(run.header) for run in runs if not run.header.proved)


def _weights(run: Run, first: Run) -> str:
    if run.header.proved != first.header.proved:
        return ""  # `_protocol` reports it
    a, b = (str(context(r).get("weights")) for r in (first, run))
    return f"have different weights (sha256 {a[:12]} -> {b[:12]})" if a != b else ""


def _episodes(run: Run, first: Run) -> str:
    a, b = first.header.tasks, run.header.tasks
    told = ", ".join(f"{t} {a.get(t, 0)} -> {b.get(t, 0)}" for t in {**a, **b} if a.get(t) != b.get(t))
    return f"were asked for different episodes ({told})" if told else ""
