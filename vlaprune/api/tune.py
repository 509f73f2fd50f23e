"""`vlaprune tune`: finds the settings of a method that are worth their cost, with a part of the grid's episodes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vlaprune.api.evaluation import run_composed
from vlaprune.errors import UserError
from vlaprune.evaluation.progress import once
from vlaprune.files import replacing
from vlaprune.records import Run, read
from vlaprune.stats.markdown import table
from vlaprune.stats.racing import Entrant, RaceStatus, front, promising, race
from vlaprune.stats.rates import wilson

if TYPE_CHECKING:
    from vlaprune.pruner import Pruner

WHOLE = ("shard", "stop", "only", "audit", "output")  # settings that a race sets itself, or that leave episodes out
COSTS = {"ms": "ms/call", "gflops": "GFLOPs/call"}


class Arm(NamedTuple):
    """One setting of the method: its name, its identity as in a journal, and the constructor of its pruners."""

    name: str
    identity: Mapping[str, Any]
    make: Callable[[], Pruner]


@dataclass(frozen=True)
class Tuned:
    """The result of a race.

    cost       unit of the costs: ms or gflops
    dense      cost and success rate of dense
    entrants   all settings of the grid, whether they ran or not
    standings  states of the settings that ran
    episodes   (number of episodes run, number of episodes of the whole grid)
    """

    cost: str
    dense: tuple[float, float]
    entrants: Sequence[Entrant]
    standings: Sequence[RaceStatus]
    episodes: tuple[int, int]

    @property
    def front(self) -> list[RaceStatus]:
        """The settings that beat every cheaper one in success, on common episodes; the cheapest first."""
        return front(self.standings)

    def markdown(self) -> str:
        """A Markdown table of all settings and their results, with notes."""
        ran, best = {s.entrant.name: s for s in self.standings}, {s.entrant.name for s in self.front}
        hopeful = {e.name for e in promising(self.entrants)}
        columns = ["setting", COSTS[self.cost], "strays (rmse)", "success", "% [95 % interval]", ""]
        rows = [["dense", f"{self.dense[0]:.3g}", "0", "", f"{100 * self.dense[1]:.1f}", "baseline"]]
        for one in sorted(self.entrants, key=lambda e: (e.cost, e.name)):
            standing, counted, rate = ran.get(one.name), "", ""
            surely = "not run: another one costs no more and surely strays less"
            said = "not run: the episodes were spent on others" if one.name in hopeful else surely
            if standing is not None:
                won, n = sum(standing.success.values()), len(standing.success)
                interval = wilson(won, n)
                counted, rate = (
                    f"{won}/{n}",
                    f"{100 * won / n:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]",
                )
                said = standing.out or ("on the front" if one.name in best else "")
            rows.append([one.name, f"{one.cost:.3g}", f"{one.prior:.3f}", counted, rate, said])
        played, whole = self.episodes
        told = f"{played} episodes of the {whole} that the grid has ({100 * played / whole:.0f} %)"
        rule = "an e-process says who is out, alpha 0.05 for each comparison, whenever it is looked at"
        return f"{table(columns, rows)}\n\n{told}; {rule}"


def tune(
    settings: Sequence[str],
    output: Path,
    share: float = 0.25,
    batch: int = 5,
    record: int = 1,
    cost: str = "ms",
) -> Tuned:
    """Races the settings of a method against dense and each other, on paired episodes. The same call continues a race.

    What was measured before the race is kept in its folder and not measured again, unless settings, recorded episodes
    or hardware are others now: another order of the costs would be another race.

    settings  of `vlaprune eval`; those of the method may have several values: `method.layer=1,2 method.keep=0.5,0.25`
    output    folder; `dense` and one folder for each setting that runs are below it
    share     of the grid's episodes that may be run, dense aside
    batch     episodes of every task between two looks
    record    dense episodes of every task, on which the cost and the error of every setting are measured
    cost      ms (of this machine, now) or gflops

    Errors: UserError for a grid of one setting, a share outside (0, 1], or what `vlaprune eval` refuses.
    """
    from vlaprune import config

    rest, arms = config.arms(settings)
    if len(arms) < 2:
        raise UserError(
            f"settings {list(settings)} have one setting of the method; give several, as method.keep=0.5,0.25"
        )
    if not 0 < share <= 1:
        raise UserError(f"share={share}; use a number above 0, up to 1")
    for name, value in (("batch", batch), ("record", record)):
        if value < 1:
            raise UserError(f"{name}={value}; use 1 or more")
    if cost not in COSTS:
        raise UserError(f"cost={cost}; use one of {', '.join(COSTS)}")
    if refused := config.typed_words(rest, WHOLE):
        raise UserError(f"{refused[0]}: a race plays whole runs, episode after episode; leave it out")
    names = {" ".join(a.removeprefix("method.").removeprefix("method=") for a in arm): arm for arm in arms}
    tried = _arms(rest, names)  # a wrong option is refused before anything runs
    counts = _counts(rest)
    each = min(counts.values())  # `episodes=` of a setting's run is one number for all tasks
    if each < max(counts.values()):
        once(f"the tasks have {each} to {max(counts.values())} episodes; the race plays the first {each} of every task")
    keys = [(t, e) for e in range(each) for t in counts]
    whole = len(names) * len(keys)
    budget = int(share * whole)
    wave = batch * len(counts)
    if budget < wave:
        raise UserError(f"share={share} of the grid's {whole} episodes is {budget}, less than one batch of {wave}")
    dense = _run([*rest, "method=dense", f"output={output / 'dense'}"])
    entrants, base = _entrants(rest, tried, output / "seen.npz", record, cost)

    def play(entrant: Entrant, asked: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], bool]:
        episodes = 1 + max(episode for _, episode in asked)
        folder = output / entrant.name.replace(" ", ",").replace("/", "-")
        run = _run([*rest, *names[entrant.name], f"episodes={episodes}", f"output={json.dumps(str(folder))}"])
        return {key: run.episodes[key].success for key in asked}

    success = {key: dense.episodes[key].success for key in keys}
    standings = race(entrants, keys, success, play, budget, wave)
    played = sum(len(s.success) for s in standings)
    return Tuned(cost, (base, sum(success.values()) / len(keys)), entrants, standings, (played, whole))


def _run(words: Sequence[str]) -> Run:
    from vlaprune import config

    own = [] if any(w.startswith("logger=") for w in words) else ["logger=csv"]
    with config.with_objects([*words, *own], {}) as cfg:
        run_composed(cfg)
        return read(Path(cfg.output))


def _counts(rest: Sequence[str]) -> Mapping[str, int]:
    """Task name -> episodes of this race."""
    from vlaprune import config

    with config.with_objects([*rest, "method=dense"], {}) as cfg:
        bench = config.make("bench", cfg.bench)
        config.ready(bench)
        return config.tasks(bench, cfg.episodes)


def _arms(rest: Sequence[str], names: Mapping[str, Sequence[str]]) -> list[Arm]:
    """The method of every setting. UserError for an option that it does not take."""
    from vlaprune import config

    out = []
    for name, arm in names.items():
        with config.with_objects([*rest, *arm], {}) as cfg:
            out.append(Arm(name, config.method_identity(cfg), partial(config.make, "method", cfg.method)))
            out[-1].make()
    return out


def _entrants(
    rest: Sequence[str], tried: Sequence[Arm], seen: Path, record: int, cost: str
) -> tuple[list[Entrant], float]:
    """Every setting with its cost and error on recorded dense episodes; and the cost of dense.

    seen  file of the recorded episodes; what is measured on them is kept beside it
    """
    from tempfile import TemporaryDirectory

    import numpy as np

    from vlaprune import config
    from vlaprune.methods.dense import Dense
    from vlaprune.models.backends import forked, kernel, with_backend
    from vlaprune.policy import Policy
    from vlaprune.profile.calibrate import ready
    from vlaprune.profile.fidelity import Replay, replay, score
    from vlaprune.profile.recording import Recording, origin
    from vlaprune.profile.recording import record as recorded

    def paid(one: Replay) -> float:
        return float(np.nanmedian(one.ms if cost == "ms" else one.gflops))

    def measured(make: Callable[[], Pruner]) -> Replay:
        own = forked(model)
        try:
            return replay(recording.policy(own, make), recording, cfg.seed)
        finally:
            own.backend.clear()

    with (
        config.with_objects([*rest, "method=dense"], {}) as cfg,
        TemporaryDirectory() as scratch,
        kernel(cfg.kernel),
    ):
        model, _, bench = config.build(cfg)
        model = with_backend(model, cfg.kernel)
        control = config.control(cfg, bench)
        made = origin(config.identity(cfg, bench)["bench"], model, control)
        if not seen.is_file():
            recorded(Policy(forked(model), Dense, control=control), bench, record, cfg.seed, made).save(seen)
        recording = Recording.load(seen)
        recording.check(seen, bench, record, cfg.seed, made)
        hardware = config.provenance(str(model.device))["hardware"]
        subject = {"cost": cost, "kernel": cfg.kernel, "seed": cfg.seed, "record": record, "origin": made}
        subject |= {"hardware": hardware, "settings": {arm.name: arm.identity for arm in tried}}
        costs = seen.with_name("costs.json")
        if (known := _known(costs, subject)) is not None:
            return known
        recording = replace(recording, execute=control.actions_per_call(model.chunk))
        dense = measured(Dense)
        out = []
        for name, make in ready([(a.name, a.make) for a in tried], forked(model), recording, cfg.seed, Path(scratch)):
            own = measured(make)
            found = score(recording, model.interface, dense, own)
            out.append(Entrant(name, paid(own), found.rmse, found.errors))
        kept = {"subject": subject, "dense": paid(dense), "entrants": [asdict(entrant) for entrant in out]}
        with replacing(costs) as part:
            part.write_text(json.dumps(kept, default=str))
        return out, paid(dense)


def _known(path: Path, subject: Mapping[str, Any]) -> tuple[list[Entrant], float] | None:
    """What was measured before of the same subject, if anything."""
    try:
        kept = json.loads(path.read_text())
        if kept["subject"] != json.loads(json.dumps(subject, default=str)):
            return None
        entrants = [Entrant(**{**own, "errors": tuple(map(tuple, own["errors"]))}) for own in kept["entrants"]]
        return entrants, kept["dense"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # nothing yet, or a damaged file: it is measured
