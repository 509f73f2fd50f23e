"""The report of an audit: what a method's criterion is worth beside other choices of as many tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vlaprune.errors import UserError
from vlaprune.records import Header, Run, differences, mean, without
from vlaprune.report.runs import label
from vlaprune.stats import paired as stats
from vlaprune.stats.audit import Share, exchangeable, normal_interval, share
from vlaprune.stats.rates import Interval

LEVEL = 0.05
NO_EVIDENCE = "no evidence that the criterion matters"
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
WITHOUT = ("dense", "blind", "wordless")  # arms of the policy without any method
BLINDED = ("blind", "wordless")  # compared with dense: what the benchmark needs
CONTROLS = {  # the sentence if an arm is not shown to do worse, if it is shown to do worse, and if it does better
    "uniform": (
        "the method is not shown to be better than a grid, which looks at nothing",
        "the method is better than a grid",
        "the method is worse than a grid, which looks at nothing",
    ),
    "shuffled": (
        "it is not shown to matter where in a picture the score is high",
        "it matters where in a picture the score is high",
        "the method is worse than its score shuffled within each camera",
    ),
    "other": (
        "the method is not shown to be better than its score of another episode, a habit of places",
        "the method is better than its score of another episode",
        "the method is worse than its score of another episode",
    ),
    "bottom": (
        "the method is not shown to be better than its own worst tokens",
        "the method is better than its own worst tokens",
        "the method is worse than its own worst tokens",
    ),
    "blind": (
        "the benchmark is not shown to need pictures",
        "the benchmark needs pictures",
        "dense is worse than with grey pictures",
    ),
    "wordless": (
        "the benchmark is not shown to need the instruction",
        "the benchmark needs the instruction",
        "dense is worse than without instruction",
    ),
}
BESIDE = ("uniform", "bottom", "shuffled", "other")  # controls that a method is compared with, besides random
FAMILIES = (BLINDED, BESIDE)  # adjusted together (Holm); random and dense stand alone
Key = tuple[str, int]


def arm(run: Run) -> str | None:
    """The name of a run's arm in an audit; None for a run outside of audits."""
    named = run.header.identity["method"].get("audit")
    return None if named is None else str(named)


@dataclass(frozen=True)
class Line:
    """One arm of an audit: its success, and the method compared with it on the same episodes.

    name        without the number of a draw
    runs        the arm's run, or the runs of all its draws
    success     (task, episode) -> share of the draws that succeeded
    difference  success of the method minus this arm's; for `blind` and `wordless` success of dense minus this arm's
    p           exact p-value of "the method (or dense) is another draw of this arm", adjusted as in `_p_values`
    """

    name: str
    runs: Sequence[Run]
    success: Mapping[Key, float]
    difference: float
    p: float

    @property
    def rate(self) -> float:
        """The success rate over all episodes and draws."""
        return mean(list(self.success.values()))

    @property
    def kept(self) -> float:
        """Visual tokens computed, mean over layers and calls."""
        return mean([mean(c.visual) for r in self.runs for e in r.episodes.values() for c in e.calls])


