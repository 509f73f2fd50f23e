"""Method by suite: whose verdict stands where, what the mean is of, what is shown."""

import re
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from browser import look
from test_conditions import run
from test_page import Tags

from vlaprune import cli
from vlaprune.report import suites, sweep
from vlaprune.report.runs import compare
from vlaprune.report.tables import tabulate
from vlaprune.stats.rates import mean_change


def on(suite, method, won, **more):
    """A run on a suite whose episode i succeeds if won[i] is "1"."""
    return run(method, None, won, suite=suite, **more)


# fastv loses 30 of 60 on `far`, and gains 2 of 40 on `near`; divprune was run on one of them
STUDY = [
    *(on("near", method, won) for method, won in (("dense", "1" * 38 + "00"), ("fastv", "1" * 40))),
    *(on("far", method, won) for method, won in (("dense", "1" * 60), ("fastv", "1" * 30 + "0" * 30))),
    on("far", "divprune", "1" * 58 + "00"),
]


@pytest.fixture(scope="module")
def found():
    return suites.study(STUDY)


def test_a_suite_says_what_its_own_table_says(found):
    assert [one.name for one in found.suites] == ["near", "far"]
    whole = found.table[found.table["suite"] == "far"].set_index("method")
    alone = tabulate(compare(STUDY[2:])).set_index("method")
    for key in ("rate", "lost", "gained", "difference", "held_low", "held_high", "verdict", "visual"):
        assert list(whole[key].astype(object).fillna("")) == list(alone[key].astype(object).fillna("")), key
    assert whole.loc["fastv", "verdict"] == "worse" and whole.loc["fastv", "lost"] == 30


def test_the_mean_is_over_suites_and_not_over_episodes(found):
    means = found.table[found.table["suite"] == suites.MEAN].set_index("method")
    assert list(means.index) == ["dense", "fastv"]  # not divprune, which one suite lacks
    assert means.loc["dense", "rate"] == pytest.approx((38 / 40 + 1) / 2)
    assert means.loc["fastv", "rate"] == pytest.approx((1 + 0.5) / 2)
    assert means.loc["fastv", "difference"] == pytest.approx((2 / 40 - 30 / 60) / 2)
    assert pd.isna(means.loc["dense", "difference"]) and pd.isna(means.loc["fastv", "verdict"])


def test_the_interval_of_the_mean_holds_what_it_says():
    """Over drawn studies the true mean difference lies in 95 % of the intervals, or more."""
    rng, inside = np.random.default_rng(1), 0
    for number in range(2000):
        fates = [(rng.random(n) < loses).astype(int) for n, loses in ((60, 0.3), (100, 0.1), (80, 0.0))]
        interval = mean_change([[-float(x) for x in fate] for fate in fates])[1]
        inside += interval.low <= -0.4 / 3 <= interval.high
        if number < 3:  # what the table says
            runs = [
                on(s, m, "".join("10"[x * (m == "fastv")] for x in f))
                for s, f in zip("abc", fates, strict=True)
                for m in ("dense", "fastv")
            ]
            row = suites.study(runs).means.set_index("method").loc["fastv"]
            assert (row["difference_low"], row["difference_high"]) == pytest.approx((interval.low, interval.high))
    assert inside >= 0.94 * 2000  # two standard errors below 95 %


def test_more_than_the_suite_differs_is_refused_or_said():
    """Another control, seed, perturbation: no difference of suites."""
    near, far = STUDY[:2], [on("far", m, "1" * 60) for m in ("dense", "fastv")]
    for key, value in (("execute", 1), ("seed", 3)):
        other = [replace(r, header=replace(r.header, identity=r.header.identity | {key: value})) for r in far]
        with pytest.raises(ValueError, match=rf"differ in more than suite and method \({key} .*--mixed to look"):
            suites.study([*near, *other])
        assert f"differ in more than suite and method ({key}" in suites.study([*near, *other], mixed=True).notes[0]
    with pytest.raises(ValueError, match=r"bench.stress None -> camera"):
        suites.study([*near, *(run(m, "camera", "1" * 60, suite="far") for m in ("dense", "fastv"))])


