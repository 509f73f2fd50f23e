"""`vlaprune.evaluate`: what `vlaprune eval` does, with names of configuration files or your own objects."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlaprune.errors import UserError
from vlaprune.records import Run, read

if TYPE_CHECKING:
    from vlaprune.benchmark import Benchmark
    from vlaprune.evaluation.progress import SweepJob
    from vlaprune.policy import VLA
    from vlaprune.pruner import Pruner


STAND_IN = {"model": "toy", "method": "dense", "bench": "toy"}  # composed where an object replaces it


def evaluate(
    model: str | VLA = "tiny",
    method: str | Pruner | Callable[[], Pruner] = "fastv",
    bench: str | Benchmark = "robosuite",
    *,
    output: str | Path | None = None,
    **overrides: Any,
) -> Run:
    """Runs episodes into a journal and returns the recorded run. Episodes already in the folder are not run again.

    model      a name in configs/model, or a model (`vlaprune.policy.VLA`)
    method     a name in configs/method, a method (`vlaprune.pruner.Pruner`; each slot gets a copy), or a class
    bench      a name in configs/bench, or a benchmark (`vlaprune.benchmark.Benchmark`)
    output     folder of the run; None for results/runs/BENCH/MODEL/METHOD
    overrides  settings of `vlaprune eval` by their names, two underscores for a dot: `episodes=10, method__keep=0.5`.
               The logger is csv unless another is named

    Errors: UserError for what `vlaprune eval` refuses, in the same words.
    """
    from vlaprune import config

    given: dict[str, Any] = {"model": model, "method": method, "bench": bench}
    objects = {group: part for group, part in given.items() if not isinstance(part, str)}
    made = objects | ({"method": maker(objects["method"])} if "method" in objects else {})
    shown = made | ({"method": made["method"]()} if "method" in made else {})  # objects that the journal describes
    words = [f"{group}={part if group not in objects else STAND_IN[group]}" for group, part in given.items()]
    words += [setting(key, value) for key, value in ({"logger": "csv"} | overrides).items()]
    if output is not None:
        words.append(setting("output", str(output)))
    elif objects:
        names = given | {group: name_of(group, part) for group, part in shown.items()}
        words.append(setting("output", f"results/runs/{names['bench']}/{names['model']}/{names['method']}"))
    parts = {group: (name_of(group, part), described(group, part)) for group, part in shown.items()}
    with config.with_objects(words, parts) as cfg:
        run_composed(cfg, made)
        return read(Path(cfg.output))


def setting(key: str, value: Any) -> str:
    """A KEY=VALUE in Hydra's syntax. UserError for a value that no configuration can hold."""
    return f"{key.replace('__', '.')}={_written(key, value)}"


def _written(key: str, value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (str, Path)):
        return str(value) if str(value).isidentifier() else json.dumps(str(value), ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}: {_written(key, v)}" for k, v in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(_written(key, v) for v in value) + "]"
    raise UserError(f"{key}={value!r}; use a number, text, true, false, None, a list or a mapping of these")


def name_of(group: str, part: Any) -> str:
    """The short name of an object: the name of a model or benchmark, or a method's class in small letters."""
    if group == "model":
        return str(part.info.name)
    return str(part.name) if group == "bench" else type(part).__name__.lower()


def described(group: str, part: Any) -> dict[str, Any]:
    """The class and options of an object, as in a configuration: they distinguish its runs from others.

    Options are the constructor's parameters that the object keeps under the same name, as a dataclass does. Models,
    and methods with parameters, also have a digest of their weights. UserError for a method or a benchmark that does
    not keep an option: two different ones would count as equal. Says which kept options no configuration can hold.
    """
    kind = type(part)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if group != "model" and (absent := [key for key in _option_names(part) if not hasattr(part, key)]):
        raise UserError(
            f"{group} {name} takes {absent[0]} and keeps it nowhere, so that its runs cannot be told from those with "
            f"another value; make the class a dataclass, or keep it as self.{absent[0]}"
        )
    key = "weights" if group == "model" else "weights_sha256"
    weights = _weights(part, {"decoder": part.decoder} if group == "model" else {})
    lost: dict[str, str] = {}
    options = _options(part, lost)
    for option, its_type in lost.items():
        if not any(held.startswith((f"{option}.", f".{option}.")) for held in weights):  # else its weights tell it
            warnings.warn(
                f"{group} {name}: the option {option} is of type {its_type}, which no journal can hold; runs with "
                "another value count as the same run, so give each its own output=",
                stacklevel=3,
            )
    return {"_target_": name, **options, **({key: digest(weights)} if weights else {})}


def _option_names(part: Any) -> list[str]:
    """The named parameters of an object's constructor; of a dataclass, its fields."""
    if type(part).__init__ is object.__init__:
        return []
    every = inspect.signature(type(part)).parameters.values()
    return [p.name for p in every if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


class _Unrecorded(Exception):
    """Raised for a value that no configuration can hold: where in the options it stands, and its type."""


def _options(part: Any, lost: dict[str, str], prefix: str = "") -> dict[str, Any]:
    """The options of an object that a configuration can hold; the others go into `lost`, name -> type.

    A device is neither: it is no part of what a run is.
    """
    import torch

    out: dict[str, Any] = {}
    for key in _option_names(part):
        if hasattr(part, key) and not isinstance(getattr(part, key), torch.device):
            try:
                out[key] = _option(getattr(part, key), lost, f"{prefix}{key}")
            except _Unrecorded as error:
                name, its_type = error.args
                lost[name] = its_type
    return out


def _option(value: Any, lost: dict[str, str], name: str) -> Any:
    """A value as a configuration can hold it; for an array or a tensor, its digest. _Unrecorded for any other."""
    import torch

    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (Path, torch.dtype)):
        return str(value)
    if _is_array(value):
        return digest({name: value})
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _option(item, lost, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_option(item, lost, f"{name}.{i}") for i, item in enumerate(value)]
    if is_dataclass(value) and not isinstance(value, type):
        return _options(value, lost, f"{name}.")
    raise _Unrecorded(name, type(value).__name__)


