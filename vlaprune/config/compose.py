"""Composes one configuration from YAML files and overrides: search paths, resolvers, the options of a group."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir, initialize_config_module
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from vlaprune.config.explain import explain, is_config_error
from vlaprune.config.names import GROUPS, named
from vlaprune.errors import UserError


class ThirdParty(SearchPathPlugin):
    """Lets installed packages add options to our config groups: entry points of the group `vlaprune.configs`."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Appends pkg://<module> of every entry point."""
        for point in entry_points(group="vlaprune.configs"):
            search_path.append(provider=point.name, path=f"pkg://{point.value}")


def prepare() -> None:
    """Registers the search path of third parties and our resolvers; the command line calls it once."""
    Plugins.instance().register(ThirdParty)
    OmegaConf.register_new_resolver("vlaprune.base", base_suite, replace=True)
    OmegaConf.register_new_resolver("vlaprune.delay", delay_at, replace=True)
    OmegaConf.register_new_resolver("vlaprune.lookup", lookup, replace=True)
    OmegaConf.register_new_resolver("vlaprune.suffix", suffix, replace=True)


def suffix(overrides: str) -> str:
    """The end of the name of a run's folder, from joined overrides; slashes of paths become hyphens."""
    return f",{overrides.replace('/', '-')}" if overrides else ""


def base_suite(suite: str | None) -> str | None:
    """The suite whose policies run on a perturbed suite: libero_goal for LIBERO-PRO's libero_goal_swap."""
    return suite and re.sub(r"^(libero_(spatial|object|goal|10))_(lan|object|swap|task)$", r"\1", suite)


def lookup(key: str, table: Mapping[str, Any], default: Any) -> Any:
    """The value of a key, else the default: `${vlaprune.lookup:KEY,{a:1,b:2},3}`."""
    return table.get(key, default)


def delay_at(at: str, key: str, timed: str | None = None) -> str | float | None:
    """The value of mode, ms, device or model in a short name such as hold-50ms, overlap-orin64 (model: `timed`)."""
    mode, _, where = at.partition("-")
    number = where.removesuffix("ms")
    known: dict[str, str | float | None] = {"mode": mode, "ms": None, "device": where, "model": timed}
    if number != where:
        try:
            known |= {"ms": float(number), "device": None, "model": None}
        except ValueError:
            raise UserError(f"at={at}; say MODE-NUMBERms or MODE-DEVICE, such as hold-100ms or hold-orin64") from None
    return known[key]


def config_path() -> str:
    """Where the YAML files are: inside an installed wheel, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = (package / "configs" / "eval.yaml").is_file()
    return "pkg://vlaprune.configs" if installed else str(package.parent / "configs")


def arguments(argv: Sequence[str]) -> list[str]:
    """The command line, changed so that a class on it (`method._target_=my.module.Mine`) may have any options."""
    typed = [text.lstrip("+").partition("._target_=")[0] for text in argv if "._target_=" in text]
    own = tuple(f"{group}." for group in typed)
    return [f"++{text}" if own and text.startswith(own) else text for text in argv]


def keep_typed_options(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The configuration, in which a class from the command line has only the options given there with it."""
    typed = [override.lstrip("+").partition("=")[0] for override in overrides]
    for group in GROUPS:
        if f"{group}._target_" in typed and group in cfg:
            own = {key: value for key, value in cfg[group].items() if f"{group}.{key}" in _above(typed)}
            cfg = OmegaConf.merge(cfg, {})  # type: ignore[assignment]
            OmegaConf.set_struct(cfg, False)
            cfg[group] = own
            if group == "model" and not any(key.split(".")[0] == "robots" for key in typed):
                cfg["robots"] = {}  # they belong to the model that the class replaces
    return cfg


def _above(keys: list[str]) -> set[str]:
    """The dotted keys and all of their parents."""
    return {".".join(key.split(".")[:n]) for key in keys for n in range(1, key.count(".") + 2)}


def composed(overrides: Sequence[str], name: str = "eval") -> tuple[DictConfig, dict[str, str]]:
    """The configuration of a command with these overrides, and the name of each part. UserError for a wrong one."""
    with _search_path():
        try:
            said = arguments(overrides)
            cfg = keep_typed_options(compose(name, said, return_hydra_config=True), said)
        except Exception as error:
            if not is_config_error(error):
                raise
            raise explain(error, overrides, lambda chosen: compose(name, chosen), _options) from None
    return cfg, named(cfg.hydra)


def options(group: str) -> list[str]:
    """The options of a config group, those of third parties included."""
    with _search_path():
        return _options(group)


def _options(group: str) -> list[str]:
    return list(GlobalHydra.instance().config_loader().get_group_options(group))


def plain(node: DictConfig) -> dict[str, Any]:
    """A node as dictionaries and lists, with interpolations resolved."""
    return OmegaConf.to_container(node, resolve=True)  # type: ignore[return-value]


def _search_path() -> AbstractContextManager[None]:
    prepare()
    path = config_path()
    if path.startswith("pkg://"):
        return initialize_config_module(path.removeprefix("pkg://"), version_base="1.3")
    return initialize_config_dir(path, version_base="1.3")
