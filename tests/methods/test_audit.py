"""Audits: controls with the method's own counts; verdicts on methods whose worth is known; what is refused."""

import itertools
from dataclasses import replace
from math import comb

import numpy as np
import pytest
import torch
from doubles import Bench, Scripted
from handmade import prune_context

from vlaprune.api.evaluation import evaluate
from vlaprune.control import Control as Driver
from vlaprune.evaluation import audit
from vlaprune.evaluation.audit_controls import ControlArm, at_random, in_a_grid, lowest, shuffled
from vlaprune.evaluation.recorder import Recorder
from vlaprune.evaluation.rollout import RolloutConfig, Shard, rollout
from vlaprune.methods.adp import ADP
from vlaprune.methods.dense import Dense
from vlaprune.methods.divprune import DivPrune
from vlaprune.methods.dtp import DTP
from vlaprune.methods.fastv import FastV
from vlaprune.methods.lightvla import LightVLA
from vlaprune.methods.sparsevlm import SparseVLM
from vlaprune.methods.vlacache import VLACache
from vlaprune.methods.vlaiap import VLAIAP
from vlaprune.models.tiny import Tiny
from vlaprune.models.toy import QUERY, RED, Toy
from vlaprune.policy import Policy
from vlaprune.pruner import Budget, Plan, Scored, Selection
from vlaprune.records import Header, read
from vlaprune.report import audits, compare, pretty, tabulate
from vlaprune.report.audit import audit as report
from vlaprune.report.audit import sentences
from vlaprune.report.sources import sources
from vlaprune.stats.audit import exchangeable, normal_interval, share
from vlaprune.stats.paired import Pairs, mcnemar_exact
from vlaprune.testing import check_pruner, random_observations, scenes


class Planted(Scored):
    """Keeps 6 tokens straight from the projector: by what the instruction asks for, or by noise."""

    def __init__(self, noise):
        self.noise = noise

    def plan(self, info):
        return Plan((0,), budget={0: Budget(6)})

    def score(self, context):
        if self.noise:
            generator = torch.Generator().manual_seed(context.seed * 31 + context.step)
            return torch.rand(context.alive.shape[0], generator=generator)
        return context.visual[:, RED : RED + 2] @ context.text[:, QUERY : QUERY + 2].sum(0)

    def select(self, context):
        return Selection.top(self.score(context), Budget(6), of=context.total)


def arm(folder, make, name, episodes=4, slots=1, seed=3, execute=4):
    """One arm of an audit on the toy, as vlaprune-eval runs it."""
    bench, own = Bench(), folder / "own"
    make = Dense if name in audit.WITHOUT else make
    identity = {"model": {"name": "toy"}, "bench": {"name": "toy", "margin": 0.05, "protocol": "vlaprune"}}
    identity |= {"method": {"name": "planted", "keep": 6}, "seed": seed}
    header = Header(identity, {}, {t.name: episodes for t in bench.tasks()})
    ready, watchers = audit.ready(make, name, str(own), header, folder / name)
    recorder = Recorder(folder / name, audit.named(header, name), (), "", print)
    try:
        policy = Policy(audit.alter_inputs(Toy(), name), ready, slots, Driver(execute=execute))
        rollout(policy, bench, recorder, Shard(), RolloutConfig(seed), watchers)
    finally:
        recorder.close()
    return read(folder / name)


def audited(folder, make, names, **options):
    return report([arm(folder, make, name, **options) for name in names])


MAIN = ("own", "dense", *audit.RANDOM)


