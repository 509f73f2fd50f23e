"""`make gpu-check`: every model with random weights, every method at some budgets, in a few minutes and one table.

The cost of a call does not depend on the values of the weights, save where a method's count does; such rows show what
random weights make of it, in their column of visual tokens.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import torch

from vlaprune.policy import VLA
from vlaprune.profile import micro, speed
from vlaprune.profile.measured import Measured, Methods, measure
from vlaprune.profile.page import Page
from vlaprune.profile.recording import Recording

FULL = ("openvla", "oft", "cogact", "pi0")
LADDER = ("eager", "sdpa", "flash", "compile", "graph")


def models(named: Sequence[str] | None) -> list[str]:
    """The named models, or all: at full size on a GPU, else the same at the size of tests."""
    if named:
        return list(named)
    return list(FULL) if torch.cuda.is_available() else [f"{name}_tiny" for name in FULL]


def shares(named: Sequence[str] | None, minutes: float) -> list[tuple[str, float]]:
    """The models, each with its seconds for the blocks; six tenths of the time are for building, warming, compiling."""
    chosen = models(named)
    return [(name, 0.4 * 60 * minutes / len(chosen)) for name in chosen]


def one(
    page: Page, name: str, model: VLA, methods: Methods, recording: Recording, seconds: float, cfg: Any
) -> Measured:
    """Measures one model and adds its tables to the page."""
    rules = micro.TimingConfig(warmup=4, calls=10**6, seconds=0.0, block=4, seed=cfg.seed, windows=0, limit=seconds)
    short = micro.TimingConfig(warmup=4, calls=12, seconds=0.0, block=4, seed=cfg.seed)
    ladder = LADDER if model.device.type == "cuda" else ("eager", "sdpa")
    found = measure(model, methods, recording, rules, ladder, climbing=short)
    page.parts.append(f"# {name}")
    speed.fill(page, found.rows, found.refusal, found.here)
    page.text(*found.notes)
    return found


def free() -> None:
    """Gives a dropped model's memory back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def where(device: str) -> str:
    """The device in a file name."""
    if not device.startswith("cuda"):
        return "cpu"
    return torch.cuda.get_device_name().lower().replace(" ", "-")
