"""Progress: what a line says, and the board that shows the jobs of a sweep."""

import os
import socket
import threading

import pytest

from vlaprune.errors import UserError
from vlaprune.evaluation import progress
from vlaprune.evaluation.progress import SWEEP, Bar, Board, RunStatus, SweepJob, claim
from vlaprune.records import EpisodeRecord


@pytest.fixture
def board(monkeypatch):
    monkeypatch.delenv(SWEEP, raising=False)
    board = Board()
    yield board
    board.close()


def end(bar, *outcomes):
    for i, success in enumerate(outcomes):
        bar.on_episode("t", i, EpisodeRecord("t", i, success, 1, ()))


def test_a_line_says_success_with_its_interval_and_what_is_left():
    assert RunStatus("dense", asked=20).line.split() == ["dense", "no", "episode", "yet", "0/20", "episodes"]
    half = RunStatus("dense", asked=20, done=10, won=7, begun=5, seconds=50.0)
    assert "7/10 = 70.0 % [39.7, 89.2]" in half.line and half.line.endswith("10/20 episodes, 0:01:40 left")
    assert RunStatus("dense", asked=2, done=2, won=2, ended=True).line.endswith("done")
    assert RunStatus("dense", ended=True, error="ValueError: no").line.endswith("ValueError: no")
    assert RunStatus("x", asked=9000, done=1, seconds=10.0).line.endswith("24:59:50 left")


def test_jobs_stand_on_the_board_in_their_order(board):
    second, first = (Bar(RunStatus(f"arm {n}", asked=3), SweepJob(n, f"seed={n}")) for n in (1, 0))
    end(first, True, False)
    end(second, True)
    first.on_episode("t", 2, None)  # it raised: no outcome
    assert [(s.label, s.done, s.won) for s in board.statuses()] == [("arm 0 seed=0", 2, 1), ("arm 1 seed=1", 1, 1)]
    assert SweepJob(1, "seed=1").fail("ValueError: late") and SweepJob(7, "method=x").fail("ValueError: at once")
    first.close()
    early, late, never = board.close()
    assert early.ended and not early.error and (late.done, late.error) == (1, "ValueError: late")
    assert (never.label, never.error) == ("method=x", "ValueError: at once")
    assert SWEEP not in os.environ and not board.folder.exists() and not board.close()


def test_a_line_comes_once_when_a_job_ends_and_what_jobs_say_once_each(board, capfd):
    for n in range(3):
        progress.once("what can be seen")
        Bar(RunStatus(f"arm {n}", asked=1), SweepJob(n, "")).close()
        board._draw()
    progress.say("and this")
    board.close()
    said = capfd.readouterr().err
    assert said.count("what can be seen") == said.count("and this") == 1
    assert [said.count(f"arm {n}") for n in range(3)] == [1, 1, 1]


def test_on_a_terminal_lines_are_drawn_over_each_other_and_cut(board, capfd, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    bar = Bar(RunStatus("a long label " * 9, asked=2), SweepJob(0, ""))
    board._draw()
    end(bar, True)
    board._draw()
    frames = capfd.readouterr().err.split("\x1b[1F\x1b[J")
    assert len(frames) >= 2 and all(len(line) < 60 for frame in frames for line in frame.splitlines())


def test_without_a_board_a_job_that_fails_says_so_itself(monkeypatch):
    monkeypatch.delenv(SWEEP, raising=False)
    assert not SweepJob(0, "").fail("ValueError: no")
    monkeypatch.setenv(SWEEP, "/nowhere/at/all")
    assert not SweepJob(0, "").fail("ValueError: no")


def test_alone_a_run_has_a_bar_and_speaks_for_itself(board, capfd):
    progress.detach_from_board()
    progress.once("what can be seen")
    bar = Bar(RunStatus("dense", asked=2))
    end(bar, True, False)
    bar.close()
    out, err = capfd.readouterr()
    assert out.strip() == "what can be seen" and "dense: 100%" in err and "1/2 = 50.0 % [9.5, 90.5]" in err


def test_two_jobs_of_a_sweep_never_share_a_folder(board, tmp_path):
    """What they differ in, such as slots, may name no folder: the second would find its episodes done by the first."""
    claim(tmp_path / "run", "", SweepJob(0, "slots=1"))
    claim(tmp_path / "run", "", SweepJob(0, "slots=1"))  # a job that is begun again
    claim(tmp_path / "run", "-1-of-2", SweepJob(1, "shard.index=1"))
    with pytest.raises(UserError, match=r"jobs 0 and 1 of this sweep write to the same folder, .*'slots=4'"):
        claim(tmp_path / "run", "", SweepJob(1, "slots=4"))


def test_a_job_on_another_host_is_not_ended_with_a_process_of_this_one(board, monkeypatch):
    """A scheduler hands the environment on: there, the number is of some other process, or of none."""
    ended = []
    monkeypatch.setattr(progress, "_follow", ended.append)
    for owner, followed in ((f"elsewhere {2**22 - 3}", []), (f"{socket.gethostname()} {2**22 - 3}", [2**22 - 3])):
        monkeypatch.setenv(progress.OWNER, owner)
        progress.end_with_the_sweep()
        for thread in threading.enumerate():
            if thread.name == progress.OWNER:
                thread.join()
        assert ended == followed