def test_noise_is_not_shown_to_matter_and_the_oracle_is_useful(tmp_path):
    """The truth is known: the oracle always keeps the light, noise keeps it by chance."""
    noise = audited(tmp_path / "noise", lambda: Planted(True), MAIN, episodes=10)
    oracle = audited(tmp_path / "oracle", lambda: Planted(False), [*MAIN, "bottom", "blind", "wordless"], episodes=10)
    assert noise.verdict == "no evidence that the criterion matters" and noise.line("random").p > 0.05
    assert oracle.verdict == "the criterion is useful" and oracle.line("random").p < 1e-4
    assert oracle.effect > 0.2 and oracle.share.value == 1.0  # it loses nothing of what dense achieves
    interval = noise.share.interval
    assert interval.low < 0 < interval.high and oracle.share.interval.low > 0.9
    assert oracle.line("bottom").rate == oracle.line("blind").rate == oracle.line("wordless").rate == 0
    said = " ".join(sentences(oracle))
    assert "useful" in said and "earns back 100 %" in said and "no evidence" in sentences(noise)[0]
    assert "need pictures" not in said  # grey pictures lose all, and that is shown


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Runs of three audits, one of an oracle and two of noise; the arms without a method were run once for all."""
    folder, runs = tmp_path_factory.mktemp("audits"), []
    for name, noise in (("noise", True), ("oracle", False), ("again", True)):
        for one in ("own", *audit.RANDOM, "uniform"):
            run = arm(folder / name, lambda noise=noise: Planted(noise), one, episodes=10)
            method = run.header.identity["method"] | {"name": name}
            runs.append(replace(run, header=replace(run.header, identity=run.header.identity | {"method": method})))
    return [*runs, *(arm(folder / "dense", Dense, one, episodes=10) for one in audit.WITHOUT)]


def test_audits_of_several_methods_stand_on_one_page(several):
    """Three questions are asked at once: p-values of chance are Holm's; each method has the common dense arms."""
    found = audits.study(several)
    assert found.audits[0].method.split()[0] == "oracle"
    alone = report([r for r in several if r.folder.parent.name in ("oracle", "dense")])
    assert found.audits[0].line("random").p == pytest.approx(3 * alone.line("random").p)
    assert [one.verdict for one in found.audits].count("the criterion is useful") == 1
    rows = audits.table(found)
    assert list(rows.columns) == list(audits.COLUMNS) and len(rows) == 3 * 6
    assert rows[rows["arm"] == "dense"]["rate"].nunique() == 1 and rows[rows["arm"] == "own"]["p"].isna().all()
    said = audits.markdown(found)
    assert "## What the benchmark needs" in said and said.count("paired episodes an arm") == 3


def test_a_table_says_which_of_its_methods_were_shown_to_beat_chance(several):
    """Only rows of the very settings that were audited; no table is made where none is."""
    plain = [replace(r, header=audits.audited(r.header)) for r in several if r.folder.name == "own"]
    dense = next(r for r in several if r.folder.name == "dense")
    plain.append(changed(dense, method={"name": "dense"}))
    other = changed(plain[0], method=plain[0].header.identity["method"] | {"name": "third"})
    table = tabulate(audits.beside(compare([*plain, other]), several)).set_index("method")
    assert table["criterion_verdict"].to_dict()["oracle keep=6"] == "the criterion is useful"
    assert table["criterion"].notna().sum() == 3 and table.loc[["dense", "third keep=6"], "criterion"].isna().all()
    found = {one.method: one.line("random") for one in audits.study(several).audits}
    assert all(table.loc[name, "criterion"] == line.difference for name, line in found.items())
    shown = pretty(table.reset_index())["against random"]
    assert sum("the criterion is useful" in cell for cell in shown) == 1 and (shown == "").sum() == 2
    with pytest.raises(ValueError, match="no method here was audited with the same settings; the audits are of"):
        audits.beside(compare([plain[-1], other]), several)


def changed(run, episodes=None, **identity):
    """The run with another identity, or with its first so many episodes only."""
    kept = dict(list(run.episodes.items())[:episodes])
    return replace(run, episodes=kept, header=replace(run.header, identity=run.header.identity | identity))


def test_an_arm_that_is_not_finished_ends_the_report_in_one_line(several):
    """The episodes that parallel slots finish first are the won ones: what all arms share would be biased."""
    runs = [changed(r, episodes=5) if r.folder.name == "blind" else r for r in several]
    with pytest.raises(ValueError, match="lacks 15 of 20 episodes; finish it, or pass --partial"):
        audits.study(runs)
    assert audits.study(runs, partial=True).audits[0].counted == "5 paired episodes of 20"


def test_a_control_of_another_method_is_refused(several):
    """Random draws of a method that acts at another layer say nothing about this one."""
    runs = [
        changed(r, method=r.header.identity["method"] | {"layer": 9}) if r.folder.name == "random-1" else r
        for r in several
    ]
    with pytest.raises(ValueError, match=r"is no control of the method .*layer"):
        audits.study(runs)


