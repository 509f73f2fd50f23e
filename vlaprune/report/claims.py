"""The claims table: what papers say, where it stands, and what came out here. Made from data, not by hand. No torch.

A claim is a row of a CSV file. Its `run` names the run that it is compared with, as on the command line: model=, bench=
and method= by their short names, and any setting of theirs. Without `bench.suite`, a claim on LIBERO is about all of
`SUITES`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vlaprune.errors import UserError
from vlaprune.records import Header, Run, differences
from vlaprune.stats.markdown import table
from vlaprune.stats.rates import mean_of_tasks

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
EVIDENCE = {"P": "the authors' own page or abstract", "S": "a third party's notes of the paper"}
NOT_RUN = "not run here"
NOT_COMPARED = "not compared"
SEVERAL = "not compared: several runs answer, which differ"


@dataclass(frozen=True)
class Claim:
    """A number that a paper prints.

    where     table or section
    evidence  which text the number was read in (`EVIDENCE`)
    preset    name of the experiment file that repeats it; may be empty
    run       settings of the run to compare with, see above
    quantity  what the number counts, with its unit
    value     the number, in that unit
    spread    its printed spread, in that unit; may be empty
    """

    paper: str
    where: str
    evidence: str
    preset: str
    run: str
    quantity: str
    value: float
    spread: str
    note: str

    @property
    def wanted(self) -> dict[str, str]:
        """The settings of `run`: key -> value."""
        return dict(part.split("=", 1) for part in self.run.split())


def load(folder: Path) -> list[Claim]:
    """Every claim of a folder's CSV files. UserError names the first line that is no claim."""
    claims = []
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                try:
                    claim = Claim(**{**row, "value": float(row["value"])})  # type: ignore[arg-type]
                    if claim.evidence not in EVIDENCE or not {"model", "bench", "method"} <= claim.wanted.keys():
                        raise UserError("evidence or run")
                except (ValueError, TypeError, KeyError) as error:
                    names = ", ".join(f.name for f in fields(Claim))
                    raise UserError(f"{path} line {number} is no claim ({error}); it has {names}") from None
                claims.append(claim)
    if not claims:
        raise UserError(f"{folder} holds no claims; give a folder with CSV files of them")
    return claims


def answers(run: Run, wanted: Mapping[str, str]) -> bool:
    """Whether a run has the settings that a claim asks for, and its conditions are those of a paper."""
    if _altered(run.header) or run.stopped:
        return False
    return all(_is(run.header.identity, key, value) for key, value in wanted.items())


def _altered(header: Header) -> bool:
    """Whether the world did not wait, was perturbed or rendered faster, or the run is an audit's arm or not proved.

    Or whether another attention kernel computed it.
    """
    bench, method = header.identity["bench"], header.identity["method"]
    changed = "delay" in header.identity or "kernel" in header.identity or "audit" in method or not header.proved
    return changed or bool(bench.get("stress") or bench.get("fast"))


def _is(identity: Mapping[str, Any], key: str, value: str) -> bool:
    group, *rest = key.split(".")
    node: Any = identity[group]
    if not rest:
        return value == node.get("name")
    for part in rest:
        node = node.get(part) if isinstance(node, Mapping) else None
    return str(node) == value


def ours(claim: Claim, runs: Sequence[Run]) -> str:
    """Our number with its 95 % interval, or the reason why there is none."""
    if not claim.quantity.startswith("success %"):
        return NOT_COMPARED if any(answers(r, claim.wanted) for r in runs) else NOT_RUN
    asked = [claim.wanted]
    if "libero" in claim.run and "bench.suite" not in claim.wanted:
        asked = [claim.wanted | {"bench.suite": suite} for suite in SUITES]
    found = [_answering(runs, wanted) for wanted in asked]
    if not all(found):
        return NOT_RUN
    for first, *others in found:
        if differ := next((d for other in others if (d := differences(first.header, other.header))), ""):
            return f"{SEVERAL} ({differ})"
    tasks = [task for first, *_ in found for task in _tasks(first)]
    rate, interval = mean_of_tasks(tasks)
    missing = sum(len(first.missing) for first, *_ in found)
    counted = f"n = {sum(n for _, n in tasks)}" + (f", {missing} episodes missing" if missing else "")
    return f"{100 * rate:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}] ({counted})"


def _answering(runs: Sequence[Run], wanted: Mapping[str, str]) -> list[Run]:
    """The runs that answer: complete ones if there are any, the one with most episodes first."""
    found = [run for run in runs if run.episodes and answers(run, wanted)]
    found = [run for run in found if not run.missing] or found
    return sorted(found, key=lambda run: -len(run.episodes))


def _tasks(run: Run) -> Iterable[tuple[int, int]]:
    for task in run.header.tasks:
        own = [record.success for (name, _), record in run.episodes.items() if name == task]
        if own:
            yield sum(own), len(own)


def markdown(claims: Sequence[Claim], runs: Sequence[Run]) -> str:
    """The page: a table for each paper."""
    lines = [
        "# Claims",
        "",
        "Made by `scripts/claims.py` from the CSV files in `claims/` and from recorded runs; do not edit.",
        f"{len(claims)} numbers of {len({c.paper for c in claims})} papers; success is the mean over tasks with a 95 % "
        "interval. Evidence: " + "; ".join(f"{k}, {v}" for k, v in EVIDENCE.items()) + ".",
    ]
    for paper in dict.fromkeys(c.paper for c in claims):
        own = [c for c in claims if c.paper == paper]
        done = sum(not ours(c, runs).startswith((NOT_RUN, NOT_COMPARED)) for c in own)
        lines += ["", f"## {paper}", "", f"{done} of {len(own)} numbers have one of ours beside them.", ""]
        heads = ("run", "quantity", "paper", "ours", "where", "conditions", "preset")
        lines.append(table(heads, [_cells(c, runs) for c in own]))
    return "\n".join(lines) + "\n"


def _cells(c: Claim, runs: Sequence[Run]) -> tuple[str, ...]:
    printed = f"{c.value:.1f}" if c.quantity.startswith("success") else f"{c.value:g}"
    printed += f" ± {c.spread}" if c.spread else ""
    return f"`{c.run}`", c.quantity, printed, ours(c, runs), f"{c.where} ({c.evidence})", c.note, c.preset
