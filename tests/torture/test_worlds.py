"""Simulators that hang and die in all the ways we know: each costs one episode, which is run again, and leaves nothing.

Short in CI; `make torture` (TORTURE=long) tries every kind, at every place.
"""

import os
import random
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from doubles import outcomes, play
from worlds import BAD, ENDS, WHERE, Ending

from vlaprune.bench.sleeping import Sleeping

LONG = os.environ.get("TORTURE") == "long"
LIMIT = 3.0  # seconds
SHORT = [("hang that swallows everything", "step"), ("real segfault", "step"), ("hang with children", "step")]
SHORT += [("segfault", "open"), ("two lines", "open")]
RAISED = ("sys.exit", "two lines")
OPEN = ("hang", "segfault", "native call with all signals blocked", *RAISED)
EVERY = [(kind, "step") for kind in ENDS] + [(kind, where) for kind in OPEN for where in WHERE if where != "step"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return outcomes(play(tmp_path_factory.mktemp("sound")))


def left(session):
    """Processes of a session that are there still; zombies are none."""
    out = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(words[3]) == session and words[0] != "Z":
            out.append(stat.parent.name)
    return out


def workers():
    """The PIDs of this process's simulators."""
    out = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            ours = parent == os.getpid() and b"worker.py" in (stat.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if ours:
            out.append(int(stat.parent.name))
    return out


def test_workers_that_are_killed_lose_nothing_and_leave_nothing(tmp_path, sound):
    """kill -9 of random simulators while 8 slots run; the same command again for episodes that were hit twice."""
    rng, kills, wanted, over = random.Random(0), [], 20 if LONG else 3, threading.Event()

    def begun():
        """Whether a simulator of each task is open; what ends one before that is for the user to mend."""
        journal = tmp_path / "journal.jsonl"
        said = journal.read_text() if journal.exists() else ""
        return all(f'"kind":"episode","task":"{task}"' in said for task in ("reach-red", "reach-blue"))

    def kill():
        while not begun() and not over.wait(0.02):
            pass
        while len(kills) < wanted and not over.wait(rng.uniform(0.05, 0.3)):
            if there := workers():
                kills.append(rng.choice(there))
                with suppress(ProcessLookupError):
                    os.kill(kills[-1], signal.SIGKILL)

    bench = Sleeping(step=0.03, look=0.02)
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        for _ in range(20):
            run = play(tmp_path, bench, slots=8, episodes=240 if LONG else 16, say=lambda text: None)
            if not run.missing:
                break
    finally:
        over.set()
        killer.join()
    assert len(kills) == wanted and not run.missing
    assert {k: v for k, v in outcomes(run).items() if k in sound} == sound
    lines = (tmp_path / "journal.jsonl").read_bytes()
    assert lines.count(b'"kind":"episode"') == len(run.episodes)  # none twice
    assert not workers()


def test_there_are_enough_kinds():
    assert len(ENDS) >= 30


@pytest.mark.parametrize(("kind", "where"), EVERY if LONG else SHORT)
def test_a_bad_end_costs_one_episode_at_most_and_leaves_nothing(tmp_path, sound, kind, where):
    bench = Ending(kind, where, str(tmp_path / "mark"))
    began = time.monotonic()
    if where == "open" and kind in RAISED:  # what the first simulator of a task raises is for the user to mend
        with pytest.raises((RuntimeError, ValueError)) as caught:  # in one slot: two may both open the task
            play(tmp_path / "run", bench, slots=1, time_limit=LIMIT, say=lambda text: None)
        assert ENDS[kind][1] in f"{caught.type.__name__}: {caught.value}"
        assert (tmp_path / "mark.opened").read_text().split().count(BAD[0]) == 1
        return
    run = play(tmp_path / "run", bench, slots=2, time_limit=LIMIT, say=lambda text: None)
    took = time.monotonic() - began
    assert (tmp_path / "mark").exists() and outcomes(run) == sound
    if where in ("open", "close"):
        assert not run.errors  # who hangs or dies while opening is tried again; who has finished owes nothing
    else:
        assert [(e["task"], e["episode"]) for e in run.errors] == [BAD]
        assert any(part in run.errors[0]["error"] for part in ENDS[kind][1].split("|")), run.errors[0]["error"]
    assert took < LIMIT + 5.0 + 10.0  # the rest of the run, on a busy machine
    for pid in map(int, (tmp_path / "mark.pids").read_text().split()):
        assert not left(pid)
