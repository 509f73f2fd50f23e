"""The table of parity: who takes part, and that a difference too large shows."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[1] / "scripts" / "parity.py"
SPEC = importlib.util.spec_from_file_location("parity_script", PATH)
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)


def test_tests_that_ask_for_the_fixture_take_part():
    named = script.taking_part()
    assert any(name.endswith("test_cogact.py::test_it_answers_what_microsofts_code_answers") for name in named)
    assert not any("test_parity.py" in name for name in named)


def test_a_row_shows_the_largest_difference_of_its_comparison():
    rows = [("b", "x", 1e-6, 2.0, 1e-5), ("b", "x", 3e-6, 1.0, 1e-5), ("a", "y", 1e-3, 1.0, 1e-5)]
    assert script.table(rows).splitlines()[2:] == [
        "| a | y | 1.0e-03 | 1 | 1.0e-05 | FAILS |",
        "| b | x | 3.0e-06 | 1 | 1.0e-05 | ok |",
    ]


def test_the_fixture_fails_where_the_difference_is_too_large(request):
    check = request.getfixturevalue("parity")
    check("it", "equal", [1.0, 2.0], [1.0, 2.0 + 1e-7], 1e-6)
    with pytest.raises(AssertionError, match="unequal"):
        check("it", "unequal", [1.0], [1.1], 1e-6)