def test_controls_without_the_audited_run_serve_no_other_audit(several):
    """Only arms without a method are shared between audits."""
    lonely = [r for r in several if not (r.folder.parent.name == "again" and r.folder.name == "own")]
    assert len(audits.study(lonely).audits) == 2
    bare = [r for r in lonely if not (r.folder.parent.name == "noise" and r.folder.name.startswith("random"))]
    with pytest.raises(ValueError, match="no audit without its arms random"):
        audits.study(bare)


def test_what_the_benchmark_needs_is_held_against_dense_and_of_one_policy(several):
    """A tuned policy without a blind arm lends its dense success to nobody."""
    other = {"weights": "tuned"}
    tuned = [changed(r, **other) for r in several if r.folder.parent.name == "noise" or r.folder.name == "dense"]
    tuned = [replace(r, folder=r.folder.parents[1] / "tuned" / r.folder.name) for r in tuned]
    won = next(r for r in tuned if r.folder.name == "dense").episodes
    won.update({key: replace(record, success=False) for key, record in list(won.items())[:4]})
    plain, both = (audits.needs(audits.study(runs)) for runs in (several, [*several, *tuned]))
    assert plain == both and [line[1] for line in plain] == ["100.0", "0.0", "0.0"]


def test_a_method_that_is_worse_than_a_grid_is_said_to_be(several):
    found = audits.study(several).audits[0]
    lines = [replace(line, difference=-0.3, p=1e-6) if line.name == "uniform" else line for line in found.lines]
    assert any(said.startswith("the method is worse than a grid") for said in sentences(replace(found, lines=lines)))


def test_a_control_that_the_method_beats_is_named_and_qualifies_the_verdict(several):
    """Better than its own worst tokens, but not than chance: something is known of the ranking, and it is said."""
    noise = next(one for one in audits.study(several).audits if one.method.startswith("noise"))
    worst = replace(noise.line("uniform"), name="bottom", difference=0.14, p=0.03)
    found = replace(noise, lines=[*noise.lines, worst])
    assert found.verdict == "not shown to beat random, though it beats its worst tokens"
    assert "the method is better than its own worst tokens: +14.0 points (p = 0.03)" in sentences(found)
    other = replace(noise, lines=[*noise.lines, replace(worst, difference=-0.14)])
    assert other.verdict == noise.verdict == "no evidence that the criterion matters"


def test_only_episodes_that_ended_otherwise_decide(several):
    for one in audits.study(several).audits:
        own, draws = one.line("own").success, one.line("random").runs
        differ = [k for k in own if {bool(own[k])} != {r.episodes[k].success for r in draws}]
        assert one.decisive == len(differ) and one.pruned == 1.0
        assert one.interval.low <= one.line("random").difference <= one.interval.high
        assert one.raw <= one.line("random").p


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = [normal_interval(rng.choice([-1, 0, 0, 1, 1 / 3], 100)) for _ in range(600)]
    assert 0.92 < np.mean([i.low <= 1 / 15 <= i.high for i in held]) < 0.98


def test_a_page_names_every_commit_that_its_episodes_came_from(several):
    """A run that went on after a change has two headers."""
    run = next(r for r in several if r.folder.name == "own")
    first, later = (replace(run.header, provenance={"commit": c}) for c in ("aaa", "bbb"))
    assert "commit: aaa, bbb" in sources([replace(run, header=first, headers=[first, later])])
    assert run.headers == [read(run.folder).header]


def test_a_page_of_audits_is_written(several, tmp_path):
    md, csv, page = audits.write(audits.study(several), tmp_path, "toy")
    assert md.name == "toy.md" and csv.name == "toy.csv" and "<svg" in page.read_text()
    assert page.read_text().count('class="tip"') == 2 * 3 * 4  # own, random, dense and uniform of three, in two widths
    assert "Holm" in page.read_text() and "Fieller" in page.read_text()
    assert "oracle" in page.read_text() and "http" not in page.read_text().replace("http-equiv", "")