def test_another_benchmark_may_ask_a_model_for_other_options_but_not_be_perturbed_otherwise():
    """A robot has its own control and prompt; a seed or a perturbation is no robot's."""
    other = [run(m, None, "1" * 40, name="arm") for m in ("dense", "fastv")]
    other = [
        replace(
            r,
            header=replace(r.header, identity=r.header.identity | {"execute": 4, "model": {"name": "toy", "text": 9}}),
        )
        for r in other
    ]
    assert [one.name for one in suites.study([*STUDY[:2], *other]).suites] == ["near", "arm"]
    blurred = [run(m, "blur", "1" * 40, name="arm") for m in ("dense", "fastv")]
    with pytest.raises(ValueError, match=r"bench.stress None -> blur"):
        suites.study([*STUDY[:2], *blurred])


def test_a_tuned_policy_on_one_suite_is_no_mean_with_an_untuned_one(tmp_path):
    near, far = STUDY[:2], [on("far", m, "1" * 60) for m in ("dense", "fastv")]
    for one, weights in ((far[0], "a"), (far[1], "b")):
        one.header.identity["weights"] = weights
    far[1].header.provenance["tuned_from"] = "a"
    found = suites.study([*near, *far])
    assert list(found.means["method"]) == ["dense"]
    assert any(note.startswith("far: § fastv") for note in found.notes)


def test_two_baselines_are_refused():
    runs = [on(s, "fastv", "1" * 20, layer=n) for s, n in (("a", 2), ("b", 3))]
    runs += [on(s, "dense", "1" * 20) for s in "ab"]
    with pytest.raises(ValueError, match=r"fastv is fastv layer=2 \(on a\) and fastv layer=3 \(on b\); name one"):
        suites.study(runs, baseline="fastv")


def test_a_suite_without_a_baseline_is_compared_with_nothing():
    found = suites.study([*STUDY[:2], on("far", "divprune", "1" * 20)])
    (lone,) = [line for line in suites.cells(found)[1] if line[0] == "far"]
    assert "not compared" in lone and "baseline" not in lone
    assert "Without a baseline, so not compared: far." in found.notes


def test_a_suite_of_unequal_tasks_shows_the_mean_of_tasks_as_its_papers_do():
    found = suites.study([*STUDY[:2], *map(uneven, ("dense", "fastv"))])
    heads, rows = suites.grid(found)
    assert rows[0][1][heads.index("far")].text == "50.0"
    assert found.means.set_index("method").loc["dense", "rate"] == pytest.approx((38 / 40 + 0.5) / 2)
    assert any("success is the mean over tasks" in note for note in found.notes)


def uneven(method):
    """300 of 300 on one task, 0 of 100 on another."""
    one = on("far", method, "1" * 300)
    record = one.episodes["t", 0]
    one.episodes.update({("u", i): replace(record, task="u", episode=i, success=False) for i in range(100)})
    one.header.tasks["u"] = 100
    return one


@pytest.mark.parametrize("apart", [True, False])
def test_runs_on_one_machine_at_one_time_show_no_times(apart):
    """Whichever of the suites they are on."""
    runs = [timed(on(s, m, "1" * 40), at) for at, (s, m) in enumerate((s, m) for s in "ab" for m in ("dense", "fastv"))]
    if not apart:
        runs[2:] = [timed(on("b", "dense", "1" * 40), 0.5), timed(on("b", "fastv", "1" * 40), 2)]
    found = suites.study(runs)
    assert found.table[found.table["suite"] != suites.MEAN]["ms"].notna().all() == apart
    assert any("No times" in note for note in found.notes) != apart
    assert suites.study(runs, untimed=True).table["ms"].isna().all()
    assert suites.study(runs, timed=True).table["ms"].notna().any()


