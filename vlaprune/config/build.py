"""Builds a model, pruners and a benchmark from a composed configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vlaprune.config.classes import make
from vlaprune.config.compose import plain
from vlaprune.errors import UserError

if TYPE_CHECKING:
    from vlaprune.benchmark import Benchmark
    from vlaprune.control import Control
    from vlaprune.policy import VLA
    from vlaprune.pruner import Pruner
    from vlaprune.records import Sink


def build(
    cfg: DictConfig, world: str = "bench", given: Mapping[str, Any] | None = None
) -> tuple[VLA, Callable[[], Pruner], Benchmark]:
    """The model, a constructor of methods, and the benchmark. UserError if model and benchmark do not fit together.

    world  the role of the node `bench`: a benchmark, or the client of a server
    given  objects to use in place of configured ones: `model`, `bench`, and as `method` a function that makes one
    """
    given = given or {}
    bench = given["bench"] if "bench" in given else make(world, cfg.bench)
    make_pruner = given["method"] if "method" in given else lambda: make("method", cfg.method)
    make_pruner()  # a wrong option is refused before the weights are loaded
    driver = control(cfg, bench)
    model = given["model"] if "model" in given else _model(cfg, bench)
    driver.actions_per_call(model.chunk, model.info.name)
    try:
        driver.output_interface(model.interface).check(bench.interface)
    except UserError as error:
        raise UserError(f"model {model.info.name} and bench {bench.name} do not fit: {error}") from None
    return model, make_pruner, bench


def ready(bench: Benchmark) -> None:
    """Lets a benchmark look for its simulator and assets before weights are loaded; UserError if one is missing."""
    from vlaprune.benchmark import SupportsReady

    if isinstance(bench, SupportsReady):
        bench.ready()


def robots(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """The robots that the chosen model has settings for: name -> `model`, `bench`, `control`, each of them optional."""
    return plain(cfg.get("robots") or OmegaConf.create({}))


def robot_of(bench: Benchmark) -> str:
    """The name of a benchmark in the group `robots`: that of its robot, or its own name if it has none."""
    return bench.robot or bench.name


def model_node(cfg: DictConfig, robot: str | None) -> DictConfig:
    """The arguments of the model: those of its group; values of `robots.ROBOT.model` replace nulls.

    robot  name as from `robot_of`; None for no robot
    """
    node = plain(cfg.model)
    own = robots(cfg).get(str(robot), {}).get("model", {})
    return OmegaConf.create(node | {key: value for key, value in own.items() if node.get(key) is None})


def control(cfg: DictConfig, bench: Benchmark) -> Control:
    """How this model drives the benchmark's robot. UserError for a robot that it does not know."""
    from vlaprune.control import Control

    execute = cfg.get("execute")  # vlaprune-train has no such setting
    controls = {robot: parts["control"] for robot, parts in robots(cfg).items() if "control" in parts}
    if bench.robot is None or not controls:
        return Control(execute=execute)
    if bench.robot not in controls:
        raise UserError(
            f"bench {bench.name} has robot {bench.robot}; {cfg.model._target_.rpartition('.')[2]} has a control for "
            f"{', '.join(controls)}: choose one of their benchmarks, or add robots.{bench.robot}.control"
        )
    chosen = make("control", controls[bench.robot])
    return chosen if execute is None else replace(chosen, execute=execute)


def load(cfg: DictConfig, bench: Benchmark, name: str | None) -> VLA:
    """The configured model, or another by its name in configs/model with random weights."""
    if name is None:
        return _model(cfg, bench)
    job = HydraConfig.get()
    others = [o for o in job.overrides.task if not o.startswith("model=")]
    other = compose(job.job.config_name, [*others, f"model={name}", "model.weights=random"])
    return _model(other, bench)


def _model(cfg: DictConfig, bench: Benchmark) -> VLA:
    """The configured model. What it draws at random is the same in every process, as the identity of a run says."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return make("model", model_node(cfg, robot_of(bench)))


def recorded_method(said: Mapping[str, Any]) -> Pruner:
    """The method that a journal names, with its options. A journal is data: only names of configs/method are looked up.

    UserError for an unknown name, or an option that the method does not have.
    """
    name, job = str(said.get("name")), HydraConfig.get()
    if name not in GlobalHydra.instance().config_loader().get_group_options("method"):
        raise UserError(f"a journal names the method {name}, which configs/method does not have; leave that run out")
    node = plain(compose(job.job.config_name, [*job.overrides.task, f"method={name}"]).method)
    facts = ("name", "package", "_target_")  # also left out: digests of files that options name
    options = {key: value for key, value in said.items() if key not in facts and not key.endswith("_sha256")}
    return make("method", {"_target_": node["_target_"]} | options)


def sinks(cfg: DictConfig) -> Sequence[Sink]:
    """The chosen loggers."""
    return [make("logger", node) for node in (cfg.get("logger") or {}).values()]
