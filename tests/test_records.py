"""The journal: what is written is whole, what is torn is cut off, what does not belong together is refused."""

import errno
import json
import os
import resource
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
from doubles import Bench, outcomes, play, signed

from vlaprune.errors import UserError
from vlaprune.evaluation.recorder import Recorder
from vlaprune.records import SCHEMA, EpisodeRecord, Header, StepRecord, differences, encode, read

HEADER = Header({"method": {"keep": 0.25, "layer": 3}, "seed": 7}, {"commit": "abc"}, {"t": 4})


def episode(number, success=True):
    call = StepRecord((9, 5), (9, 5), 6, (6, 2), 0, {"prompt": 1e9, "method": 10.0}, {"prompt": 1.5, "other": 0.25})
    return EpisodeRecord("t", number, success, 3, (call, call))


def recorder(folder, header=HEADER, **more):
    return Recorder(folder, header, **more)


@pytest.fixture
def journal(tmp_path):
    """A journal with a header and two episodes."""
    writer = recorder(tmp_path)
    for number in (0, 1):
        writer.write(episode(number))
    writer.close()
    return tmp_path / "journal.jsonl"


def test_what_is_written_is_read_back(journal):
    run = read(journal.parent)
    assert run.episodes == {("t", n): episode(n) for n in (0, 1)}
    assert run.header == HEADER and run.missing == [("t", 2), ("t", 3)]


@pytest.mark.parametrize("cut", range(1, 400, 37))
def test_a_torn_last_line_is_cut_off_and_its_episode_is_missing(journal, cut):
    """Wherever the write stopped, its last byte, the newline, included."""
    raw = journal.read_bytes()
    last = raw.rindex(b"\n", 0, -1) + 1
    journal.write_bytes(raw[: max(last, len(raw) - cut)])
    assert read(journal.parent).episodes.keys() == {("t", 0)}
    writer = recorder(journal.parent)
    assert writer.has("t", 0) and not writer.has("t", 1)
    writer.write(episode(1))
    writer.close()
    assert read(journal.parent).episodes == {("t", n): episode(n) for n in (0, 1)}
    assert all(json.loads(line) for line in journal.read_text().splitlines())


def test_a_torn_header_is_no_run_and_is_written_anew(tmp_path):
    (tmp_path / "journal.jsonl").write_bytes(b'{"kind":"head')
    with pytest.raises(ValueError, match="holds no run"):
        read(tmp_path)
    recorder(tmp_path).close()
    assert read(tmp_path).header == HEADER


@pytest.mark.parametrize("damage", [b"\0" * 40, b'{"kind":"episode","ta', b"not json"])
def test_damage_in_the_middle_is_named_not_skipped(journal, damage):
    lines = journal.read_bytes().split(b"\n")
    lines[1] = damage
    journal.write_bytes(b"\n".join(lines))
    for look in (read, recorder):
        with pytest.raises(
            ValueError, match=r"journal\.jsonl line 2 is damaged; delete that line and run again"
        ) as error:
            look(journal.parent)
        assert "\n" not in str(error.value)


def test_deleting_the_damaged_line_as_told_redoes_its_episode(tmp_path):
    expected = outcomes(play(tmp_path))
    path = tmp_path / "journal.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2] + lines[3:]))
    ran = set()
    assert outcomes(play(tmp_path, Bench(lambda task, number, steps: ran.add((task, number))))) == expected
    assert len(ran) == 1


def test_a_file_without_a_header_is_no_journal(tmp_path):
    (tmp_path / "journal.jsonl").write_bytes(encode({"kind": "episode", **asdict(episode(0))}))
    with pytest.raises(ValueError, match="no header line; it is no journal of vlaprune"):
        read(tmp_path)