def _is_array(value: Any) -> bool:
    from torch import Tensor

    return isinstance(value, Tensor) or (isinstance(value, np.ndarray) and not value.dtype.hasobject)


def _weights(part: Any, known: Mapping[str, Any]) -> Mapping[str, Any]:
    """All parameters and buffers of a module, or of the modules in an object's attributes.

    known  modules of the object that may be no attributes, such as a decoder behind a property
    """
    from torch import nn

    attributes = vars(part) if hasattr(part, "__dict__") else {}
    modules = {"": part} if isinstance(part, nn.Module) else {**attributes, **known}
    held = {name: module for name, module in modules.items() if isinstance(module, nn.Module)}
    return {f"{name}.{key}": value for name, module in held.items() for key, value in module.state_dict().items()}


def digest(arrays: Mapping[str, Any]) -> str:
    """A SHA-256 of tensors or arrays: of the name, type, shape and every number of each."""
    found = hashlib.sha256()
    for name, array in arrays.items():
        found.update(f"{name} {array.dtype} {tuple(array.shape)}".encode() + _numbers(array))
    return found.hexdigest()


def _numbers(array: Any) -> bytes:
    """The bytes of a tensor's or an array's numbers, in their order."""
    import torch

    if isinstance(array, np.ndarray):
        return array.tobytes()
    return array.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def run_composed(cfg: Any, given: Mapping[str, Any] | None = None, job: SweepJob | None = None) -> None:
    """Runs a composed configuration of `vlaprune eval`, alone or as a job of a sweep.

    given  objects to use in place of configured ones, see `config.build`
    """
    from vlaprune import config
    from vlaprune.api import devices
    from vlaprune.evaluation import audit, run
    from vlaprune.evaluation.calibrate import calibrated
    from vlaprune.evaluation.progress import claim
    from vlaprune.evaluation.rollout import Shard, Watcher
    from vlaprune.models.backends import forked, kernel, with_backend
    from vlaprune.policy import Policy
    from vlaprune.report.audit import WITHOUT

    config.check(cfg)
    run.check(cfg)
    if job is not None:
        claim(Path(cfg.output), Shard(cfg.shard.index, cfg.shard.count).suffix, job)
    if config.is_black_box(cfg):
        _run_black_box(cfg, given or {}, job)
        return
    arm: str | None = cfg.audit.arm
    audit.check(arm)
    if cfg.devices is not None:
        if given:
            raise UserError("devices= starts processes, which know parts by their names only; leave it out")
        devices.run(cfg, job)
        return
    config.ready(given["bench"] if given and "bench" in given else config.make("bench", cfg.bench))
    model, make_pruner, bench = config.build(cfg, given=given)
    delay = config.delay(cfg, bench, model)
    header = config.header(cfg, model, bench, delay)
    plain, control = with_backend(model, cfg.kernel), config.control(cfg, bench)
    folder, watchers = Path(cfg.output), list[Watcher]()
    run.check_folder(cfg, header if arm is None else audit.named(header, arm), job)  # before a calibration
    if arm not in (None, "own", *WITHOUT):
        audit.audited(cfg.audit.run, arm, header)
    if arm not in WITHOUT:
        known = folder if arm in (None, "own") else Path(cfg.audit.run or folder)  # controls share the calibration
        with kernel(cfg.kernel):
            alone = partial(Policy, audit.alter_inputs(forked(plain), arm), control=control)  # its graphs go with it
            make_pruner = calibrated(make_pruner, alone, bench, known, cfg.seed)
    if arm is not None:
        make_pruner, watchers = audit.ready(make_pruner, arm, cfg.audit.run, header, folder)
        header = audit.named(header, arm)
    policy = Policy(audit.alter_inputs(plain, arm), make_pruner, cfg.slots, control, delay)
    run.main(cfg, policy, bench, header, config.sinks(cfg), job, watchers)


def _run_black_box(cfg: Any, given: Mapping[str, Any], job: SweepJob | None) -> None:
    """Runs a composed configuration whose actions come from a model server: no model is built, nothing is pruned."""
    from vlaprune import config
    from vlaprune.evaluation import run

    bench = given["bench"] if "bench" in given else config.make("bench", cfg.bench)
    box = config.black_box(cfg, bench)
    config.ready(bench)
    with box.connect(bench, config.control(cfg, bench), cfg.slots) as policy:
        header = config.black_box_header(cfg, policy.called, policy.server, policy.said, bench)
        run.check_folder(cfg, header, job)
        run.main(cfg, policy, bench, header, config.sinks(cfg), job)


def maker(method: Pruner | Callable[[], Pruner]) -> Callable[[], Pruner]:
    """A function that makes a separate method for every slot."""
    from vlaprune.pruner import Pruner

    return (lambda: copy.deepcopy(method)) if isinstance(method, Pruner) else method
