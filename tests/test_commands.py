"""The command `vlaprune`: help from comments, lists, watching, and packages that it writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vlaprune import cli
from vlaprune.commands import completion, lists, main, new, options, usage, watch
from vlaprune.records import EpisodeRecord, Header, Run

CONFIGS = Path(__file__).parents[1] / "configs"
GROUPS = ("model", "method", "bench", "experiment")


def said(capsys, *argv):
    """Exit code and output of one command line."""
    code = 0
    try:
        main.main(argv)
    except SystemExit as stop:
        code = stop.code or 0
    out = capsys.readouterr()
    return code, out.out + out.err


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_says_what_it_is_in_one_line(group):
    found = options.options(group)
    assert set(found) >= {p.stem for p in (CONFIGS / group).glob("*.yaml")}
    assert not [o.name for o in found.values() if len(o.about) < 20]


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_settings_are_those_that_yaml_reads(path):
    def flat(tree, prefix=""):
        for key, value in tree.items():
            if isinstance(value, dict) and f"{prefix}{key}" not in shown and value:
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    shown = {s.key: s for s in options.settings(path)}
    tree = {k: v for k, v in (yaml.safe_load(path.read_text()) or {}).items() if k not in ("defaults", "hydra")}
    read = {k: v for k, v in flat(tree) if not k.endswith("_target_")}
    base = options.defaults(path).get("") is not None
    assert set(read) <= set(shown) if base else set(read) == set(shown)
    assert all(yaml.safe_load(shown[k].value) == v for k, v in read.items())


def test_a_comment_sign_inside_a_value_is_no_comment(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text('# About.\na: "b # c"  # d\ne: f#g\nh:\n  i: [1, 2]   # j\n')
    assert [(s.key, s.value, s.about) for s in options.settings(path)] == [
        ("a", '"b # c"', "d"),
        ("e", "f#g", ""),
        ("h.i", "[1, 2]", "j"),
    ]


@pytest.mark.parametrize("name", ["eval", "profile", "train", "serve"])
def test_help_explains_every_setting_of_its_file(name):
    text = usage.usage(name, f"vlaprune {name}", ["method=ties"])
    for setting in options.settings(CONFIGS / f"{name}.yaml"):
        assert f"{setting.key}={setting.value}" in text
        assert setting.about.split()[:1] == [] or setting.about.split()[0] in text
    assert "Settings of method=ties" in text and "similarity to the anchor" in text  # from the class's docstring


def test_help_needs_neither_hydra_nor_torch():
    code = (
        "import sys; sys.argv = ['vlaprune', 'eval', '--help'];"
        "from vlaprune.commands.main import main; main();"
        "assert not {'torch', 'hydra', 'numpy', 'scipy', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_scripts_have_the_same_help(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/bin/vlaprune-profile", "--help"])
    cli.profile()
    assert capsys.readouterr().out.startswith("vlaprune-profile: ")


def test_a_misspelt_command_gets_one_line_with_what_was_meant(capsys):
    code, text = said(capsys, "evla")
    assert code == 2 and text.count("\n") == 1 and "did you mean eval" in text


def test_version_and_lists(capsys):
    assert said(capsys, "--version")[1].startswith("vlaprune 0.")
    assert said(capsys, "list", "methods", "--names")[1].split() == list(options.options("method"))
    assert "H100" in said(capsys, "list", "devices")[1]
    assert set(lists.rows("benches")) >= {"toy", "libero"}


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_a_script_that_bash_accepts(capsys, tmp_path, shell):
    completion.main([shell])
    text = capsys.readouterr().out.replace("autoload -U bashcompinit && bashcompinit\n", "")
    ask = 'COMP_LINE="vlaprune list mod"; COMP_POINT=17; _vlaprune; echo "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", f"{text}\n{ask}"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "models" and not done.stderr
    assert f'"{" ".join([*main.SCRIPTS, *main.OTHERS])}"' in text
    assert f'"{" ".join([*lists.GROUPS, "devices"])} --names"' in text


def test_a_bug_of_a_command_ends_with_code_1_and_leaves_its_traceback(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("vlaprune.errors.gettempdir", lambda: str(tmp_path))

    def broken(rest):
        raise ZeroDivisionError("of mine")

    monkeypatch.setitem(main.OTHERS, "list", (broken, ""))
    with pytest.raises(SystemExit, match="1"):
        main.main(["list"])
    assert "ZeroDivisionError: of mine" in capsys.readouterr().err
    assert "in broken" in (tmp_path / "error.log").read_text()


@pytest.mark.parametrize("name, problem", [("Mine", "small letters"), ("fastv", "exists already"), ("a__b", "single")])
def test_a_name_that_cannot_be_used_is_refused_before_anything_is_written(capsys, tmp_path, monkeypatch, name, problem):
    monkeypatch.chdir(tmp_path)
    code, text = said(capsys, "new", "method", name)
    assert code == 2 and problem in text and not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", new.KINDS)
def test_a_new_package_is_whole(kind):
    written = dict(new.files(kind, "my_own"))
    assert {"pyproject.toml", "README.md", "tests/test_my_own.py", "vlaprune_my_own/__init__.py"} <= set(written)
    assert not any("{{" in text or "{{" in where for where, text in written.items())
    about, target = written[f"vlaprune_my_own/configs/{kind}/my_own.yaml"].splitlines()[:2]
    assert about.startswith("# MyOwn: ") and target == "_target_: vlaprune_my_own.MyOwn"
    compile(written["vlaprune_my_own/__init__.py"], "vlaprune_my_own", "exec")


def run(done, asked, ended=(), **more):
    """A run with this many of the episodes asked for, which ended at these times."""
    times = [*ended, *[0.0] * (done - len(ended))]
    episodes = {("a", i): EpisodeRecord("a", i, i % 2 == 0, 5, (), ended=times[i]) for i in range(done)}
    return Run(Path("r"), Header({}, {}, {"a": asked}), episodes, **more)


def test_watch_says_what_is_left():
    assert watch.state(run(4, 4), 0.0) == "done"
    assert watch.state(run(3, 8, ended=(100.0, 110.0, 120.0)), 121.0) == "0:00:50 left"
    assert watch.state(run(3, 8, ended=(100.0, 110.0, 120.0)), 120.0 + 3600) == "no new episode for 1:00:00"
    assert watch.state(run(2, 8, stopped={"verdict": "worse"}), 0.0) == "stopped early: worse"
    assert "2/4" in watch.line(run(2, 4), "mine", 0.0) and " 50.0 %" in watch.line(run(2, 4), "mine", 0.0)


def test_watch_names_a_folder_without_runs(capsys, tmp_path):
    code, text = said(capsys, "watch", str(tmp_path))
    assert code == 2 and "no run" in text


@pytest.mark.parametrize("words", [["list"], ["--help"]])
def test_a_reader_that_hangs_up_is_no_error(words):
    """`vlaprune list | grep -q fastv`, which stops reading at the first line that it finds."""
    start = f"from vlaprune.commands import main; main.main({words})"
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", start]
    done = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=buffered)
    done.stdout.close()
    assert done.stderr.read() == "" and done.wait() == 0
