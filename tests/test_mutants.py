"""The score of mutants of which a part was tried: weighed by module, between bounds that hold the truth."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

SCRIPT = runpy.run_path(str(Path(__file__).resolve().parents[1] / "scripts" / "mutants.py"))
Mutant, table, drawn = SCRIPT["Mutant"], SCRIPT["table"], SCRIPT["drawn"]


def made(module, total, noticed, survived=0, unseen=0):
    """Mutants of a module, of which the first ones were tried."""
    status = ["killed"] * noticed + ["survived"] * survived + ["no tests"] * unseen
    return [Mutant(module, f"{module}.{i}", s) for i, s in enumerate(status + [None] * (total - len(status)))]


def scores(lines):
    """The last column of each row, by module, as numbers."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return {
        row[0].strip("`"): [float(x) for x in row[-1].replace("[", "").replace("]", "").replace(",", "").split()]
        for row in rows
    }


def test_mutants_that_were_all_tried_have_an_exact_score():
    lines = table(made("a", 10, 9, 1) + made("b", 30, 15, 10, 5) + made("untried", 50, 0))
    assert scores(lines) == {"a": [90.0], "b": [50.0], "all": [60.0]}
    assert "| 30 | 30 | 15 | 10 | 5 | 50.0 |" in lines[3]


def test_a_part_has_bounds_and_a_small_module_does_not_count_as_a_large_one():
    found = scores(table(made("small", 10, 5, 5) + made("large", 990, 99, 1)))
    assert found["small"] == [50.0] and found["all"][0] == pytest.approx(0.01 * 50 + 0.99 * 99, abs=0.06)
    assert found["large"][1] < 99.0 < found["large"][2] and found["all"][1] < found["all"][0] < found["all"][2]


def test_the_bounds_of_all_hold_the_truth_as_often_as_they_say():
    rng, held = np.random.default_rng(0), 0
    truth = {"a": (400, 0.95), "b": (900, 0.8), "c": (200, 0.6)}
    whole = sum(n * p for n, p in truth.values()) / sum(n for n, _ in truth.values())
    for _ in range(400):
        hits = {m: rng.hypergeometric(round(n * p), n - round(n * p), 40) for m, (n, p) in truth.items()}
        lines = table([one for m, (n, _) in truth.items() for one in made(m, n, int(hits[m]), 40 - int(hits[m]))])
        _, low, high = scores(lines)["all"]
        held += low <= 100 * whole <= high
    assert 0.92 <= held / 400 <= 0.98


def test_the_same_mutants_are_drawn_every_time_and_no_more_than_there_are(tmp_path):
    for module, count in (("a", 50), ("b", 3)):
        (tmp_path / f"{module}.py.meta").write_text(
            json.dumps({"exit_code_by_key": {f"{module}.{i}": None for i in range(count)}})
        )
    names = drawn(tmp_path, 5)
    assert names == drawn(tmp_path, 5) and len(set(names)) == 8
    assert {n for n in names if n.startswith("b.")} == {"b.0", "b.1", "b.2"}