def test_audits_of_several_benchmarks_are_refused_in_one_line(several):
    def elsewhere(run):
        return replace(run, header=replace(run.header, identity=run.header.identity | {"bench": {"name": "other"}}))

    with pytest.raises(ValueError, match="audits of toy on toy and of toy on other; make a page of each"):
        audits.study([elsewhere(r) if r.folder.parent.name == "oracle" else r for r in several])


COUNTED = {
    "fastv": lambda: FastV(keep=5),
    "lightvla": lambda: LightVLA(),
    "adp": lambda: ADP(keep=0.3, gate="always", streak=1),
    "sparsevlm": SparseVLM,
    "vlacache": lambda: VLACache(stages=[2, 3], relevant=0.1),
    "dtp": lambda: DTP(important=4, tau=0.05),
    "vlaiap": VLAIAP,
}


@pytest.mark.parametrize("name", COUNTED)
def test_a_control_computes_as_many_tokens_at_every_layer_of_every_call(tmp_path, name):
    own = arm(tmp_path, COUNTED[name], "own", episodes=2, slots=2, execute=1)
    assert any(v < c.total for r in own.episodes.values() for c in r.calls for v in c.visual)
    arms = ["random-1", "uniform", *(("bottom", "shuffled", "other") if isinstance(COUNTED[name](), Scored) else ())]
    for control in arms:
        run = arm(tmp_path, COUNTED[name], control, episodes=2, slots=2, execute=1)
        for key, record in run.episodes.items():
            recorded = own.episodes[key].calls
            for i, call in enumerate(record.calls):
                want = recorded[i % len(recorded)]
                assert call.visual == want.visual and bool(call.first_rows) == bool(want.first_rows)
                assert call.columns == want.columns  # so what the method reuses is reused
        assert control != "random-1" or run.episodes != own.episodes


def context(count=24, cameras=((2, 4), (4, 4)), alive=None, **where):
    alive = torch.arange(count) if alive is None else alive
    return prune_context(torch.randn(len(alive), 16), layer=2, cameras=cameras, alive=alive, **where)


def test_what_the_controls_choose():
    score = torch.rand(24, generator=torch.Generator().manual_seed(0))
    at = context()
    assert sorted(lowest(at, 5, score).tolist()) == sorted(score.argsort()[:5].tolist())
    drawn = [at_random(i)(at, 6, None).tolist() for i in range(3)]
    assert all(len(set(d)) == 6 for d in drawn) and len({tuple(sorted(d)) for d in drawn}) == 3
    assert at_random(0)(at, 6, None).tolist() == drawn[0] != at_random(0)(context(step=1), 6, None).tolist()
    assert in_a_grid(at, 6, None).tolist() == [2, 6, 10, 14, 18, 22]
    some = context(alive=torch.tensor([0, 3, 5, 9, 10, 20]))
    assert sorted(in_a_grid(some, 2, None).tolist()) == [1, 4]
    assert sorted(in_a_grid(some, 6, None).tolist()) == list(range(6))


def test_shuffling_keeps_each_cameras_share_and_mixes_the_rest():
    score = torch.cat((torch.rand(8) + 1, torch.rand(16)))  # the first camera holds the best
    places = torch.zeros(24)
    for step in range(400):
        picks = shuffled(context(step=step), 4, score)
        assert (picks < 8).all()
        places[picks] += 1
    assert (places[:8] > 150).all() and (places[:8] < 250).all()  # 200 each


class Constant:
    """Half of the tokens go on at every site."""

    def count(self, seed, call, site):
        return 32

    def had_two_passes(self, seed, call):
        return False


@pytest.mark.parametrize("choose", [at_random(0), shuffled])
def test_controls_keep_the_laws_of_methods(choose):
    check_pruner(lambda: ControlArm(FastV(keep=0.5), Constant(), choose, choose is shuffled))


