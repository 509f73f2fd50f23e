"""A composed configuration in which objects stand in place of named options, as the Python interface needs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from vlaprune.config.compose import composed


@contextmanager
def with_objects(overrides: Sequence[str], parts: Mapping[str, tuple[str, Mapping[str, Any]]]) -> Iterator[DictConfig]:
    """What `vlaprune eval` would run with these overrides; Hydra takes it for the running job inside the context.

    parts  group -> the name and the description (`_target_`, options) of an object that stands in for the option
    """
    cfg, _ = composed(overrides)
    with open_dict(cfg):
        for group, (name, node) in parts.items():
            cfg[group] = OmegaConf.create(dict(node))
            cfg.hydra.overrides.task.append(f"{group}._target_={name}")
        if "model" in parts:
            cfg.robots = {}  # they are those of the option
    known = HydraConfig.instance()
    before = known.cfg
    known.set_config(cfg)
    try:
        yield cfg
    finally:
        known.cfg = before
