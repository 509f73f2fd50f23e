"""The doctor on faked environments: what it says, what it counts, how it exits."""

import json
import sys
from collections import namedtuple

import pytest

from vlaprune import cli
from vlaprune.benchmark import Finding, Interface
from vlaprune.doctor import main as doctor
from vlaprune.doctor.checks import graphics, machine, models
from vlaprune.doctor.checks.probe import ask
from vlaprune.errors import UserError

TOY = ["model=toy", "bench=toy"]
MODELS = models.models  # before a fixture puts another one in its place


def broken(*_, **__):
    raise UserError("it broke")


def answers(text):
    return lambda *_, **__: text


# -- the probe


def test_a_probe_gives_the_last_line_and_passes_the_environment():
    assert ask("print('noise'); import os; print(os.environ['COLOUR'])", env={"COLOUR": "red"}) == "red"


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("import nosuch", "ModuleNotFoundError: No module named 'nosuch'"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed (SIGSEGV)"),
        ("raise SystemExit(3)", "exit code 3"),
    ],
)
def test_a_probe_that_fails_says_how_in_one_line(code, shown):
    with pytest.raises(UserError) as error:
        ask(code)
    assert str(error.value) == shown


def test_a_probe_that_hangs_or_is_no_program():
    with pytest.raises(UserError, match="no answer within 0 s"):
        ask("import time; time.sleep(9)", seconds=0.1)
    with pytest.raises(UserError, match="no program here"):
        ask("1", python="/nosuch/python")


# -- the machine


def test_this_machine_can_run_the_tests():
    assert machine.python().ok and machine.memory().ok


def test_a_full_disk_is_a_problem(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "not" / "yet"))
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage(1e12, 1e12, 1e8))
    assert not machine.disk().ok and "make room" in machine.disk().said
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage(1e12, 0, 1e12))
    assert machine.disk().ok


def test_a_torchvision_that_cannot_be_loaded_is_a_problem(monkeypatch, tmp_path):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = machine.torchvision()
    assert not found.ok and "nms does not exist" in found.said and "pip uninstall torchvision" in found.said
    (package / "__init__.py").write_text("__version__ = '0.28'")
    assert machine.torchvision() == Finding("torchvision", "0.28")


def test_transformers_of_another_version_or_patched_is_a_problem(monkeypatch):
    monkeypatch.setattr(machine, "ask", answers("4.53.2"))
    assert not machine.transformers().ok
    monkeypatch.setattr(machine, "ask", answers("5.23.0"))
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    assert machine.transformers() == Finding("transformers", "5.23.0")
    monkeypatch.setattr(machine, "find_spec", lambda name: name == "transformers.models.siglip.check" or None)
    assert "another project" in machine.transformers().said and not machine.transformers().ok


@pytest.mark.parametrize("check", [machine.torch, machine.transformers, machine.gpu, graphics.egl, graphics.osmesa])
def test_what_cannot_be_loaded_is_a_problem_with_a_remedy(check, monkeypatch):
    monkeypatch.setattr(machine, "ask", broken)
    monkeypatch.setattr(graphics, "ask", broken)
    found = check()
    assert not found.ok and found.said.startswith("it broke; ") and len(found.said) > len("it broke; ")


# -- graphics


def test_vulkan_answers_whatever_is_installed():
    assert "drivers" in graphics.vulkan().said


def test_the_renderer_is_looked_at_in_the_simulators_interpreter(monkeypatch):
    looked = {}
    for name in graphics.CHECKS:
        look = lambda python, name=name: looked.update({name: python}) or Finding(name, "there")  # noqa: E731
        monkeypatch.setitem(graphics.CHECKS, name, look)
    title, needed, found = list(doctor.sections(["model=toy", "bench=libero", "bench.python=/their/python"]))[2]
    assert (title, needed) == ("graphics", {"EGL"}) and len(list(found)) == 1
    assert looked == {"egl": "/their/python"}  # only what was asked for
    assert len(list(list(doctor.sections(["model=toy"]))[2][2])) == 3
    assert looked == {"egl": sys.executable, "osmesa": sys.executable, "vulkan": sys.executable}


