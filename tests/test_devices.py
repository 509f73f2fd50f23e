"""One run on several devices: the single process's numbers, and nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from doubles import outcomes

import vlaprune
from vlaprune.api.devices import Device, chosen
from vlaprune.errors import UserError
from vlaprune.models.shared import resolve_device
from vlaprune.records import read

LONG = os.environ.get("TORTURE") == "long"
TESTS = Path(__file__).parent
RUN = [sys.executable, "-c", "from vlaprune.cli import evaluate; evaluate()", "model=toy", "bench=toy", "logger=csv"]
SLEEPING = ["bench._target_=vlaprune.bench.sleeping.Sleeping", "+bench.step=0.05", "+bench.look=0.0", "method=random"]
ENV = {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}


def test_devices_are_those_that_are_there():
    assert chosen("all", 2) == chosen([0, 1], 2) == [Device("0"), Device("1")]
    assert chosen("all", 0) == chosen("cpu", 3) == chosen(["cpu"], 0) == [Device("cpu")]
    for wrong, gpus, said in (([2], 2, "no 2 here; there is 0..1 and cpu"), (["x"], 0, "no x here; there is cpu")):
        with pytest.raises(UserError, match=said):
            chosen(wrong, gpus)
    with pytest.raises(UserError, match="name at least one"):
        chosen([], 1)


def test_a_process_sees_its_device_alone(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    one = Device("1").environment(2)
    assert one["CUDA_VISIBLE_DEVICES"] == one["MUJOCO_EGL_DEVICE_ID"] == "1"
    assert one["OMP_NUM_THREADS"] == str(max(1, os.cpu_count() // 2))
    assert Device("cpu").environment(1)["CUDA_VISIBLE_DEVICES"] == ""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")  # of a scheduler
    assert Device("1").environment(2)["CUDA_VISIBLE_DEVICES"] == "6"


def test_a_model_is_on_the_first_gpu_that_its_process_sees(monkeypatch):
    """Events, graphs and free memory are asked of that one; another number is refused with what to do instead."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:0").type == resolve_device("cuda").type == resolve_device("auto").type == "cuda"
    with pytest.raises(UserError, match=r"model.device=cuda:1, .*CUDA_VISIBLE_DEVICES=1, or devices=\[1\]"):
        resolve_device("cuda:1")


def family(root):
    """A process and all that descend from it, by what /proc knows now."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if words[0] != "Z":
            parents[int(stat.parent.name)] = int(words[1])
    out = {root}
    while more := {p for p, parent in parents.items() if parent in out} - out:
        out |= more
    return out


def gone(pids, within):
    until = time.monotonic() + within
    alive = set(pids)
    while alive and time.monotonic() < until:
        alive = {
            p for p in alive if Path(f"/proc/{p}/stat").exists() and ") Z " not in Path(f"/proc/{p}/stat").read_text()
        }
        time.sleep(0.05)
    return not alive


def test_interrupted_and_killed_it_leaves_nothing_and_ends_as_one_process_does(tmp_path):
    argv = [*RUN, *SLEEPING, "episodes=12", "slots=2", "devices=[cpu,cpu]", f"output={tmp_path}/run"]
    ends = [(signal.SIGINT, 130)] if LONG else []

    def finished():
        whole = b"".join(p.read_bytes() for p in (tmp_path / "run").glob("journal-*"))
        return whole.count(b'"kind":"episode"')

    for number, code in (*ends, (signal.SIGKILL, -signal.SIGKILL)):
        before = finished()
        with subprocess.Popen(
            argv, env=ENV, cwd=tmp_path, stderr=subprocess.DEVNULL, start_new_session=True
        ) as process:
            until = time.monotonic() + 60
            while time.monotonic() < until:
                if finished() > before + 2:
                    break
                time.sleep(0.05)
            own = family(process.pid)
            assert len(own) >= 5  # this one, two policies, and simulators
            process.send_signal(number)
            assert process.wait(30) == code
        assert gone(own, 10)
    done = subprocess.run(argv, env=ENV, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "24/24" in done.stderr, done.stderr
    run = read(tmp_path / "run")
    assert finished() == 24 == len(run.episodes)  # none twice
    assert outcomes(run) == outcomes(vlaprune.evaluate("toy", "random", "toy", episodes=12, output=tmp_path / "single"))


def test_a_device_that_fails_is_named_and_the_others_finish(tmp_path):
    argv = [*RUN, "method=dense", "bench._target_=doubles.Flawed", "episodes=2", "devices=[cpu,cpu]", "output=run"]
    env = ENV | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    done = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert (
        "1 of 2 processes failed" in last and "the same command goes on" in last and "2 episodes raised twice" in last
    )
    assert done.stderr.count("failed, the others go on") <= 1  # said once, however long the others take
    assert len(read(tmp_path / "run").episodes) == 2
