"""A/A noise: how often a method, run again, ends an episode differently. A smaller difference means nothing."""

from __future__ import annotations

from collections.abc import Sequence

from vlaprune.errors import UserError
from vlaprune.records import Header, Run, differences, without
from vlaprune.stats.paired import aa_noise


def same_method(runs: Sequence[Run]) -> bool:
    """Whether these are one method and seed on the same tasks, under several conditions."""
    told = [(r.header.identity["method"], r.header.identity.get("seed"), [*r.header.tasks]) for r in runs]
    return len(runs) > 1 and all(one == told[0] for one in told)


def alike(runs: Sequence[Run]) -> list[list[Run]]:
    """Groups of runs that differ in method and seed only, in the order of the runs."""
    groups: list[list[Run]] = []
    for run in runs:
        own = [g for g in groups if not differences(conditions(g[0].header), conditions(run.header))]
        if own:
            own[0].append(run)
        else:
            groups.append([run])
    return groups


def conditions(header: Header) -> Header:
    """A header without its method and seed."""
    return without(header, "method", "seed")


def lines(runs: Sequence[Run]) -> list[str]:
    """Lines that compare the first run with each of the others. UserError if two have no episode in common."""
    first = runs[0]
    out = [f"A/A: every run against {first.folder}, episodes that both have"]
    for other in runs[1:]:
        both = [key for key in first.episodes if key in other.episodes]
        if not both:
            raise UserError(f"{other.folder} and {first.folder} have no episode in common")
        then, now = ({key: run.episodes[key] for key in both} for run in (first, other))
        rate, interval = aa_noise({k: r.success for k, r in then.items()}, {k: r.success for k, r in now.items()})
        steps = sum(then[key].steps != now[key].steps for key in both)
        won = [sum(r.success for r in rows.values()) / len(both) for rows in (then, now)]
        out.append(
            f"{_apart(first.header, other.header)}: {round(rate * len(both))} of {len(both)} episodes end otherwise = "
            f"{100 * rate:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}], {steps} take another number of "
            f"steps; success {100 * won[0]:.1f} -> {100 * won[1]:.1f} %"
        )
    return out


def _apart(old: Header, new: Header) -> str:
    """In words, how the conditions of two runs of a method differ: settings, slots and hardware."""
    told = [
        Header(
            {
                "kernel": "sdpa",
                **h.identity,
                "slots": h.provenance.get("slots"),
                "hardware": h.provenance.get("hardware"),
            },
            {},
            {},
        )
        for h in (old, new)
    ]
    return differences(*told) or "nothing changed"
