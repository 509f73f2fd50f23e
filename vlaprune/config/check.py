"""Checks the settings of a command against its YAML file before anything is built: names, types, ranges."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vlaprune.config import classes
from vlaprune.config.build import robots
from vlaprune.config.classes import did_you_mean
from vlaprune.config.compose import config_path, keep_typed_options
from vlaprune.config.names import CHOICES, GROUPS
from vlaprune.errors import UserError

ROBOT_PARTS = ("model", "bench", "control")  # the parts that a file of the group `robots` may have for a robot
MODES = ("speed", "fidelity", "overhead", "floors", "pictures", "check", "calibrate")  # modes of vlaprune-profile
KINDS = {  # types of settings whose value in the file does not show it: null, or a whole number for any number
    **dict.fromkeys(("episodes", "execute", "max_batch", "teaching.steps", "hindsight.count"), int),
    **dict.fromkeys(("runs", "methods", "models"), list),
    **dict.fromkeys(("audit.arm", "audit.run", "baseline", "name", "stop", "tuning.weights"), str),
    **dict.fromkeys(("time_limit", "seconds", "minutes", "video_megabytes", "tuning.lora.alpha"), float),
    "tune": bool,
}
LEAST = {"time_limit": 0, "warmup": 0, "seconds": 0, "video_megabytes": 0, "max_batch": 1, "seed": 0}
LEAST |= dict.fromkeys(("slots", "block", "calls", "threads", "record", "rounds", "tuning.probe"), 1)
LEAST |= dict.fromkeys(("hindsight.count", "hindsight.frames", "hindsight.trials"), 1)
LEAST |= {f"decoder.{size}": 1 for size in ("hidden_size", "num_layers", "num_heads", "intermediate_size")}
LEAST |= dict.fromkeys(("tuning.recipe.steps", "tuning.recipe.save_every"), 1)


def check(cfg: DictConfig, name: str = "eval") -> DictConfig:
    """Checks the configuration of a command. UserError for a wrong setting.

    Returns it without the options that a class named on the command line does not take.
    """
    known = settings(name)
    try:
        given = _plain(cfg)
    except OmegaConfBaseException as error:
        raise UserError(" ".join(str(error).split())) from None
    typed = HydraConfig.get().overrides.task
    added = {override.lstrip("+").partition("=")[0].split(".")[0] for override in typed if override.startswith("+")}
    own = {key: value for key, value in given.items() if key not in (*known, *added)}  # set by the experiment's file
    written = OmegaConf.to_yaml(cfg, resolve=False)
    if idle := [key for key in own if not re.search(rf"\$\{{[^}}]*\b{re.escape(key)}\b", written)]:
        near = did_you_mean(idle[0], known)
        raise UserError(f"{idle[0]}={own[idle[0]]}: there is no such setting, and nothing refers to it{near}")
    _compare(known | own, given, "")
    for group in GROUPS:
        if group != "bench" or name != "serve":
            _group(cfg, group)
    _robots(cfg, typed)
    if name == "profile" and cfg.mode not in MODES:
        raise UserError(f"mode={cfg.mode} is not one of {', '.join(MODES)}{did_you_mean(str(cfg.mode), MODES)}")
    return keep_typed_options(cfg, typed)


def settings(name: str) -> dict[str, Any]:
    """The settings in the YAML file of a command, unresolved, without the groups that it chooses."""
    path = config_path()
    folder = files(path.removeprefix("pkg://")) if path.startswith("pkg://") else Path(path)
    said = OmegaConf.create(folder.joinpath(f"{name}.yaml").read_text())
    plain: dict[str, Any] = OmegaConf.to_container(said, resolve=False)  # type: ignore[assignment]
    return {key: value for key, value in plain.items() if key not in ("defaults", "hydra", *CHOICES)}


def _plain(cfg: DictConfig) -> dict[str, Any]:
    """The settings as dictionaries and lists, references replaced by values, without the chosen groups."""
    out = {}
    for key in map(str, cfg):
        if key not in (*CHOICES, "hydra"):
            value = cfg[key]
            out[key] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    return out


def _group(cfg: DictConfig, group: str) -> None:
    node = OmegaConf.select(cfg, group)
    if not isinstance(node, DictConfig) or not isinstance(node.get("_target_"), str):
        raise UserError(f"{group}={node}; choose one by {group}=NAME")


def _robots(cfg: DictConfig, typed: Sequence[str]) -> None:
    for override in typed:
        if override.startswith("robots=") and "robots" not in cfg:  # Hydra says nothing: the group is optional
            raise UserError(f"{override}: there is no such file; `vlaprune list robots` shows which there are")
    for robot, parts in robots(cfg).items():
        for part in parts:
            if part not in ROBOT_PARTS:
                raise UserError(f"robots.{robot}.{part}: there is no such setting; use {', '.join(ROBOT_PARTS)}")


def _compare(known: Mapping[str, Any], given: Mapping[str, Any], above: str) -> None:
    names = [f"{above}{key}" for key in known]
    for key, value in given.items():
        name = f"{above}{key}"
        if name not in names:
            raise UserError(f"{name}={value}: there is no such setting{did_you_mean(name, names)}")
        if not isinstance(known[key], dict):
            _kind(name, known[key], value)
        elif not isinstance(value, dict):
            raise UserError(f"{name}={value}; set one of {', '.join(f'{name}.{inner}' for inner in known[key])}")
        elif known[key]:
            _compare(known[key], value, f"{name}.")
    if gone := [key for key in known if key not in given]:
        raise UserError(f"~{above}{gone[0]} takes away a setting that is needed; leave it out")


def _kind(name: str, known: Any, value: Any) -> None:
    kind = KINDS.get(name) or type(known)
    reference = isinstance(known, str) and known.startswith("${")  # its type is that of another value
    if (value is None and known is None) or kind is type(None) or reference:
        return
    wanted, fits_it = classes.KINDS[kind.__name__]
    if not fits_it(value):
        raise UserError(f"{name}={value}; use {wanted}")
    if name in LEAST and value < LEAST[name]:
        raise UserError(f"{name}={value}; use {wanted}, not below {LEAST[name]}")
