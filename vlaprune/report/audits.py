"""Audits of several methods on one page: whose criterion is worth more than chance, and what the benchmark needs.

The criteria of a page are tested together: their p-values are adjusted for multiple tests (Holm). No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path

import pandas as pd

from vlaprune.errors import UserError
from vlaprune.records import Run, differences, without
from vlaprune.report.audit import BESIDE, BLINDED, LEVEL, SAID, WITHOUT, Audit, arm, audit, audited, rows, sentences
from vlaprune.report.runs import Comparison, Criterion, context, display_name
from vlaprune.report.sources import sources
from vlaprune.stats import paired as stats
from vlaprune.stats.markdown import table as lined

COLUMNS = (
    *("method", "arm", "runs", "episodes", "rate", "difference", "p", "visual"),
    *("verdict", "low", "high", "raw_p", "decisive", "pruned"),
    *("effect", "effect_p", "share", "share_low", "share_high"),
)


@dataclass(frozen=True)
class Study:
    """Audits of one policy on one benchmark, those with the highest gain over random first, and their sources."""

    title: str
    audits: Sequence[Audit]
    sources: Sequence[str]


def study(runs: Sequence[Run], partial: bool = False) -> Study:
    """The audits among these runs, each from the folder that holds its arms.

    Arms without a method (`dense`, `blind`, `wordless`) may lie in a separate folder: they then count for every audit
    of the same weights that has no such arm. Policies may have been tuned from each other (LightVLA). UserError as in
    `audit`, and for audits of several models or benchmarks.
    """
    runs = [run for run in runs if arm(run)]
    folders: dict[Path, list[Run]] = {}
    for run in runs:
        folders.setdefault(run.folder.parent, []).append(run)
    common = [run for own in folders.values() if "own" not in map(arm, own) for run in own]
    groups = [own for own in folders.values() if "own" in map(arm, own)] or [common]
    if len(places := dict.fromkeys(_place(own[0]) for own in groups if own)) > 1:
        raise UserError(f"audits of {' and of '.join(places)}; make a page of each")
    methods = [audited(run.header) for own in groups for run in own if arm(run) == "own"]
    found = [audit([*own, *(run for run in common if _serves(run, own))], partial, methods) for own in groups]
    adjusted = stats.holm([one.line("random").p for one in found])
    found = [_among(one, p, len(found)) for one, p in zip(found, adjusted, strict=True)]
    owns = [one.line("own").runs[0] for one in found]
    for a, b in combinations(owns, 2):
        if not differences(*(without(run.header, "seed") for run in (a, b))):
            raise UserError(f"{a.folder} and {b.folder} audit one method, under other seeds; make a page of each")
    found.sort(key=lambda one: (-one.line("random").difference, one.method))
    return Study(f"What the criterion is worth: {next(iter(places))}", found, sources(runs))


def _place(run: Run) -> str:
    return f"{display_name(run, 'model')} on {display_name(run, 'bench')}"


def _serves(run: Run, own: Sequence[Run]) -> bool:
    """Whether an arm without a method may join an audit: the same policy, and the audit has no such arm yet."""
    return arm(run) in WITHOUT and context(run) == context(own[0]) and arm(run) not in map(arm, own)


def _among(found: Audit, p: float, count: int) -> Audit:
    """An audit adjusted as one of `count`: with the p-value `p` for random and a smaller level."""
    lines = [replace(line, p=p) if line.name == "random" else line for line in found.lines]
    return replace(found, lines=lines, level=LEVEL / count)


def beside(comparison: Comparison, runs: Sequence[Run], partial: bool = False) -> Comparison:
    """The comparison with the results of audits of its arms. UserError if no arm was audited."""
    found = study(runs, partial).audits
    criteria = {}
    for one in found:
        line, own = one.line("random"), audited(one.line("own").runs[0].header)
        for row in comparison.arms:
            if not differences(*(without(header, "seed") for header in (own, row.run.header))):
                criteria[row.label] = Criterion(line.difference, line.p, one.verdict, len(found))
    if not criteria:
        raise UserError(
            f"no method here was audited with the same settings; the audits are of {', '.join(a.method for a in found)}"
        )
    return replace(comparison, criteria=criteria)


def table(found: Study) -> pd.DataFrame:
    """A row for each method and arm.

    The columns are always COLUMNS. These are of the arm:

    method, arm  label of the method, name of the arm
    runs, episodes  number of runs of the arm, number of episodes that all arms have
    rate  success rate
    difference  success of the method minus the arm's (for blind and wordless: dense minus the arm's); NaN for own
    p  p-value of that difference: random adjusted over the methods, dense not at all, others over the arms; NaN for own
    visual  visual tokens computed, mean over layers and calls

    These are of the whole audit. Intervals are at the level of the page.

    verdict  the verdict on the criterion, in words
    low, high  interval of the success of the method minus random
    raw_p  p-value of random, not adjusted
    decisive  number of episodes in which the method's success differs from the mean of the random draws
    pruned  share of the method's calls that dropped tokens
    effect, effect_p  success of dense minus random, and its p-value
    share, share_low, share_high  share of that effect that the method earns back; NaN if the effect is not shown
    """
    out = []
    for one in found.audits:
        interval = one.share.interval if one.share else None
        whole = {
            "verdict": one.verdict,
            **asdict(one.interval),
            "raw_p": one.raw,
            "decisive": one.decisive,
            "pruned": one.pruned,
            "effect": one.effect,
            "effect_p": one.effect_p,
            "share": one.share.value if one.share else None,
            "share_low": interval.low if interval else None,
            "share_high": interval.high if interval else None,
        }
        for line in one.lines:
            paired = {} if line.name == "own" else {"difference": line.difference, "p": line.p}
            own = {"method": one.method, "arm": line.name, "runs": len(line.runs), "episodes": one.episodes}
            out.append({**own, "rate": line.rate, "visual": line.kept, **paired, **whole})
    return pd.DataFrame(out).reindex(columns=list(COLUMNS))


def markdown(found: Study) -> str:
    """The page as Markdown: all methods in one table, what the benchmark needs, each audit, and the sources."""
    said = (
        "Each method beside other choices of as many tokens, at the same layers, in the same calls. Success in %; in "
        "brackets the method's success less that of the arm, in points, and the p-value of its being one more such arm."
    )
    parts = [f"# {found.title}", said, lined(*summary(found)), "\n".join(f"- {note}" for note in notes(found))]
    if needed := needs(found):
        parts += ["## What the benchmark needs", lined(["the policy sees", "success, %", "p"], needed)]
    for one in found.audits:
        parts += [f"## {one.method}: {one.counted} an arm", lined(*rows(one))]
        parts.append("\n".join(f"- {said}" for said in sentences(one)))
    parts += ["## Made by", "\n".join(f"- {line}" for line in found.sources)]
    return "\n\n".join(parts) + "\n"


def notes(found: Study) -> list[str]:
    """The notes below the table, which explain its p-values and shares."""
    count = len(found.audits)
    level = f"{100 * (1 - LEVEL / count):.3g} %" + (f" (95 % for all {count} together)" if count > 1 else "")
    holm = f"; of random adjusted (Holm) over the {count} methods" if count > 1 else ""
    return [
        f"p: exact, two-sided{holm}; of uniform, bottom, shuffled and other adjusted over those of one audit",
        f"interval of the difference to random: normal, over episodes, at {level}; too narrow where few decide",
        "decide: episodes that the method and the random draws did not all end alike; no other one says anything",
        "calls pruned: of the method; in the other calls every arm is dense. Arms whose episodes last longer may have "
        "another mean number of tokens; call by call it is the same",
        f"earned back: (method - random) / (dense - random) with Fieller's interval at {level}, where dense is shown "
        "to be better than random at that level",
        "blind and wordless are held against dense",
    ]


def summary(found: Study) -> tuple[list[str], list[list[str]]]:
    """The column heads of the summary, and a row for each method."""
    beside = [name for name in BESIDE if any(line.name == name for one in found.audits for line in one.lines)]
    heads = ["method", "visual tokens", "calls pruned", "success", "random", "decide", "verdict", "earned back"]
    body = []
    for one in found.audits:
        own = one.line("own")
        line = [one.method, f"{own.kept:.1f}", f"{100 * one.pruned:.0f} %", f"{100 * own.rate:.1f}", _random(one)]
        line += [f"{one.decisive} of {one.episodes}", one.verdict, _earned(one)]
        body.append([*line, *(_cell(one, name) for name in beside)])
    return [*heads, *beside], body


def _random(found: Audit) -> str:
    line, ends = found.line("random"), found.interval
    adjusted = "" if line.p == found.raw else f", adjusted {line.p:.2g}"
    told = f"{100 * line.difference:+.1f} [{100 * ends.low:+.1f}, {100 * ends.high:+.1f}]"
    return f"{100 * line.rate:.1f} ({told}, p {found.raw:.2g}{adjusted})"


def _cell(found: Audit, name: str) -> str:
    line = next((line for line in found.lines if line.name == name), None)
    if line is None:
        return ""
    return f"{100 * line.rate:.1f} ({100 * line.difference:+.1f}, p {line.p:.2g})"


def _earned(found: Audit) -> str:
    if found.share is None:
        return "no loss at random shown"
    ends = found.share.interval
    told = f" [{100 * ends.low:.0f}, {100 * ends.high:.0f}]" if ends else ""
    return f"{100 * found.share.value:.0f} %{told}"


def needs(found: Study) -> list[list[str]]:
    """Rows on a policy without a method: success as it is, with grey pictures, without instruction; p against dense."""
    seen = ({line.name: line for line in one.lines} for one in found.audits)
    one = next((lines for lines in seen if any(name in lines for name in BLINDED)), {})
    return [
        [SAID[n], f"{100 * one[n].rate:.1f}", f"{one[n].p:.2g}" if n in BLINDED else ""] for n in WITHOUT if n in one
    ]


def write(found: Study, folder: Path, name: str = "audit") -> list[Path]:
    """Writes NAME.md, NAME.csv with plain numbers, and NAME.html with a chart; returns their paths."""
    from vlaprune.report.audit_charts import html  # imports matplotlib, so only on demand

    folder.mkdir(parents=True, exist_ok=True)
    md, csv, page = (folder / f"{name}.{ending}" for ending in ("md", "csv", "html"))
    md.write_text(markdown(found))
    table(found).to_csv(csv, index=False)
    page.write_text(html(found), encoding="utf-8")
    return [md, csv, page]
