"""Races with known truth: the budget holds, the good are kept, the front is the grid's within its intervals."""

import json
from dataclasses import replace
from functools import partial
from weakref import WeakSet

import numpy as np
import pytest
import torch

from vlaprune import config
from vlaprune.api.tune import Tuned, _arms, _entrants, tune
from vlaprune.bench.toy import Toy
from vlaprune.commands import main
from vlaprune.stats.paired import wilson
from vlaprune.stats.racing import Entrant, RaceStatus, front, promising, race, worse
from vlaprune.testing import SimulatedGraphs, with_segments

KEYS = [(task, e) for e in range(25) for task in ("a", "b")]


def grid(seed, noise=0.02):
    """25 settings, 5 layers x 5 budgets: earlier and fewer is cheaper and worse; the prior tells success roughly."""
    rng, entrants, truth = np.random.default_rng(seed), [], {}
    for layer in range(1, 6):
        for k, keep in enumerate((0.05, 0.1, 0.2, 0.4, 0.8)):
            name = f"{layer}/{keep}"
            truth[name] = 0.9 * (1 - np.exp(-(k + 0.5) * layer / 2))
            cost = 10 + layer * (1 - keep) + 30 * keep
            entrants.append(Entrant(name, cost, 0.95 - truth[name] + noise * rng.standard_normal()))
    return entrants, truth


def course(truth, seed):
    """Success of every setting on every episode: hard episodes are hard for all."""
    rng = np.random.default_rng(seed)
    hard, own = rng.random(len(KEYS)), {n: rng.random(len(KEYS)) for n in truth}
    return {
        n: {k: bool(0.7 * hard[i] + 0.3 * own[n][i] < p * 0.85) for i, k in enumerate(KEYS)} for n, p in truth.items()
    }


def test_the_front_is_of_the_episodes_that_both_ran():
    """19 of 20 is no more than 92 of 100 where the dearer one won all of those 20."""
    cheap, dear = RaceStatus(Entrant("cheap", 1, 0.1)), RaceStatus(Entrant("dear", 2, 0.1))
    cheap.success = {i: i > 0 for i in range(20)}
    dear.success = {i: i < 92 for i in range(100)}
    assert cheap.rate > dear.rate and [s.entrant.name for s in front([cheap, dear])] == ["cheap", "dear"]


@pytest.mark.parametrize("seed", range(8))
def test_the_front_of_a_quarter_of_the_episodes_is_the_grids_within_its_intervals(seed):
    entrants, truth = grid(seed)
    outcomes, played = course(truth | {"dense": 0.92}, seed), {}
    budget = len(entrants) * len(KEYS) // 4

    def play(entrant, keys):
        played[entrant.name] = len(keys)
        return {k: outcomes[entrant.name][k] for k in keys}

    found = front(race(entrants, KEYS, outcomes["dense"], play, budget, 10))
    assert sum(played.values()) <= budget
    costs = {e.name: e.cost for e in entrants}
    asked = [n for n in truth if not worse(outcomes[n], outcomes["dense"], KEYS, 0.05)]
    assert len(asked) > 3
    for name in asked:  # whatever good the full grid offers, the front offers for no more cost, within its interval
        whole = wilson(sum(outcomes[name].values()), len(KEYS))
        offered = [sum(outcomes[s.entrant.name].values()) for s in found if s.entrant.cost <= costs[name]]
        assert offered and max(offered) / len(KEYS) >= whole.low, name


def test_promising_are_those_that_nobody_undercuts():
    some = [Entrant("a", 1, 5), Entrant("b", 2, 5), Entrant("c", 2, 3), Entrant("d", 3, 4), Entrant("e", 4, 1)]
    assert [e.name for e in promising(some)] == ["a", "c", "e"]


def test_a_setting_is_left_out_only_where_the_recorded_episodes_are_sure():
    """Of two that cost alike, one strays less: in all four episodes, or by the luck of one of them."""
    far = Entrant("far", 2, 0.5, ((0.2, 0.3), (0.25,), (0.2, 0.2), (0.3,)))
    near = Entrant("near", 1, 0.4, ((0.1, 0.2), (0.2,), (0.1, 0.1), (0.2,)))
    lucky = Entrant("lucky", 1, 0.4, ((0.25, 0.35), (0.3,), (0.0, 0.0), (0.35,)))
    assert near.strays_less(far) and not far.strays_less(near) and near.strays_less(near)
    assert lucky.prior < far.prior and not lucky.strays_less(far) and not far.strays_less(lucky)
    assert [e.name for e in promising([far, near])] == ["near"]
    assert [e.name for e in promising([far, lucky])] == ["lucky", "far"]


