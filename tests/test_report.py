"""Tables from hand-made journals of 12 episodes: every number can be checked by eye."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from vlaprune import cli, errors, report
from vlaprune.evaluation.recorder import Recorder
from vlaprune.records import EpisodeRecord, Header, Run, StepRecord, encode, read
from vlaprune.report import command as report_command
from vlaprune.report import times
from vlaprune.report.grids import versus
from vlaprune.report.machines import shared
from vlaprune.report.notes import JUDGED, limits
from vlaprune.report.sources import sources
from vlaprune.stats import paired as stats
from vlaprune.stats import rates

TASKS = {"near": 6, "far": 6}
DENSE = {"near": "111111", "far": "111000"}  # 9 of 12
ALONE = []  # folders written so far
FASTV = {"near": "111011", "far": "110100"}  # 8 of 12: loses near 3 and far 2, gains far 3


def call(kept, gflops, ms):
    flops = {"vision": 1e9, "prompt": (gflops - 1) * 1e9, "decode": 0.0, "head": 0.0, "method": 0.0}
    times = {"prompt": ms * 0.75, "method": ms * 0.25} if ms else {}
    return StepRecord((70, 6 + kept), (70, 6 + kept), 64, (64, kept), 0, flops, times)


def write(
    folder,
    won,
    method="dense",
    kept=64,
    gflops=5.0,
    ms=20.0,
    tasks=TASKS,
    seed=7,
    bench="toy",
    shard="",
    weights="abc",
    provenance=None,
    trained=None,
    margin=0.05,
    protocol="p",
    **options,
):
    """A journal; `won` maps a task to one character per episode, "-" for one that is missing."""
    identity = {
        "model": {"name": "tiny"} | ({"weights": trained} if trained else {}),
        "seed": seed,
        "execute": 8,
        "weights": weights,
        "method": {"name": method, **options},
        "bench": {"name": bench, "margin": margin, "protocol": protocol},
    }
    ALONE.append(folder)  # each run has the machine to itself, unless the test says otherwise
    made = {"host": "here", "boot": "b", "slots": 1, "device_users": None, "load": 0.5, "video": "none"}
    made |= {"hardware": {"device": "cpu", "cpu": "c", "cores": 2, "threads": 1}} | (provenance or {})
    ended = made.pop("began", 1e9 + 1e4 * len(ALONE))
    recorder = Recorder(folder, Header(identity, made, tasks), shard=shard)
    for task, marks in won.items():
        for episode, mark in enumerate(marks):
            ended += 2.0
            if mark != "-":  # an episode that fails takes three calls, one that succeeds two
                calls = (call(kept, gflops, ms),) * (2 + (mark == "0"))
                recorder.write(EpisodeRecord(task, episode, mark == "1", 10, calls, ended, 1.5))
    recorder.close()
    return folder


@pytest.fixture
def runs(tmp_path):
    write(tmp_path / "dense", DENSE)
    write(tmp_path / "fastv", FASTV, "fastv", kept=16, gflops=2.0, ms=16.0, layer=3, keep=0.25)
    return tmp_path


def test_a_baseline_that_is_not_there_or_may_be_several_is_refused_in_one_line(runs):
    write(runs / "again", FASTV, "fastv", keep=0.5, layer=3)
    found = report.find([runs])
    with pytest.raises(ValueError, match="baseline fasttv is none of these runs; use one of fastv keep=0"):
        report.summarise(found, baseline="fasttv")
    with pytest.raises(ValueError, match=r"baseline fastv may be fastv keep=0\.5 or fastv keep=0\.25"):
        report.summarise(found, baseline="fastv")
    assert report.summarise(found, baseline="fastv keep=0.5")["method"].iloc[0] == "fastv keep=0.5"


def test_a_reader_that_hangs_up_costs_no_file_and_gets_no_traceback(runs, tmp_path):
    """`vlaprune-report RUNS | head -1`."""
    start = "from vlaprune import cli; cli.report()"
    command = [sys.executable, "-c", start, str(runs), "--output", str(tmp_path / "out"), "--wide"]
    done = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    done.stdout.close()
    assert done.stderr.read() == "" and done.wait() == 0
    assert {p.suffix for p in (tmp_path / "out").iterdir()} == {".csv", ".md", ".tex"}


def test_a_stopped_seed_does_not_hide_what_another_one_lacks(tmp_path):
    """A run that a rule ended is whole; one that was interrupted is not."""
    for seed, won in ((7, "1" * 4), (8, "1" * 3 + "-" * 9)):
        write(tmp_path / f"dense{seed}", {"near": won}, tasks={"near": 12}, seed=seed)
    runs = report.find([tmp_path])
    ended = {"after": 4, "of": 12, "verdict": "worse", "baseline": "dense", "lost": 4, "gained": 0, "alpha": 0.05}
    next(one for one in runs if len(one.episodes) == 4).stopped = ended
    with pytest.raises(ValueError, match="lacks 9 of 12 episodes"):
        report.summarise(runs)


def test_a_baseline_that_a_rule_ended_gives_no_verdict_after_a_fixed_number(runs):
    """It chose the number of pairs, as it does where it ends the method. Two others are still held together."""
    write(runs / "random", DENSE, "random", kept=8)
    whole = report.find([runs])
    table = report.summarise(whole).set_index("method")
    assert table.loc["fastv keep=0.25", "verdict"] in JUDGED
    base = next(run for run in whole if run.folder.name == "dense")
    base.stopped = {"after": 9, "of": 12, "verdict": "worse", "baseline": "x", "lost": 9, "gained": 0, "alpha": 0.05}
    table = report.summarise(whole).set_index("method")
    assert table["verdict"].dropna().tolist() == ["not judged", "not judged"]
    assert table["holm_p"].isna().all() and table.loc["fastv keep=0.25", "lost"] == 2
    shades = {(a.method, i): one for a, row in versus(report.compare(whole)) for i, one in enumerate(row)}
    assert "not tested" in shades["fastv", 0].under and "p " in shades["fastv", 2].under


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--suites", "--tasks"], "--tasks does nothing with --suites; leave it out"),
        (["--conditions", "--criteria", "x"], "--criteria does nothing with --conditions"),
        (["--videos", "3"], "--videos 3 does nothing without --html"),
        (["--videos", "-3", "--html", "x.html"], "--videos -3; use megabytes"),
        (["--name", "a/b"], "--name a/b is no name of a file; leave the folder to --output"),
        (["--delay", "--html", "x.html"], "--html does nothing with --delay"),
        (["--audit", "--columns", "a,b"], r"--columns does nothing with --audit; leave it out \(it has --partial\)"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(runs, tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        report_command.main([str(runs), *options, "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_named_with_the_option_that_chooses_it(runs, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(errors.UserError, match=r"file/x: .*; name another place with --output or --html$"):
        report_command.main([str(runs), "--output", str(tmp_path / "file" / "x")])


@pytest.mark.parametrize("options", [["--suites", "--delay"], ["--timed", "--untimed"]])
def test_options_that_exclude_each_other_end_in_a_line(runs, options, capsys):
    with pytest.raises(SystemExit) as stop:
        report_command.main([str(runs), *options])
    assert stop.value.code == 2 and "not allowed with" in capsys.readouterr().err


def test_untimed_leaves_no_trace_of_times(runs):
    table = report.tabulate(report.compare(report.find([runs])), untimed=True)
    assert table[["ms", "ms_method", "speedup", "ms_answer", "answers"]].isna().all().all()
    assert not table["impossible"].any()
    assert not any(word in note for note in table.attrs["notes"] for word in ("Times", "speed", "ms"))


def test_a_run_that_is_named_twice_counts_once(runs):
    assert len(report.find([runs, runs / "fastv", runs / "." / "dense"])) == 2


def test_versions_of_all_runs_are_told(tmp_path):
    """A table of two machines must not name one of them."""
    for number, device in enumerate(("cpu", "H100", "cpu")):
        write(tmp_path / str(number), DENSE, provenance={"hardware": {"device": device}}, layer=number)
    said = [line for line in sources(report.find([tmp_path])) if line.startswith("hardware")]
    assert said == ["hardware: device cpu", "hardware: device H100"]


def test_every_number_of_the_table(runs):
    table = report.summarise(report.find([runs]))
    dense, fastv = (row for _, row in table.iterrows())
    assert (dense["method"], fastv["method"]) == ("dense", "fastv keep=0.25")  # the baseline comes first
    for row, won in ((dense, 9), (fastv, 8)):
        interval = rates.wilson(won, 12)
        assert (row.success, row.episodes, row.task) == (won, 12, "all")
        assert (row.rate, row.low, row.high) == pytest.approx((won / 12, interval.low, interval.high))
    assert (fastv.paired, fastv.lost, fastv.gained) == (12, 2, 1)
    assert fastv.difference == pytest.approx(-1 / 12)
    assert fastv.difference_low < -1 / 12 < fastv.difference_high
    assert fastv.mcnemar_p == pytest.approx(1.0) and fastv.verdict == "undecided"
    assert pd.isna(dense.lost) and pd.isna(dense.verdict)
    assert (dense.kept, fastv.kept, fastv.visual) == (64, 40, 64)  # mean over the two layers
    assert (dense.gflops, fastv.gflops) == pytest.approx((5, 2))
    assert (dense.flops_cut, fastv.flops_cut) == pytest.approx((0, 0.6))
    assert (dense.ms, fastv.ms, fastv.ms_method) == pytest.approx((20, 16, 4))
    assert (dense.speedup, fastv.speedup) == pytest.approx((1, 1.25))


def test_means_are_over_model_calls_not_over_episodes(tmp_path):
    """One short and one long episode: the long one has three quarters of the calls and of the weight."""
    identity = {
        "method": {"name": "dense"},
        "model": {"name": "tiny"},
        "bench": {"name": "toy", "margin": 0.05},
    }
    recorder = Recorder(tmp_path, Header(identity, {}, {"t": 2}))
    recorder.write(EpisodeRecord("t", 0, True, 1, (call(0, 2.0, 10.0),)))
    recorder.write(EpisodeRecord("t", 1, True, 3, (call(64, 6.0, 30.0),) * 3))
    recorder.close()
    row = report.tabulate(report.compare(report.find([tmp_path])), timed=True).iloc[0]
    assert (row.kept, row.gflops, row.ms) == pytest.approx((32 / 4 + 64 * 3 / 4, 5, 25))


def test_one_row_per_task_as_well(runs):
    table = report.summarise(report.find([runs]), by_task=True)
    assert table["task"].tolist() == ["all", "all", "near", "near", "far", "far"]
    far = table[(table.task == "far") & table.method.str.startswith("fastv")].iloc[0]
    assert (far.success, far.episodes, far.lost, far.gained) == (3, 6, 1, 1)
    assert "far" in report.markdown(table)


def test_a_run_is_the_baseline_of_the_others_by_name(runs):
    table = report.summarise(report.find([runs]), baseline="fastv")
    assert table["method"].iloc[0].startswith("fastv") and table["lost"].iloc[1] == 1 and table["gained"].iloc[1] == 2


def test_without_the_baseline_nothing_is_compared(runs):
    table = report.summarise(report.find([runs / "fastv"]))
    assert table[["lost", "verdict", "flops_cut", "speedup"]].isna().all(axis=None) and "8/12" in report.markdown(table)


def test_a_table_has_the_same_columns_whatever_is_known(runs):
    tables = [report.summarise(report.find([folder])) for folder in (runs, runs / "dense", runs / "fastv")]
    assert len({tuple(table.columns) for table in tables}) == 1 and tables[0]["speedup"].notna().any()


def test_a_run_whose_device_was_shared_has_no_milliseconds(runs):
    write(runs / "packed", DENSE, "random", kept=8, gflops=1.5, ms=0)
    table = report.summarise(report.find([runs])).set_index("method")
    assert pd.isna(table.loc["random", "ms"]) and pd.isna(table.loc["random", "speedup"])
    assert table.loc["random", "flops_cut"] == pytest.approx(0.7)
    assert "nan" not in report.markdown(table.reset_index()).lower()


def test_shards_are_one_run(tmp_path):
    even = {t: "".join(m if i % 2 == 0 else "-" for i, m in enumerate(marks)) for t, marks in DENSE.items()}
    odd = {t: "".join(m if i % 2 else "-" for i, m in enumerate(marks)) for t, marks in DENSE.items()}
    write(tmp_path / "run", even, shard="-0-of-2")
    write(tmp_path / "run", odd, shard="-1-of-2")
    assert read(tmp_path / "run").missing == []
    assert report.summarise(report.find([tmp_path])).iloc[0].success == 9


def test_an_incomplete_run_is_refused_or_marked(runs):
    write(runs / "random", {"near": "1111--", "far": "11----"}, "random", kept=8, gflops=1.5)
    with pytest.raises(ValueError, match=r"random lacks 6 of 12 episodes; finish it, or pass --partial"):
        report.summarise(report.find([runs]))
    table = report.summarise(report.find([runs]), partial=True).set_index("method")
    assert table.loc["random*", "episodes"] == table.loc["random*", "paired"] == 6  # on the episodes both have
    assert table.loc["random*", "lost"] == 0 and table.loc["dense", "episodes"] == 12


def test_a_partial_baseline_still_is_the_baseline(tmp_path):
    write(tmp_path / "dense", {"near": "1111--", "far": "11----"})
    write(tmp_path / "fastv", FASTV, "fastv", gflops=2.0)
    table = report.summarise(report.find([tmp_path]), partial=True).set_index("method")
    assert table.loc["fastv", "paired"] == 6 and table.loc["fastv", "flops_cut"] == pytest.approx(0.6)


def test_runs_that_differ_in_more_than_the_method_are_refused(runs):
    write(runs / "other", DENSE, "random", seed=8)
    with pytest.raises(ValueError, match=r"differ in more than the method \(seed 7 -> 8\); make a report of each"):
        report.summarise(report.find([runs]))


@pytest.mark.parametrize(
    ("other", "said", "judged"),
    [
        ({"seed": 8}, r"differ in more than the method \(seed 7 -> 8\)", False),
        ({"protocol": "q"}, r"differ in more than the method \(bench.protocol p -> q\)", False),
        ({"bench": "libero"}, r"differ in more than the method \(bench.name toy -> libero\)", False),
        ({"weights": "def"}, r"have different weights \(sha256 abc -> def\)", False),
        ({"tasks": {"near": 6, "far": 3}}, r"were asked for different episodes \(far 6 -> 3\)", True),
        ({"tasks": {"near": 6}}, r"were asked for different episodes \(far 6 -> 0\)", True),
    ],
)
def test_mixed_runs_are_refused_in_one_line_or_marked(runs, other, said, judged):
    won = {t: DENSE[t][:n] for t, n in other.get("tasks", TASKS).items()}
    write(runs / "other", won, "random", kept=8, **other)
    with pytest.raises(ValueError, match=said + ".*; make a report of each, or pass --mixed to look anyway") as refused:
        report.summarise(report.find([runs]))
    assert "\n" not in str(refused.value)
    table = report.summarise(report.find([runs]), mixed=True).set_index("method")
    assert list(table.index) == ["dense", "fastv keep=0.25", "random†"]
    row = table.loc["random†"]
    assert (row.verdict == "undecided") == judged and row.verdict not in ("worse", "no worse")
    note = next(n for n in table.attrs["notes"] if n.startswith("† random"))
    assert ("paired on the episodes both have" if judged else "not judged") in note
    assert "random†" in report.markdown(table.reset_index())
    assert "textdagger" in report.latex(table.reset_index())


def test_a_policy_tuned_from_the_baseline_is_judged_with_its_method(runs):
    write(runs / "tuned", DENSE, "lightvla", kept=5, weights="def", provenance={"tuned_from": "abc"})
    table = report.summarise(report.find([runs])).set_index("method")
    assert table.loc["lightvla§"].verdict == "undecided" and table.loc["lightvla§"].paired == 12
    assert any(n.startswith("§ lightvla: weights tuned from the baseline's") for n in table.attrs["notes"])
    assert "\\S{}" in report.latex(table.reset_index())


def test_policies_tuned_in_several_ways_are_told_apart_by_their_weights(runs):
    for sha, trained in (("def", "data/it/constant/policy.safetensors"), ("ghi", "linear")):
        given = {"weights": sha, "trained": trained, "provenance": {"tuned_from": "abc"}}
        write(runs / sha, DENSE, "lightvla", kept=5, **given)
    labels = set(report.summarise(report.find([runs])).method)
    assert {"lightvla weights=constant§", "lightvla weights=linear§"} <= labels


@pytest.mark.parametrize(
    "other", [{"provenance": {"tuned_from": "xyz"}}, {"provenance": {"tuned_from": "abc"}, "seed": 8}]
)
def test_a_policy_tuned_from_elsewhere_or_run_otherwise_is_refused(runs, other):
    write(runs / "tuned", DENSE, "lightvla", weights="def", **other)
    with pytest.raises(ValueError, match="make a report of each"):
        report.summarise(report.find([runs]))


def test_a_run_of_another_bench_is_not_paired(runs):
    write(runs / "other", DENSE, "random", bench="libero")
    table = report.summarise(report.find([runs]), mixed=True).set_index("method")
    assert pd.isna(table.loc["random†", "lost"]) and table.loc["fastv keep=0.25", "lost"] == 2


def test_an_arm_of_more_seeds_is_paired_on_those_that_both_have(runs):
    write(runs / "eight", DENSE, seed=8)
    table = report.summarise(report.find([runs]), mixed=True)
    assert table["method"].tolist() == ["dense", "fastv keep=0.25†"]  # seed 8 of dense has no partner


def ten_arms(folder):
    """Dense, and ten that are each alone worse than it; together Holm asks more of them."""
    tasks = {"near": 40, "far": 40}
    write(folder / "dense", {t: "1" * 40 for t in tasks}, tasks=tasks)
    for i in range(10):
        write(folder / f"arm{i}", {"near": "1" * 40, "far": "0" * 11 + "1" * 29}, "random", tasks=tasks, option=i)


def test_verdicts_of_a_table_hold_together(tmp_path):
    ten_arms(tmp_path)
    alone = report.summarise([read(tmp_path / "dense"), read(tmp_path / "arm3")])
    together = report.summarise(report.find([tmp_path]))
    assert alone["verdict"].tolist()[1:] == ["worse"] and set(together["verdict"].dropna()) == {"undecided"}
    assert together["difference_high"].max() < -0.05  # each method's own; what is shown is at Holm's level:
    assert together["held_high"].max() >= -0.05 and alone["held_high"].max() < -0.05
    assert together["holm_p"].dropna().to_numpy() == pytest.approx(10 * alone["holm_p"].iloc[1])
    said = together.attrs["notes"]
    assert "Holm over the 10 methods" in said[0] and "Holm" not in alone.attrs["notes"][0]
    assert (
        "with 80 paired episodes, 0 % of which flip both ways alike, a loss of about" in said[2]
        and "alpha 0.05 / 10" in said[2]
    )
    assert said == [line.removeprefix("% ") for line in report.latex(together).splitlines() if line[:2] == "% "][1:]


def test_errors_over_tasks(runs):
    fastv = report.summarise(report.find([runs]), by_task=True).set_index(["method", "task"]).loc["fastv keep=0.25"]
    both = {"near": (-1, 6), "far": (0, 6)}
    assert fastv.loc["all", "clustered"] == pytest.approx(stats.clustered_error({"near": (5, 6), "far": (3, 6)}))
    assert fastv.loc["all", "difference_clustered"] == pytest.approx(stats.clustered_error(both))
    assert pd.isna(fastv.loc["far", "clustered"])
    exact = rates.clopper_pearson(8, 12)
    assert (fastv.loc["all", "exact_low"], fastv.loc["all", "exact_high"]) == pytest.approx((exact.low, exact.high))


@pytest.mark.parametrize(
    ("provenance", "why"),
    [
        ({"hardware": {"device": "cuda"}}, "different hardware (device cpu, cpu c, threads 1; device cuda)"),
        ({"hardware": {"device": "cpu", "cpu": "c", "threads": 4}}, "cpu c, threads 1; device cpu, cpu c, threads 4)"),
        ({"device_users": 2}, "another process used the device when random began"),
        ({"load": 3.5}, "its machine was busy when random began (load 3.5 on 2 cores)"),
        ({"video": "all"}, "random was filmed"),
        ({"host": ""}, "where and when random ran is not recorded"),
    ],
)
def test_no_speedup_where_the_machine_was_shared(runs, provenance, why):
    write(runs / "random", DENSE, "random", kept=8, ms=5.0, provenance=provenance)
    comparison = report.compare(report.find([runs]))
    table = report.tabulate(comparison)
    assert (
        table[["ms", "ms_method", "speedup"]].isna().all(axis=None)
        and any(why in n for n in table.attrs["notes"])
        and "ms/call" not in report.markdown(table)
    )
    looked = report.tabulate(comparison, timed=True)
    assert "~1.25x" in report.markdown(looked) and any(why in n for n in looked.attrs["notes"])
    assert looked["speedup"].tolist() == pytest.approx([1, 1.25, 4])


def test_the_same_run_twice_is_refused(runs):
    write(runs / "again", DENSE)
    with pytest.raises(ValueError, match=r"3 runs, but \['dense'\] comes more than once; name the folders"):
        report.summarise(report.find([runs]))


def test_one_method_on_two_devices_is_two_arms_and_either_may_be_the_baseline(runs):
    write(runs / "again", {**DENSE, "far": "111001"}, provenance={"hardware": {"device": "H200"}})
    with pytest.raises(ValueError, match=r"baseline dense may be dense on H200 or dense on cpu; name one"):
        report.summarise(report.find([runs]))
    table = report.tabulate(report.compare(report.find([runs]), baseline="dense on cpu"))
    row = table[(table["method"] == "dense on H200") & (table["task"] == "all")].iloc[0]
    assert (row["lost"], row["gained"]) == (0, 1)


def test_an_option_that_was_typed_is_in_the_label_even_where_all_arms_share_it(runs):
    """A reader takes what is not named for what the method's file says."""
    said = ["method=random", "method.layer=3", "method.calibration=some/where.json", "seed=1"]
    more = {"keep": 0.25, "layer": 3, "calibration": "some/where.json", "rows": "last"}
    write(runs / "other", FASTV, "random", kept=8, provenance={"overrides": said}, **more)
    assert "random keep=0.25 layer=3" in set(report.summarise(report.find([runs]))["method"])


