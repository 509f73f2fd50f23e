"""Sinks: a CSV can be rebuilt from the journal; wandb needs neither an account nor to be there."""

import csv
import json
import struct
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from doubles import Bench, Blind, play
from omegaconf import OmegaConf

from vlaprune.evaluation.film import Film
from vlaprune.evaluation.loggers import CSV, Wandb
from vlaprune.evaluation.rollout import Shard
from vlaprune.methods.dense import Dense
from vlaprune.methods.fastv import FastV
from vlaprune.methods.vlacache import VLACache
from vlaprune.records import episode_row, read


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
        stages = [float(v) for k, v in row.items() if k.startswith("ms_") and v]
        steady = [c for c in record.calls if not c.cold]
        assert bool(row["ms"]) == bool(steady) and sum(stages) == pytest.approx(float(row["ms"] or 0))
    assert any(row["ms"] for row in rows)


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
    first = episode_row(next(iter(run.episodes.values())))
    assert first["ms"] == first["ms_prompt"] == "" and first["gflops"] > 0


def test_without_wandb_the_run_says_so_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    said = []
    run = play(tmp_path, sinks=[Wandb()], say=said.append)
    assert len(run.episodes) == 6
    assert len(said) == 1 and "\n" not in said[0]
    assert "wandb is not installed" in said[0] and "logger=csv" in said[0]


def records(path):
    """What wandb wrote to a file; its own process may still write when `finish` is back, up to the exit record."""
    proto = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    until = time.monotonic() + 30
    while True:
        found = [proto.Record.FromString(data) for data in blocks(path.read_bytes())]
        if any(record.HasField("exit") for record in found) or time.monotonic() > until:
            return found
        time.sleep(0.05)


def files(folder):
    """What wandb wrote below a run's folder, in order."""
    return sorted(folder.glob("wandb/offline-run-*/*.wandb"))


def row_of(record):
    """A row of the history."""
    return {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}


def written(folder):
    """What wandb wrote below a run's folder: ids, config, history rows in order, the last summary."""
    ids, config, history, summary = set(), {}, [], {}
    for path in files(folder):
        for record in records(path):
            if record.HasField("run"):
                ids.add(record.run.run_id)
                config |= {u.key: json.loads(u.value_json) for u in record.run.config.update}
            if record.HasField("history"):
                history.append(row_of(record))
            if record.HasField("summary"):
                summary |= {"/".join(u.nested_key) or u.key: json.loads(u.value_json) for u in record.summary.update}
    return ids, config, history, summary


def blocks(data):
    """The records of a leveldb log: blocks of 32 KiB, each record a header (checksum, length, kind) and its bytes."""
    at, part = 7, b""
    while at + 7 <= len(data):
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if 32768 - at % 32768 < 7 or not kind:
            at += 32768 - at % 32768
            continue
        part, at = part + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):
            yield part
            part = b""


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """No account here."""
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_wandb_is_told_every_call_and_episode_though_the_run_was_stopped_and_went_on(tmp_path, stranger):
    def stop(task, episode, steps):
        if (task, episode) == ("reach-blue", 0):
            raise KeyboardInterrupt

    said = []
    with pytest.raises(KeyboardInterrupt):
        play(tmp_path / "run", Bench(stop), make=FastV, execute=1, sinks=[Wandb()], say=said.append)
    run = play(tmp_path / "run", make=FastV, execute=1, sinks=[Wandb()], say=said.append)
    ids, config, history, summary = written(tmp_path / "run")
    assert said == [] and ids == {(tmp_path / "run" / "wandb-id").read_text()}
    assert config["execute"] == 1 and config["tasks"] == {"reach-red": 3, "reach-blue": 3}
    calls = [call for record in run.episodes.values() for call in record.calls]
    each = [[row_of(r) for r in records(p) if r.HasField("history")] for p in files(tmp_path / "run")]
    for rows in each:
        assert len({row["_step"] for row in rows}) == len(rows) > 0  # none twice
    assert [row["_step"] for row in each[-1]] == list(range(len(calls)))
    told = {row["_step"]: row for row in history if "call/kept" in row}
    assert sorted(told) == list(range(len(calls)))  # one step a call, none lost
    for step, call in enumerate(calls):
        assert told[step]["call/kept"] == pytest.approx(sum(call.visual) / len(call.visual))
        assert told[step]["call/gflops"] == pytest.approx(sum(call.flops.values()) / 1e9)
    ends = [row for row in told.values() if "episode/success" in row]
    assert [(r["episode/task"], r["episode/episode"]) for r in ends] == list(run.episodes)
    assert [r["episodes"] for r in ends] == list(range(1, 7))
    won = sum(record.success for record in run.episodes.values())
    assert summary["success_rate"] == won / 6 and summary["success_low"] < won / 6 <= summary["success_high"] + 1e-9
    kept = [sum(call.visual) / len(call.visual) for call in calls]
    assert summary["call/kept"] == pytest.approx(sum(kept) / len(kept))  # the mean, not the last call's
    red = [record.success for record in run.episodes.values() if record.task == "reach-red"]
    assert summary["task/reach-red/success_rate"] == sum(red) / len(red) and "verdict" not in summary
    tables = sorted(
        (tmp_path / "run").glob("wandb/offline-run-*/files/media/table/*.json"), key=lambda p: p.stat().st_mtime
    )
    table = json.loads(tables[-1].read_text())
    column = table["columns"].index("success")
    assert [row[column] for row in table["data"]] == [int(r.success) for r in run.episodes.values()]


