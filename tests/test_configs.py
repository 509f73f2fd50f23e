"""Every YAML composes, names what exists and sets exactly what its constructor takes."""

import inspect
import os
import re
import socket
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from doubles import calibrated
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from vlaprune import config
from vlaprune.bench.toy import Toy as ToyBench
from vlaprune.benchmark import Interface
from vlaprune.control import Control
from vlaprune.errors import UserError
from vlaprune.methods.dense import Dense
from vlaprune.models.tiny import Tiny
from vlaprune.models.toy import STYLES, Toy
from vlaprune.policy import Policy
from vlaprune.pruner import ModelInfo, Pruner
from vlaprune.testing import scenes

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
GROUPS = {
    group: sorted(p.stem for p in (CONFIGS / group).glob("*.yaml")) for group in ("model", "method", "bench", "logger")
}
EVERY = [(group, name) for group, names in GROUPS.items() for name in names]
TOY = ["model=toy", "bench=toy"]


@pytest.fixture(scope="module", autouse=True)
def hydra():
    config.prepare()
    with initialize_config_dir(config.config_path(), version_base="1.3"):
        yield


def composed(*overrides, name="eval"):
    cfg = compose(name, list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return cfg


def nodes(group, name):
    """What is instantiated: the file itself, or, of a logger, the one entry in it."""
    node = composed(f"{group}={name}")[group]
    return list(node.values()) if group == "logger" else [node]


def target(node):
    module, name = node["_target_"].rsplit(".", 1)
    return getattr(import_module(module), name)


def test_the_groups_and_names_that_scripts_rely_on_are_there():
    assert set(GROUPS["model"]) >= {"toy", "tiny"} and set(GROUPS["bench"]) >= {"toy", "robosuite"}
    assert set(GROUPS["method"]) >= {"dense", "random", "uniform", "fastv", "divprune"}
    assert set(GROUPS["logger"]) == {"csv", "wandb"}
    assert Path(config.config_path()) == CONFIGS


@pytest.mark.parametrize(("group", "name"), EVERY)
def test_a_file_sets_exactly_the_parameters_of_what_it_names(group, name):
    for node in nodes(group, name):
        assert target(node).__module__.startswith("vlaprune.")
        assert [k for k in node if k != "_target_"] == [p for p in inspect.signature(target(node)).parameters]


@pytest.mark.parametrize("name", sorted(p.stem for p in (CONFIGS / "robots").glob("*.yaml")))
def test_what_is_said_of_a_robot_are_arguments_of_model_benchmark_and_control(name):
    cfg = composed(f"model={name}", "bench=libero")
    assert cfg.hydra.runtime.choices.robots == name and cfg.robots
    for parts in cfg.robots.values():
        assert set(parts) <= {"model", "bench", "control"}
        assert set(parts.get("model", {})) <= set(cfg.model)
        assert set(parts.get("bench", {})) <= inspect.signature(target(cfg.bench)).parameters.keys()
        if "control" in parts:
            assert isinstance(config.make("control", parts.control), Control)


def test_robots_can_be_those_of_another_model_and_belong_to_no_typed_class():
    assert config.check(composed("model=tiny", "robots=oft")).robots.libero.control.gripper == "sign"
    typed = config.arguments(["model._target_=vlaprune.models.toy.Toy", "bench=libero"])
    assert config.check(composed(*typed)).robots == {} and config.check(composed(*typed, "robots=oft")).robots
    with pytest.raises(UserError, match=r"^robots.libero.controls: there is no such setting; use model, bench, con"):
        config.check(composed("model=oft", "+robots.libero.controls.execute=2"))
    with pytest.raises(UserError, match=r"^robots=of: there is no such file; `vlaprune list robots`"):
        config.check(composed("robots=of"))


@pytest.mark.parametrize(("group", "name"), EVERY)
def test_a_file_holds_the_defaults_of_what_it_names(group, name):
    """So that a paper's numbers are in one place, and Python users get what the command line gives."""
    for node in nodes(group, name):
        given = {k: node[k] for k in node if not OmegaConf.is_interpolation(node, k)}
        for key, parameter in inspect.signature(target(node)).parameters.items():
            if key in given and isinstance(parameter.default, (int, float, str, bool)):
                assert (group, name) in VARIANTS or given[key] == parameter.default, key


# a second file for a class, with other options
VARIANTS = {("method", "ties_hard"), *((g, n) for g, n in EVERY if n.endswith("_tiny"))}


def test_every_class_of_a_method_has_a_file():
    files = {p.stem for p in (Path(config.__file__).parents[1] / "methods").glob("*")}
    named = {
        yaml.safe_load((CONFIGS / "method" / f"{n}.yaml").read_text())["_target_"].split(".")[-2]
        for n in GROUPS["method"]
    }
    assert named == files - {"__init__", "__pycache__", "shared"}


@pytest.mark.parametrize("name", GROUPS["method"])
def test_every_method_runs_on_the_toy(name):
    for style in STYLES:
        model, make, bench = config.build(composed(*TOY, f"method={name}", f"model.style={style}"))
        assert make() is not make() and isinstance(make(), Pruner) and bench.name == "toy"
        policy = Policy(model, calibrated(make, model.info, 64))
        for frame in scenes(0, 0, 2):
            policy.act({0: frame})
        assert len(policy.drain(0)) == 2


@pytest.mark.parametrize("name", GROUPS["method"])
def test_a_budget_is_called_keep_and_checked_before_any_weights_are_loaded(name):
    given = yaml.safe_load((CONFIGS / "method" / f"{name}.yaml").read_text())
    if not isinstance(given.get("keep"), float):
        return
    info = ModelInfo("it", 6, 2, 32, 16)
    plan = calibrated(lambda: config.make("method", OmegaConf.create(given)), info, 64)().plan(info)
    for wrong in ("1.5", "-0.25", "0.0")[: 3 if plan.budget else 2]:  # of a method with a floor, keep=0 is the floor
        with pytest.raises(ValueError, match=f"keep={float(wrong)}"):
            config.build(composed(*TOY, "model._target_=nothing.There", f"method={name}", f"method.keep={wrong}"))


SMOL = {"backbone": "random", "sizes": {"width": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocabulary": 300}}


@pytest.mark.parametrize("name", GROUPS["method"])
@pytest.mark.parametrize(
    "wrong", ["nosuch", 3, -3, 0.5, -2.5, float("nan"), float("inf"), True, None, [], [0.5], ["x"]]
)
def test_an_option_of_a_method_of_another_kind_is_refused_or_taken_and_never_raises_anything_else(name, wrong):
    given = yaml.safe_load((CONFIGS / "method" / f"{name}.yaml").read_text())
    for option in set(given) - {"_target_"}:
        try:
            made = config.make("method", given | {option: wrong})
        except UserError:
            continue
        assert isinstance(made, Pruner)


@pytest.mark.parametrize(
    ("name", "option", "wrong", "wanted"),
    [
        ("sparsevlm", "keep", 0.5, "a list of numbers, as [0.5,0.25]"),
        ("sparsevlm", "layers", "foo", "a list of whole numbers, as [1,2], or null"),
        ("ties_hard", "threshold", "foo", "a number, or null"),
        ("ties", "gamma", "abc", "a number"),
        ("ties", "gamma", -3, "a number from 0 to 1"),
        ("vlacache", "stages", [], "name at least one layer"),
        ("fastv", "rows", 5, "a word"),
        ("tome", "proportional", 1, "true or false"),
        ("dart", "pivots", 2.0, "a whole number"),
    ],
)
def test_a_refused_option_says_what_the_option_takes(name, option, wrong, wanted):
    given = yaml.safe_load((CONFIGS / "method" / f"{name}.yaml").read_text())
    with pytest.raises(UserError, match=rf"{option}={re.escape(str(wrong))}; .*{re.escape(wanted)}"):
        config.make("method", given | {option: wrong})


@pytest.mark.parametrize("name", ["tiny", "pi0_tiny", "cogact_tiny"])
def test_an_option_of_a_model_of_another_kind_is_refused_before_anything_is_built(name):
    given = OmegaConf.to_container(composed(f"model={name}").model, resolve=True)
    kinds = {key: str(p.annotation) for key, p in inspect.signature(target(given)).parameters.items()}
    for option, kind in kinds.items():
        wrong = "nosuch" if "str" not in kind.replace("Sequence[str]", "").replace("Mapping[str", "") else 3
        with pytest.raises(UserError, match=rf"^model.{option}={wrong}; use "):
            config.make("model", given | {option: wrong})


@pytest.mark.parametrize(
    "name", ["toy", "tiny", "smol", "openvla_tiny", "oft_tiny", "cogact_tiny", "pi0_tiny", "pi05_tiny"]
)
@pytest.mark.parametrize("wrong", [0, -1])
def test_a_size_that_no_model_has_is_refused(name, wrong):
    """Whether it is an option itself or one of `sizes`."""
    given = OmegaConf.to_container(composed(f"model={name}").model, resolve=True) | (SMOL if name == "smol" else {})
    annotations = {key: str(p.annotation) for key, p in inspect.signature(target(given)).parameters.items()}
    options = [key for key, kind in annotations.items() if kind.startswith("int") and key not in ("seed", "steps")]
    sizes = given.get("sizes") or {}
    for more in (*({key: wrong} for key in options), *({"sizes": sizes | {key: wrong}} for key in sizes)):
        with pytest.raises(UserError, match=rf"={wrong}\b"):
            config.make("model", given | {"weights": "random"} | more if name != "toy" else given | more)


def test_random_weights_are_the_same_in_every_process_and_leave_the_generator_alone():
    """A resumed run, a shard and another arm play the policy that the identity names."""
    cfg = composed("model=tiny", "model.weights=random", "model.layers=1", "bench=robosuite")
    made, numbers = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        made.append(config.load(cfg, config.make("bench", cfg.bench), None).slot)
        numbers.append(torch.rand(1))
        torch.manual_seed(seed)
        assert torch.equal(torch.rand(1), numbers[-1])
    assert torch.equal(*made)


def test_the_command_of_the_issue_composes():
    cfg = composed(
        "model=toy",
        "method=fastv",
        "bench=toy",
        "logger=csv",
        "episodes=3",
        "method.keep=0.5",
        "seed=3",
        "shard.index=1",
        "shard.count=2",
        "output=there",
    )
    assert (cfg.episodes, cfg.method.keep, cfg.seed, cfg.output) == (3, 0.5, 3, "there") and list(cfg.logger) == ["csv"]
    assert set(composed("logger=[csv,wandb]").logger) == {"csv", "wandb"}


def test_the_default_command_is_the_main_job():
    cfg = composed()
    assert [cfg[g]._target_.split(".")[-2] for g in ("model", "method", "bench")] == ["tiny", "fastv", "robosuite"]
    assert cfg.execute is None and cfg.episodes is None
    assert cfg.logger.csv._target_ == "vlaprune.evaluation.loggers.CSV"


def test_the_identity_of_a_run_holds_what_decides_its_numbers_and_nothing_else():
    model, _, bench = config.build(composed(*TOY))

    def identity(*overrides):
        return config.header(composed(*TOY, *overrides), model, bench).identity

    for same in (
        "slots=4",
        "time_limit=1",
        "logger=wandb",
        "episodes=2",
        "shard.count=2",
        "output=x",
        "video=all",
        "stop=anytime",
    ):
        assert identity(same) == identity()
    for other in ("seed=8", "execute=1", "method.keep=0.5", "method=random", "model.side=4"):
        assert identity(other) != identity()


@pytest.mark.parametrize("margin", [0.02, 0.035, 0.05])
@pytest.mark.parametrize("style", STYLES)
def test_a_run_is_judged_by_the_margin_of_its_benchmark_whatever_the_model(margin, style):
    bench = ToyBench()
    bench.margin = margin
    assert config.header(composed(*TOY), Toy(style), bench).identity["bench"]["margin"] == margin


def test_training_composes_with_the_recipe_it_is_given():
    from vlaprune.training.cloning import teaching
    from vlaprune.training.trainer import Recipe

    cfg = composed("recipe.steps=3", name="train")
    assert cfg.model.weights == "random" and Recipe(**cfg.recipe).steps == 3
    assert teaching(cfg).weight("Stack") == 1.0


def test_what_a_constructor_raises_comes_out_as_it_was():
    assert isinstance(config.make("method", OmegaConf.create({"_target_": "vlaprune.methods.dense.Dense"})), Dense)
    for node, error, match in (
        ({"_target_": "vlaprune.methods.fastv.FastV", "keep": 2.0}, ValueError, "^keep=2.0 is no budget"),
        (
            {"_target_": "vlaprune.methods.fastv.FastV", "kep": 1},
            ValueError,
            "^method.kep=1: FastV has layer.*mean keep.$",
        ),
        ({"_target_": "vlaprune.methods.nosuch.X"}, ValueError, "nosuch"),
        ({"_target_": "vlaprune.methods.fastv.Nosuch"}, ValueError, "Nosuch"),
    ):
        with pytest.raises(error, match=match) as caught:
            config.make("method", OmegaConf.create(node))
        assert "\n" not in str(caught.value)


def test_the_command_line_answers_without_torch():
    """--help and --cfg job, in one process."""
    check = (
        "import sys\nfrom vlaprune import cli\n"
        "for args in (['--help'], ['--cfg', 'job', 'model=toy', 'bench=toy']):\n"
        "    sys.argv = ['vlaprune-eval', *args]\n    cli.evaluate()\n"
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    )
    said = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, env={**os.environ}, check=False
    )
    assert said.returncode == 0, said.stderr
    assert "vlaprune-eval" in said.stdout and "keep: 0.25" in said.stdout


class Arm(ToyBench):
    """The toy world behind a robot that models must know how to drive."""

    robot = "arm"
    interface = Interface("axis_angle", "open_positive", "delta", ("main",), ToyBench.state)


def test_a_model_drives_a_robot_through_the_control_that_its_yaml_names():
    driven = {"_target_": "vlaprune.control.Control", "gripper": "flip", "execute": 2}
    robots = {"arm": {"model": {"layers": 3, "chunk": 5}, "control": driven}}
    cfg = composed(*TOY)
    cfg.bench._target_ = "test_configs.Arm"
    with pytest.raises(UserError, match="gripper close_positive vs open_positive"):
        config.build(cfg)
    OmegaConf.set_struct(cfg, False)
    cfg = OmegaConf.merge(cfg, {"model": {"layers": None}, "robots": robots})
    model, _, bench = config.build(cfg)
    assert model.info.num_layers == 3 and model.chunk == 4  # a setting stands in for null only
    assert config.control(cfg, bench).actions_per_call(model.chunk) == 2
    identity = config.header(cfg, model, bench).identity
    assert identity["execute"] == 2 and identity["control"]["gripper"] == "flip" and identity["model"]["layers"] == 3
    cfg.execute = 1
    assert config.control(cfg, bench).actions_per_call(model.chunk) == 1
    cfg.robots = {"leg": cfg.robots.arm, "wing": cfg.robots.arm}
    with pytest.raises(ValueError, match=r"bench toy has robot arm; Toy has a control for leg, wing"):
        config.build(cfg)


def test_a_run_says_which_process_of_which_machine_made_it_and_what_else_ran_there():
    before = time.time()
    told = config.provenance("cpu")
    assert told["host"] == socket.gethostname() and told["boot"] and told["pid"] == os.getpid()
    assert before <= told["started"] <= time.time()
    assert isinstance(told["load"], float) and told["load"] >= 0 and told["hardware"]["cores"] >= 1
    assert told["boot"] == config.provenance("cpu")["boot"]


@pytest.mark.parametrize(
    ("weights", "text"), [("robosuite", None), ("robosuite-lightvla", None), ("libero_object", 20)]
)
def test_a_journal_of_shipped_weights_says_what_they_were_tuned_from(weights, text):
    cfg = composed("model=tiny", "bench=robosuite")
    header = config.header(cfg, Tiny(weights, text=text), config.make("bench", cfg.bench))
    tuned = weights == "robosuite-lightvla"
    assert header.provenance.get("tuned_from") == (Tiny("robosuite-first").card["sha256"] if tuned else None)
