"""Exports keep every episode, its outcome and its tokens, in the forms that other tools read."""

import json
from dataclasses import replace

import pytest
import yaml

import vlaprune
from vlaprune.commands import export, main
from vlaprune.report import export as export_of


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    common = {"model": "toy", "bench": "toy", "episodes": 2}
    return folder, [vlaprune.evaluate(method=m, output=folder / m, **common) for m in ("dense", "uniform")]


def test_a_dataset_folder_has_a_row_an_episode_and_a_row_a_call(runs, tmp_path):
    folder, recorded = runs
    assert export.main([str(folder), "--to", "hub", "--output", str(tmp_path)]) == 0
    episodes, calls = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("episodes", "calls")
    )
    assert len(episodes) == sum(len(r.episodes) for r in recorded) == 8
    assert (
        len(calls)
        == sum(len(e.calls) for r in recorded for e in r.episodes.values())
        == sum(e["calls"] for e in episodes)
    )
    pruned = [c for c in calls if c["method"] == "uniform keep=0.25"]
    assert {tuple(c["visual_layers"]) for c in pruned} == {(16,) * 6}
    assert all(set(row) == set(rows[0]) for rows in (episodes, calls) for row in rows)  # one schema for all rows
    card = yaml.safe_load((tmp_path / "README.md").read_text().split("---")[1])
    assert {c["data_files"] for c in card["configs"]} <= {p.name for p in tmp_path.iterdir()}
    assert len(json.loads((tmp_path / "runs.json").read_text())) == 2


def test_milliseconds_of_a_call_that_was_not_alone_or_not_warm_are_not_said_to_be_its_own(runs):
    run = runs[1][0]
    key, record = next(iter(run.episodes.items()))
    plain = replace(record.calls[0], ms={"prompt": 2.0}, packed=1, cold="")
    calls = (plain, replace(plain, packed=4), replace(plain, cold="capture"))
    told = list(export_of.calls([replace(run, episodes={key: replace(record, calls=calls)})]))
    assert [row["ms_prompt"] for row in told] == [2.0, None, None]
    assert [(row["packed"], row["cold"]) for row in told] == [(1, ""), (4, ""), (1, "capture")]
    assert len({tuple(row) for row in told}) == 1 and told[0]["flops_prompt"] == told[1]["flops_prompt"]


def test_an_inspect_log_has_the_runs_episodes_and_rate(runs, tmp_path):
    folder, recorded = runs
    assert export.main([str(folder), "--to", "inspect", "--output", str(tmp_path)]) == 0
    for path, run in zip(sorted(tmp_path.iterdir()), recorded, strict=True):
        log = json.loads(path.read_text())
        scores = {s["id"]: s["scores"]["success"]["value"] for s in log["samples"]}
        assert scores == {f"{t}/{e}": int(r.success) for (t, e), r in run.episodes.items()}
        metrics = {k: v["value"] for k, v in log["results"]["scores"][0]["metrics"].items()}
        assert metrics["accuracy"] == sum(scores.values()) / len(scores)
        assert metrics["wilson_low"] <= metrics["accuracy"] <= metrics["wilson_high"]
        assert log["version"] == 2 and log["status"] == "success" and log["results"]["completed_samples"] == 4


def test_a_folder_without_runs_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main.main(["export", str(tmp_path), "--to", "hub", "--output", str(tmp_path / "out")])
    assert capsys.readouterr().err.count("\n") == 1
