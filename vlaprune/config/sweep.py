"""Several methods and budgets on one command line, and the number of this process in a Hydra sweep."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from vlaprune.config.compose import arguments, keep_typed_options, prepare

if TYPE_CHECKING:
    from vlaprune.evaluation.progress import SweepJob


def arms(argv: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Takes `method=a,b method.keep=0.5,0.25` out of a command line. Returns the rest, and a list of overrides per arm.

    Hydra's multirun would run each arm in a separate job; this way one job sees them all.
    """
    parser = OverridesParser.create()
    rest, axes = [], []
    for text in argv:
        if text.startswith("-") or text.partition("=")[0].split(".")[0] != "method":
            rest.append(text)
            continue
        try:
            one = parser.parse_override(text)
        except HydraException:
            rest.append(text)  # Hydra reports what is wrong with it
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
        said = arguments([*job.overrides.task, *arm])
        out.append((label, keep_typed_options(compose(job.job.config_name, said), said)["method"]))
    return out


def all_methods(
    keeps: Sequence[float], names: Sequence[str] | None = None, own_too: bool = True
) -> list[tuple[str, DictConfig]]:
    """Label and configuration of methods (all but dense, or by name), as their files set them and at each of `keeps`.

    keeps    budgets for methods whose `keep` is one number
    own_too  whether such a method also comes as its file sets it
    """
    job, loader = HydraConfig.get(), GlobalHydra.instance().config_loader()
    out = []
    for name in names or loader.get_group_options("method"):
        own = compose(job.job.config_name, [*job.overrides.task, f"method={name}"])["method"]
        if name == "dense":
            continue
        budget = isinstance(own.get("keep"), float)
        if own_too or not budget:
            out.append((name, own))
        if budget:
            out += [(f"{name} keep={k}", OmegaConf.merge(own, {"keep": float(k)})) for k in keeps]
    return out


def pack_job(cfg: DictConfig, changes: Mapping[str, Any]) -> bytes:
    """A job, with some settings changed, for another process of this machine; `unpack_job` reads it there."""
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    return pickle.dumps((plain | dict(changes), HydraConfig.get(), sys.argv))


def unpack_job(job: bytes) -> DictConfig:
    """The job that another process packed with `pack_job`; this process takes over its command line."""
    prepare()
    plain, hydra, sys.argv = pickle.loads(job)
    HydraConfig.instance().set_config(OmegaConf.create({"hydra": hydra}))
    return OmegaConf.create(plain)


def job() -> SweepJob | None:
    """The job of a sweep that this process runs; None outside a sweep."""
    from vlaprune.evaluation.progress import SweepJob

    hydra = HydraConfig.get()
    return SweepJob(hydra.job.num, hydra.job.override_dirname) if hydra.mode == RunMode.MULTIRUN else None
