"""One version, in one place: every other file that states it agrees, and the release notes are found by it."""

import importlib.util
import tomllib
from pathlib import Path

import vlaprune

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("release", ROOT / "scripts" / "release.py")
release = importlib.util.module_from_spec(spec)
spec.loader.exec_module(release)


def test_every_file_states_the_version_of_the_package():
    assert set(release.stated().values()) == {vlaprune.__version__}
    assert "version" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dynamic"]


def test_the_notes_of_a_version_end_at_the_next_version():
    text = "# Changelog\n\n## 0.2.0 - 2027-01-01\n\nNew.\n\n### Added\n\n- A.\n\n## 0.1.0 - 2026-01-01\n\nOld.\n"
    assert release.notes(text, "0.2.0") == "New.\n\n### Added\n\n- A."
    assert release.notes(text, "0.1.0") == "Old."


def test_types_are_shipped():
    assert (ROOT / "vlaprune" / "py.typed").is_file()


def test_hooks_run_the_linter_that_ci_runs():
    pinned = [
        line for line in (ROOT / "scripts" / "constraints.txt").read_text().splitlines() if line.startswith("ruff==")
    ]
    assert (ROOT / ".pre-commit-config.yaml").read_text().count(pinned[0]) == 2