def test_a_table_says_which_arms_another_device_computed(runs):
    """Success of two devices is compared, but they do not give the same bits."""
    assert not any("Computed on" in note for note in report.summarise(report.find([runs])).attrs["notes"])
    write(runs / "random", FASTV, "random", kept=8, provenance={"hardware": {"device": "H200"}})
    notes = report.summarise(report.find([runs])).attrs["notes"]
    assert "Computed on cpu; on H200: random. Two devices do not give the same bits." in notes


def test_a_folder_without_a_run_is_refused(tmp_path, runs):
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "empty", tmp_path / "absent", runs / "dense" / "journal.jsonl"):
        with pytest.raises(ValueError, match="holds no run; give folders"):
            report.find([nothing])


def test_a_run_without_a_finished_episode_is_refused(tmp_path):
    write(tmp_path, {})
    for partial in (False, True):
        with pytest.raises(ValueError, match=rf"none of these runs has a finished episode: {tmp_path}; finish one"):
            report.summarise(report.find([tmp_path]), partial=partial)
    assert "no finished episode" in report.summary(read(tmp_path))


def test_files(runs, tmp_path):
    table = report.summarise(report.find([runs]))
    csv, md, tex = report.write(table, tmp_path / "out")
    back = pd.read_csv(csv)
    assert list(back.columns) == list(table.columns) and back["success"].tolist() == [9, 8]
    text = md.read_text()
    assert text.startswith("**tiny on toy**\n\n| method")
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    for shown in ("9/12", "75.0 [46.8, 91.1]", "2 / 1", "40.0 of 64", "60.0%", "1.25x", "baseline", "undecided"):
        assert shown in text, shown
    latex = tex.read_text()
    body = latex[latex.index("\\toprule") : latex.index("\\bottomrule")]
    assert "60.0\\%" in body and all(c in "\\" for c in (body[i - 1] for i, x in enumerate(body) if x in "%_"))
    columns = next(x for x in latex.splitlines() if "begin{tabular}" in x).split("{")[-1].rstrip("}")
    assert all(line.count("&") == len(columns) - 1 for line in body.splitlines() if line.endswith("\\\\"))