def test_a_vulkan_device_without_the_extension_is_told_apart(monkeypatch):
    monkeypatch.setattr(graphics, "ask", answers("llvmpipe driver 26.1.6"))
    assert graphics.vulkan().ok
    monkeypatch.setattr(graphics, "ask", answers("llvmpipe driver 25.0.7 without VK_KHR_external_semaphore_fd"))
    assert not graphics.vulkan().ok and "SAPIEN 2.2.2 does not" in graphics.vulkan().said


def test_a_driver_file_that_names_a_missing_library_is_shown(monkeypatch, tmp_path):
    whole, hollow, torn = (tmp_path / f"{name}.json" for name in ("whole", "hollow", "torn"))
    whole.write_text(json.dumps({"ICD": {"library_path": "libvulkan_lvp.so"}}))
    hollow.write_text(json.dumps({"ICD": {"library_path": "/nosuch/lib.so"}}))
    torn.write_text("{")
    monkeypatch.setenv("VK_DRIVER_FILES", f"{whole}:{hollow}:{torn}")
    assert graphics.drivers() == (
        f"drivers {whole}, {hollow} (names /nosuch/lib.so, which is not there), {torn} (unreadable)"
    )


# -- models


class Model:
    """What a model's constructor does about its files, in two lines."""

    def __init__(self, weights, device, size=1):
        assert device == "meta"
        if weights is None:
            raise ValueError(
                "tokenizer some/words: some/words is no path here and the hub cannot be reached (it is offline)"
            )
        if weights == "torn":
            raise ValueError("weights torn lack shard 2 of 3;\n download it again")


NODE = {"_target_": f"{__name__}.Model", "device": "auto"}


def test_a_model_is_built_without_memory_and_says_what_is_wrong(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert models.model(NODE | {"weights": "random"}) == ("random weights, no files needed", True, None)
    torn = "weights torn lack shard 2 of 3; download it again"
    assert models.model(NODE | {"weights": "torn"}) == (torn, False, None)
    assert models.model(NODE | {"weights": "fine"}) == ("fine is complete and would load", True, None)
    said, fine, _ = models.model(NODE | {"weights": None})
    assert not fine and said == (
        "some/words is not on this machine; hf download some/words --local-dir FOLDER, then model.tokenizer=FOLDER"
    )
    said, fine, _ = models.model(NODE | {"weights": "nobody/nothing"})
    assert not fine and "nobody/nothing is not on this machine; hf download nobody/nothing" in said
    (tmp_path / "nobody" / "nothing").mkdir(parents=True)
    assert models.model(NODE | {"weights": "nobody/nothing"})[1]


def test_models_are_looked_at_offline_and_the_hub_is_asked_only_when_told(monkeypatch):
    asked = []
    monkeypatch.setattr(models, "on_hub", lambda name: asked.append(name) or "gated")
    monkeypatch.setattr(
        models,
        "ask",
        lambda code, env, seconds: json.dumps(
            [["nobody/nothing@v1 is not on this machine; fetch", False, None], ["x", False, None]]
        ),
    )
    nodes = {"one": NODE | {"weights": "nobody/nothing@v1"}, "two": NODE | {"weights": "random"}}
    gone = "nobody/nothing@v1 is not on this machine; fetch"
    assert [f.said for f in models.models(nodes, hub=False)] == [gone, "x"] and not asked
    assert [f.said for f in models.models(nodes, hub=True)] == [f"{gone} (gated)", "x"]
    assert asked == ["nobody/nothing"]


def test_the_models_of_this_package_that_need_no_download_would_load():
    nodes = {"toy": {"_target_": "vlaprune.models.toy.Toy"}}
    nodes["tiny"] = {"_target_": "vlaprune.models.tiny.Tiny", "weights": "robosuite", "device": "auto"}
    assert [f.line(True) for f in models.models(nodes, hub=False)] == [
        "  ok      toy: needs no files",
        "  ok      tiny: robosuite is complete and would load",
    ]


# -- the whole


@pytest.fixture
def consult(monkeypatch, capsys):
    """Runs the command on faked checks; gives exit code and lines."""
    monkeypatch.setattr(machine, "CHECKS", [lambda: Finding("python", "3.11")])
    monkeypatch.setattr(graphics, "CHECKS", {"egl": lambda python: Finding("EGL", "none; install it", ok=False)})
    monkeypatch.setattr(models, "models", lambda nodes, *_: [Finding(n, "gone; fetch", ok=n == "toy") for n in nodes])

    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["vlaprune-doctor", *argv])
        with pytest.raises(SystemExit) as stop:
            cli.doctor()
        out, err = capsys.readouterr()
        return stop.value.code, out.splitlines(), err.splitlines()

    return run