@pytest.mark.parametrize("fails", ["write", "fsync"])
def test_a_full_disk_stops_the_run_in_one_line_and_leaves_whole_lines(journal, monkeypatch, fails):
    writer = recorder(journal.parent)
    before = journal.read_bytes()
    if fails == "fsync":

        def full(file):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        if fails == "write":  # room for some bytes of the line, as on a real full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limit[1]))
        with pytest.raises(
            UserError, match=r"cannot write .*journal\.jsonl: .*free some space .*finished episodes are kept"
        ):
            writer.write(episode(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        monkeypatch.undo()
    assert journal.read_bytes() == before and not writer.has("t", 2)
    writer.close()
    again = recorder(journal.parent)
    again.write(episode(2))
    again.close()
    assert read(journal.parent).episodes.keys() == {("t", n) for n in range(3)}


def test_two_processes_do_not_write_one_journal(journal):
    first = recorder(journal.parent)
    with pytest.raises(ValueError, match=r"is being written by another process; wait for it or use shard\.index"):
        recorder(journal.parent)
    with pytest.raises(ValueError, match=r"journal\.jsonl is being written by another process; .* its shard\.count"):
        recorder(journal.parent, shard="-1-of-2")  # it would run the same episodes
    first.close()
    pair = [recorder(journal.parent, shard=f"-{n}-of-2") for n in (0, 1)]  # shards have journals of their own
    with pytest.raises(ValueError, match=r"use its shard\.count"):
        recorder(journal.parent, shard="-0-of-3")
    for number, writer in enumerate(pair, 2):
        writer.write(episode(number))
        writer.close()
    assert read(journal.parent).episodes.keys() == {("t", n) for n in range(4)}
    assert not (journal.parent / "journal-0-of-3.jsonl").exists()
    recorder(journal.parent).close()


def test_another_run_in_the_folder_is_refused_with_what_differs(journal):
    other = Header({"method": {"keep": 0.5, "layer": 3}, "seed": 8}, {}, {"t": 4})
    with pytest.raises(
        ValueError, match=r"holds another run \(method\.keep 0\.25 -> 0\.5, seed 7 -> 8\); choose another"
    ):
        recorder(journal.parent, other)
    assert differences(HEADER, HEADER) == ""
    (journal.parent / "journal-b.jsonl").write_bytes(encode({"kind": "header", "schema": SCHEMA, **asdict(other)}))
    with pytest.raises(ValueError, match=r"mixes two runs: method\.keep"):
        read(journal.parent)


def test_provenance_may_change_and_the_number_of_episodes_may_grow(journal):
    more = Header(HEADER.identity, {"commit": "def"}, {"t": 6})
    writer = recorder(journal.parent, more)
    writer.write(episode(5, success=False))
    writer.close()
    assert read(journal.parent).missing == [("t", 2), ("t", 3), ("t", 4)]
    fewer = recorder(journal.parent, Header(HEADER.identity, {}, {"t": 1}))
    assert [r.episode for r in fewer.done()] == [0]
    fewer.close()


def test_an_episode_found_twice_counts_once(journal):
    lines = journal.read_text().splitlines(keepends=True)
    (journal.parent / "journal-1-of-2.jsonl").write_text("".join(lines))
    assert read(journal.parent).episodes == {("t", n): episode(n) for n in (0, 1)}


def test_ctrl_c_is_no_error_of_an_episode(tmp_path):
    writer = recorder(tmp_path)
    with pytest.raises(KeyboardInterrupt), writer.attempt("t", 0):
        raise KeyboardInterrupt
    assert not writer.raised and not read(tmp_path).errors
    writer.close()


def test_every_flipped_bit_is_noticed(journal):
    """A damaged line is refused; at most the newline of the last line makes that episode missing."""
    whole, good = journal.read_bytes(), read(journal.parent).episodes
    for at in range(0, len(whole), 7):
        journal.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            found = read(journal.parent).episodes
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            assert found.items() < good.items()


CALL = {**asdict(episode(0))["calls"][0]}


@pytest.mark.parametrize(
    "change",
    [
        *({"episode": value} for value in (2.5, -1, "2", True, None)),
        *({"success": value} for value in (5, "yes", None)),
        *({"calls": value} for value in ("abc", [], [5], [None], {}, [CALL | {"flops": None}], [CALL | {"total": -1}])),
        *({"calls": [CALL | {"flops": {"prompt": value}}]} for value in (float("inf"), float("nan"), "1")),
        *({"calls": [CALL | {"visual": value}]} for value in ("66", [6.0, 2], [])),
        {"calls": [CALL, CALL | {"visual": [6, 6, 6]}]},
        {"surplus": 1},
        {"kind": "unknown"},
        {"kind": None},
    ],
)
def test_a_crafted_episode_is_refused_though_its_checksum_is_right(journal, change):
    with journal.open("ab") as file:
        file.write(signed({"kind": "episode", **asdict(episode(2)), **change}))
    with pytest.raises(ValueError, match=r"line 4 is no line of a journal .*; delete that line") as error:
        read(journal.parent)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_what_could_not_be_read_is_not_written(journal, number):
    good = journal.read_bytes()
    writer = recorder(journal.parent)
    with pytest.raises(ValueError, match="not JSON compliant"):
        writer.write(replace(episode(2), motion={"path_real": number}))
    writer.close()
    assert journal.read_bytes().startswith(good) and read(journal.parent).missing == [("t", 2), ("t", 3)]


@pytest.mark.parametrize("raw", [b"null", b"5", b'"x"', b"[]", b"{}", b"[" * 5000])
def test_a_line_that_is_no_record_is_refused(journal, raw):
    with journal.open("ab") as file:
        file.write(raw + b"\n")
    with pytest.raises(ValueError, match="line 4 is damaged"):
        read(journal.parent)


@pytest.mark.parametrize(
    "change",
    [
        *({"tasks": value} for value in ([], {"t": 10**12}, {"t": -1}, {"t": "4"}, None)),
        *({"identity": value} for value in ([], None, 5)),
        *({"schema": value} for value in (1, None, "2")),
    ],
)
def test_a_crafted_header_is_refused(tmp_path, change):
    (tmp_path / "journal.jsonl").write_bytes(encode({"kind": "header", "schema": SCHEMA, **asdict(HEADER), **change}))
    with pytest.raises(ValueError, match=r"line 1 is no line of a journal .*; move that file away"):
        read(tmp_path)


def test_what_was_written_before_the_lock_was_free_is_known_after_it(journal, monkeypatch):
    """Another process ends between our look at the folder and our lock: its last episode is not run again."""
    from vlaprune.evaluation import lock

    other, taken = recorder(journal.parent), lock.fcntl.flock

    def late(*args):
        monkeypatch.setattr(lock.fcntl, "flock", taken)
        other.write(episode(2))
        other.close()
        taken(*args)

    monkeypatch.setattr(lock.fcntl, "flock", late)
    ours = recorder(journal.parent)
    assert ours.has("t", 2)
    ours.close()


def test_without_locks_of_the_file_system_a_file_names_the_writer(journal, monkeypatch):
    from vlaprune.evaluation import lock

    def none(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(lock.fcntl, "flock", none)
    first, held = recorder(journal.parent), journal.parent / "journal.jsonl.lock"
    with pytest.raises(ValueError, match=rf"by process {os.getpid()} on .*; wait for it .*delete .*journal.jsonl.lock"):
        recorder(journal.parent)
    first.close()
    assert not held.exists()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    held.write_text(f"{lock.socket.gethostname()} {gone.pid}")  # killed before it could clean up
    recorder(journal.parent).close()
    held.write_text("elsewhere 1")
    with pytest.raises(ValueError, match="by process 1 on elsewhere"):
        recorder(journal.parent)


@pytest.mark.parametrize("error", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_a_folder_that_cannot_be_written_to_is_one_line_from_the_start(tmp_path, monkeypatch, error):
    def refuse(self, *_, **__):
        raise OSError(error, os.strerror(error), str(self))

    monkeypatch.setattr(type(tmp_path), "mkdir", refuse)
    with pytest.raises(ValueError, match=rf"cannot write to .*run/journal.jsonl: {os.strerror(error)}; choose another"):
        recorder(tmp_path / "run")


def test_a_shrunk_run_keeps_all_that_is_recorded(journal):
    told = []

    class Ear:
        def open(self, header, folder, done):
            told.extend(r.episode for r in done)

        def close(self):
            pass

    fewer = recorder(journal.parent, Header(HEADER.identity, {}, {"t": 1}), sinks=[Ear()])
    assert told == [0, 1] and fewer.more == 1 and [r.episode for r in fewer.done()] == [0]
    fewer.close()


def test_the_sinks_of_a_shard_get_its_own_episodes(tmp_path):
    from vlaprune.evaluation.loggers import CSV

    for index in (0, 1):
        header = replace(HEADER, provenance={"shard": f"-{index}-of-2"})
        writer = recorder(tmp_path, header, shard=f"-{index}-of-2", sinks=[CSV()])
        for number in range(index, 4, 2):
            writer.write(episode(number))
        writer.close()
    header = replace(HEADER, provenance={"shard": "-0-of-2"})
    recorder(tmp_path, header, shard="-0-of-2", sinks=[CSV()]).close()  # nothing is missing
    rows = [p.read_text().splitlines()[1:] for p in sorted(tmp_path.glob("episodes-*.csv"))]
    assert [[line.split(",")[1] for line in lines] for lines in rows] == [["0", "2"], ["1", "3"]]


def test_a_run_that_a_rule_stopped_and_shards_completed_is_not_stopped(tmp_path):
    """journal-0-of-2.jsonl is read before journal.jsonl, in which the stop stands."""
    why = {"rule": "anytime", "alpha": 0.05, "baseline": "b", "after": 1, "of": 4, "lost": 1, "gained": 0, "log_e": 3.0}
    alone = recorder(tmp_path)
    alone.write(episode(0))
    alone.stop(why | {"verdict": "worse"})
    alone.close()
    assert read(tmp_path).stopped is not None
    for shard, numbers in (("-0-of-2", (2,)), ("-1-of-2", (1, 3))):
        own = recorder(tmp_path, shard=shard)
        for number in numbers:
            own.write(episode(number))
        own.close()
    assert read(tmp_path).missing == [] and read(tmp_path).stopped is None


def test_who_comes_second_takes_nothing_from_who_writes(tmp_path):
    first = recorder(tmp_path)
    with pytest.raises(UserError, match="is being written by another process"):
        recorder(tmp_path)
    first.write(episode(0))
    first.close()
    assert read(tmp_path).episodes.keys() == {("t", 0)}
