"""Tables from hand-made journals of 12 episodes: every number can be checked by eye."""

import json
import subprocess
import sys

import pandas as pd
import pytest

from vlaprune import cli, report
from vlaprune.evaluation.recorder import Recorder
from vlaprune.records import EpisodeRecord, Header, StepRecord, read
from vlaprune.stats import paired as stats
from vlaprune.stats import rates

TASKS = {"near": 6, "far": 6}
DENSE = {"near": "111111", "far": "111000"}  # 9 of 12
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
    **options,
):
    """A journal; `won` maps a task to one character per episode, "-" for one that is missing."""
    identity = {
        "model": {"name": "tiny"} | ({"weights": trained} if trained else {}),
        "seed": seed,
        "execute": 8,
        "weights": weights,
        "method": {"name": method, **options},
        "bench": {"name": bench, "margin": 0.05, "protocol": "p"},
    }
    recorder = Recorder(folder, Header(identity, provenance or {}, tasks), shard=shard)
    for task, marks in won.items():
        for episode, mark in enumerate(marks):
            if mark != "-":  # an episode that fails takes three calls, one that succeeds two
                calls = (call(kept, gflops, ms),) * (2 + (mark == "0"))
                recorder.write(EpisodeRecord(task, episode, mark == "1", 10, calls))
    recorder.close()
    return folder


@pytest.fixture
def runs(tmp_path):
    write(tmp_path / "dense", DENSE)
    write(tmp_path / "fastv", FASTV, "fastv", kept=16, gflops=2.0, ms=16.0, layer=3, keep=0.25)
    return tmp_path


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
    row = report.summarise(report.find([tmp_path])).iloc[0]
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
    assert "lost" not in table and "speedup" not in table and "8/12" in report.markdown(table)


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


def test_mixed_runs_of_one_name_are_told_apart_by_folder(runs):
    write(runs / "eight", DENSE, seed=8)
    table = report.summarise(report.find([runs]), mixed=True)
    assert table["method"].tolist() == ["dense (dense)", "dense (eight)†", "fastv keep=0.25"]


def test_verdicts_of_a_table_hold_together(tmp_path):
    """Alone each of ten arms is worse than dense; together Holm asks more of them."""
    tasks = {"near": 40, "far": 40}
    write(tmp_path / "dense", {t: "1" * 40 for t in tasks}, tasks=tasks)
    for i in range(10):
        write(tmp_path / f"arm{i}", {"near": "1" * 40, "far": "0" * 11 + "1" * 29}, "random", tasks=tasks, option=i)
    alone = report.summarise([read(tmp_path / "dense"), read(tmp_path / "arm3")])
    together = report.summarise(report.find([tmp_path]))
    assert alone["verdict"].tolist()[1:] == ["worse"] and set(together["verdict"].dropna()) == {"undecided"}
    assert together["difference_high"].max() < -0.05  # each interval is the method's own
    assert together["holm_p"].dropna().to_numpy() == pytest.approx(10 * alone["holm_p"].iloc[1])
    said = together.attrs["notes"]
    assert "Holm over the 10 methods" in said[0] and "Holm" not in alone.attrs["notes"][0]
    assert "with 80 paired episodes, 0 % of which flip both ways" in said[1] and "alpha 0.05 / 10" in said[1]
    assert said == [line.removeprefix("% ") for line in report.latex(together).splitlines() if line[:2] == "% "][1:]


def test_errors_over_tasks(runs):
    fastv = report.summarise(report.find([runs]), by_task=True).set_index(["method", "task"]).loc["fastv keep=0.25"]
    both = {"near": stats.Pairs(5, 1, 0, 0), "far": stats.Pairs(2, 1, 1, 2)}
    assert fastv.loc["all", "clustered"] == pytest.approx(stats.clustered_error({"near": (5, 6), "far": (3, 6)}))
    assert fastv.loc["all", "difference_clustered"] == pytest.approx(stats.clustered_error(both))
    assert pd.isna(fastv.loc["far", "clustered"])
    exact = rates.clopper_pearson(8, 12)
    assert (fastv.loc["all", "exact_low"], fastv.loc["all", "exact_high"]) == pytest.approx((exact.low, exact.high))


