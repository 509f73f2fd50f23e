"""Stopping early: the rule keeps its alpha, does not depend on slots, survives a kill, and the journal says why."""

from dataclasses import replace

import numpy as np
import pytest
from doubles import Bench, play

from vlaprune.control import Control
from vlaprune.evaluation.recorder import Recorder
from vlaprune.evaluation.rollout import RolloutConfig, Shard, rollout
from vlaprune.methods.dense import Dense
from vlaprune.models.toy import Toy
from vlaprune.policy import Policy
from vlaprune.records import EpisodeRecord, Header, Run, read
from vlaprune.stats.anytime import Anytime, said


def make_run(folder, outcomes, method="dense", task="t"):
    """A run of one task with these outcomes, as if read from a folder."""
    identity = {"method": {"name": method}, "bench": {"name": "b", "margin": 0.05}, "seed": 7}
    episodes = {(task, i): EpisodeRecord(task, i, bool(s), 1, ()) for i, s in enumerate(outcomes)}
    return Run(folder, Header(identity, {}, {task: len(outcomes)}), episodes)


def after(dense, method, **kwargs):
    """Episodes that the rule lets a run have, and the rule."""
    base, ours = make_run("base", dense), make_run("ours", method, "m")
    rule = Anytime(base, ours.header, **kwargs)
    for record in ours.episodes.values():
        if rule(record):
            break
    return rule.seen, rule


def test_it_stops_when_the_odds_are_twenty_to_one_and_says_which_way():
    seen, rule = after([1] * 50, [0] * 50)
    # l losses in a row: e = 2**l / (l + 1) passes 20 at l = 8 (28.4), not at 7 (16)
    assert seen == 8 and rule.stop["verdict"] == "worse" and rule.stop["lost"] == 8
    assert "stopped by rule after 8 of 50 episodes: worse than base, lost 8, gained 0" in said(rule.stop)
    assert after([0] * 50, [1] * 50)[1].stop["verdict"] == "better"
    seen, rule = after([1, 0] * 50, [1, 0] * 50)
    assert seen == 100 and not rule.state.stopped


def test_the_order_in_which_slots_finish_changes_nothing():
    rng = np.random.default_rng(0)
    dense, method = rng.random(200) < 0.9, rng.random(200) < 0.6
    base, ours = make_run("base", dense), make_run("ours", method, "m")
    straight, rule = after(dense, method)
    records = list(ours.episodes.values())
    for width in (2, 7):
        mixed = [r for i in range(0, 200, width) for r in sorted(records[i : i + width], key=lambda r: not r.success)]
        again = Anytime(base, ours.header)
        assert any(again(record) for record in mixed)
        assert (again.seen, again.stop) == (straight, rule.stop)


