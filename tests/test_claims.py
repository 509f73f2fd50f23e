"""The claims table: every number of ours comes from a run, every run that answers a claim is found."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from doubles import Bench, play

from vlaprune.records import EpisodeRecord, Header, Run
from vlaprune.report import claims
from vlaprune.report.claims import Claim
from vlaprune.stats.rates import mean_of_tasks, wilson

ROOT = Path(__file__).resolve().parents[1]
CLAIMS = claims.load(ROOT / "results" / "claims")


def claim(run, quantity="success %"):
    return Claim("p", "Table 1", "S", "", run, quantity, 50.0, "", "")


def run(
    outcomes,
    suite="libero_goal",
    method="fastv",
    model="openvla",
    **options,
):
    identity = {
        "model": {"name": model},
        "bench": {"name": "libero", "suite": suite},
        "method": {"name": method, **options},
    }
    tasks = {task: len(won) for task, won in outcomes.items()}
    episodes = {(t, i): EpisodeRecord(t, i, bool(s), 1, ()) for t, won in outcomes.items() for i, s in enumerate(won)}
    return Run(Path("r"), Header(identity, {}, tasks), episodes)


def test_a_run_answers_the_claim_that_names_its_settings():
    mine = run({"t": [1, 0]}, keep=0.5)
    base = "model=openvla bench=libero bench.suite=libero_goal method=fastv"
    assert claims.answers(mine, claim(base).wanted) and claims.answers(mine, claim(f"{base} method.keep=0.5").wanted)
    for other in (
        f"{base} method.keep=0.25",
        f"{base} method.nosuch=1",
        base.replace("goal", "10"),
        base.replace("openvla", "oft"),
        base.replace("fastv", "vlapruner"),
    ):
        assert not claims.answers(mine, claim(other).wanted)
    five = run({"t": [1]}, model="pi05")
    assert claims.answers(five, {"model": "pi05"}) and not claims.answers(five, {"model": "pi0"})


@pytest.mark.parametrize(
    ("part", "changed"),
    [
        ("bench", {"stress": "blur"}),
        ("bench", {"fast": True}),
        ("method", {"audit": "random-0"}),
        (None, {"delay": {"mode": "hold"}}),
        (None, {"proof": "none"}),
        (None, {"kernel": "compile"}),
    ],
)
def test_a_run_to_which_something_was_done_that_no_paper_did_answers_no_claim(part, changed):
    wanted = claim("model=openvla bench=libero bench.suite=libero_goal method=fastv").wanted
    plain = run({"t": [1]})
    same = plain.header.identity
    other = {**same, **changed} if part is None else {**same, part: {**same[part], **changed}}
    assert claims.answers(plain, wanted)
    assert not claims.answers(replace(plain, header=Header(other, {}, plain.header.tasks)), wanted)


def test_our_number_has_an_interval_and_a_mean_of_suites_needs_them_all():
    one = claim("model=openvla bench=libero bench.suite=libero_goal method=fastv")
    mine = run({"a": [1] * 8 + [0] * 2, "b": [1] * 6 + [0] * 4})
    low, high = (100 * x for x in (wilson(14, 20).low, wilson(14, 20).high))
    assert claims.ours(one, [mine]) == f"70.0 [{low:.1f}, {high:.1f}] (n = 20)"
    assert claims.ours(one, []) == "not run here"
    average = claim("model=openvla bench=libero method=fastv", "success %, mean of suites")
    four = [run({"a": [1, 0]}, suite) for suite in claims.SUITES]
    assert claims.ours(average, four).startswith("50.0 [") and claims.ours(average, four[:3]) == "not run here"
    assert claims.ours(claim(one.run, "TFLOPs"), [mine]) == "not compared"
    mine.episodes.pop(("a", 0))
    assert "1 episodes missing" in claims.ours(one, [mine])


def test_the_most_complete_run_answers_and_several_different_ones_do_not():
    """In any order."""
    one = claim("model=openvla bench=libero bench.suite=libero_goal method=fastv")
    whole, torn = run({"t": [1] * 9 + [0]}), run({"t": [0] * 9})
    torn.header.tasks["t"] = 50
    few = run({"t": [0] * 3})
    other = run({"t": [1] * 10}, layer=3)
    ended = replace(run({"t": [0] * 20}), stopped={"verdict": "worse"})
    for found in ([whole, torn, few, ended], [ended, few, torn, whole]):
        assert claims.ours(one, found) == claims.ours(one, [whole]) and "90.0" in claims.ours(one, found)
    assert "41 episodes missing" in claims.ours(one, [torn, ended]) and claims.ours(one, [ended]) == "not run here"
    said = claims.ours(one, [whole, other])
    assert said.startswith(claims.SEVERAL) and "method.layer None -> 3" in said
    assert "100.0" in claims.ours(replace(one, run=f"{one.run} method.layer=3"), [whole, other])
    assert "0 of 1 numbers have one of ours" in claims.markdown([one], [whole, other])


def test_tasks_count_alike_however_many_episodes_they_have():
    for tasks in ([(0, 24), (0, 12)], [(10, 10), (20, 20)]):
        rate, interval = mean_of_tasks(tasks)
        assert interval.high - interval.low > 0.05 and interval.low <= rate <= interval.high  # nothing is that sure
    rate, interval = mean_of_tasks([(9, 10), (0, 1000)])
    assert rate == pytest.approx(0.45) and interval.low < 0.45 < interval.high


def test_the_published_ledger_is_what_the_data_give(tmp_path):
    script = [sys.executable, str(ROOT / "scripts" / "claims.py"), str(tmp_path), "--output", str(tmp_path / "l.md")]
    said = subprocess.run(script, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    published = (ROOT / "results" / "claims.md").read_text()
    fresh = (tmp_path / "l.md").read_text()
    rows = [[row.split("|")[:4] for row in text.splitlines() if row.startswith("| `")] for text in (published, fresh)]
    assert rows[0] == rows[1] and len(rows[0]) == len(CLAIMS)
    assert fresh.count(claims.NOT_RUN) == len(CLAIMS)


def test_every_claim_names_options_of_ours_or_of_its_paper():
    methods = {p.stem for p in (ROOT / "configs" / "method").glob("*.yaml")}
    presets = {p.stem for p in (ROOT / "configs" / "experiment").glob("*.yaml")} | {""}
    for c in CLAIMS:
        assert c.wanted["method"] in methods and c.preset in presets and 0 <= c.value <= 250, c
    assert len({(c.paper, c.where, c.run, c.quantity) for c in CLAIMS}) == len(CLAIMS)


def test_means_that_papers_print_agree_with_their_suites():
    """Where a row has four suites and a mean, to the rounding of the last digit; a slip of the pen would show."""
    checked = 0
    for c in CLAIMS:
        if c.quantity != "success %, mean of suites":
            continue
        method = f"method={c.wanted['method']}"
        own = [
            o.value
            for o in CLAIMS
            if (o.paper, o.where, o.quantity) == (c.paper, c.where, "success %")
            and method in o.run
            and o.wanted["model"] == c.wanted["model"]
        ]
        if len(own) == 4:
            checked += 1
            assert sum(own) / 4 == pytest.approx(c.value, abs=0.11), c
    assert checked > 20


def test_a_line_that_is_no_claim_is_named(tmp_path):
    head = "paper,where,evidence,preset,run,quantity,value,spread,note\n"
    for wrong in (
        "p,t,S,,model=a bench=b method=c,x,many,,",
        "p,t,S,,model=a,x,1,,",
        "p,t,X,,model=a bench=b method=c,x,1,,",
    ):
        (tmp_path / "a.csv").write_text(head + wrong + "\n")
        with pytest.raises(ValueError, match=r"a.csv line 2 is no claim"):
            claims.load(tmp_path)


def test_a_toy_run_finds_its_claim(tmp_path):
    mine = play(tmp_path, Bench())
    assert claims.ours(claim("model=toy bench=toy method=dense"), [mine]).startswith("100.0 [61.0, 100.0] (n = 6)")