def test_wandb_sorts_runs_by_model_and_bench_and_tags_them_with_what_they_are(tmp_path, stranger):
    play(tmp_path / "run", make=FastV, episodes=1, sinks=[Wandb()])
    (told,) = (r.run for path in files(tmp_path / "run") for r in records(path) if r.HasField("run"))
    assert told.run_group == "toy on toy" and set(told.tags) == {"toy", "fastv", "seed 7"}


def test_a_mean_of_calls_takes_every_call_for_flops_and_steady_ones_for_milliseconds(tmp_path, stranger):
    run = play(tmp_path / "run", make=VLACache, execute=1, sinks=[Wandb()])
    summary = written(tmp_path / "run")[-1]
    calls = [call for record in run.episodes.values() for call in record.calls]
    steady = [sum(call.ms.values()) for call in calls if not call.cold]
    flops = [sum(call.flops.values()) / 1e9 for call in calls]
    assert 0 < len(steady) < len(calls)
    assert summary["call/ms"] == pytest.approx(sum(steady) / len(steady))
    assert summary["call/gflops"] == pytest.approx(sum(flops) / len(flops))


@pytest.mark.parametrize(("base", "make", "less"), [(Dense, Blind, "lost"), (Blind, Dense, "gained")])
def test_wandb_is_told_what_was_lost_and_gained_against_the_baseline(tmp_path, stranger, base, make, less):
    dense, ours = (play(tmp_path / kind.__name__, make=kind) for kind in (base, make))
    sink = Wandb(calls=False)
    header = replace(ours.header, provenance={"baseline": str(dense.folder)})
    sink.open(header, ours.folder, list(ours.episodes.values()))
    sink.close()
    summary = written(ours.folder)[-1]
    before, now = (sum(r.success for r in run.episodes.values()) for run in (dense, ours))
    assert summary[less] == abs(before - now) > 0 and summary["lost"] + summary["gained"] == summary[less]


def test_wandb_is_given_films_and_may_leave_calls_out(tmp_path, stranger):
    film = Film(tmp_path / "run", "all", 5.0, 100.0, print)
    run = play(tmp_path / "run", episodes=1, execute=1, sinks=[Wandb(calls=False)], watchers=[film])
    film.close()
    _, _, history, _ = written(tmp_path / "run")
    assert len([row for row in history if "call/kept" in row]) == len(run.episodes) == 2
    assert len(list((tmp_path / "run").glob("wandb/offline-run-*/files/media/videos/film/*.mp4"))) == 2


def test_a_resumed_run_is_whole_in_wandb_and_held_against_its_baseline(tmp_path, stranger):
    """What was journalled while wandb was away is told when it is back."""
    base = play(tmp_path / "dense", execute=1)
    play(tmp_path / "run", make=FastV, execute=1)
    header = read(tmp_path / "run").header
    sink, records = Wandb(), list(read(tmp_path / "run").episodes.values())
    provenance = {"baseline": str(tmp_path / "dense")}
    sink.open(replace(header, provenance=provenance), tmp_path / "run", records)
    sink.close()
    _, _, history, summary = written(tmp_path / "run")
    assert len([row for row in history if "episode/success" in row]) == len(records) == 6
    lost = sum(base.episodes[r.task, r.episode].success and not r.success for r in records)
    assert summary["lost"] == lost and summary["verdict"] in ("no worse", "worse", "undecided")


def test_a_baseline_of_another_seed_gives_no_verdict(tmp_path, stranger):
    play(tmp_path / "dense", execute=1, seed=8)
    run = play(tmp_path / "run", make=FastV, execute=1, seed=7)
    sink = Wandb()
    header = replace(run.header, provenance={"baseline": str(tmp_path / "dense")})
    sink.open(header, tmp_path / "run", list(run.episodes.values()))
    sink.close()
    summary = written(tmp_path / "run")[-1]
    assert summary["verdict"] == "none" and "seed" in summary["verdict_words"] and "lost" not in summary


def test_wandb_goes_online_by_its_own_variable(monkeypatch):
    node = OmegaConf.load(Path(__file__).parents[1] / "configs" / "logger" / "wandb.yaml").wandb
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert node.mode == "offline"
    monkeypatch.setenv("WANDB_MODE", "online")
    assert node.mode == "online"


def test_an_id_that_was_cut_short_is_made_anew(tmp_path, stranger):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "wandb-id").write_text("")
    said = []
    play(tmp_path / "run", episodes=1, sinks=[Wandb()], say=said.append)
    assert said == [] and len((tmp_path / "run" / "wandb-id").read_text()) == 12
