"""From a composed configuration to a model, pruners and a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from vlaprune.config.compose import plain

if TYPE_CHECKING:
    from vlaprune.benchmark import Benchmark
    from vlaprune.control import Control
    from vlaprune.policy import VLA
    from vlaprune.pruner import Pruner
    from vlaprune.records import Sink


def make(node: DictConfig) -> Any:
    """Instantiates a config group; what its constructor raises comes out as it was, without Hydra's wrapping."""
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if cause is None or isinstance(cause, (ImportError, AttributeError)):
            raise ValueError(str(error).splitlines()[0]) from error
        if isinstance(cause, TypeError):
            given = ", ".join(f"{k}={node[k]}" for k in map(str, node) if k != "_target_")
            raise ValueError(f"{node._target_}({given}): {cause}") from error
        raise cause from None


def make_plain(node: Mapping[str, Any]) -> Any:
    """The same from plain settings, as a journal holds them."""
    return make(OmegaConf.create(dict(node)))


def build(cfg: DictConfig) -> tuple[VLA, Callable[[], Pruner], Benchmark]:
    """The three that a run joins. TypeError in one line where model and benchmark do not share their conventions."""
    bench = make(cfg.bench)
    make(cfg.method)  # a wrong option speaks before the weights are loaded
    driver = control(cfg, bench)
    model = make(model_node(cfg, bench))
    driver.calls(model.chunk, model.info.name)
    try:
        driver.drives(model.interface).check(bench.interface)
    except TypeError as error:
        raise TypeError(f"model {model.info.name} and bench {bench.name} do not fit: {error}") from None
    return model, lambda: make(cfg.method), bench


def ready(cfg: DictConfig) -> None:
    """Lets the benchmark look for its simulator and assets before weights are loaded; RuntimeError in one line."""
    look = getattr(make(cfg.bench), "ready", None)
    if look is not None:
        look()


def model_node(cfg: DictConfig, bench: Benchmark) -> DictConfig:
    """What the model is made of: its group without `controls`, and `settings.ROBOT` in place of what is null."""
    return model_for(cfg, bench.robot)


def model_for(cfg: DictConfig, robot: str | None) -> DictConfig:
    """The same for a robot by name; None for a benchmark without."""
    node = plain(cfg.model)
    for key in ("controls", "world"):  # of the control, and of the benchmark
        node.pop(key, None)
    settings = node.pop("settings", {}).get(robot, {})
    return OmegaConf.create(node | {key: value for key, value in settings.items() if node.get(key) is None})


def control(cfg: DictConfig, bench: Benchmark) -> Control:
    """How this model drives the benchmark's robot. ValueError in one line for a robot that it does not know."""
    from vlaprune.control import Control

    controls = cfg.model.get("controls")
    if bench.robot is None or controls is None:
        return Control(execute=cfg.execute)
    if bench.robot not in controls:
        raise ValueError(
            f"bench {bench.name} has robot {bench.robot}; {cfg.model._target_.rpartition('.')[2]} has controls for "
            f"{', '.join(map(str, controls))}: choose one of their benchmarks, or add controls.{bench.robot}"
        )
    chosen = make(controls[bench.robot])
    return chosen if cfg.execute is None else replace(chosen, execute=cfg.execute)


def load(cfg: DictConfig, bench: Benchmark, name: str | None) -> VLA:
    """The configured model, or another by its name in configs/model with random weights."""
    if name is None:
        return make(model_node(cfg, bench))
    job = HydraConfig.get()
    others = [o for o in job.overrides.task if not o.startswith("model=")]
    return make(model_node(compose(job.job.config_name, [*others, f"model={name}", "model.weights=random"]), bench))


def sinks(cfg: DictConfig) -> Sequence[Sink]:
    """The chosen loggers."""
    return [make(node) for node in (cfg.get("logger") or {}).values()]
