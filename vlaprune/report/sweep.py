"""The text printed at the end of a sweep: the table, study or noise that fits its runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vlaprune.records import Run, differences
from vlaprune.report import audit, audits, conditions, delay, suites
from vlaprune.report.runs import compare
from vlaprune.report.tables import tabulate
from vlaprune.report.text import below, terminal
from vlaprune.stats import noise


def told(runs: Sequence[Run]) -> Iterator[str]:
    """The paragraphs that are printed at the end of a sweep.

    Runs that differ in more than method and seed get separate tables, one for each suite or model. Runs of one model on
    several suites also get a table of the suites. UserError if runs do not fit into a table.
    """
    runs = [run for run in runs if run.episodes]
    if any(map(audit.arm, runs)):
        yield audits.markdown(audits.study(runs))
    elif delay.delayed(runs):
        yield delay.markdown(delay.table(runs, partial=True))
    elif conditions.perturbed(runs):
        yield conditions.terminal(conditions.table(runs, partial=True))
    elif noise.same_method(runs):
        yield "\n".join(noise.lines(runs))
    else:
        groups = noise.alike(runs)
        for group in groups:
            if group is not groups[0]:
                first, this = (noise.conditions(g[0].header) for g in (groups[0], group))
                yield f"{differences(first, this)}:"
            table = tabulate(compare(group, partial=True))
            yield terminal(table)
            yield below(table)
        if suites.several(runs) and len(groups) == len(set(map(suites.suite_of, runs))):
            yield suites.terminal(suites.study(runs, partial=True))