@dataclass(frozen=True)
class Audit:
    """The result of one audit, from all of its arms.

    method            label of the method
    episodes          number of episodes that all arms have
    asked             number of episodes that each arm was asked for
    lines             the arms, the method first
    effect, effect_p  success lost with as many tokens at random: dense minus random, and its p-value
    earned            per episode, success of the method minus random
    lost              per episode, success of dense minus random
    raw               p-value of "the method is another random draw", not adjusted
    level             level of effect, share and intervals; smaller if several audits share a page
    """

    method: str
    episodes: int
    asked: int
    lines: Sequence[Line]
    effect: float
    effect_p: float
    earned: Sequence[float]
    lost: Sequence[float]
    raw: float
    level: float = LEVEL

    @property
    def counted(self) -> str:
        """The number of paired episodes, in words."""
        return f"{self.episodes} paired episodes" + (f" of {self.asked}" if self.episodes < self.asked else "")

    @property
    def interval(self) -> Interval:
        """The interval of the success of the method minus random."""
        return normal_interval(self.earned, 1 - self.level)

    @property
    def decisive(self) -> int:
        """The number of episodes in which the method's success differs from the mean of the random draws."""
        return sum(e != 0 for e in self.earned)

    @property
    def pruned(self) -> float:
        """Share of the method's calls that dropped tokens."""
        calls = [c for r in self.line("own").runs for e in r.episodes.values() for c in e.calls]
        return mean([float(c.pruned) for c in calls])

    @property
    def share(self) -> Share | None:
        """The share of the loss at random that the method earns back; None if that loss is not shown."""
        shown = self.effect_p <= self.level and self.effect > 0
        return share(self.earned, self.lost, 1 - self.level) if shown else None

    def line(self, name: str) -> Line:
        """The line of an arm. KeyError if the arm was not run."""
        return {one.name: one for one in self.lines}[name]

    @property
    def verdict(self) -> str:
        """The verdict on the criterion, in words."""
        one = self.line("random")
        if one.p > LEVEL:
            worst = next((line for line in self.lines if line.name == "bottom"), None)
            ranks = worst is not None and worst.p <= LEVEL and worst.difference > 0
            return "not shown to beat random, though it beats its worst tokens" if ranks else NO_EVIDENCE
        return "the criterion is useful" if one.difference > 0 else "the criterion is worse than chance"


def audit(runs: Sequence[Run], partial: bool = False, others: Sequence[Header] = ()) -> Audit:
    """Joins the arms of one audit on the episodes that all have. UserError in one line where they do not fit.

    partial  arms may lack episodes that were asked for
    others   headers of other methods, from which the label must differ
    """
    arms: dict[str, list[Run]] = {}
    drawn: dict[str, Run] = {}  # by full name, so that a copy of a draw is not taken for another draw
    for run in runs:
        named = arm(run)
        if named is not None:
            if named in drawn and named != "own":
                raise UserError(f"{run.folder} and {drawn[named].folder} are both the arm {named}; name one of them")
            drawn[named] = run
            arms.setdefault(named.partition("-")[0], []).append(run)
    absent = [a for a in ("own", "dense", "random") if a not in arms]
    if absent:
        raise UserError(f"no audit without its arms {', '.join(absent)}; run experiment=audit, then name its folder")
    (own, *more) = arms["own"]
    if more:
        raise UserError(f"{own.folder} and {more[0].folder} are both audited; name the folder of one audit")
    for run in (r for several in arms.values() for r in several):
        _check_arm(run, own, partial)
    keys = sorted(set.intersection(*(set(r.episodes) for several in arms.values() for r in several)))
    if len(keys) < 2:
        raise UserError(f"the arms below {own.folder.parent} share {len(keys)} episodes; run at least two")
    won = {name: [[r.episodes[k].success for r in several] for k in keys] for name, several in arms.items()}
    each = {name: [mean(list(map(float, draws))) for draws in rows] for name, rows in won.items()}
    p = _p_values(won)
    lines = [Line("own", arms["own"], dict(zip(keys, each["own"], strict=True)), 0.0, 1.0)]
    for name in p:
        difference = mean(each["dense" if name in BLINDED else "own"]) - mean(each[name])
        lines.append(Line(name, arms[name], dict(zip(keys, each[name], strict=True)), difference, p[name]))
    lost = [d - r for d, r in zip(each["dense"], each["random"], strict=True)]
    earned = [o - r for o, r in zip(each["own"], each["random"], strict=True)]
    effect_p = exchangeable([row[0] for row in won["dense"]], won["random"])
    asked = sum(own.header.tasks.values())
    named = label(audited(own.header), others)
    return Audit(named, len(keys), asked, lines, mean(lost), effect_p, earned, lost, p["random"])


def audited(header: Header) -> Header:
    """The header without its mark of an audit: that of a normal run of the method."""
    method = {k: v for k, v in header.identity["method"].items() if k != "audit"}
    return replace(header, identity={**header.identity, "method": method})


