"""Settings that must be numbers, checked before anything is built."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

MODES = ("speed", "fidelity", "overhead", "floors", "check", "calibrate")  # of vlaprune-profile


def check(cfg: DictConfig) -> None:
    """ValueError for a setting of vlaprune-eval that must be a number and is none."""
    for key in ("seed", "episodes", "slots", "execute", "time_limit", "shard.index", "shard.count"):
        value, kinds = OmegaConf.select(cfg, key), (int, float) if key == "time_limit" else (int,)
        if type(value) not in kinds and (value is not None or key not in ("episodes", "execute")):
            raise ValueError(f"{key}={value}; use a {'whole ' if float not in kinds else ''}number")


def check_profile(cfg: DictConfig) -> None:
    """ValueError for a setting of vlaprune-profile that is none."""
    for key, kinds in {"warmup": (int,), "calls": (int,), "block": (int,), "seconds": (int, float)}.items():
        if type(cfg[key]) not in kinds or cfg[key] < (key == "block"):
            raise ValueError(f"{key}={cfg[key]}; use a {'whole ' if float not in kinds else ''}number, not negative")
    if cfg.mode not in MODES:
        raise ValueError(f"mode={cfg.mode} is not one of {', '.join(MODES)}")