def test_equal_settings_are_rarely_called_worse():
    """An e-process looked at after every batch errs in at most alpha of all courses."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(400):
        ours, theirs = (dict(zip(KEYS, rng.random(len(KEYS)) < 0.5, strict=True)) for _ in range(2))
        wrong += any(worse({k: ours[k] for k in KEYS[:n]}, theirs, KEYS, 0.05) for n in range(10, 51, 10))
    assert wrong / 400 <= 0.05


def test_a_hopeless_setting_leaves_after_few_episodes_and_what_is_saved_goes_to_others():
    entrants = [Entrant("hopeless", 1, 0.1), Entrant("good", 2, 0.05), Entrant("late", 3, 0.06)]
    dense = dict.fromkeys(KEYS, True)
    played = {}

    def play(entrant, keys):
        played[entrant.name] = len(keys)
        return dict.fromkeys(keys, entrant.name != "hopeless")

    found = race(entrants, KEYS, dense, play, 120, 10)
    assert played == {"hopeless": 10, "good": 50, "late": 50}
    assert {s.entrant.name: s.out for s in found} == {"hopeless": "worse than dense", "good": "", "late": ""}
    assert [s.entrant.name for s in front(found)] == ["good"]


def test_of_two_settings_of_one_cost_the_worse_is_out():
    entrants = [Entrant("good", 1, 0.1), Entrant("bad", 1, 0.05)]
    dense = {key: i % 2 == 0 for i, key in enumerate(KEYS)}
    found = race(entrants, KEYS, dense, lambda e, keys: {k: e.name == "good" or dense[k] for k in keys}, 100, 10)
    assert {s.entrant.name: s.out for s in found} == {"good": "", "bad": "worse than good, which costs no more"}


def test_what_was_played_when_the_budget_ended_is_judged_too():
    """The budget of one batch ends within the first wave, of two."""
    entrants = [Entrant("bad", 1, 0.1), Entrant("other", 2, 0.05)]
    found = race(entrants, KEYS, dict.fromkeys(KEYS, True), lambda e, keys: dict.fromkeys(keys, False), 10, 10)
    assert {s.entrant.name: s.out for s in found} == {"bad": "worse than dense"}


def test_of_one_recorded_episode_nothing_is_sure():
    near, far = Entrant("near", 1, 0.3, ((0.1,),)), Entrant("far", 2, 0.4, ((0.2,),))
    assert [e.name for e in promising([near, far])] == ["near", "far"]


def test_the_table_says_why_a_setting_was_not_run():
    """Left out because another surely strays less, or because nothing was left to run it with."""
    sure = [Entrant(n, c, p, ((p * p,),) * 9) for n, c, p in (("a", 1, 0.2), ("hopeless", 2, 0.3), ("b", 3, 0.1))]
    ran = RaceStatus(sure[0], {("t", 0): True})
    told = Tuned("gflops", (4.0, 1.0), sure, [ran], (1, 30)).markdown().splitlines()
    line = {name: next(row for row in told if row.startswith(f"| {name}")) for name in ("hopeless", "b")}
    assert "surely strays less" in line["hopeless"] and "spent on others" in line["b"]


@pytest.mark.parametrize(("budget", "batch"), [(5, 10), (5, 0)])
def test_a_budget_without_a_batch_is_refused(budget, batch):
    with pytest.raises(ValueError, match=f"budget={budget} batch={batch}"):
        race([Entrant("a", 1, 1)], KEYS, {}, lambda e, k: {}, budget, batch)


GRID = ["model=toy", "bench=toy", "method=fastv", "method.layer=1,3", "method.keep=2,32", "episodes=4", "execute=4"]


def test_a_grid_on_the_toy_is_tuned_with_a_part_of_its_episodes_and_goes_on(tmp_path):
    """FastV keeps the light at any of these budgets, so the cheapest setting is the whole front."""
    found = tune(GRID, tmp_path, share=0.5, batch=2, cost="gflops")
    played, whole = found.episodes
    assert whole == 4 * 8 and 0 < played <= whole // 2
    costs = {e.name: e.cost for e in found.entrants}
    assert len(costs) == 4 and costs["fastv layer=1 keep=2"] < costs["fastv layer=3 keep=2"] < found.dense[0]
    assert [s.entrant.name for s in found.front] == ["fastv layer=1 keep=2"] and found.front[0].rate == 1.0
    assert "on the front" in found.markdown() and f"{played} episodes of the 32" in found.markdown()
    before = {p: p.read_bytes() for p in tmp_path.rglob("journal.jsonl")}
    again = tune(GRID, tmp_path, share=0.5, batch=2, cost="gflops")
    assert again.standings == found.standings
    assert all(p.read_bytes().startswith(old) for p, old in before.items())


def test_what_was_measured_before_a_race_is_not_measured_again_unless_something_is_another_one(tmp_path):
    """Milliseconds differ from one time to the next, and with them the order of the costs."""
    raced = partial(tune, share=0.5, batch=2)
    found = raced(GRID, tmp_path)
    assert raced(GRID, tmp_path) == found
    more = raced([*GRID[:4], "method.keep=2,16,32", *GRID[5:]], tmp_path)
    assert len(more.entrants) == 6
    costs = tmp_path / "costs.json"
    kept = json.loads(costs.read_text())
    assert {e["name"]: e["cost"] for e in kept["entrants"]} == {e.name: e.cost for e in more.entrants}
    costs.write_text(json.dumps(kept)[:-40])
    assert [e.name for e in raced(GRID, tmp_path).entrants] == [e.name for e in found.entrants]
    kept["subject"]["hardware"] = {"device": "another"}
    kept["entrants"] = []
    costs.write_text(json.dumps(kept))
    assert len(raced(GRID, tmp_path).entrants) == 4


class Uneven(Toy):
    """The toy world, whose tasks have 2 and 4 episodes."""

    def tasks(self):
        return [replace(task, episodes=count) for task, count in zip(super().tasks(), (2, 4), strict=True)]


def test_tasks_of_unequal_size_are_raced_on_the_episodes_that_all_have(tmp_path, capsys):
    words = ["model=toy", "bench=toy", f"bench._target_={__name__}.Uneven", "method=fastv", "method.keep=2,32"]
    found = tune([*words, "execute=4"], tmp_path, share=1.0, batch=1, cost="gflops")
    assert found.episodes == (8, 8) and {frozenset(s.success) for s in found.standings} == {
        frozenset((f"reach-{colour}", e) for colour in ("red", "blue") for e in range(2))
    }
    assert "the tasks have 2 to 4 episodes; the race plays the first 2 of every task" in capsys.readouterr().out


FORKS = WeakSet()


class Forks(SimulatedGraphs):
    """Only one user of a model has graphs at a time, and its attention is that of the named kernel."""

    def __init__(self):
        super().__init__()
        FORKS.add(self)

    def fork(self):
        return Forks()

    def clear(self):
        self._outputs.clear()

    def run(self, key, segment, *inputs):
        assert not any(other._outputs for other in FORKS if other is not self)
        assert not torch.backends.cuda.flash_sdp_enabled()
        return super().run(key, segment, *inputs)


def test_settings_that_are_measured_share_no_graphs(tmp_path, monkeypatch):
    monkeypatch.setattr("vlaprune.models.backends.with_backend", lambda model, name: with_segments(model, Forks()))
    rest, arms = config.arms([*GRID, "kernel=eager"])
    tried = _arms(rest, {" ".join(arm): arm for arm in arms})
    entrants, dense = _entrants(rest, tried, tmp_path / "seen.npz", 1, "gflops")
    assert len(entrants) == 4 and all(0 < e.cost < dense for e in entrants)


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys):
    for words, said in (
        (["model=toy", "bench=toy", "method=fastv", "method.keep=0.5"], "have one setting"),
        ([*GRID, "--share", "0"], "error: share=0.0; use a number above 0, up to 1"),
        ([*GRID, "--batch", "0"], "error: batch=0; use 1 or more"),
        ([*GRID, "--share", "0.01"], "less than one batch"),
        ([*GRID[:4], "method.keep=0.5,1.5", "episodes=2"], "keep=1.5"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main.main(["tune", *words, "--output", str(tmp_path)])
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert said in error and not list(tmp_path.iterdir())
