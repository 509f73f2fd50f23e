"""Turns errors of Hydra and OmegaConf into one line: what came, what is allowed, what was probably meant."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import hydra
import omegaconf
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from vlaprune.config.classes import did_you_mean
from vlaprune.config.names import CHOICES, GROUPS
from vlaprune.errors import UserError, frames

ERRORS = (HydraException, OmegaConfBaseException)  # errors of the two for a wrong command line
HOMES = tuple(str(Path(package.__file__ or "").parent) for package in (hydra, omegaconf))


def is_config_error(error: Exception) -> bool:
    """Whether Hydra or OmegaConf raised an error; some of their errors are plain ValueErrors."""
    called = frames(error)
    return isinstance(error, ERRORS) or (bool(called) and called[-1].filename.startswith(HOMES))


def explain(
    error: Exception,
    overrides: Sequence[str],
    compose: Callable[[list[str]], DictConfig],
    options: Callable[[str], list[str]],
) -> UserError:
    """The UserError that stands for an error of Hydra or OmegaConf.

    overrides  overrides of the command line
    compose    returns the configuration of the command with some overrides
    options    returns the options of a config group
    """
    text = str(error)
    for said in overrides:
        group, _, value = said.partition("=")
        if group in CHOICES and "." not in group:
            known = options(group)
            for wanted in filter(None, re.split(r"[\[\], ]+", value)):
                if wanted not in known and "$" not in wanted:
                    return UserError(f"{said}: use one of {', '.join(known)}{did_you_mean(wanted, known)}")
    if isinstance(error, MissingConfigException) and (found := re.search(r"Could not (?:find|load) '([^']+)'", text)):
        return UserError(f"there is no file {found[1]}.yaml among the configurations; check the name")
    if isinstance(error, OverrideParseException):
        return UserError(f"{error.override}: {text.splitlines()[0]}; write KEY=VALUE, and quote what is no plain word")
    if isinstance(error, ConfigCompositionException) and not all(o.lstrip("+~").partition("=")[0] for o in overrides):
        return UserError("a setting without a name; write KEY=VALUE")
    if found := re.search(r"Could not (?:override|append to config|delete from config)\W+'?([^'\s]+)'?", text):
        key = found[1].rstrip(".").partition("=")[0].partition("@")[0]
        if key in GROUPS and "No match in the defaults list" in text:
            said = next((o for o in overrides if o.partition("=")[0] == key), key)
            return UserError(f"{said}: this command chooses no {key}; it takes {key}.SETTING=VALUE, see --help")
        siblings = _siblings(key, overrides, compose)
        said = next((o for o in overrides if o.lstrip("+~").partition("=")[0] == key), key)
        owner = next((o for o in overrides if o.partition("=")[0] == key.rpartition(".")[0]), "")
        if "," in owner and "[" not in owner:
            return UserError(f"{said}: not every one of {owner} has this setting; run them apart")
        if owner and siblings == []:
            return UserError(f"{said}: {owner} has no settings")
        if siblings and key not in siblings:
            near = did_you_mean(key, siblings)
            return UserError(f"{said}: there is no such setting{near or f'; use one of {chr(44).join(siblings)}'}")
    return UserError(" ".join(text.split()))


def _siblings(key: str, overrides: Sequence[str], compose: Callable[[list[str]], DictConfig]) -> list[str] | None:
    """The dotted names of the settings on the level of a key; if its parents do not exist, on the last level that does.

    None if the choices alone cannot be composed.
    """
    chosen = [o for o in overrides if o.partition("=")[0] in CHOICES]
    try:
        node = compose(chosen)
    except (*ERRORS, UserError):
        return None
    *parents, _ = key.split(".")
    for depth, parent in enumerate(parents):
        inner = node.get(parent)
        if not isinstance(inner, DictConfig):
            return [".".join([*parents[:depth], str(k)]) for k in node if k != "hydra"]
        node = inner
    return [".".join([*parents, str(k)]) for k in node if k not in ("hydra", "_target_")]