def _check_arm(run: Run, own: Run, partial: bool) -> None:
    """Raises UserError if an arm does not belong to this audit, or lacks episodes."""
    if said := differences(*(without(r.header, "method") for r in (own, run))):
        raise UserError(f"{run.folder} and {own.folder} differ in more than the arm ({said}); run them alike")
    if arm(run) not in WITHOUT and (said := differences(audited(own.header), audited(run.header))):
        raise UserError(f"{run.folder} is no control of the method in {own.folder} ({said}); run them alike")
    if run.header.tasks != own.header.tasks:
        raise UserError(f"{run.folder} and {own.folder} were asked for different episodes; run them alike")
    if run.missing and not partial:
        raise UserError(
            f"run {run.folder} lacks {len(run.missing)} of {sum(run.header.tasks.values())} episodes; finish it, or "
            "pass --partial"
        )


def _p_values(won: Mapping[str, Sequence[Sequence[bool]]]) -> dict[str, float]:
    """The p-value of every arm but `own`, in the order of SAID.

    Random, the question of an audit, and dense are not adjusted. The other controls are one family, the policy without
    pictures or words another; each family is adjusted for multiple tests (Holm).
    """
    ours, dense = ([row[0] for row in won[name]] for name in ("own", "dense"))
    p = {n: exchangeable(dense if n in BLINDED else ours, won[n]) for n in SAID if n in won and n != "own"}
    for family in ([n for n in names if n in p] for names in FAMILIES):
        p |= dict(zip(family, stats.holm([p[n] for n in family]), strict=True))
    return p


def rows(found: Audit) -> tuple[list[str], list[list[str]]]:
    """The column heads of an audit's table, and a row for each arm."""
    body = []
    for line in found.lines:
        against = " of dense" if line.name in BLINDED else ""
        beside = ["", ""] if line.name == "own" else [f"{100 * line.difference:+.1f}{against}", f"{line.p:.2g}"]
        said = f"{SAID[line.name]} (`{line.name}`)"
        body.append([said, f"{len(line.runs)}", f"{100 * line.rate:.1f}", *beside, f"{line.kept:.1f}"])
    return ["arm", "runs", "success %", "method - arm, points", "p", "visual tokens"], body


def sentences(found: Audit) -> list[str]:
    """The results of an audit as sentences."""
    ends, drawn = found.interval, found.line("random")
    adjusted = "" if drawn.p == found.raw else f", {drawn.p:.2g} adjusted"
    around = f"[{100 * ends.low:+.1f}, {100 * ends.high:+.1f}]"
    out = [
        f"{found.verdict}: {100 * drawn.difference:+.1f} points {around} against as many tokens at random "
        f"(p = {found.raw:.2g}{adjusted}); {found.decisive} of {found.episodes} episodes "
        "ended otherwise in one of them",
        f"{100 * found.pruned:.0f} % of its calls dropped tokens",
    ]
    if found.share is None:
        none = (
            f"as many tokens at random are {-100 * found.effect:+.1f} points from dense (p = {found.effect_p:.2g}, "
            f"judged at {found.level:.2g}): no loss is shown, and no share is given"
        )
        hopeless = drawn.p > LEVEL
        out.append(none + ("; no criterion can beat what loses nothing: lower keep, or run more" if hopeless else ""))
    else:
        low_high = found.share.interval
        told = f"[{100 * low_high.low:.0f}, {100 * low_high.high:.0f}]" if low_high else "without a finite interval"
        out.append(
            f"of the {100 * found.effect:.1f} points that as many tokens at random lose, the criterion earns back "
            f"{100 * found.share.value:.0f} % {told}"
        )
    for line in found.lines:
        if line.name not in CONTROLS:
            continue
        unknown, better, worse = CONTROLS[line.name]
        if line.p > LEVEL:
            out.append(f"{unknown} (p = {line.p:.2g})")
        else:
            said = better if line.difference > 0 else worse
            out.append(f"{said}: {100 * line.difference:+.1f} points (p = {line.p:.2g})")
    return out
