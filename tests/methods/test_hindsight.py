"""The hindsight oracle on a policy small enough to try every set of tokens, and one that sees what it needs."""

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
from handmade import tiny

from vlaprune.methods.dense import Dense
from vlaprune.methods.fastv import FastV
from vlaprune.methods.random import Random
from vlaprune.models.toy import Toy
from vlaprune.policy import Policy
from vlaprune.profile.fidelity import replay, score
from vlaprune.profile.gate import judge
from vlaprune.profile.hindsight import Search, alone, bounds, fill
from vlaprune.profile.page import Page
from vlaprune.profile.recording import Frame, Recording
from vlaprune.testing import random_observations, scenes


def test_it_finds_the_best_and_the_worst_of_all_sets():
    """16 tokens of a random policy, 120 pairs: near the first of all, and near the last."""
    model = tiny(("one",))
    (seen,) = random_observations(model.interface, 64, 1)
    search = Search(model, 0, 2, 160, np.ones(6))
    (dense,) = search.chunks(seen, [None], 1)
    every = [np.array(pair) for pair in combinations(range(16), 2)]
    errors = sorted(search.error(chunk, dense) for chunk in search.chunks(seen, every, 1))
    near, far = search.best(seen, 1), search.best(seen, 1, farthest=True)
    assert near.error <= errors[2] and far.error >= errors[-3]
    assert search.error(search.chunks(seen, [near.tokens], 1)[0], dense) == pytest.approx(near.error, abs=1e-5)
    assert len(near.tokens) == len(far.tokens) == 2 and Search(model, 0, 16, 8, np.ones(6)).best(seen, 1).error < 1e-5


def test_a_start_is_never_made_worse():
    model = tiny(("one",))
    (seen,) = random_observations(model.interface, 64, 1)
    full = Search(model, 0, 3, 400, np.ones(6)).best(seen, 1)
    assert Search(model, 0, 3, 1, np.ones(6)).best(seen, 1, start=[full.tokens]).error <= full.error + 1e-6


def test_every_method_lies_between_the_bounds():
    """On the toy, where the light's patches are all that counts, the oracle strays least and loses nothing."""
    model, seen = Toy(), scenes(0, 3, 3)
    recording = Recording([Frame(o, "reach-red", i, 0, "approach") for i, o in enumerate(seen)], {"bench": "toy"})
    dense = alone(model, recording, 7)
    scale = dense.chunks[..., :-1].std((0, 1)) + 1e-9
    found = bounds(model, recording, 3, 6, 40, scale, 7)
    errors = {name: score(recording, model.interface, dense, own).rmse for name, own in found.items()}
    for make in (lambda: FastV(keep=6), lambda: Random(3, 6)):
        own = score(recording, model.interface, dense, replay(Policy(model, make), recording, 7)).rmse
        assert errors["nearest"] - 1e-3 <= own <= errors["farthest"] + 1e-6
    assert errors["nearest"] < 0.01 < 0.3 < errors["farthest"]
    page, rules = Page("x"), SimpleNamespace(count=6, layer=3, trials=40, frames=2)
    arms = {"fastv": replay(Policy(model, lambda: FastV(keep=6)), recording, 7)}
    rows = fill(page, model, recording, arms, replay(Policy(model, Dense), recording, 7), rules, 7)
    assert [r["arm"] for r in rows] == ["nearest found", "fastv", "farthest found"]
    assert rows[0]["rmse"] <= rows[1]["rmse"] + 1e-3 < rows[2]["rmse"] and {r["visual"] for r in rows} == {35.0}
    assert found["nearest"].visual.tolist() == [35.0] * 3 and judge(model, recording, [], 7)


@pytest.mark.parametrize(("count", "trials", "said"), [(0, 8, "count=0"), (17, 8, "count=17"), (2, 0, "trials=0")])
def test_what_is_refused(count, trials, said):
    model = tiny(("one",))
    (seen,) = random_observations(model.interface, 64, 1)
    with pytest.raises(ValueError, match=said):
        Search(model, 0, count, trials, np.ones(6)).best(seen, 1)