@pytest.mark.parametrize(
    ("provenance", "why"),
    [
        ({"command": "vlaprune-eval -m hydra/launcher=joblib"}, "shared their machine"),
        ({"hardware": {"device": "cuda"}}, "different hardware"),
    ],
)
def test_no_speedup_where_the_machine_was_shared(runs, provenance, why):
    write(runs / "random", DENSE, "random", kept=8, ms=5.0, provenance=provenance)
    comparison = report.compare(report.find([runs]))
    table = report.tabulate(comparison)
    assert "speedup" not in table and why in table.attrs["notes"][-1] and "ms/call" not in report.markdown(table)
    looked = report.tabulate(comparison, timed=True)
    assert "~1.25x" in report.markdown(looked) and why in looked.attrs["notes"][-1]
    assert looked["speedup"].tolist() == pytest.approx([1, 1.25, 4])


def test_the_same_run_twice_is_refused(runs):
    write(runs / "again", DENSE)
    with pytest.raises(ValueError, match=r"3 runs, but \['dense'\] comes more than once; name the folders"):
        report.summarise(report.find([runs]))


def test_a_folder_without_a_run_is_refused(tmp_path, runs):
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "empty", tmp_path / "absent", runs / "dense" / "journal.jsonl"):
        with pytest.raises(ValueError, match="holds no run; give folders"):
            report.find([nothing])


def test_a_run_without_a_finished_episode_is_refused(tmp_path):
    write(tmp_path, {})
    with pytest.raises(ValueError, match=r"lacks 12 of 12|no finished episode"):
        report.summarise(report.find([tmp_path]))
    with pytest.raises(ValueError, match="none of these runs has a finished episode"):
        report.summarise(report.find([tmp_path]), partial=True)
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


def test_differences_stand_beside_the_floor_of_a_repeated_baseline(runs):
    """Dense again loses one of twelve; fastv loses two and gains one: three floors, but a repeat may do as much."""
    repeats = [write(runs / "aa" / "one", DENSE), write(runs / "aa" / "two", {"near": "111110", "far": "111000"})]
    write(runs / "random", {"near": "0" * 6, "far": "0" * 6}, "random", kept=8)
    comparison = report.compare([read(runs / r) for r in ("dense", "fastv", "random")])
    before = report.tabulate(comparison)
    assert before["floors"].isna().all() and "floors" not in report.markdown(before)
    comparison = comparison.above([read(r) for r in repeats])
    table = report.tabulate(comparison).set_index("method")
    assert table.loc["fastv keep=0.25", "floors"] == pytest.approx(3) and table.loc[
        "random", "floors"
    ] == pytest.approx(9)
    note = next(n for n in table.attrs["notes"] if n.startswith("A/A floor"))
    assert "1 of 12 episodes end otherwise = 8.3 %" in note and note.endswith("Ties, inside it: fastv keep=0.25.")
    assert table.loc["fastv keep=0.25", "verdict"] == before.set_index("method").loc["fastv keep=0.25", "verdict"]


def test_a_floor_is_made_of_repeats_of_the_baseline(runs):
    comparison = report.compare(report.find([runs]))
    with pytest.raises(ValueError, match=r"fastv is no repeat of .*dense: .*method.name "):
        comparison.above([read(runs / "dense"), read(runs / "fastv")])
    with pytest.raises(ValueError, match="a floor needs the baseline at least twice, got 1 run"):
        comparison.above([read(runs / "dense")])
    with pytest.raises(ValueError, match="a floor needs a baseline among the runs"):
        report.compare([read(runs / "fastv")]).above([read(runs / "dense")])


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
    assert "| fastv keep=0.25" in said and "table.tex" in said
    write(runs / "again", DENSE)
    with pytest.raises(SystemExit) as stop:
        cli.report()
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_tables_need_no_torch():
    check = "import sys, vlaprune.report, vlaprune.evaluation.loggers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


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
