"""From a composed configuration to a model, pruners and a benchmark. With cli.py, all that knows Hydra."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, entry_points, version
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir, initialize_config_module
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

if TYPE_CHECKING:
    from vlaprune.benchmark import Benchmark
    from vlaprune.control import Control
    from vlaprune.policy import VLA
    from vlaprune.progress import Job
    from vlaprune.pruner import Pruner
    from vlaprune.records import Header, Sink

PACKAGES = ("vlaprune", "torch", "transformers", "numpy", "mujoco", "robosuite", "hydra-core")
WHERE = ("assets", "worker", "python")  # of a benchmark: where it runs, which is no part of what is run
MODES = ("speed", "fidelity", "overhead", "floors", "check", "calibrate")  # of vlaprune-profile


class ThirdParty(SearchPathPlugin):  # type: ignore[misc]
    """Lets installed packages add options to our config groups: entry points of the group `vlaprune.configs`."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Appends pkg://<module> of every entry point."""
        for point in entry_points(group="vlaprune.configs"):
            search_path.append(provider=point.name, path=f"pkg://{point.value}")


def prepare() -> None:
    """Registers the search path of third parties and our one resolver; called once by the command line."""
    Plugins.instance().register(ThirdParty)
    OmegaConf.register_new_resolver("vlaprune.suffix", lambda name: f",{name}" if name else "", replace=True)


def config_path() -> str:
    """Where the YAML files are: inside an installed wheel, or at the top of a checkout."""
    here = Path(__file__).resolve().parent
    return "pkg://vlaprune.configs" if (here / "configs" / "eval.yaml").is_file() else str(here.parent / "configs")


