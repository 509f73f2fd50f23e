"""Command lines of the README and of the guides: run where they are cheap, else composed, parsed or made dry."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from itertools import product
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser

from vlaprune import config
from vlaprune.commands import export, importing
from vlaprune.commands.main import OTHERS, SCRIPTS, main
from vlaprune.errors import UserError
from vlaprune.report import command as report

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMPOSED = ("eval", "profile", "train", "serve", "doctor", "tune")  # what takes KEY=VALUE
ELSEWHERE = {"cd", "docker", "git", "source", "sudo", "eval", "pytest"}  # other people's programs
WRITTEN = {"mine", "my_bench"}  # packages that a guide writes: `make fresh` does so
CLUSTER = "hydra/launcher=ray_cluster"  # its plugin is an extra of its own


def blocks(page):
    """Shell blocks of a page: those that say so, and unlabelled ones that begin with one of our commands."""
    for label, text in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.S | re.M):
        if label == "bash" or (not label and re.match(r"(vlaprune|pip|make)\b", text)):
            yield text


def lines(page):
    """Words of each command line of a page."""
    for text in blocks(page):
        for line in text.replace("\\\n", " ").splitlines():
            for part in line.split(" && "):
                if words := shlex.split(part, comments=True):
                    yield words


def ours(words):
    """The command and its arguments of a line of ours; None for another."""
    program = words[0].removeprefix(".venv/bin/")
    if program == "vlaprune":
        return words[1], words[2:]
    return (program.removeprefix("vlaprune-"), words[1:]) if program.startswith("vlaprune-") else None


EVERY = [(page, words) for page in PAGES for words in lines(page)]
OURS = [(page.name, *ours(words)) for page, words in EVERY if ours(words)]


def named(arguments):
    return " ".join(arguments) if isinstance(arguments, list) else None


def arms(overrides):
    """Every combination of the values that commas separate."""
    parser = OverridesParser.create()
    parsed = [(text, parser.parse_override(text)) for text in overrides]
    axes = [
        [f"{one.get_key_element()}={v}" for v in one.sweep_string_iterator()] if one.is_sweep_override() else [text]
        for text, one in parsed
    ]
    return [list(arm) for arm in product(*axes)]


def test_a_line_is_ours_or_of_a_known_program():
    for page, words in EVERY:
        command = ours(words)
        if command is None:
            program = words[0].removeprefix(".venv/bin/")
            assert program in {*ELSEWHERE, "make", "pip", "pre-commit"}, f"{page.name}: {' '.join(words)}"
        else:
            assert command[0] in {*SCRIPTS, *OTHERS}, f"{page.name}: {' '.join(words)}"


@pytest.mark.parametrize(("page", "command", "arguments"), [o for o in OURS if o[1] in COMPOSED], ids=named)
def test_what_takes_settings_is_composed_and_checked(page, command, arguments):
    """As `--cfg job` does, and further: every name, kind and range is checked, nothing is built."""
    if "--help" in arguments:
        return
    words = [a for a in arguments if "=" in a and not a.startswith("-")]
    name = command if command in SCRIPTS and command != "doctor" else "eval"
    for arm in arms(word for word in words if word != CLUSTER):
        given = [word for word in arm if word.partition("=")[2] not in WRITTEN]
        cfg, _ = config.composed(config.arguments(given), name)
        HydraConfig.instance().set_config(cfg)
        config.check(cfg, name)


@pytest.mark.parametrize(("page", "command", "arguments"), [o for o in OURS if o[1] in ("report", "export", "import")])
def test_other_options_are_parsed(page, command, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where there is no run
    if command == "report":
        report.parser().parse_args(arguments)
    else:
        with pytest.raises(UserError) as error:
            {"export": export, "import": importing}[command].main(arguments)
        assert "\n" not in str(error.value)


def test_targets_of_make_and_extras_of_pip_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for page, words in EVERY:
        if words[0] == "make":
            subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
        for group in re.findall(r"\[([\w,]+)\]", " ".join(words)) if words[0] == "pip" else ():
            assert set(group.split(",")) <= extras.keys(), page.name


def cheap(command, arguments):
    """Whether a line takes seconds and needs nothing: the toy world, lists, help, reports of what is there."""
    toys = {"model=toy", "bench=toy"} <= set(arguments) and not any(w in a for w in WRITTEN for a in arguments)
    return toys or "--help" in arguments or command in ("list", "watch", "report", "export", "completion")


def test_the_readme_and_the_first_pages_run_in_order(tmp_path, monkeypatch, capfd):
    """Cheap lines of README.md and docs/start.md in one folder, then the exports of docs/evaluating.md.

    The first runs as a program, the others in this process: torch is imported once.
    """
    monkeypatch.chdir(tmp_path)
    code = "from vlaprune.commands.main import main; main()"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = []
    for page in (ROOT / "README.md", ROOT / "docs" / "start.md", ROOT / "docs" / "evaluating.md"):
        for words in lines(page):
            command = ours(words)
            if command is None or not cheap(*command) or (page.name == "evaluating.md" and command[0] != "export"):
                continue
            line = shlex.join(["vlaprune", command[0], *command[1]])
            capfd.readouterr()
            if done:
                end = 0
                try:
                    main([command[0], *command[1]])
                except SystemExit as stop:
                    end = stop.code or 0
            else:
                end = subprocess.run([sys.executable, "-c", code, command[0], *command[1]], env=environment).returncode
            out, error = capfd.readouterr()
            assert end == 0, f"{page.name}: {line}\n{error}"
            assert out.strip(), line
            done.append(command[0])
    assert {"eval", "list", "report", "watch", "export"} <= set(done)
    assert (tmp_path / "report.html").stat().st_size and len(list(tmp_path.glob("results/runs/**/journal.jsonl"))) >= 3