def test_scores_are_kept_and_read_again(tmp_path):
    """`other` takes the score of the next episode of the task; each file holds what the method ranked by."""
    own = arm(tmp_path, lambda: FastV(keep=5), "own", episodes=3)
    book = audit.ScoreBook(tmp_path / "own" / "scores", 3)
    key, record = next(iter(own.episodes.items()))
    calls = book.read(audit.episode_seed(3, *key))
    assert len(calls) == len(record.calls) and all(set(c) == {3} and c[3].shape == (64,) for c in calls)
    donors = audit._donors(own, 3, book)
    assert donors[audit.episode_seed(3, "reach-red", 2)] == audit.episode_seed(3, "reach-red", 0)
    other = arm(tmp_path, lambda: FastV(keep=5), "other", episodes=3)
    assert {k: r.calls[0].visual for k, r in other.episodes.items()} == {
        k: r.calls[0].visual for k, r in own.episodes.items()
    }


class DenseInSome(FastV):
    """Prunes in some episodes only, as SAFE in those that end before its first pruned call."""

    dense = frozenset(audit.episode_seed(3, "reach-red", e) for e in (1, 2))

    def select(self, context):
        return None if context.seed in self.dense else super().select(context)

    def score(self, context):
        return None if context.seed in self.dense else super().score(context)


def test_an_episode_without_scores_gives_none_to_another(tmp_path):
    """`other` asks the next episode of the task that has scores; it is refused where no other one has."""
    own = arm(tmp_path, lambda: DenseInSome(keep=5), "own", episodes=4)
    book = audit.ScoreBook(tmp_path / "own" / "scores", 3)
    donors = audit._donors(own, 3, book)
    seeds = [audit.episode_seed(3, "reach-red", e) for e in range(4)]
    assert [book.has(s) for s in seeds] == [True, False, False, True]
    assert [donors[s] for s in seeds] == [seeds[3], seeds[3], seeds[3], seeds[0]]
    other = arm(tmp_path, lambda: DenseInSome(keep=5), "other", episodes=4)
    assert {k: r.calls[0].visual for k, r in other.episodes.items()} == {
        k: r.calls[0].visual for k, r in own.episodes.items()
    }
    arm(tmp_path / "one", lambda: DenseInSome(keep=5), "own", episodes=2)
    with pytest.raises(ValueError, match="only one episode of reach-red gave scores"):
        arm(tmp_path / "one", lambda: DenseInSome(keep=5), "other", episodes=2)
    for file in (tmp_path / "own" / "scores").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"scores holds no scores; run the arm audit\.arm=own anew"):
        arm(tmp_path, lambda: DenseInSome(keep=5), "other", episodes=4)


def test_blind_and_wordless_see_nothing_and_are_told_nothing():
    (seen, *_) = scenes(0, 0, 1)
    assert {int(v) for v in np.unique(audit.blind(seen).images["main"])} == {audit.GREY}
    assert audit.blind(seen).instruction == seen.instruction and audit.wordless(seen).instruction == ""
    assert audit.wordless(seen).images is seen.images
    model = Toy()
    assert audit.alter_inputs(model, None) is model and audit.alter_inputs(model, "own") is model
    out = Policy(audit.alter_inputs(model, "blind"), Dense).act({0: seen})[0]
    assert np.array_equal(out, Policy(model, Dense).act({0: audit.blind(seen)})[0])


@pytest.mark.parametrize("make", [Toy, lambda: Tiny(weights="random", device="cpu")])
def test_a_policy_without_words_acts(make):
    """What no benchmark may say, an audit does: there is nothing to read, and the policy acts."""
    model = make()
    (seen,) = random_observations(model.interface, 128, 1)
    told, untold = (Policy(audit.alter_inputs(model, arm), Dense).act({0: seen})[0] for arm in ("own", "wordless"))
    assert np.isfinite(untold).all() and not np.array_equal(told, untold)