def test_a_rule_that_goes_on_from_a_journal_stands_where_it_stood():
    rng = np.random.default_rng(1)
    dense, method = rng.random(120) < 0.9, rng.random(120) < 0.7
    base, ours = make_run("base", dense), make_run("ours", method, "m")
    seen, rule = after(dense, method)
    records = list(ours.episodes.values())
    for cut in (0, seen // 2, seen - 1, seen):
        again = Anytime(base, ours.header)
        assert any(map(again, records[:cut])) == (cut == seen)
        for record in records[cut:]:
            if again.state.stopped or again(record):
                break
        assert again.stop == rule.stop


@pytest.mark.parametrize(("rate", "cap"), [(0.02, 2000), (0.2, 400)])
def test_a_twin_is_stopped_in_less_than_alpha_of_all_runs(rate, cap):
    """Looked at after every episode; the published 0.024 to 0.027 within the noise of 1,000 runs."""
    rng = np.random.default_rng(2)
    uniforms = rng.random((1000, cap))
    stopped = 0
    for row in uniforms:
        flips = row[row < 2 * rate] < rate  # only discordant pairs move the rule
        n = len(flips)
        _, rule = after(flips, ~flips) if n else (0, None)
        stopped += rule is not None and rule.state.stopped
    assert stopped / 1000 <= 0.05
    assert stopped / 1000 == pytest.approx(0.025, abs=0.015)


@pytest.mark.parametrize(
    ("lost", "gained", "cap", "mean"), [(0.035, 0.005, 2000, 363), (0.09, 0.03, 1200, 284), (0.3, 0.03, 300, 37)]
)
def test_it_stops_as_early_as_published(lost, gained, cap, mean):
    rng = np.random.default_rng(3)
    found = []
    for row in rng.random((120, cap)):
        dense, method = (row < lost) | (row > lost + gained), row >= lost
        found.append(after(dense, method)[0])
    assert np.mean(found) == pytest.approx(mean, rel=0.15)


def test_a_baseline_that_is_none_is_refused():
    base = make_run("base", [1] * 5)
    with pytest.raises(ValueError, match=r"base lacks 3 of the 8 episodes of this run; finish it first"):
        Anytime(base, make_run("ours", [1] * 8, "m").header)
    other = Header({**base.header.identity, "seed": 8}, {}, {"t": 5})
    with pytest.raises(ValueError, match=r"base is no baseline of this run: it differs in seed 7 -> 8"):
        Anytime(base, other)


@pytest.mark.parametrize("slots", [1, 3])
def test_a_run_that_is_ruined_ends_early_and_its_journal_says_so(tmp_path, slots):
    base = play(tmp_path / "base", episodes=20)
    header = Header({**base.header.identity, "method": {"name": "ruin"}}, {}, base.header.tasks)
    recorder = Recorder(tmp_path / "run", header)
    rule = Anytime(base, header)
    world = Bench(limit=1)  # too short to arrive
    rollout(Policy(Toy(), Dense, slots, Control()), world, recorder, Shard(), RolloutConfig(7, stop=rule))
    recorder.stop(rule.stop)
    recorder.close()
    run = read(tmp_path / "run")
    assert run.stopped == rule.stop and run.stopped["verdict"] == "worse"
    assert (
        len(run.episodes) == run.stopped["after"] < 40 and run.missing
    )  # none of those that finished before their turn
    more = Recorder(tmp_path / "run", header)
    record = next(r for key, r in base.episodes.items() if key in run.missing)
    more.write(record)
    more.close()
    assert read(tmp_path / "run").stopped is None  # it went on


@pytest.mark.parametrize(("alpha", "losses"), [(0.05, 8), (0.001, 14), (0.4, 4)])
def test_alpha_is_the_one_that_was_asked_for(alpha, losses):
    """l losses in a row stop as soon as 2**l / (l + 1) reaches 1 / alpha."""
    seen, rule = after([1] * 50, [0] * 50, alpha=alpha)
    assert seen == losses and rule.stop["alpha"] == alpha
    assert 2 ** (losses - 1) / losses < 1 / alpha <= 2**losses / (losses + 1)


def test_episodes_after_the_stop_change_no_word_of_it():
    """Slots finish what they have begun: those episodes come, but the rule has ended."""
    base, ours = make_run("base", [1] * 20), make_run("ours", [0] * 8 + [1] * 12, "m")
    rule = Anytime(base, ours.header)
    for record in ours.episodes.values():
        rule(record)
    assert rule.stop["after"] == 8 and (rule.stop["lost"], rule.stop["gained"]) == (8, 0)


def test_an_older_journal_counts_what_the_rule_saw_and_no_more(tmp_path):
    """Episodes behind it had finished since they are short: successes, above all."""
    header = Header({"seed": 7, "method": {"name": "m"}, "proof": "none"}, {}, {"t": 10})
    recorder = Recorder(tmp_path, header)
    (some,) = make_run("ours", [1]).episodes.values()
    for episode in (0, 1, 2, 7, 8):
        recorder.write(replace(some, episode=episode, success=episode > 2))
    said_by = {"alpha": 0.05, "baseline": "b", "of": 10, "lost": 3, "gained": 0, "log_e": 3.1, "verdict": "worse"}
    recorder.stop({"rule": "anytime", "after": 3, **said_by})
    recorder.close()
    run = read(tmp_path)
    assert sorted(run.episodes) == [("t", 0), ("t", 1), ("t", 2)] and not any(r.success for r in run.episodes.values())