def test_differences_stand_beside_the_noise_of_a_repeated_baseline(runs):
    """Dense again loses one of twelve; fastv loses two and gains one, three times the noise; a repeat may do so."""
    repeats = [write(runs / "aa" / "one", DENSE), write(runs / "aa" / "two", {"near": "111110", "far": "111000"})]
    write(runs / "random", {"near": "0" * 6, "far": "0" * 6}, "random", kept=8)
    comparison = report.compare([read(runs / r) for r in ("dense", "fastv", "random")])
    before = report.tabulate(comparison)
    assert before["times_noise"].isna().all() and "x noise" not in report.markdown(before)
    comparison = comparison.with_noise([read(r) for r in repeats])
    table = report.tabulate(comparison).set_index("method")
    assert table.loc["fastv keep=0.25", "times_noise"] == pytest.approx(3) and table.loc[
        "random", "times_noise"
    ] == pytest.approx(9)
    note = next(n for n in table.attrs["notes"] if n.startswith("A/A noise"))
    assert "1 of 12 episodes end otherwise = 8.3 %" in note and note.endswith("Ties, inside it: fastv keep=0.25.")
    assert table.loc["fastv keep=0.25", "verdict"] == before.set_index("method").loc["fastv keep=0.25", "verdict"]


def test_noise_is_measured_of_repeats_of_the_baseline(runs):
    comparison = report.compare(report.find([runs]))
    with pytest.raises(ValueError, match=r"fastv is no repeat of .*dense: .*method.name "):
        comparison.with_noise([read(runs / "dense"), read(runs / "fastv")])
    with pytest.raises(ValueError, match="noise needs the baseline at least twice, got 1 run"):
        comparison.with_noise([read(runs / "dense")])
    with pytest.raises(ValueError, match="noise needs a baseline among the runs"):
        report.compare([read(runs / "fastv")]).with_noise([read(runs / "dense")])