def test_what_is_refused_in_one_line(tmp_path):
    def refused(match, *args, **options):
        with pytest.raises(ValueError, match=match) as caught:
            arm(*args, **options)
        assert "\n" not in str(caught.value)

    make = lambda: FastV(keep=5)  # noqa: E731
    refused("holds no run yet; run audit.arm=own first", tmp_path, make, "uniform")
    arm(tmp_path, make, "own", episodes=2)
    refused("lacks 2 episodes of this run", tmp_path, make, "uniform", episodes=3)
    refused("is another run .*seed 3 -> 4", tmp_path, make, "uniform", seed=4)
    refused("DivPrune has no score", tmp_path, DivPrune, "bottom", episodes=2)
    arm(tmp_path / "dense", lambda: Scripted(Plan()), "own", episodes=2)
    refused("dropped no token", tmp_path / "dense", lambda: Scripted(Plan()), "uniform", episodes=2)
    with pytest.raises(ValueError, match=r"audit.arm=best; use one of own, dense"):
        audit.check("best")
    with pytest.raises(ValueError, match="no audit without its arms dense, random"):
        report([read(tmp_path / "own")])
    (tmp_path / "other").mkdir()
    runs = [arm(tmp_path / "x", make, n, episodes=2) for n in MAIN]
    strange = replace(runs[1], header=replace(runs[1].header, identity=runs[1].header.identity | {"seed": 9}))
    with pytest.raises(ValueError, match=r"differ in more than the arm .*seed"):
        report([runs[0], strange, *runs[2:]])


@pytest.mark.parametrize("controls", [1, 2, 3])
def test_the_exact_test_agrees_with_enumeration(controls):
    """Every assignment of each episode's outcomes to the arms is as likely as any other."""
    rng = np.random.default_rng(controls)
    for _ in range(20):
        outcomes = (rng.random((5, controls + 1)) < rng.random((5, 1))).tolist()
        totals = [
            sum(o[i] for o, i in zip(outcomes, own, strict=True))
            for own in itertools.product(range(controls + 1), repeat=5)
        ]
        seen = sum(o[0] for o in outcomes)
        tails = [sum(t <= seen for t in totals), sum(t >= seen for t in totals)]
        want = min(1.0, 2 * min(tails) / len(totals))
        assert abs(exchangeable([o[0] for o in outcomes], [o[1:] for o in outcomes]) - want) < 1e-12


def test_with_one_control_the_exact_test_is_mcnemars():
    for lost, gained in ((0, 5), (3, 9), (2, 2)):
        pairs = Pairs(4, lost, gained, 3)
        ours = [True] * 4 + [False] * lost + [True] * gained + [False] * 3
        theirs = [True] * 4 + [True] * lost + [False] * gained + [False] * 3
        assert abs(exchangeable(ours, [[t] for t in theirs]) - mcnemar_exact(pairs)) < 1e-12
    assert comb(5, 0) / 2**4 == exchangeable([True] * 5, [[False]] * 5)


def test_the_interval_of_a_share_holds_the_truth_as_often_as_it_says():
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        dense, own, random = (rng.random(100) < p for p in (0.9, 0.7, 0.4))
        found = share(own.astype(float) - random, dense.astype(float) - random)
        held += found.interval is not None and found.interval.low <= 0.6 <= found.interval.high
    assert 0.91 <= held / 400 <= 0.985
    assert share([0.0, 1, 0, -1], [1.0, -1, 0, 0]).interval is None  # the loss may be 0
    assert share([0.0] * 40, [1.0] * 30 + [0.0] * 10).interval is None  # 40 episodes alike do not prove a share of 0


@pytest.mark.parametrize("method", ["fastv", "ties"])
def test_arms_by_the_names_of_the_command(tmp_path, method):
    """As experiment=audit runs them: one folder an arm; TIES is calibrated once, for all of them."""

    def run(name, **options):
        given = {"episodes": 2, "execute": 1, "audit__arm": name, "audit__run": str(tmp_path / "own")}
        return evaluate("toy", method, "toy", output=tmp_path / name, **given, **options)

    own, uniform, dense = (run(name) for name in ("own", "uniform", "dense"))
    for key, record in uniform.episodes.items():
        recorded = own.episodes[key].calls
        want = [recorded[i % len(recorded)].visual for i in range(len(record.calls))]
        assert [c.visual for c in record.calls] == want
    assert uniform.header.identity["method"]["audit"] == "uniform"
    assert dense.header.identity["method"] == {"name": "dense", "audit": "dense"}
    assert all(c.visual == (64,) * 6 for r in dense.episodes.values() for c in r.calls)
    made = [p.parent.name for p in tmp_path.rglob("calibration.json")]
    assert made == (["own"] if method == "ties" else [])
    with pytest.raises(ValueError, match=r"audit.arm=best"):
        run("best")
