"""kill -9 of an evaluation at random points: nothing is lost, nothing doubled, and the numbers are the same.

Short in CI; `make torture` (TORTURE=long) kills 80 times.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from doubles import outcomes

from vlaprune.records import read

TESTS = Path(__file__).resolve().parents[1]
KILLS = 80 if os.environ.get("TORTURE") == "long" else 2
EPISODES = min(50, 20 + KILLS)  # of each of two tasks, which have 50
STEP = 0.1 if KILLS > 2 else 0.02  # seconds: episodes are left until the last kill


def wait(process, happened):
    until = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.01)


def test_kills_at_random_points_lose_nothing_and_double_nothing(tmp_path):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), "OMP_NUM_THREADS": "1"}
    world = ["bench=toy", "bench._target_=doubles.Slow", f"bench.seconds={STEP}", f"episodes={EPISODES}"]

    def command(folder):
        run = ["model=toy", "method=random", "logger=csv", "execute=2", *world, f"output={tmp_path / folder}"]
        return [sys.executable, "-c", "from vlaprune.cli import evaluate; evaluate()", *run]

    journal, draw, kept = tmp_path / "killed" / "journal.jsonl", random.Random(0), 0
    for kill in range(KILLS):
        size = journal.stat().st_size if journal.is_file() else 0
        with subprocess.Popen(command("killed"), env=env, stderr=subprocess.DEVNULL, cwd=tmp_path) as process:
            if kill % 2:  # half of them while episodes run, the others at any moment of the start
                wait(process, lambda size=size: journal.is_file() and journal.stat().st_size > size)
                time.sleep(draw.uniform(0, 1))
            else:
                time.sleep(draw.uniform(0, 4))
            process.send_signal(signal.SIGKILL)
        if journal.is_file() and journal.stat().st_size:
            found = len(read(journal.parent).episodes)
            assert found >= kept
            kept = found
    for folder in ("killed", "whole"):
        done = subprocess.run(command(folder), env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert outcomes(read(tmp_path / "killed")) == outcomes(read(tmp_path / "whole"))
    lines = [json.loads(line) for line in journal.read_bytes().splitlines()]
    assert sum(line["kind"] == "episode" for line in lines) == 2 * EPISODES
    print(f"{KILLS} kills, {kept} of {2 * EPISODES} episodes finished between them")