def test_only_what_the_chosen_run_needs_decides_the_exit_code(consult):
    code, out, _ = consult(*TOY)
    assert code == 0 and out[-1] == "no problems for model=toy method=fastv bench=toy"
    assert "tiny" not in str(out) and "EGL" not in str(out)  # only what was asked for
    code, out, _ = consult("method=fastv")
    assert "  missing pi0: gone; fetch" in out and "  PROBLEM EGL: none; install it" in out
    code, out, _ = consult("bench=robosuite", "model=tiny")
    assert code == 2 and out[-1] == "2 problems for model=tiny method=fastv bench=robosuite"
    assert "  PROBLEM tiny: gone; fetch" in out and "  PROBLEM EGL: none; install it" in out


def test_a_robot_that_the_model_cannot_drive_is_a_problem(consult):
    code, out, _ = consult("model=cogact_tiny", "bench=libero")
    assert code == 2 and any(
        "PROBLEM robot: bench libero has robot libero; CogACT has a control for google_robot, widowx" in line
        for line in out
    )


def test_a_camera_that_the_world_does_not_have_is_a_problem(monkeypatch, consult):
    """Tiny reads the wrist, SIMPLER shows the third person's view alone: eval refuses it, so the doctor does."""
    tiny = Interface("axis_angle", "close_positive", "delta", ("primary", "wrist"), None)

    def whole(nodes, hub, loads):
        loads |= dict.fromkeys(nodes, models.Loads(tiny, None))
        return [Finding(name, "whole") for name in nodes]

    monkeypatch.setattr(models, "models", whole)
    code, out, _ = consult("model=tiny", "bench=simpler")
    assert code == 2 and any("PROBLEM robot" in line and "cameras ('primary', 'wrist') vs" in line for line in out)


def test_a_layer_that_the_model_does_not_have_and_a_device_that_is_not_here_are_problems(consult, monkeypatch):
    """Eval refuses both: so the doctor does, in the same words."""
    monkeypatch.setattr(models, "models", MODELS)
    code, out, _ = consult("model=tiny", "bench=toy", "method=fastv", "method.layer=77", "model.device=cuda:7")
    assert code == 2
    assert any("PROBLEM method" in line and "layers [77], but tiny has layers 0..5" in line for line in out)
    assert any("PROBLEM device: model.device=cuda:7, but torch sees" in line for line in out)


def test_what_a_model_server_cannot_do_is_a_problem(consult):
    code, out, _ = consult("model=vla_eval", "method=fastv", "bench=toy")
    assert code == 2 and any("PROBLEM robot" in line and "use method=dense" in line for line in out)


def test_a_wrong_override_gets_one_line(consult):
    for override in ("model=nosuch", "nosuch=1"):
        code, out, errors = consult(override)
        assert code == 2 and not out and len(errors) == 1 and "nosuch" in errors[0]


def test_a_benchmark_speaks_for_itself(monkeypatch):
    from vlaprune.bench.toy import Toy

    monkeypatch.setattr(Toy, "findings", lambda self: [Finding("assets", "3 missing", ok=False)], raising=False)
    title, needed, findings = list(doctor.sections(TOY))[3]
    assert title == "bench toy" and needed is None
    told, robot, assets = findings
    assert told == Finding("options", "2 tasks") and robot.ok and assets == Finding("assets", "3 missing", ok=False)


def test_the_cause_is_the_error_and_not_what_destructors_say_after_it():
    code = (
        "class A:\n    def __del__(self):\n        raise AttributeError('late complaint')\n"
        "a = A()\ntry:\n    int('x')\nexcept ValueError as e:\n    raise RuntimeError('device 7 is not there') from e"
    )
    with pytest.raises(UserError, match=r"^RuntimeError: device 7 is not there$"):
        ask(code)
    with pytest.raises(UserError, match=r"^plain words$"):
        ask("import sys; sys.exit('plain words')")
