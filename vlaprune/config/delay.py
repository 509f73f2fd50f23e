"""Makes a delay from the keys of `delay`, checked before anything runs, and its entry in the journal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from vlaprune.benchmark import Benchmark, SupportsHold
from vlaprune.config.build import control
from vlaprune.config.compose import plain
from vlaprune.config.names import digest, named, typed
from vlaprune.delay import MODES, Delay, check_chunk, steps_late
from vlaprune.errors import UserError

if TYPE_CHECKING:
    from vlaprune.policy import VLA

SOURCES = ("ms", "jitter", "device", "table", "model")


def delay(cfg: DictConfig, bench: Benchmark, model: VLA) -> Delay | None:
    """The delay of this run: how the world goes on during calls; None for a world that waits.

    UserError for an unknown mode, no or several sources of latency, a benchmark without `hold`, and a chunk that is too
    short.
    """
    from vlaprune.profile.latency import source

    keys = plain(cfg.delay)
    mode = keys["mode"]
    if mode not in MODES:
        raise UserError(f"delay.mode={mode}; use one of {', '.join(MODES)}")
    given = [f"delay.{key}={keys[key]}" for key in SOURCES if keys[key] is not None]
    if mode == "wait":
        if given:
            raise UserError(f"{' '.join(given)} with delay.mode=wait, where the world waits; choose another mode")
        _check_read(keys)
        return None
    if not isinstance(bench, SupportsHold):
        raise UserError(f"bench {bench.name} does not say what its robot does while it has no action; add `hold` to it")
    if keys["ms"] == "measured" and cfg.slots != 1:
        raise UserError(f"delay.ms=measured with slots={cfg.slots}; a call's own time needs slots=1")
    _check_read(keys)
    latency = source(keys, model.info.name, named(HydraConfig.get())["method"])
    if mode == "rtc":
        _check_rtc(cfg, bench, model)
    execute = control(cfg, bench).actions_per_call(model.chunk, model.info.name)
    check_chunk(mode, steps_late(latency.expected, bench.control_hz), execute, model.chunk)
    return Delay(mode, latency, bench.control_hz, bench.hold, keys["beta"])


def _check_read(keys: Mapping[str, Any]) -> None:
    said = typed(HydraConfig.get().overrides.task)
    if "delay.share" in said and (keys["device"] is None or keys["table"] is not None):
        raise UserError(f"delay.share={keys['share']} is read with delay.device alone; name a device, or leave it out")
    if "delay.beta" in said and keys["mode"] != "rtc":
        raise UserError(f"delay.beta={keys['beta']} is read by delay.mode=rtc alone; choose it, or leave it out")


def _check_rtc(cfg: DictConfig, bench: Benchmark, model: VLA) -> None:
    from vlaprune.policy import Guided

    if not isinstance(model, Guided):
        raise UserError(
            f"delay.mode=rtc guides a flow, and {model.info.name} has none; use pi0 or pi05, or delay.mode=overlap"
        )
    if control(cfg, bench).ensemble:
        raise UserError("delay.mode=rtc with an action ensemble leaves nothing to guide; use delay.mode=overlap")
    if isinstance(cfg.delay.beta, bool) or not isinstance(cfg.delay.beta, int | float) or cfg.delay.beta <= 0:
        raise UserError(f"delay.beta={cfg.delay.beta}; use a number above 0, 5 in the paper")


def delay_identity(cfg: DictConfig) -> dict[str, Any]:
    """The settings of a delay that decide numbers: the keys that are set; a table by its digest."""
    keys = {k: v for k, v in plain(cfg.delay).items() if v is not None}
    if "device" not in keys or "table" in keys:
        keys.pop("share", None)
    if keys["mode"] != "rtc":
        keys.pop("beta", None)
    if "table" in keys:
        keys["table"] = digest(Path(str(keys["table"])).read_bytes())
    return keys
