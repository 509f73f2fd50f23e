"""The commands: exit codes, and one clear line for what the user can mend."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from doubles import outcomes
from safetensors.torch import save_file

from vlaprune import cli
from vlaprune.records import encode, read

PROGRESS = re.compile("episode/s|s/episode")  # a bar says the one or the other, by how fast it is
TOY = ["model=toy", "bench=toy", "logger=csv", "episodes=2"]


@pytest.fixture
def call(tmp_path, monkeypatch, capfd):
    """Runs a command in this process; gives its exit code, what it printed and its lines of error."""

    def run(*argv, command="evaluate"):
        monkeypatch.setattr(sys, "argv", [f"vlaprune-{command}", *argv])
        monkeypatch.chdir(tmp_path)
        capfd.readouterr()
        code = 0
        try:
            getattr(cli, command)()
        except SystemExit as stop:
            code = stop.code
        out, err = capfd.readouterr()
        return (
            code,
            out,
            [line for line in err.replace("\r", "\n").splitlines() if line.strip() and not PROGRESS.search(line)],
        )

    return run


def one_line(errors, *shown):
    """Exactly one line, which says all of `shown`, and no traceback."""
    assert len(errors) == 1, errors
    assert all(text in errors[0] for text in shown), (errors[0], shown)


def test_a_run_ends_with_a_summary_and_where_the_files_are(call, tmp_path):
    code, out, errors = call(*TOY, "method=fastv", "output=run")
    assert (code, errors) == (0, [])
    assert "fastv keep=0.25: success 4/4" in out and "40.0 of 64 visual tokens" in out
    assert "run/journal.jsonl" in out and (tmp_path / "run" / "episodes.csv").is_file()
    run = read(tmp_path / "run")
    assert run.header.provenance["command"].startswith("vlaprune-evaluate model=toy")
    assert run.header.provenance["versions"]["torch"] == torch.__version__


def test_an_unknown_name_lists_what_there_is(call):
    for group, known in (("method", "fastv"), ("model", "tiny"), ("bench", "robosuite"), ("logger", "wandb")):
        code, _, errors = call(f"{group}=nosuch")
        assert code == 2
        one_line(errors, f"{group}=nosuch: use one of", known)


def test_an_unknown_key_is_named(call):
    for key in ("nosuch=1", "method.nosuch=1", "shard.nosuch=1"):
        code, _, errors = call(*TOY, key)
        assert code == 2
        one_line(errors, f"{key}: there is no such setting")


def test_a_misspelt_setting_of_an_experiment_is_named_and_one_that_others_refer_to_is_not(call, tmp_path):
    (tmp_path / "experiment").mkdir()
    for said, expected in (("episodess: 3", 2), ("count: 7\nseed: ${count}", 0)):
        (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{said}\n")
        code, _, errors = call("--config-dir", str(tmp_path), "experiment=mine", *TOY, "method=dense", "output=run")
        assert code == expected
        if expected:
            one_line(errors, "episodess=3: there is no such setting, and nothing refers to it; did you mean episodes?")


@pytest.mark.parametrize(
    ("override", "shown"),
    [
        ("experiment=dense_liberoo", "did you mean dense_libero?"),
        ("method=fastvv", "did you mean fastv?"),
        ("logger=[csv,wandbb]", "did you mean wandb?"),
        ("method.kep=0.5", "did you mean method.keep?"),
        ("+method.kep=0.5", "did you mean keep?"),
        ("episods=5", "did you mean episodes?"),
        ("+episods=5", "did you mean episodes?"),
        ("shard.cuont=2", "did you mean shard.count?"),
        ("+shard.cuont=2", "did you mean shard.count?"),
        ("metod=fastv", "did you mean method?"),
        ("+model.layerz=2", "did you mean layers?"),
    ],
)
def test_no_misspelling_is_ignored_and_none_leaves_a_folder(call, tmp_path, override, shown):
    code, _, errors = call("model=toy", "bench=toy", "method=fastv", "logger=csv", override)
    assert code == 2 and not list(tmp_path.iterdir())
    one_line(errors, override.lstrip("+"), shown)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (["method=dense"], "method=dense has no settings"),
        (["-m", "method=fastv,dense"], "not every one of method=fastv,dense has this setting"),
        (["-m", "method=dense,fastv"], "not every one of method=dense,fastv has this setting"),
    ],
)
def test_a_setting_that_a_choice_does_not_have_is_named_with_it(call, said, shown):
    code, _, errors = call(*said, "model=toy", "bench=toy", "method.keep=0.25")
    assert code == 2
    one_line(errors, "method.keep=0.25", shown)


PLUGIN = """
from vlaprune.methods.dense import Dense
from vlaprune.errors import UserError