def composed(overrides: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
    """What vlaprune-eval would run with these overrides, and the option chosen of each group. Else ValueError."""
    with _search_path():
        try:
            cfg = compose("eval", list(overrides), return_hydra_config=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise ValueError(" ".join(str(error).split())) from None
    choices = cfg.hydra.runtime.choices
    return cfg, {group: str(choices[group]) for group in ("model", "method", "bench")}


def options(group: str) -> list[str]:
    """The options of a config group, those of third parties included."""
    with _search_path():
        return list(GlobalHydra.instance().config_loader().get_group_options(group))


def plain(node: DictConfig) -> dict[str, Any]:
    """A node as dictionaries and lists, interpolations resolved."""
    return OmegaConf.to_container(node, resolve=True)  # type: ignore[return-value]


def _search_path() -> AbstractContextManager[None]:
    prepare()
    path = config_path()
    if path.startswith("pkg://"):
        return initialize_config_module(path.removeprefix("pkg://"), version_base="1.3")  # type: ignore[no-any-return]
    return initialize_config_dir(path, version_base="1.3")  # type: ignore[no-any-return]


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


def check(cfg: DictConfig) -> None:
    """ValueError for a setting of vlaprune-eval that must be a number and is none."""
    for key in ("seed", "episodes", "slots", "execute", "time_limit", "shard.index", "shard.count"):
        value, kinds = OmegaConf.select(cfg, key), (int, float) if key == "time_limit" else (int,)
        if type(value) not in kinds and (value is not None or key not in ("episodes", "execute")):
            raise ValueError(f"{key}={value}; use a {'whole ' if float not in kinds else ''}number")


def arms(argv: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Takes `method=a,b method.keep=0.5,0.25` out of a command line: what is left, and the arms, an override list each.

    Unlike Hydra's multirun, which would give each arm a process and a time of its own, one job then sees them all.
    """
    parser = OverridesParser.create()
    rest, axes = [], []
    for text in argv:
        if text.startswith("-") or text.partition("=")[0].split(".")[0] != "method":
            rest.append(text)
            continue
        try:
            one = parser.parse_override(text)
        except OverrideParseException:
            rest.append(text)  # Hydra says what is wrong with it
            continue
        key = one.get_key_element()
        axes.append([f"{key}={v}" for v in one.sweep_string_iterator()] if one.is_sweep_override() else [text])
    return rest, [list(arm) for arm in product(*axes)]


def methods(arms: Sequence[Sequence[str]]) -> list[tuple[str, DictConfig]]:
    """The label and the configuration of each arm, composed with the other overrides of the running job."""
    job = HydraConfig.get()
    out = []
    for arm in arms:
        given = dict(text.partition("=")[::2] for text in arm)
        called = given.pop("method", job.runtime.choices["method"])
        label = " ".join([called, *(f"{k.removeprefix('method.')}={v}" for k, v in given.items())])
        out.append((label, compose(job.job.config_name, [*job.overrides.task, *arm])["method"]))
    return out


def every(keeps: Sequence[float], names: Sequence[str] | None = None) -> list[tuple[str, DictConfig]]:
    """Methods (all, or by name) as their files set them and, with one budget, at each of `keeps`; labels as above."""
    job, loader = HydraConfig.get(), GlobalHydra.instance().config_loader()
    out = []
    for name in names or loader.get_group_options("method"):
        own = compose(job.job.config_name, [*job.overrides.task, f"method={name}"])["method"]
        if name == "dense":
            continue
        out.append((name, own))
        if isinstance(own.get("keep"), float):
            out += [(f"{name} keep={k}", OmegaConf.merge(own, {"keep": float(k)})) for k in keeps]
    return out


def load(cfg: DictConfig, bench: Benchmark, name: str | None) -> VLA:
    """The configured model, or another by its name in configs/model with random weights."""
    if name is None:
        return make(model_node(cfg, bench))
    job = HydraConfig.get()
    others = [o for o in job.overrides.task if not o.startswith("model=")]
    return make(model_node(compose(job.job.config_name, [*others, f"model={name}", "model.weights=random"]), bench))


def check_profile(cfg: DictConfig) -> None:
    """ValueError for a setting of vlaprune-profile that is none."""
    for key, kinds in {"warmup": (int,), "calls": (int,), "block": (int,), "seconds": (int, float)}.items():
        if type(cfg[key]) not in kinds or cfg[key] < (key == "block"):
            raise ValueError(f"{key}={cfg[key]}; use a {'whole ' if float not in kinds else ''}number, not negative")
    if cfg.mode not in MODES:
        raise ValueError(f"mode={cfg.mode} is not one of {', '.join(MODES)}")


def tasks(bench: Benchmark, episodes: int | None) -> dict[str, int]:
    """Task name -> episodes asked for. ValueError outside 1 .. what the protocol has."""
    for task in bench.tasks():
        if episodes is not None and not 1 <= episodes <= task.episodes:
            raise ValueError(f"episodes={episodes}; {bench.name} {task.name} has 1..{task.episodes}")
    return {t.name: episodes or t.episodes for t in bench.tasks()}


def job() -> Job | None:
    """Which job of a sweep this is; None outside one."""
    from vlaprune.progress import Job

    hydra = HydraConfig.get()
    return Job(hydra.job.num, hydra.job.override_dirname) if hydra.mode == RunMode.MULTIRUN else None


def header(cfg: DictConfig, model: VLA, bench: Benchmark) -> Header:
    """What the journal says of this run."""
    from vlaprune.records import Header
    from vlaprune.rollout import Shard

    shard = Shard(cfg.shard.index, cfg.shard.count).suffix

    nodes = {"model": model_node(cfg, bench), "method": cfg.method, "bench": cfg.bench}
    said: dict[str, Any] = {k: plain(node) for k, node in nodes.items()}
    for key in WHERE:
        said["bench"].pop(key, None)
    if hasattr(bench, "identity"):  # its own word on what decides numbers
        said["bench"] = {"_target_": cfg.bench._target_, **bench.identity()}
    driver = control(cfg, bench)
    if replace(driver, execute=None) != type(driver)():
        said["control"] = asdict(driver)
    if cfg.kernel != "sdpa":
        said["kernel"] = cfg.kernel
    card: Mapping[str, Any] = getattr(model, "card", {})
    identity = said | {"seed": cfg.seed, "execute": driver.calls(model.chunk), "weights": card.get("sha256", "none")}
    told: dict[str, Any] = getattr(bench, "provenance", dict)()  # of a simulator in another interpreter
    known = provenance(str(model.device)) | told | {"slots": cfg.slots, "shard": shard}
    if "tuning" in card:
        known["tuned_from"] = card["from"].get("sha256", "none")
    return Header(identity, known, tasks(bench, cfg.episodes))


def provenance(device: str) -> dict[str, Any]:
    """Command, commit, versions and hardware of this process."""
    import torch

    cuda = torch.cuda.get_device_name() if device.startswith("cuda") else None
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": _commit(),
        "versions": {p: _version(p) for p in PACKAGES} | {"python": platform.python_version()},
        "hardware": {
            "device": cuda or device,
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
    }


def sinks(cfg: DictConfig) -> Sequence[Sink]:
    """The chosen loggers."""
    return [make(node) for node in (cfg.get("logger") or {}).values()]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The checkout's commit, with a plus sign where files differ from it; None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        said = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip() or None