def test_the_summary_of_one_of_many_processes_has_its_milliseconds(tmp_path):
    write(tmp_path, DENSE, provenance={"command": "vlaprune-eval -m hydra/launcher=joblib"})
    assert "20.0 ms a call" in report.summary(read(tmp_path))


def test_the_summary_at_the_end_of_a_run(runs):
    said = report.summary(read(runs / "fastv"))
    for shown in ("success 8/12 = 66.7%", "40.0 of 64 visual tokens", "2 GFLOPs, 16.0 ms a call", str(runs / "fastv")):
        assert shown in said, said


def test_the_command(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vlaprune-report", str(runs), "--output", str(tmp_path / "out")])
    cli.report()
    said = capsys.readouterr().out
    assert (
        "\nfastv keep=0.25  66.7" in said
        and "table.tex" in said
        and max(map(len, said.split("/tmp")[0].splitlines())) <= 80
    )
    write(runs / "again", DENSE)
    with pytest.raises(SystemExit) as stop:
        cli.report()
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_tables_need_no_torch():
    check = "import sys, vlaprune.report, vlaprune.evaluation.loggers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_a_run_whose_header_names_no_parts_is_refused_in_one_line(tmp_path):
    Recorder(tmp_path, Header({"method": ["fastv"], "model": {"name": "m"}, "bench": {"name": "b"}}, {}, TASKS)).close()
    with pytest.raises(ValueError, match=r"its header has no method\.name, so it stands in no table; leave it out"):
        report.find([tmp_path])


def test_a_journal_is_plain_json(runs):
    first = json.loads((runs / "dense" / "journal.jsonl").read_text().splitlines()[1])
    assert first["kind"] == "episode" and first["calls"][0]["visual"] == [64, 64]


def test_tasks_of_unequal_size_have_their_unweighted_mean_too(runs, tmp_path):
    same = report.summarise(report.find([runs]))
    assert same["average"].isna().all() and "mean of tasks" not in report.markdown(same)
    write(tmp_path / "simpler", {"can": "110", "drawer": "1"}, tasks={"can": 3, "drawer": 1})
    table = report.summarise(report.find([tmp_path / "simpler"]))
    assert table["rate"][0] == 0.75 and table["average"][0] == pytest.approx((2 / 3 + 1) / 2)
    assert "mean of tasks" in report.markdown(table) and "83.3" in report.markdown(table)


# seeds, times, machines


def test_seeds_of_one_method_are_one_row(tmp_path):
    """`-m seed=0,1,2`: pairs have the same task, episode and seed; equal seeds tell no more than one."""
    for seed in (0, 1, 2):
        write(tmp_path / f"dense{seed}", DENSE, seed=seed)
        write(tmp_path / f"fastv{seed}", FASTV, "fastv", seed=seed, kept=16)
    one = report.summarise([read(tmp_path / name) for name in ("dense0", "fastv0")]).set_index("method")
    table = report.summarise(report.find([tmp_path])).set_index("method")
    assert list(table.index) == ["dense", "fastv"]
    fastv = table.loc["fastv"]
    assert (fastv.success, fastv.episodes, fastv.seeds, fastv.paired, fastv.lost, fastv.gained) == (24, 36, 3, 36, 6, 3)
    for column in (
        "low",
        "high",
        "difference_low",
        "difference_high",
        "held_low",
        "held_high",
        "mcnemar_p",
        "exact_low",
    ):
        assert fastv[column] == pytest.approx(one.loc["fastv", column]), column
    assert any(n.startswith("Seeds 0, 1, 2 are pooled") for n in table.attrs["notes"])
    # other episodes under every seed: then they count
    write(tmp_path / "other2", {"near": "001111", "far": "001111"}, "fastv", seed=2, kept=8)
    runs = [read(tmp_path / n) for n in ("dense0", "dense1", "dense2", "fastv0", "fastv1")]
    mixed = [*runs, read(tmp_path / "other2")]
    spread = report.summarise(mixed).set_index("method").loc["fastv"]
    assert spread.paired == 36 and spread.high - spread.low < one.loc["fastv", "high"] - one.loc["fastv", "low"] - 0.05


def test_pairs_are_of_one_seed(tmp_path):
    """Were seeds mixed up, losses of seed 1 would meet successes of seed 0."""
    for seed, won in ((0, {"near": "111000"}), (1, {"near": "000111"})):
        write(tmp_path / f"dense{seed}", won, seed=seed, tasks={"near": 6})
        write(tmp_path / f"fastv{seed}", won, "fastv", seed=seed, tasks={"near": 6})
    row = report.summarise(report.find([tmp_path])).iloc[1]
    assert (row.paired, row.lost, row.gained, row.both) == (12, 0, 0, 6)


def calls(*kinds):
    """(count, gflops, ms, more) each."""
    return [replace(call(8, gflops, ms), **more) for count, gflops, ms, more in kinds for _ in range(count)]


def test_times_are_medians_of_steady_calls_and_the_rest_is_counted():
    cold, packed = {"cold": "compile"}, {"packed": 4}
    took = times.times(calls((2, 5.0, 9000.0, cold), (29, 5.0, 20.0, {}), (1, 5.0, 400.0, {}), (3, 5.0, 50.0, packed)))
    assert (took.ms, took.method) == (20, 5) and took.enough
    assert (took.steady, took.cold, took.packed, took.untimed) == (30, 2, 3, 0)
    assert took.told == "30 steady (2 cold, 3 packed)"


def test_a_method_of_dense_and_pruned_calls_is_timed_by_what_it_does():
    """One dense call in three: the plain median would be that of the pruned ones."""
    took = times.times(calls((20, 5.0, 30.0, {}), (40, 2.0, 12.0, {})))
    assert took.ms == pytest.approx(30 / 3 + 12 * 2 / 3)
    untimed = times.times(calls((20, 5.0, 30.0, {"packed": 2}), (40, 2.0, 12.0, {})))
    assert math.isnan(untimed.ms) and not untimed.enough  # nothing is known of a third of its calls
    assert math.isnan(times.times([]).ms)


@pytest.mark.parametrize("short", ["dense", "fastv"])
def test_a_speedup_needs_enough_steady_calls_of_both(tmp_path, short):
    for name, ms in (("dense", 20.0), ("fastv", 16.0)):
        won = {"near": "11"} if name == short else {"near": "1" * 20}
        write(tmp_path / name, won, name, tasks={"near": 20}, gflops=5.0 if name == "dense" else 2.0, ms=ms)
    table = report.summarise(report.find([tmp_path]), partial=True)
    assert table["speedup"].isna().all() or table["speedup"].dropna().tolist() == [1.0]
    assert table["ms"].notna().all() and any("fewer than 20 steady calls" in n for n in table.attrs["notes"])


def test_an_arm_timed_on_some_episodes_only_says_on_how_many_calls(runs):
    journal = runs / "fastv" / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    for line in lines[-6:]:
        for one in line["calls"]:
            one["ms"] = {}
    for line in lines:
        line.pop("crc")
    journal.write_bytes(b"".join(map(encode, lines)))
    table = report.summarise(report.find([runs]))
    assert table["ms"].tolist() == [20, 16] and table["untimed"].tolist()[1] == 15 and pd.isna(table["speedup"][1])
    assert any("fastv keep=0.25 13 steady (15 untimed)" in n for n in table.attrs["notes"])


@pytest.mark.parametrize(("ms", "doubted"), [(8.5, False), (4.0, True)])
def test_a_speedup_above_what_the_flops_allow_is_flagged(runs, ms, doubted):
    """0.6 of the FLOPs saved allow 2.5x."""
    write(runs / "fast", DENSE, "fast", gflops=2.0, ms=ms)
    table = report.summarise(report.find([runs]))
    row = table.set_index("method").loc["fast"]
    assert row.impossible == doubted and ("x ?" in report.markdown(table)) == doubted
    assert any("more than the FLOPs saved allow (fast 5.00x for 2.50x)" in n for n in table.attrs["notes"]) == doubted


def alone(name, spans, **told):
    """A run whose episodes ended so, each (start, end)."""
    told = {"host": "h", "boot": "b", "slots": 1, "hardware": {"device": "cpu", "cores": 4}} | told
    episodes = {("t", i): EpisodeRecord("t", i, True, 1, (), end, end - start) for i, (start, end) in enumerate(spans)}
    return Run(Path(name), Header({}, told, {"t": len(spans)}), episodes)


def test_runs_shared_their_machine_if_they_ran_at_one_time_on_one_host():
    first, after = alone("a", [(0.5, 10), (10, 20)]), alone("b", [(20, 30), (30, 40)])
    assert shared([first, after]) == ""
    between = alone("c", [(8, 12)])
    assert shared([first, between]) == "a and c ran on one machine at the same time, for 4 s"
    assert (
        shared([first, alone("c", [(8, 12)], host="other", device_users=1)])
        == shared([first, alone("c", [(8, 12)], boot="2")])
        == ""
    )
    assert shared([first, alone("c", [(20, 21), (19.99, 20)])]) == ""  # two clocks differ by as much
    # three commands, the middle one only beside the last: what a launcher was called is nowhere asked
    assert "b and d" in shared([first, after, alone("d", [(39, 45)], command="vlaprune-eval")])
    assert shared([alone("a", [(0.5, 10)], command="hydra/launcher=joblib"), after]) == ""


def test_one_run_by_several_processes_is_told_by_its_episodes():
    spans = [(0.5, 10), (1, 9)]
    assert shared([alone("a", spans)]) == "several processes made a side by side"
    assert shared([alone("a", spans, slots=2)]) == ""
    assert shared([alone("a", [(0.5, 10), (9.98, 20)])]) == ""


def test_threads_matter_on_a_cpu_only():
    for device, said in (("cuda", False), ("cpu", True)):
        two = [
            alone(f"r{n}", [(20 * n + 1, 20 * n + 9)], hardware={"device": device, "cpu": "c", "threads": n})
            for n in (1, 2)
        ]
        assert bool(shared(two)) == said
    assert "threads 1; " in shared(two)


H100 = {"hardware": {"device": "H100"}}
OTHER = {"hardware": {"device": "H200"}, "host": "there"}


@pytest.mark.parametrize(
    ("later", "why"),
    [
        (OTHER, r"fastv was begun on one machine and went on on another (device H100; device H200)"),
        ({"load": 3.5, "hardware": {"device": "H100", "cores": 2}}, "its machine was busy when fastv began"),
        ({"device_users": 2, **H100}, "another process used the device when fastv began"),
        ({"video": "all", **H100}, "fastv was filmed"),
        ({"host": "", **H100}, "where and when fastv ran is not recorded"),
    ],
)
def test_times_of_a_run_that_went_on_are_judged_by_every_start_that_made_episodes(tmp_path, later, why):
    """And so is the commit. A start that finds nothing left to run changes nothing."""
    asked = {"near": 6, "far": 3}
    write(tmp_path / "fastv", {"near": FASTV["near"]}, "fastv", tasks=asked, provenance={"commit": "a", **H100})
    write(tmp_path / "dense", {"near": DENSE["near"]}, tasks=asked, provenance={"commit": "a", **H100})
    write(tmp_path / "fastv", {}, "fastv", tasks=asked, provenance={"commit": "b", **later})

    def told():
        comparison = report.compare(report.find([tmp_path]), partial=True)
        return shared(comparison.runs), {one.claim for one in limits(comparison, report.tabulate(comparison))}

    reason, claims = told()
    assert reason == "" and "That one commit makes all of these runs again" not in claims
    write(tmp_path / "fastv", {"far": "110"}, "fastv", tasks=asked, provenance={"commit": "b", **later})
    reason, claims = told()
    assert why in reason and "That one commit makes all of these runs again" in claims


def test_a_run_that_went_on_elsewhere_did_not_share_the_machine_that_it_left(tmp_path):
    asked = {"near": 6, "far": 3}
    for place, task, began in (("here", "near", 1e6), ("there", "far", 2e6)):
        write(tmp_path / "fastv", {task: "110"}, "fastv", tasks=asked, provenance={"host": place, "began": began})
    write(tmp_path / "dense", {"near": "110"}, tasks=asked, provenance={"began": 2e6})
    assert shared(report.find([tmp_path])) == ""
    write(tmp_path / "random", {"near": "110"}, "random", tasks=asked, provenance={"began": 1e6})
    assert "fastv and random ran on one machine at the same time" in shared(report.find([tmp_path]))


def test_two_shards_side_by_side_on_one_machine_are_said(tmp_path):
    for shard, task in (("-0-of-2", "near"), ("-1-of-2", "far")):
        write(tmp_path, {task: "110"}, shard=shard, provenance={"began": 1e6})
    assert shared(report.find([tmp_path])) == f"several processes made {tmp_path.name} side by side"


def test_a_terminal_table_fits_80_columns(tmp_path):
    write(tmp_path / "dense", DENSE)
    for rows in ("first_and_longest", "first_and_shortest"):
        write(
            tmp_path / rows, FASTV, "a_method_with_a_very_long_name", kept=16, gflops=2.0, ms=9.0, keep=0.25, rows=rows
        )
    by_task = report.terminal(report.summarise(report.find([tmp_path]), by_task=True))
    assert max(map(len, by_task.splitlines())) <= 80 and " task " in by_task.splitlines()[2]
    table = report.summarise(report.find([tmp_path]))
    told = report.terminal(table)
    assert max(map(len, told.splitlines())) <= 80 and max(map(len, report.below(table).splitlines())) <= 80
    heads, *lines = told.splitlines()[2:]
    assert heads.split() == ["method", "%", "success", "difference", "verdict", "FLOPs", "speed"]
    assert "-8.3 [" in told and "undecided" in told and "60.0%" in told and "2.22x" in told
    assert len({line.split()[0] for line in lines}) == 3  # long names stay apart
    wide = report.terminal(table, wide=True)
    assert "lost / gained" in wide and max(map(len, wide.splitlines())) > 80
    chosen = report.terminal(table, only=["verdict", "lost / gained"])
    assert chosen.splitlines()[2].split() == ["method", "verdict", "lost", "/", "gained"]
    with pytest.raises(ValueError, match="no column speeed here; choose from method, success"):
        report.terminal(table, only=["speeed"])


def test_the_margin_of_the_benchmark_decides(tmp_path):
    """Ninety-five pairs that changed nothing: no worse by five points, undecided by two."""
    won = {"near": "1" * 95}
    for margin, verdict in ((0.05, "no worse"), (0.02, "undecided")):
        for method in ("dense", "fastv"):
            write(tmp_path / f"{margin}" / method, won, method, tasks={"near": 95}, margin=margin)
        table = report.summarise(report.find([tmp_path / f"{margin}"]))
        assert table["verdict"][1] == verdict and f"margin of {100 * margin:g} points" in table.attrs["notes"][0]
        assert (table["held_low"][1] >= -margin) == (verdict == "no worse")
