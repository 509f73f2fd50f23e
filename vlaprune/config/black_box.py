"""A model server in place of a model, and the settings that are refused with it, since they need the model itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vlaprune.config.build import model_node, robot_of
from vlaprune.config.classes import find, fits, make
from vlaprune.config.names import named
from vlaprune.errors import UserError

if TYPE_CHECKING:
    from vlaprune.benchmark import Benchmark
    from vlaprune.interop.black_box import BlackBox

DENSE = "vlaprune.methods.dense.Dense"
NEEDS: dict[str, Any] = {  # settings that need the model itself -> the value that does not
    "kernel": "sdpa",
    "video": "none",
    "only": None,
    "devices": None,
    "audit.arm": None,
    "delay.mode": "wait",
    "delay.ms": None,
    "delay.device": None,
    "delay.table": None,
}


def is_black_box(cfg: DictConfig) -> bool:
    """Whether the model of a run is a black box: a class with `connect` in place of `predict`."""
    return fits(find(str(cfg.model._target_), "model", "black box"), "black box")


def black_box(cfg: DictConfig, bench: Benchmark) -> BlackBox:
    """The configured black box. UserError for a method, or a setting that needs the model itself."""
    names = named(HydraConfig.get())
    if cfg.method._target_ != DENSE:
        raise UserError(
            f"method={names['method']} with model={names['model']}: a model server is a black box, which cannot be "
            "pruned from here; use method=dense"
        )
    for key, without in NEEDS.items():
        if (value := OmegaConf.select(cfg, key)) != without:
            raise UserError(f"{key}={value} needs the model, and model={names['model']} is a black box; leave it out")
    box: BlackBox = make("model", model_node(cfg, robot_of(bench)), "black box")
    return box
