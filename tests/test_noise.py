"""A/A noise, from runs of one method under several conditions."""

import pytest
from doubles import Bench, play

from vlaprune.methods.random import Random
from vlaprune.records import EpisodeRecord, Header, Run
from vlaprune.stats import noise


def run(folder, outcomes, steps=5, **conditions):
    header = Header({"method": {"name": "dense"}}, conditions, {"t": len(outcomes)})
    return Run(folder, header, {("t", i): EpisodeRecord("t", i, s, steps, ()) for i, s in enumerate(outcomes)})


def test_it_counts_what_ends_otherwise_and_says_what_differs():
    runs = [run("a", [True] * 10, slots=1), run("b", [True] * 8 + [False] * 2, slots=4), run("c", [True] * 5, 6)]
    head, two, short = noise.lines(runs)
    assert "against a" in head and noise.same_method(runs)
    assert two.startswith("slots 1 -> 4: 2 of 10 episodes end otherwise = 20.0 % [5.7, 51.0], 0 take another")
    assert "success 100.0 -> 80.0 %" in two and "0 of 5 episodes" in short and "5 take another" in short


def test_a_run_against_itself_differs_in_nothing(tmp_path):
    runs = [play(tmp_path / name, Bench(), Random) for name in "ab"]
    assert noise.lines(runs)[1].startswith("nothing changed: 0 of 6 episodes end otherwise = 0.0 % [0.0, 39.0], 0 take")


def test_other_methods_are_no_noise_and_strangers_are_refused():
    other = run("x", [True])
    other.header.identity["method"]["name"] = "fastv"
    assert not noise.same_method([run("a", [True]), other]) and not noise.same_method([other])
    stranger = Run("y", other.header, {("u", 0): EpisodeRecord("u", 0, True, 1, ())})
    with pytest.raises(ValueError, match="y and a have no episode in common"):
        noise.lines([run("a", [True]), stranger])


def test_runs_are_alike_if_only_their_methods_differ():
    def made(method, suite):
        identity = {"method": {"name": method}, "bench": {"name": "libero", "suite": suite}}
        return Run(f"{method} {suite}", Header(identity, {}, {suite: 1}))

    runs = [made(method, suite) for suite in ("goal", "object") for method in ("dense", "fastv")]
    assert [[r.folder for r in g] for g in noise.alike(runs)] == [
        ["dense goal", "fastv goal"],
        ["dense object", "fastv object"],
    ]
    assert not noise.same_method(runs[::2])  # dense twice, but not the same episodes
