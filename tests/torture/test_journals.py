"""Damaged and crafted journals: refused in one line or read without what is missing; never wrong, run as code, or hung.

Short in CI; `make torture` (TORTURE=long) tries 300.
"""

import json
import os
import random
import time
from dataclasses import asdict

import pytest
from doubles import play, signed

from vlaprune.records import SCHEMA, encode, read

COUNT = 300 if os.environ.get("TORTURE") == "long" else 60
VALUES = [None, 5, -1, 2.5, "x", [], {}, [None], True, float("inf"), float("nan"), 10**12, "9" * 400, {"a": {"b": 1}}]
CALL = {"_target_": "os.system", "command": "touch executed"}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The lines of a journal, and its episodes."""
    folder = tmp_path_factory.mktemp("sound")
    run = play(folder)
    return (folder / "journal.jsonl").read_bytes().splitlines(keepends=True), run


def crafted(rng, lines):
    """A line of which one value is another, under a checksum that is right."""
    at = rng.randrange(len(lines))
    said = json.loads(lines[at])
    said.pop("crc")
    keys = [key for key in said if key not in ("provenance", "ended", "seconds", "identity", "motion")]
    key, spot = rng.choice(keys), said
    if key == "calls" and rng.random() < 0.8:
        spot = rng.choice(said["calls"])
        key = rng.choice([k for k in spot if k not in ("delay", "first_rows", "ms", "cold")])
    old = spot[key]
    spot[key] = rng.choice([v for v in VALUES if type(v) is not type(old) or v in (-1, 10**12)] + [CALL])
    if key in ("flops", "tasks") and spot[key] == {}:
        spot[key] = None
    if spot[key] == 10**12 and key != "tasks":  # a count, though a large one
        spot[key] = -1
    return [*lines[:at], signed(said), *lines[at + 1 :]]


def damaged(rng, lines):
    """What storage and crashes do: flipped bits, lost bytes, bytes of other files, zeros, lines lost or exchanged."""
    whole, at = b"".join(lines), 0
    at, size = rng.randrange(len(whole)), rng.choice([1, 2, 40, 600])
    kind = rng.randrange(6)
    if kind == 0:
        return [whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :]]
    if kind == 1:
        return [whole[:at]]
    if kind == 2:
        return [whole[:at] + whole[at + size :]]
    if kind == 3:
        return [whole[:at] + bytes(size) + whole[at + size :]]
    if kind == 4:
        return [whole[:at] + rng.randbytes(size) + whole[at:]]
    return rng.sample(lines[1:], len(lines) - 1)[: rng.randrange(len(lines))]


@pytest.mark.parametrize("number", range(COUNT))
def test_a_damaged_journal_is_never_taken_for_a_sound_one(sound, tmp_path, monkeypatch, number):
    lines, run = sound
    rng = random.Random(number)
    bad = (crafted if number % 3 == 0 else damaged)(rng, lines)
    (tmp_path / "journal.jsonl").write_bytes(b"".join(bad))
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    try:
        found = read(tmp_path)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
    else:
        assert number % 3, "a crafted value was accepted"
        assert found.header == run.header and found.episodes.items() <= run.episodes.items()
    assert time.monotonic() - began < 5 and not (tmp_path / "executed").exists()


@pytest.mark.parametrize("method", [CALL, {"name": "os.system"}, {"name": "fastv", "_target_": "os.system"}])
def test_what_a_journal_names_is_looked_up_and_never_run(sound, tmp_path, monkeypatch, method):
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig

    from vlaprune import config
    from vlaprune.methods.fastv import FastV

    _, run = sound
    header = {"kind": "header", "schema": SCHEMA, **asdict(run.header)}
    header["identity"] = {**header["identity"], "method": method}
    (tmp_path / "journal.jsonl").write_bytes(encode(header))
    monkeypatch.chdir(tmp_path)
    said = read(tmp_path).header.identity["method"]
    config.prepare()
    with initialize_config_dir(config.config_path(), version_base="1.3"):
        HydraConfig.instance().set_config(compose("eval", ["model=toy", "bench=toy"], return_hydra_config=True))
        try:
            assert type(config.recorded_method(said)) is FastV
        except ValueError as error:
            assert "names the method" in str(error)
    assert not (tmp_path / "executed").exists()
