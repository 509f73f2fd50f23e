"""Composes a configuration in which objects replace named options, for the Python interface."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from vlaprune.config.compose import composed


@contextmanager
def with_objects(overrides: Sequence[str], parts: Mapping[str, tuple[str, Mapping[str, Any]]]) -> Iterator[DictConfig]:
    """The configuration of `vlaprune eval` with these overrides; inside the context it is Hydra's running job.

    parts  group -> name and description (`_target_`, options) of the object that replaces the option
    """
    cfg, _ = composed(overrides)
    with open_dict(cfg):
        for group, (name, node) in parts.items():
            cfg[group] = OmegaConf.create(dict(node))
            cfg.hydra.overrides.task.append(f"{group}._target_={name}")
        if "model" in parts:
            cfg.robots = {}  # they belong to the option
    known = HydraConfig.instance()
    before = known.cfg
    known.set_config(cfg)
    try:
        yield cfg
    finally:
        known.cfg = before
