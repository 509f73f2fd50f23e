"""Sinks: a CSV can be rebuilt from the journal; wandb needs neither an account nor to be there."""

import csv
import sys

import pytest
from doubles import Bench, play

from vlaprune.loggers import CSV, Wandb, flat
from vlaprune.methods.fastv import FastV
from vlaprune.rollout import Shard


def test_a_csv_rebuilt_from_the_journal_equals_the_one_written_live(tmp_path):
    path = tmp_path / "episodes.csv"
    run = play(tmp_path, make=FastV, sinks=[CSV()])
    live = path.read_bytes()
    path.unlink()
    play(tmp_path, make=FastV, sinks=[CSV()])  # nothing is missing, so nothing runs
    assert path.read_bytes() == live
    rows = list(csv.DictReader(path.open()))
    assert [(r["task"], int(r["episode"])) for r in rows] == list(run.episodes)
    for row, record in zip(rows, run.episodes.values(), strict=True):
        assert int(row["success"]) == record.success and int(row["calls"]) == len(record.calls)
        assert float(row["kept"]) == pytest.approx((3 * 64 + 3 * 16) / 6)
        assert row["kept_layers"] == "64|64|64|16|16|16"
        stages = [float(v) for k, v in row.items() if k.startswith("gflops_")]
        assert sum(stages) == pytest.approx(float(row["gflops"])) and float(row["gflops"]) > 0
        assert sum(float(v) for k, v in row.items() if k.startswith("ms_")) == pytest.approx(float(row["ms"]))


def test_a_csv_goes_on_where_an_interrupted_run_stopped(tmp_path):
    def stop(task, episode, steps):
        if (task, episode) == ("reach-blue", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(tmp_path, Bench(stop), sinks=[CSV()])
    (tmp_path / "episodes.csv").write_text("spoilt by hand")
    run = play(tmp_path, sinks=[CSV()])
    rows = list(csv.DictReader((tmp_path / "episodes.csv").open()))
    assert [(r["task"], int(r["episode"])) for r in rows] == list(run.episodes) and len(rows) == 6


def test_shards_write_csv_files_of_their_own(tmp_path):
    for index in (0, 1):
        play(tmp_path, sinks=[CSV()], shard=Shard(index, 2))
    found = [list(csv.DictReader(p.open())) for p in sorted(tmp_path.glob("episodes-*-of-2.csv"))]
    assert {(r["task"], r["episode"]) for r in found[0]} >= {("reach-red", "0"), ("reach-red", "2")}
    assert ("reach-red", "1") in {(r["task"], r["episode"]) for r in found[1]}


def test_milliseconds_stay_empty_where_the_device_was_shared(tmp_path):
    run = play(tmp_path, slots=2, sinks=[CSV()])
    first = flat(next(iter(run.episodes.values())))
    assert first["ms"] == first["ms_prompt"] == "" and first["gflops"] > 0


def test_without_wandb_the_run_says_so_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    said = []
    run = play(tmp_path, sinks=[Wandb()], say=said.append)
    assert len(run.episodes) == 6
    assert len(said) == 1 and "\n" not in said[0]
    assert "wandb is not installed" in said[0] and "logger=csv" in said[0]


def test_wandb_works_offline_without_an_account_and_resumes_under_one_id(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no account here
    said = []
    play(tmp_path / "run", episodes=1, sinks=[Wandb(mode="offline")], say=said.append)
    name = (tmp_path / "run" / "wandb-id").read_text()
    run = play(tmp_path / "run", episodes=2, sinks=[Wandb(mode="offline")], say=said.append)
    assert said == [] and len(run.episodes) == 4
    assert (tmp_path / "run" / "wandb-id").read_text() == name
    assert len(list((tmp_path / "run").glob(f"wandb/offline-run-*-{name}/*.wandb"))) >= 1
