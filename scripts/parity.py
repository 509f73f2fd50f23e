#!/usr/bin/env python
"""Runs the tests that compare with other people's code and writes results/parity.md: `python scripts/parity.py`.

A test takes part by the fixture `parity` (tests/conftest.py). Nothing is typed in by hand but what was not run.
"""

from __future__ import annotations

import ast
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "results" / "parity.md"
PACKAGES = ("torch", "transformers", "numpy")
ABOUT = """# Parity: this package against other people's code

`python scripts/parity.py` runs the tests that compare and writes this file. Each row is one comparison in fp32 on a
CPU, the same weights and the same input on both sides: SmolLM2 (smol) with published weights, all else with random ones
at a reduced size. "Recorded" means that the authors' own code answered in an environment of its own
(`scripts/record_golden.py`) and that its answer is in `tests/golden`; everything else runs live. `on a scale of` is the
largest number of the other side.
"""
NOT_RUN = (
    ("published weights of OpenVLA, OpenVLA-OFT, CogACT, pi0, pi0.5", "no checkpoint was on the machine"),
    ("bf16, CUDA kernels", "the machine has no GPU; `pytest -m gpu` where there is one"),
    ("Llama-2's and PaliGemma's own tokenizers", "they come with the checkpoints, and are checked when one is loaded"),
    ("values at full depth and width, save SmolLM2", "names and shapes are checked at full size (`tests/manifests`)"),
)


class Collector:
    """Gathers what tests recorded, in the order they ran."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, float, float, float]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Takes the rows of a test that is over."""
        if report.when == "call":
            self.rows += [value for name, value in report.user_properties if name == "parity"]


def taking_part() -> list[str]:
    """Test functions that ask for the fixture, as pytest names them."""
    out = []
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and "parity" in [a.arg for a in node.args.args]:
                out.append(f"{path}::{node.name}")
    return out


def table(rows: list[tuple[str, str, float, float, float]]) -> str:
    """One line a comparison; those of one name are one line, with their largest difference."""
    worst: dict[tuple[str, str], tuple[float, float, float]] = {}
    for model, what, *numbers in rows:
        worst[model, what] = max(worst.get((model, what), (-1.0, 0.0, 0.0)), tuple(numbers))  # type: ignore[assignment]
    lines = ["| model | compared with | largest difference | on a scale of | allowed | |", "|" + " --- |" * 6]
    for (model, what), (difference, scale, allowed) in sorted(worst.items()):
        verdict = "ok" if difference <= allowed else "FAILS"
        lines.append(
            f"| {model} | {what} | {difference:.1e} | {f'{scale:.3g}' if scale else ''} | {allowed:.1e} | {verdict} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Writes the table; the exit code is that of the tests."""
    collector = Collector()
    options = ["-q", "-m", "not gpu", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    code = pytest.main([*options, *taking_part()], plugins=[collector])
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    absent = "\n".join(["| what | why |", "| --- | --- |", *(f"| {what} | {why} |" for what, why in NOT_RUN)])
    OUT.write_text(f"{ABOUT}\n{versions}.\n\n{table(collector.rows)}\n\n## Not run here\n\n{absent}\n")
    print(OUT)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