def timed(one, hour):
    """The run with times, made from that hour on, an episode a minute, on one machine."""
    calls = tuple(replace(call, ms={"prompt": 2.0}) for call in one.episodes["t", 0].calls)
    for i, (key, record) in enumerate(one.episodes.items()):
        one.episodes[key] = replace(record, calls=calls, ended=1e9 + 3600 * hour + 60 * (i + 1), seconds=60.0)
    one.header.provenance.update({"host": "here", "boot": "b", "hardware": {"device": "cpu"}})
    return one


def test_no_change_in_any_episode_does_not_prove_that_there_is_none():
    still = suites.study([on(suite, m, "1" * 40) for suite in "ab" for m in ("dense", "fastv")])
    row = still.means.set_index("method").loc["fastv"]
    assert row["difference"] == 0 and row["difference_low"] < -0.02 and row["difference_high"] > 0.02


def test_one_suite_or_several_models_are_refused():
    with pytest.raises(ValueError, match="all of these runs are on far; --suites needs several"):
        suites.study(STUDY[2:])
    other = on("far", "dense", "1" * 60)
    other.header.identity["model"]["name"] = "smol"
    with pytest.raises(ValueError, match="runs of the models smol, toy; make a report of each"):
        suites.study([*STUDY[:2], other])


def test_runs_of_one_suite_that_do_not_compare_are_refused():
    with pytest.raises(ValueError, match="differ in more than the method"):
        suites.study([*STUDY, on("near", "random", "1" * 40, severity=1)])


def test_an_unfinished_run_stays_in_the_row_of_its_method():
    found = suites.study([*STUDY[:3], on("far", "fastv", "1" * 30, asked=60)], partial=True)
    _, rows = suites.grid(found)
    assert [method for method, _ in rows] == ["dense", "fastv"]
    assert rows[1][1][1].text == "100.0*" and "far: * fastv: 30 episodes missing." in found.notes


def test_what_is_shown_fits_and_says_the_same_everywhere(found):
    told = suites.terminal(found)
    assert max(map(len, told.splitlines())) <= 80 and "50.0 -50.0 <" in told
    text = suites.markdown(found)
    assert re.search(r"\| dense +\| 95.0 +\| 100.0", text) and "50.0 (-50.0 worse)" in text
    assert list(sweep.told(STUDY))[-1] == told
    heads, rows = suites.grid(found)
    assert heads == ["near", "far", "mean", "visual tokens", "FLOPs cut"]
    assert [method for method, _ in rows] == ["dense", "fastv", "divprune"] and rows[2][1][0].text == ""


def test_the_page_shows_the_grid_in_a_browser(found, tmp_path):
    *_, tex, page = suites.write(found, tmp_path)
    assert "50.0 (-50.0 worse)" in tex.read_text() and "FLOPs cut" in tex.read_text()
    Tags(page.read_text())
    seen, console = look(
        page,
        """(() => ({
          wide: document.documentElement.scrollWidth - innerWidth,
          cells: [...document.querySelectorAll(".grid tbody tr:nth-child(2) td")].map((c) => c.className),
        }))()""",
        390,
    )
    assert console == [] and seen["wide"] <= 0
    assert seen["cells"] == ["good", "bad strong", "bad", "", ""]


def test_the_command(tmp_path, monkeypatch, capsys):
    from test_report import write

    for suite in ("near", "far"):
        for method in ("dense", "fastv"):
            folder = tmp_path / "runs" / suite / method
            write(folder, {suite: "1" * 6}, method, tasks={suite: 6}, bench=suite)
    said = ["vlaprune-report", str(tmp_path / "runs"), "--suites", "--untimed", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", said)
    cli.report()
    assert "mean" in capsys.readouterr().out and (tmp_path / "out" / "suites.tex").exists()