class Broken(Dense):
    def __init__(self, way="name"):
        self.way = way
        if way == "option":
            raise UserError("method.way=option; use name or shape")
    def observe(self, trace):
        if self.way == "name":
            return undefined_word
        trace.images[0] @ trace.images[0].new_zeros(4, 4)
"""


@pytest.mark.parametrize(("way", "shown"), [("name", "NameError: name 'undefined_word'"), ("shape", "RuntimeError: ")])
def test_a_bug_of_a_plug_in_shows_its_own_file_and_line(call, tmp_path, way, shown):
    (tmp_path / f"broken_{way}.py").write_text(PLUGIN)
    mine = [f"method._target_=broken_{way}.Broken", f"method.way={way}"]
    code, _, errors = call(*TOY, *mine, "output=run")
    text = "\n".join(errors)
    line = 12 if way == "name" else 13
    assert code == 1 and f'broken_{way}.py", line {line}, in observe' in text and shown in text
    assert "the whole traceback is in run/error.log" in errors[-1] and "hydra" not in text
    assert "Traceback" in (tmp_path / "run" / "error.log").read_text()
    code, _, errors = call("-m", *TOY, *mine, "seed=1,2", "output=sweep/${seed}")
    text = "\n".join(errors)
    assert code == 1 and text.count(f'broken_{way}.py", line {line}') == 2 and "sweep/2/error.log" in text


def test_what_a_plug_in_says_of_its_options_is_one_line(call, tmp_path):
    (tmp_path / "broken_option.py").write_text(PLUGIN)
    code, _, errors = call(*TOY, "method._target_=broken_option.Broken", "method.way=option")
    assert code == 2
    one_line(errors, "error: method.way=option; use name or shape")


def test_an_import_that_fails_in_a_plug_in_is_its_own_cause(call, tmp_path):
    (tmp_path / "broken_import.py").write_text("import nothing_called_so\n" + PLUGIN)
    code, _, errors = call(*TOY, "method._target_=broken_import.Broken", "output=run")
    text = "\n".join(errors)
    assert code == 1 and 'broken_import.py", line 1' in text and "No module named 'nothing_called_so'" in text


@pytest.mark.parametrize(
    ("override", "shown"),
    [
        ("model=null", "model"),
        ("~method", "method"),
        ("method=1", "method=1: use one of"),
        ("output=null", "output=None; use a word"),
        ("+method._partial_=true", "method._partial_=True"),
        ("method._target_=builtins.dict", "method._target_=builtins.dict"),
        ("shard=null", "shard=None"),
        ("~seed", "seed"),
        ("seed=1e400", "seed=inf"),
        ("time_limit=-1", "time_limit=-1"),
        ("method.keep=[", "method.keep=["),
        ("method.=1", "method.=1"),
        ("bench.image=???", "bench"),
        ("seed=${nowhere}", "nowhere"),
        ("=", "KEY=VALUE"),
    ],
)
def test_families_of_nonsense_are_one_line_each(call, tmp_path, override, shown):
    code, _, errors = call("model=toy", "bench=toy", "logger=csv", override)
    assert code == 2 and not list(tmp_path.iterdir())
    one_line(errors, shown)


def test_an_output_that_cannot_be_a_folder_is_one_line(call, tmp_path):
    (tmp_path / "file").write_text("x")
    code, _, errors = call(*TOY, "output=file")
    assert code == 2
    one_line(errors, "file")


@pytest.mark.parametrize(
    ("override", "shown"),
    [
        ("method.keep=1.5", ["keep=1.5 is no budget", "fraction in (0, 1]"]),
        ("method.keep=0", ["keep=0 is no budget"]),
        ("method.keep=1000", ["keep=1000 asks for more than the 64 visual tokens"]),
        ("method.keep=half", ["method.keep=half; use a number"]),
        ("method.layer=99", ["FastV prunes before layers [99]", "toy has layers 0..5"]),
        ("method.rows=nosuch", ["rows=nosuch", "use one of last"]),
        ("+method.nosuch=1", ["FastV", "nosuch=1"]),
        ("method._target_=no.such.Method", ["no.such.Method"]),
        ("episodes=0", ["episodes=0", "has 1..50"]),
        ("episodes=51", ["episodes=51", "has 1..50"]),
        ("execute=99", ["execute=99", "toy plans 1..4 actions a call"]),
        ("execute=0", ["execute=0"]),
        ("slots=0", ["slots=0; use a whole number, not below 1"]),
        ("shard.index=2", ["shard.index=2 of shard.count=1"]),
        ("model.style=nosuch", ["toy style=nosuch; use one of parallel, autoregressive"]),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(call, override, shown):
    code, _, errors = call(*TOY, "method=fastv", "output=run", override)
    assert code == 2
    one_line(errors, *shown)


@pytest.mark.parametrize(
    "override",
    ["episodes=two", "execute=two", "slots=1.5", "seed=x", "shard.index=a", "time_limit=long", "method.layer=two"],
)
def test_a_word_in_place_of_a_number_is_refused_in_one_line_that_names_it(call, override):
    code, _, errors = call(*TOY, "method=fastv", "output=run", override)
    assert code == 2
    one_line(errors, override.removeprefix("method."))


def test_weights_that_are_not_ours_are_refused_in_one_line(call, tmp_path):
    fuse = tmp_path / "executed"
    bomb = type("Bomb", (), {"__reduce__": lambda self: (open, (str(fuse), "w"))})
    globals()["Bomb"], bomb.__module__, bomb.__qualname__ = bomb, __name__, "Bomb"
    (tmp_path / "pickle").write_bytes(pickle.dumps(bomb()))
    (tmp_path / "noise").write_bytes(os.urandom(4000))
    save_file({"a": torch.zeros(3)}, tmp_path / "foreign")
    save_file({"a": torch.zeros(3)}, tmp_path / "misfit", {"vlaprune": "{}"})
    for name, shown in (
        ("pickle", "no safetensors file"),
        ("noise", "damaged"),
        ("foreign", "no vlaprune card"),
        ("misfit", "do not fit Tiny"),
        ("absent", "do not exist"),
    ):
        code, _, errors = call("model=tiny", f"model.weights={tmp_path / name}", "bench=toy")
        assert code == 2
        one_line(errors, "weights", name, shown)
    assert not fuse.exists()


def test_a_model_and_a_benchmark_that_do_not_fit_are_refused_in_one_line(call):
    code, _, errors = call(
        "model=tiny", "model.weights=random", "bench=toy", "bench.cameras=[main]", "bench.state=position2"
    )
    assert code == 2
    one_line(
        errors,
        "model tiny and bench toy do not fit",
        "cameras ('primary', 'wrist') vs ('main',)",
        "state ",
    )


def test_another_run_in_the_folder_is_refused_and_left_alone(call, tmp_path):
    assert call(*TOY, "method=random", "output=run")[0] == 0
    before = (tmp_path / "run" / "journal.jsonl").read_bytes()
    code, _, errors = call(*TOY, "method=random", "method.keep=0.5", "output=run")
    assert code == 2
    one_line(errors, "run holds another run (method.keep 0.25 -> 0.5)", "choose another output=")
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == before


def test_a_run_that_is_asked_for_less_says_what_it_holds(call, tmp_path):
    few = [*TOY, "method=random", "method.keep=0.05", "output=run"]
    assert call(*few, "episodes=3")[0] == 0
    code, out, _ = call(*few, "episodes=1")
    won = sum(record.success for record in read(tmp_path / "run").episodes.values())
    assert code == 0 and "run holds 4 more episodes than the 2 x 1 asked for" in out
    assert 0 < won < 6 and f"success {won}/6" in out
    assert len((tmp_path / "run" / "episodes.csv").read_text().splitlines()) == 1 + 6


def test_by_default_every_setting_that_matters_has_a_folder_of_its_own(call, tmp_path):
    for override in ("method.keep=0.5", "method.keep=0.25", "seed=8", "episodes=1"):
        assert call(*TOY, "method=random", override)[0] == 0
    assert {p.parent.name for p in tmp_path.glob("results/runs/toy/toy/*/journal.jsonl")} == {
        "random,method.keep=0.5",
        "random,method.keep=0.25",
        "random,seed=8",
        "random",
    }


def test_a_world_that_raises_leaves_the_rest_and_ctrl_c_what_is_done(call, tmp_path):
    code, _, errors = call(*TOY, "method=dense", "bench._target_=doubles.Flawed", "output=raised")
    assert code == 2 and "2 episodes raised twice" in errors[-1] and "same command again" in errors[-1]
    assert len(read(tmp_path / "raised").episodes) == 2 and "Traceback" not in "".join(errors)
    stopped = ["bench._target_=doubles.Flawed", "+bench.stopped=true", "output=stopped"]
    code, out, errors = call(*TOY, "method=dense", *stopped)
    assert code == 130 and len(read(tmp_path / "stopped").episodes) == 1
    assert not errors and "stopped with 1 of 4 episodes in stopped; the same command goes on" in out


@pytest.mark.parametrize("override", ["max_batch=0", "method.layer=[1]"])
def test_a_setting_of_another_kind_is_refused_before_a_folder_is_made(call, tmp_path, override):
    code, _, errors = call(*TOY, "method=fastv", "output=run", override)
    assert code == 2 and not list(tmp_path.iterdir())
    one_line(errors, f"{override}; use a whole number")


def test_a_sweep_leaves_nothing_but_its_runs_where_the_user_stands(call, tmp_path):
    assert call("-m", *TOY, "method=sparsevlm", "method.keep=0.5,0.25")[0] == 2 and not list(tmp_path.iterdir())
    assert call("-m", *TOY, "method=dense", "episodes=1", "seed=1,2", "output=sweep/${seed}")[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"sweep"}
    (tmp_path / "multirun.yaml").write_text("mine")
    assert call("-m", *TOY, "method=nosuch,dense")[0] == 2 and (tmp_path / "multirun.yaml").exists()


def test_a_learnt_method_without_weights_says_so_and_others_do_not(call):
    warned = {}
    for method in ("lightvla_star", "lightvla", "fastv"):
        code, out, errors = call(*TOY, f"method={method}", "episodes=1", f"output={method}")
        assert code == 0
        warned[method] = "\n".join([out, *errors]).count("weights=random: it is not trained")
    assert warned == {"lightvla_star": 1, "lightvla": 0, "fastv": 0}


def test_a_model_that_cannot_be_trained_is_refused_with_those_that_can(call, tmp_path):
    code, _, errors = call("model=toy", "bench=toy", command="train")
    assert code == 2 and not list(tmp_path.iterdir())
    one_line(errors, "model Toy has no weights to train; use model=tiny")


def test_backends_that_do_not_run_are_refused_before_anything_is_recorded(call, tmp_path):
    for backends, said in (
        ("[foo]", "backend 'foo' is not one of"),
        ("[flash]", "no backend that runs on cpu; use sdpa"),
    ):
        code, _, errors = call(
            "model=toy", "bench=toy", f"backends={backends}", "observations=seen.npz", command="profile"
        )
        assert code == 2 and not list(tmp_path.iterdir())
        one_line(errors, said)


def test_a_sweep_goes_on_past_a_job_that_fails_and_exits_with_2(call, tmp_path):
    output = "output=sweep/${method.layer}"
    code, out, errors = call("-m", *TOY, "method=fastv", "method.layer=1,99,2", output)
    assert code == 2 and sum("FastV prunes before layers [99]" in e for e in errors) == 1
    arms = [e for e in errors if "4/4 = 100.0 % [51.0, 100.0]" in e]  # a line for each, and a table of all
    assert len(arms) == 2 and all(e.endswith("done") for e in arms) and "method.layer=2" in arms[1]
    assert len(re.findall(r"100\.0 +4/4", out)) == 2 and "Traceback" not in "".join(errors)
    assert {p.parent.name for p in tmp_path.glob("sweep/*/journal.jsonl")} == {"1", "2"}


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_sweep_runs_through_a_launcher(call, tmp_path, launcher):
    """Jobs in processes of their own; one of three fails, the others are as if alone, the exit code says so."""
    pytest.importorskip(
        "hydra_plugins.hydra_joblib_launcher" if launcher == "joblib" else "hydra_plugins.hydra_submitit_launcher"
    )
    argv = [
        "-m",
        *TOY,
        "method=random",
        "method.layer=0,99,1",
        "output=sweep/${method.layer}",
        f"hydra/launcher={launcher}",
    ]
    argv += ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    command = [sys.executable, "-c", "from vlaprune.cli import evaluate; evaluate()", *argv]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    said = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert said.returncode == 2, said.stderr
    assert said.stderr.count("Random prunes before layers [99]") == 1 and "Traceback" not in said.stderr
    assert len(re.findall(r"100\.0 +4/4", said.stdout)) == 2
    assert call(*TOY, "method=random", "method.layer=1", "output=alone")[0] == 0
    assert outcomes(read(tmp_path / "sweep" / "1")) == outcomes(read(tmp_path / "alone"))
    assert not read(tmp_path / "sweep" / "0").missing


def test_recorded_episodes_are_filmed_again_and_the_journal_is_left_alone(call, tmp_path):
    run = [*TOY, "method=random", "output=run", "execute=1"]
    assert call(*run)[0] == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()}
    code, out, errors = call(*run, "only=[reach-red:1,reach-blue:0]", "video=all")
    assert (code, errors) == (0, []) and out.count("as recorded") == 2
    assert {p.name for p in (tmp_path / "run" / "videos").iterdir()} == {"reach-red-0001.mp4", "reach-blue-0000.mp4"}
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()} == before
    for wrong, shown in (
        (["only=[reach-red:1]"], "add video=all"),
        (["only=[reach-red:9]", "video=all"], "only=reach-red:9; run holds no such episode"),
        (["only=won", "video=all"], "use lost, or a list such as only=[reach-red:0]"),
        (["only=lost", "video=all", "seed=8"], "run holds another run (seed 7 -> 8)"),
        (["only=lost", "video=all", "output=nowhere"], "nowhere holds no run"),
        (["video=some"], "video=some; use one of none, failures, all"),
    ):
        code, _, errors = call(*run, *wrong)
        assert code == 2
        one_line(errors, shown)
    assert not (tmp_path / "nowhere" / "journal.jsonl").exists()


def test_lost_episodes_are_filmed_by_one_word_and_another_outcome_adds_no_film_and_takes_none(call, tmp_path):
    run = [*TOY, "method=random", "output=run", "bench._target_=doubles.Bench", "+bench.limit=1", "execute=1"]
    assert call(*run)[0] == 0
    lost = [key for key, record in read(tmp_path / "run").episodes.items() if not record.success]
    assert call(*run, "only=lost", "video=all")[0] == 0
    films = {path: path.read_bytes() for path in (tmp_path / "run" / "videos").iterdir()}
    assert len(films) == len(lost) > 1
    gone = next(iter(films))
    gone.unlink()
    del films[gone]
    journal = tmp_path / "run" / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    for line in lines:
        line.pop("crc")
    told = [line | ({"steps": 2} if line["kind"] == "episode" else {}) for line in lines]
    journal.write_bytes(b"".join(map(encode, told)))
    code, out, errors = call(*run, "only=lost", "video=all")
    assert code == 2 and f"{len(lost)} episodes did not end as recorded" in errors[-1]
    assert "no film of it" in out
    assert {path: path.read_bytes() for path in (tmp_path / "run" / "videos").iterdir()} == films


def test_a_run_is_ended_by_rule_and_stands_so_in_the_table(call, tmp_path):
    toy = [*TOY[:3], "episodes=10", "execute=1"]
    assert call(*toy, "method=dense", "output=runs/dense")[0] == 0
    for wrong, shown in (
        ("stop=soon", "stop=soon; use anytime"),
        ("stop=anytime", "add baseline=FOLDER"),
        ("baseline=nowhere", "nowhere holds no run"),
        ("shard.count=2", "the rule must see all episodes"),
    ):
        rest = [wrong] if "stop" in wrong else ["stop=anytime", "baseline=runs/dense", wrong]
        code, _, errors = call(*toy, "method=random", "output=runs/random", *rest)
        assert code == 2 and not (tmp_path / "runs" / "random" / "journal.jsonl").exists()
        one_line(errors, shown)
    code, _, errors = call(*toy, "method=random", "output=runs/random", "baseline=runs/dens")  # without a rule too
    assert code == 2 and not (tmp_path / "runs" / "random").exists()
    one_line(errors, "baseline: runs/dens holds no run")
    rule = ["stop=anytime", "baseline=runs/dense", "method._target_=doubles.Blind", "output=runs/blind"]
    code, out, errors = call(*toy, "method=dense", *rule)
    run = read(tmp_path / "runs" / "blind")
    n = len(run.episodes)
    assert (code, errors) == (0, []) and f"stopped by rule after {n} of 20 episodes: worse than runs/dense" in out
    assert 8 <= n < 20 and run.stopped["lost"] >= 8
    code, out, errors = call("runs", command="report")
    assert (code, errors) == (0, []), errors
    assert "doubles.Blind‡" in out and "stopped: worse" in out and f"/{n} " in out
    assert "takes no part" in " ".join(out.split())
    code, out, errors = call(*toy, "method=dense", *rule)  # it stays stopped
    assert code == 0 and len(read(tmp_path / "runs" / "blind").episodes) == n


def test_a_sweep_over_suites_prints_a_table_of_each(call):
    sides = "model.side=4,8"
    code, out, errors = call("-m", *TOY, "method=dense,random", sides)
    assert code == 0 and out.count("\ndense ") == out.count("\nrandom ") == 2 and "no table" not in "".join(errors)
    assert "model.side 4 -> 8:" in out


def test_dense_is_held_against_itself_by_one_word(call, tmp_path):
    code, out, errors = call("experiment=aa", *TOY, "execute=1")
    assert code == 0 and len(list(tmp_path.glob("results/runs/aa/toy/toy/*/journal.jsonl"))) == 4
    assert len([e for e in errors if "slots=" in e and e.endswith("done")]) == 4
    assert "slots 1 -> 4: 0 of 4 episodes end otherwise" in out and "kernel sdpa -> eager: 0 of 4" in out
    code, _, errors = call(*TOY, "method=dense", "kernel=fast", "output=run")
    assert code == 2
    one_line(errors, "'fast' is not one of")


def test_before_a_run_starts_it_says_what_it_can_show(call):
    _, out, _ = call(*TOY, "method=dense", "output=run")
    assert out.index("with 2 episodes per task on 2 tasks you can see") < out.index("success 4/4")


def test_no_empty_log_is_left(call, tmp_path):
    assert call(*TOY, "method=dense", "output=run")[0] == call("-m", *TOY, "method=dense", "output=sweep")[0] == 0
    assert not list(tmp_path.glob("**/*.log"))


def test_training_refuses_what_cannot_be_learnt(call):
    code, _, errors = call("model=tiny", "bench=toy", command="train")
    assert code == 2
    one_line(errors, "bench toy has no scripted experts", "bench=robosuite")


def test_the_console_scripts_are_installed(tmp_path):
    script = Path(sys.executable).with_name("vlaprune-eval")
    if not script.is_file():
        pytest.skip("not installed in this environment")
    said = subprocess.run([script, "method=nosuch"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert said.returncode == 2 and " fastv, " in said.stderr


def test_the_toy_world_follows_the_model(call):
    small = ["model.weights=random", "model.width=32", "model.layers=2", "model.heads=2", "model.vision_width=32"]
    code, _, errors = call("model=tiny", *small, "bench=toy", "method=dense", "logger=csv", "episodes=1", "output=run")
    assert code == 0, errors


def test_the_papers_command_says_what_is_missing_in_one_line_before_any_weights_are_loaded(call):
    code, _, errors = call("model=cogact", "method=ties", "bench=simpler", "logger=csv", "output=run")
    assert code == 2
    one_line(errors, "error: bench simpler-ms2", "mani_skill2_real2sim", "docs/simpler.md", "bench.python=PATH")


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["method=lightvla", "recipe.steps=5"], "recipe.steps=5 is not read here; set tuning.recipe.steps"),
        (["tuning.noise=0.5"], "tuning.noise=0.5 is not read here; it belongs to a method that is learnt"),
        (
            ["method=lightvla", "model.weights=robosuite", "tuning.weights=robosuite_moving"],
            "say both what training begins with; leave one out",
        ),
        (["recipe.seed=-1"], "recipe.seed=-1; use 0 or more"),
        (["teaching.rounds=-1"], "teaching.rounds=-1; use 0 or more"),
        (["+teaching.weights.Lifd=2"], "teaching.weights of ['Lifd']; bench robosuite has ['Lift'"),
    ],
)
def test_a_training_that_would_not_read_a_setting_is_refused_before_anything_is_recorded(call, tmp_path, words, shown):
    code, _, errors = call("model=tiny", "bench=robosuite", f"data={tmp_path}/data", *words, command="train")
    assert code == 2 and not (tmp_path / "data").exists()
    one_line(errors, shown)


def test_jobs_of_a_sweep_that_differ_in_what_names_no_folder_are_refused(call, tmp_path):
    """Else the second would find its episodes done by the first, and the table would show one row as if of both."""
    code, _, errors = call("-m", *TOY, "method=random", "slots=1,2", "output=runs/${hydra:runtime.choices.method}")
    assert code == 2 and any("write to the same folder, runs/random" in line for line in errors)
    assert len(read(tmp_path / "runs" / "random").episodes) == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [(["name=a/b"], "name=a/b names a folder"), (["output=file/pages"], "file is no folder that can be written to")],
)
def test_a_page_that_cannot_be_written_is_refused_before_anything_is_measured(call, tmp_path, words, said):
    (tmp_path / "file").write_text("")
    code, _, errors = call("model=toy", "bench=toy", "observations=noise", *words, command="profile")
    assert code == 2 and [p.name for p in tmp_path.iterdir()] == ["file"]
    one_line(errors, said)
