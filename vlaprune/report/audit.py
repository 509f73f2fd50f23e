"""The report of an audit: what a method's criterion is worth beside other choices of as many tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vlaprune.errors import UserError
from vlaprune.records import Header, Run, differences, mean
from vlaprune.report.runs import context, label
from vlaprune.stats import paired as stats
from vlaprune.stats.audit import Share, exchangeable, share
from vlaprune.stats.markdown import table as lined

LEVEL = 0.05
SAID = {
    "own": "the method",
    "dense": "every token",
    "blind": "every token, pictures grey",
    "wordless": "every token, no instruction",
    "random": "as many, at random",
    "uniform": "as many, in a grid",
    "bottom": "as many, the worst by its score",
    "shuffled": "as many, by its score shuffled within each camera",
    "other": "as many, by its score of another episode",
}
Key = tuple[str, int]


def arm(run: Run) -> str | None:
    """Which arm of an audit a run is; None for any other run."""
    named = run.header.identity["method"].get("audit")
    return None if named is None else str(named)


@dataclass(frozen=True)
class Line:
    """One arm: how often it succeeded, and the method held against it on the same episodes.

    name        without the number of a draw
    runs        one, or those of all draws
    success     per episode, a share of the draws
    difference  of success, method - this arm
    p           exact, that the method is another draw of this arm. That of random, the question of an audit, stands as
                it is; the others are adjusted for being several (Holm)
    """

    name: str
    runs: Sequence[Run]
    success: Mapping[Key, float]
    difference: float
    p: float

    @property
    def rate(self) -> float:
        """Successes of all episodes and draws."""
        return mean(list(self.success.values()))

    @property
    def kept(self) -> float:
        """Visual tokens computed, mean over layers and calls."""
        return mean([mean(c.visual) for r in self.runs for e in r.episodes.values() for c in e.calls])


@dataclass(frozen=True)
class Audit:
    """What the arms say together.

    method   its label
    episodes that all arms have
    effect   what as many tokens at random lose: success of dense - random, and its p
    share    of that effect, what the method does not lose; None where the effect is not shown
    """

    method: str
    episodes: int
    lines: Sequence[Line]
    effect: float
    effect_p: float
    share: Share | None

    def line(self, name: str) -> Line:
        """The line of an arm. KeyError where it was not run."""
        return next(one for one in self.lines if one.name == name)

    @property
    def verdict(self) -> str:
        """What may be said of the criterion."""
        one = self.line("random")
        if one.p > LEVEL:
            return "no evidence that the criterion matters"
        return "the criterion is useful" if one.difference > 0 else "the criterion is worse than chance"


def audit(runs: Sequence[Run]) -> Audit:
    """Joins the arms of one audit on the episodes that all have. UserError in one line where they do not fit."""
    arms: dict[str, list[Run]] = {}
    for run in runs:
        named = arm(run)
        if named is not None:
            arms.setdefault(named.partition("-")[0], []).append(run)
    absent = [a for a in ("own", "dense", "random") if a not in arms]
    if absent:
        raise UserError(f"no audit without its arms {', '.join(absent)}; run experiment=audit, then name its folder")
    (own, *more), first = arms["own"], arms["own"][0]
    if more:
        raise UserError(f"{own.folder} and {more[0].folder} are both audited; name the folder of one audit")
    for run in (r for several in arms.values() for r in several):
        if context(run) != context(first):
            said = differences(Header(context(first), {}, {}), Header(context(run), {}, {}))
            raise UserError(f"{run.folder} and {first.folder} differ in more than the arm ({said}); run them alike")
    keys = sorted(set.intersection(*(set(r.episodes) for several in arms.values() for r in several)))
    if len(keys) < 2:
        raise UserError(f"the arms below {first.folder.parent} share {len(keys)} episodes; run at least two")
    won = {name: [[r.episodes[k].success for r in several] for k in keys] for name, several in arms.items()}
    ours = [own[0] for own in won["own"]]
    each = {name: [mean(list(map(float, draws))) for draws in rows] for name, rows in won.items()}
    others = [name for name in SAID if name in arms and name != "own"]
    p = {name: exchangeable(ours, won[name]) for name in others}
    beside = [name for name in others if name != "random"]
    p |= dict(zip(beside, stats.holm([p[name] for name in beside]), strict=True))
    lines = [Line("own", arms["own"], dict(zip(keys, each["own"], strict=True)), 0.0, 1.0)]
    for name in others:
        difference = mean(each["own"]) - mean(each[name])
        lines.append(Line(name, arms[name], dict(zip(keys, each[name], strict=True)), difference, p[name]))
    lost = [d - r for d, r in zip(each["dense"], each["random"], strict=True)]
    earned = [o - r for o, r in zip(each["own"], each["random"], strict=True)]
    effect_p = exchangeable([row[0] for row in won["dense"]], won["random"])
    shown = effect_p <= LEVEL and mean(lost) > 0
    found = share(earned, lost) if shown else None
    method = {k: v for k, v in own.header.identity["method"].items() if k != "audit"}
    called = label(replace(own.header, identity={**own.header.identity, "method": method}))
    return Audit(called, len(keys), lines, mean(lost), effect_p, found)


def rows(found: Audit) -> tuple[list[str], list[list[str]]]:
    """Heads and a row for each arm."""
    body = []
    for line in found.lines:
        own = line.name == "own"
        beside = ["", ""] if own else [f"{100 * line.difference:+.1f}", f"{line.p:.2g}"]
        said = f"{SAID[line.name]} (`{line.name}`)"
        body.append([said, f"{len(line.runs)}", f"{100 * line.rate:.1f}", *beside, f"{line.kept:.1f}"])
    return ["arm", "runs", "success %", "method - arm, points", "p", "visual tokens"], body


def markdown(found: Audit) -> str:
    """The table and what it says, for people."""
    title = f"Audit of {found.method}: {found.episodes} paired episodes an arm"
    return "\n\n".join([title, lined(*rows(found)), "\n".join(f"- {s}" for s in sentences(found))])


def sentences(found: Audit) -> list[str]:
    """What the audit says, one sentence each."""
    out = [f"{found.verdict}: {100 * found.line('random').difference:+.1f} points against as many tokens at random"]
    if found.share is None:
        out.append(
            f"as many tokens at random lose {100 * found.effect:.1f} points (p = {found.effect_p:.2g}); where that is "
            "not shown, no criterion can show its worth: lower keep, or run more episodes"
        )
    else:
        low_high = found.share.interval
        told = f"[{100 * low_high.low:.0f}, {100 * low_high.high:.0f}]" if low_high else "without a finite interval"
        out.append(
            f"of the {100 * found.effect:.1f} points that as many tokens at random lose, the criterion earns back "
            f"{100 * found.share.value:.0f} % {told}"
        )
    names = [line.name for line in found.lines]
    for name, what in (
        ("uniform", "the method is not shown to be better than a grid, which looks at nothing"),
        ("shuffled", "it is not shown to matter where in a picture the score is high"),
        ("other", "the method is not shown to be better than its score of another episode, a habit of places"),
        ("bottom", "the method is not shown to be better than its own worst tokens"),
        ("blind", "the benchmark is not shown to need pictures"),
        ("wordless", "the benchmark is not shown to need the instruction"),
    ):
        if name in names and found.line(name).p > LEVEL:
            out.append(f"{what} (p = {found.line(name).p:.2g})")
    return out
