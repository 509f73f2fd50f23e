"""A sweep that is killed leaves no process behind, and goes on where it stopped."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vlaprune.records import read

TESTS = Path(__file__).resolve().parents[1]
CODE = """
import sys
from vlaprune import cli
sys.argv = ["vlaprune-eval", "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "model=toy", "logger=csv",
            "method=dense,random", "bench._target_=doubles.Slow", "bench.seconds=SECONDS", "episodes=2",
            "output=sweep/${hydra:runtime.choices.method}"]
cli.evaluate()
"""


def alive(group):
    """Processes of a process group that run still; zombies do not."""
    out = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(words[3]) == group and words[0] != "Z":  # its session
            out.append(stat.parent.name)
    return out


@pytest.mark.skipif(os.environ.get("TORTURE") != "long", reason="half a minute; make torture")
@pytest.mark.skipif(
    importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is None, reason="no joblib launcher"
)
def test_a_killed_sweep_leaves_no_process_and_goes_on(tmp_path):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]), "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-c", CODE.replace("SECONDS", "0.1")]
    sweep = subprocess.Popen(run, cwd=tmp_path, env=env, start_new_session=True)
    until = time.monotonic() + 180
    while len(list(tmp_path.glob("sweep/*/journal.jsonl"))) < 2 and time.monotonic() < until:
        time.sleep(0.2)
    assert len(alive(sweep.pid)) > 2
    sweep.send_signal(signal.SIGKILL)
    sweep.wait()
    until = time.monotonic() + 15
    while alive(sweep.pid) and time.monotonic() < until:
        time.sleep(0.2)
    assert alive(sweep.pid) == []
    assert subprocess.run(run, cwd=tmp_path, env=env, check=False).returncode == 0
    for method in ("dense", "random"):
        done = read(tmp_path / "sweep" / method)
        assert len(done.episodes) == 4 and not done.missing
