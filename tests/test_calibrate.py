"""Calibration before a run: measured once, over dense episodes of every task, kept with the run, said aloud."""

import json
import sys
from functools import partial

import pytest
import torch

import vlaprune
from vlaprune import cli
from vlaprune.bench.toy import Toy as ToyBench
from vlaprune.control import Control
from vlaprune.evaluation.calibrate import calibrated
from vlaprune.methods.fastv import FastV
from vlaprune.methods.ties.ties import TIES
from vlaprune.models.toy import Toy
from vlaprune.policy import Policy


def policy(make):
    return Policy(Toy(), make, control=Control(execute=1))


def test_it_is_measured_over_all_tasks_once_and_read_from_then_on(tmp_path, capsys):
    """At least 100 calls, as many episodes of each task; the next command reads the file."""
    bench = ToyBench()
    first = calibrated(TIES, policy, bench, tmp_path, 7)()
    said = capsys.readouterr().out.splitlines()
    episodes = int(said[0].split(" dense episodes")[0].split()[-1])
    assert episodes % len(bench.tasks()) == 0 and 100 <= int(said[0].split(" calls")[0].split()[-1]) < 120
    assert said[1] == f"TIES uses the calibration {tmp_path}/calibration.json"
    data = json.loads((tmp_path / "calibration.json").read_text())
    assert data["model"] == "toy" and len(data["tau"]) == 100
    again = calibrated(TIES, None, bench, tmp_path, 7)()  # nothing is played
    assert again.calibration == first.calibration and capsys.readouterr().out.splitlines() == said[1:]
    assert Policy(Toy(), lambda: again).sessions


def test_a_calibration_computes_attention_as_the_run_does(tmp_path, monkeypatch):
    """Compiled code keeps the kernel that it first saw."""
    seen, predict = [], Toy.predict

    def noted(self, observations, sessions):
        seen.append((self.backend, torch.backends.cuda.flash_sdp_enabled()))
        return predict(self, observations, sessions)

    monkeypatch.setattr(Toy, "predict", noted)
    vlaprune.evaluate("toy", "ties", "toy", episodes=1, kernel="eager", output=tmp_path / "run")
    assert len(seen) > 100 and not any(fused for _, fused in seen) and torch.backends.cuda.flash_sdp_enabled()


def test_a_method_without_need_or_with_a_calibration_is_left_as_it_is(tmp_path, capsys):
    assert calibrated(FastV, None, None, tmp_path, 7) is FastV and not capsys.readouterr().out
    own = partial(TIES, calibration="mine.json")
    assert calibrated(own, None, None, tmp_path, 7) is own
    assert capsys.readouterr().out == "TIES uses the calibration mine.json\n"


@pytest.mark.parametrize("method", ["ties", "ties_hard"])
def test_a_run_of_ties_calibrates_first_and_prunes(tmp_path, monkeypatch, capsys, method):
    monkeypatch.chdir(tmp_path)
    argv = ["vlaprune-eval", "model=toy", "bench=toy", "logger=csv", f"method={method}", "episodes=1", "execute=1"]
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", [*argv, "output=run"])
        cli.evaluate()
    said = capsys.readouterr().out
    assert said.count("was calibrated on") == 1 and said.count("uses the calibration run/calibration.json") == 2
    calls = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()]
    visual = [call["visual"][-1] for line in calls if "calls" in line for call in line["calls"]]
    assert min(visual) == 14 and max(visual) == 64
