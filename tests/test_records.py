"""The journal: what is written is whole, what is torn is cut off, what does not belong together is refused."""

import errno
import json
import os
import resource

import pytest
from doubles import Bench, outcomes, play

from vlaprune.evaluation.recorder import Recorder
from vlaprune.records import EpisodeRecord, Header, StepRecord, differences, read

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
    (tmp_path / "journal.jsonl").write_text('{"kind":"episode","task":"t"}\n')
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
            OSError, match=r"cannot write .*journal\.jsonl: .*free some space .*finished episodes are kept"
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
    other = recorder(journal.parent, shard="-1-of-2")  # a shard has a journal of its own
    other.write(episode(3))
    first.write(episode(2))
    for writer in (first, other):
        writer.close()
    assert read(journal.parent).episodes.keys() == {("t", n) for n in range(4)}
    recorder(journal.parent).close()


def test_another_run_in_the_folder_is_refused_with_what_differs(journal):
    other = Header({"method": {"keep": 0.5, "layer": 3}, "seed": 8}, {}, {"t": 4})
    with pytest.raises(
        ValueError, match=r"holds another run \(method\.keep 0\.25 -> 0\.5, seed 7 -> 8\); choose another"
    ):
        recorder(journal.parent, other)
    assert differences(HEADER, HEADER) == ""
    (journal.parent / "journal-b.jsonl").write_text(
        json.dumps({"kind": "header", "identity": other.identity, "provenance": {}, "tasks": {}}) + "\n"
    )
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
