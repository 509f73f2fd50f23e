"""Method by perturbation: who is paired with whom, what the numbers are, what is shown."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from browser import look
from test_page import Tags

from vlaprune import cli
from vlaprune.records import EpisodeRecord, Header, Run, StepRecord
from vlaprune.report import conditions, suites, sweep

CALL = StepRecord((10,) * 2, (10,) * 2, 8, (8,) * 2, 0, {"prompt": 1.0}, {})


def run(method, stress, won, seed=7, severity=3, layer=None, asked=None, **bench):
    """A run of one task whose episode i succeeds if won[i] is "1"."""
    named = {"name": method} | ({"layer": layer} if layer else {})
    world = {"name": "toy", "margin": 0.05, "stress": stress, "severity": severity, **bench}
    identity = {"model": {"name": "toy"}, "method": named, "bench": world, "seed": seed}
    episodes = {("t", i): EpisodeRecord("t", i, mark == "1", 5, (CALL,)) for i, mark in enumerate(won)}
    return Run(Path(f"{method}-{stress}-{seed}"), Header(identity, {}, {"t": asked or len(won)}), episodes)


# dense loses 10 to the camera; fastv loses 1 without it and 30 more than dense with it
STUDY = [
    run("dense", "camera", "1" * 50 + "0" * 10),
    run("fastv", "camera", "1" * 20 + "0" * 40),
    run("dense", None, "1" * 60, severity=1),
    run("fastv", None, "1" * 59 + "0", severity=1),
]


@pytest.fixture(scope="module")
def rows():
    return conditions.table(STUDY)


def test_every_method_is_paired_with_the_baseline_under_the_same_perturbation(rows):
    assert list(zip(rows["condition"], rows["method"], strict=True)) == [
        *(("none", m) for m in ("dense", "fastv")),
        *(("camera 3", m) for m in ("dense", "fastv")),
    ]
    table = rows.set_index(["condition", "method"])
    plain, camera = table.loc[("none", "fastv")], table.loc[("camera 3", "fastv")]
    assert (plain.lost, plain.difference, plain.verdict) == (1, pytest.approx(-1 / 60), "undecided")
    assert (camera.lost, camera.difference, camera.verdict) == (30, pytest.approx(-0.5), "worse")  # not 39 lost
    assert table.loc[("camera 3", "dense"), "moved"] == pytest.approx(-10 / 60)
    assert camera.moved == pytest.approx(-39 / 60)
    assert camera.beyond == pytest.approx(-0.5 + 1 / 60) and camera.beyond_high < 0  # pruning costs more there
    assert camera.beyond_low == pytest.approx(camera.beyond - (camera.beyond_high - camera.beyond))


def test_a_baseline_that_a_rule_ended_gives_no_verdict():
    ended = {"after": 60, "of": 99, "verdict": "worse", "baseline": "x", "lost": 9, "gained": 0, "alpha": 0.05}
    base, *others = STUDY
    verdicts = conditions.table([replace(base, stopped=ended), *others]).set_index(["condition", "method"])["verdict"]
    assert pd.isna(verdicts["camera 3", "fastv"]) and verdicts["none", "fastv"] == "undecided"


def test_one_label_is_one_method_under_every_perturbation():
    """Else what a perturbation moved would be the difference of two depths."""
    two = conditions.table([run("fastv", None, "1" * 20, layer=2), run("fastv", "blur", "0" * 20, layer=9)])
    assert sorted(two["method"]) == ["fastv layer=2", "fastv layer=9"] and two["moved"].isna().all()


def test_a_method_without_its_baseline_is_not_called_one():
    rows = conditions.table([*STUDY, run("fastv", "blur", "1" * 60)])
    lone = [line for line in conditions.cells(rows)[1] if line[0] == "blur 3"]
    assert len(lone) == 1 and "not compared" in lone[0] and "baseline" not in lone[0]
    assert "Without a baseline, so not compared: blur 3." in rows.attrs["notes"]


def test_all_perturbations_together_are_a_mean_over_them_with_episodes_as_clusters():
    """Two perturbations that take the same 30 episodes tell as much as one; without one nothing was lost."""
    worlds = ((None, "1" * 60), ("camera", "1" * 30 + "0" * 30), ("blur", "1" * 30 + "0" * 30))
    both = [run(m, s, won if m == "fastv" else "1" * 60) for m in ("dense", "fastv") for s, won in worlds]
    rows = conditions.table(both).set_index(["condition", "method"])
    dense, fastv = (rows.loc[(conditions.ALL, m)] for m in ("dense", "fastv"))
    assert (dense.rate, fastv.rate, fastv.episodes) == (1, 0.5, 120) and pd.isna(dense.difference)
    assert fastv.difference == fastv.beyond == pytest.approx(-0.5) and pd.isna(fastv.verdict)
    reach = 2.0010 * ((15 + 3) / 59 / 60) ** 0.5  # Student's of 60 clusters, not of 120 episodes; three changes more
    assert fastv.held_high - fastv.difference == pytest.approx(reach, rel=1e-3)
    assert conditions.ALL not in list(conditions.table(STUDY)["condition"])  # one perturbation is not several


def test_an_unfinished_run_stays_in_the_row_of_its_method():
    rows = conditions.table([*STUDY[:2], STUDY[2], run("fastv", None, "1" * 30, severity=1, asked=60)], partial=True)
    _, found = conditions.grid(rows)
    assert [method for method, _ in found] == ["dense", "fastv"] and found[1][1][0].text == "100.0*"
    assert "none: * fastv: 30 episodes missing." in rows.attrs["notes"]


def test_episodes_without_any_change_do_not_prove_that_there_is_none():
    still = [run(m, stress, "1" * 40, severity=1) for m in ("dense", "fastv") for stress in (None, "blur")]
    fastv = conditions.table(still).set_index(["condition", "method"]).loc[("blur 1", "fastv")]
    assert fastv.beyond == 0 and fastv.beyond_low < -0.04 and fastv.beyond_high > 0.04


def test_verdicts_are_made_for_all_conditions_together():
    """One loss that is decided alone is not among twelve such."""
    won = "0" * 10 + "1" * 70
    two = [run("dense", "light", "1" * 80), run("fastv", "light", won)]
    arms = (("dense", "1" * 80), ("fastv", won))
    many = [run(method, "blur", marks, severity=i) for i in range(1, 6) for method, marks in arms]
    alone, among = conditions.table(two), conditions.table([*two, *many])
    assert alone["verdict"].tolist()[1] == "worse" and set(among["verdict"].dropna()) == {"undecided"}
    assert "Holm over all 6 comparisons" in among.attrs["notes"][0] and among["beyond"].isna().all()


def test_seeds_are_pooled_under_each_perturbation():
    worlds = ((None, 1), ("camera", 3))
    again = [run(m, stress, "1" * 60, 8, severity) for m in ("dense", "fastv") for stress, severity in worlds]
    rows = conditions.table([*STUDY, *again]).set_index(["condition", "method"])
    assert rows.loc[("camera 3", "fastv"), "episodes"] == 120 and rows.loc[("camera 3", "fastv"), "lost"] == 30


def test_a_study_that_a_second_seed_only_repeats_is_as_certain_as_before():
    """Episodes are what is drawn; another seed of the policy on the same ones is no new evidence."""
    won = {"dense": "1" * 38 + "00", "fastv": "1" * 30 + "0" * 10}
    two = [run(method, None, marks, suite=suite) for suite in "ab" for method, marks in won.items()]

    def again(runs):
        return [replace(r, header=replace(r.header, identity={**r.header.identity, "seed": 8})) for r in runs]

    for rows, twice in (
        (conditions.table(STUDY), conditions.table([*STUDY, *again(STUDY)])),
        (suites.study(two).means, suites.study([*two, *again(two)]).means),
    ):
        for column in ("low", "high", "held_low", "moved_low", "beyond_low", "beyond_high", "difference_low"):
            if column in rows:
                assert twice[column].tolist() == pytest.approx(rows[column].tolist(), nan_ok=True), column


def test_a_table_has_the_same_columns_whatever_is_known(rows):
    plain, alone = STUDY[:2], [run for run in STUDY if "fastv" in str(run.folder)]
    for few in (conditions.table(plain), conditions.table(alone)):
        assert list(few.columns) == list(rows.columns)
    assert "difference" not in conditions.cells(conditions.table(alone))[0]


def test_runs_that_differ_in_more_than_the_perturbation_are_refused():
    said = r"differ in more than method and stress \(bench.suite None -> b\); make a report"
    with pytest.raises(ValueError, match=said):
        conditions.table([*STUDY, run("dense", "blur", "1" * 60, suite="b")])


def test_two_groups_of_one_condition_are_refused():
    """The severity of no perturbation means nothing; still, which of two such groups is "none" must be said."""
    twice = [run("dense", None, "1" * 20, severity=1), run("dense", None, "1" * 20, severity=3)]
    with pytest.raises(ValueError, match=r"both of the condition none, with other settings \(bench.severity 1 -> 3"):
        conditions.table([*twice, run("dense", "blur", "1" * 20)])


def test_conditions_with_other_episodes_are_refused():
    """Else a mean over perturbations would be one over the episodes of the longest."""
    with pytest.raises(ValueError, match="were asked for different episodes"):
        conditions.table([run("dense", "blur", "1" * 20), run("dense", "camera", "1" * 30)])


def test_a_mean_over_perturbations_weighs_them_alike_where_episodes_are_missing():
    whole = [run("dense", "blur", "1" * 60), run("dense", "camera", "0" * 20, asked=60)]
    found = conditions.table(whole, partial=True).set_index("condition").loc[conditions.ALL]
    assert found["rate"] == 0.5 and found["marks"] == "*"


def test_marks_and_pooled_seeds_are_told_below(rows):
    again = [run(m, s, "1" * 60, 8, v) for m in ("dense", "fastv") for s, v in ((None, 1), ("camera", 3))]
    notes = "\n".join(conditions.table([*STUDY, *again]).attrs["notes"])
    assert "Seeds 7, 8 are pooled" in notes or "Seeds 8, 7 are pooled" in notes
    assert "pooled" not in "\n".join(rows.attrs["notes"])


def test_what_is_shown_fits_and_says_the_same_everywhere(rows):
    told = conditions.terminal(rows)
    assert max(map(len, told.splitlines())) <= 80 and "-50.0 [" in told and "worse" in told
    text = conditions.markdown(rows)
    assert "| method | none" in text and "33.3 (-50.0 worse)" in text and "83.3 (-16.7)" in text
    assert "".join(sweep.told(STUDY)) == told


def test_the_page_shows_the_grid_in_a_browser(rows, tmp_path):
    *_, page = conditions.write(rows, tmp_path)
    Tags(page.read_text())
    seen, console = look(
        page,
        """(() => ({
          wide: document.documentElement.scrollWidth - innerWidth,
          cells: [...document.querySelectorAll(".grid tbody td")].map((c) => c.className),
          ground: getComputedStyle(document.querySelectorAll(".grid tbody td")[3]).backgroundColor,
        }))()""",
        390,
    )
    assert console == [] and seen["wide"] <= 0
    assert seen["cells"][1:] == ["bad", "bad", "bad strong"] and not re.match(r"rgba\(0, 0, 0, 0\)", seen["ground"])


def test_the_command(tmp_path, monkeypatch, capsys):
    from test_report import write

    for method in ("dense", "fastv"):
        write(tmp_path / method, {"near": "1" * 6}, method, tasks={"near": 6})
    said = ["vlaprune-report", str(tmp_path), "--conditions", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", said)
    cli.report()
    assert "by perturbation" in capsys.readouterr().out and (tmp_path / "out" / "conditions.html").exists()
