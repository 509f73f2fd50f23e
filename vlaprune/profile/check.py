"""`make gpu-check`: times every model with random weights and every method at some budgets, in a few minutes.

The cost of a call does not depend on the values of the weights, except where a method's token count does; the column of
visual tokens shows the count with random weights.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from vlaprune.methods.dense import Dense
from vlaprune.policy import VLA
from vlaprune.profile import micro, speed
from vlaprune.profile.measured import Measured, Methods, measure
from vlaprune.profile.page import Page
from vlaprune.profile.recording import Recording

FULL = ("openvla", "oft", "cogact", "pi0")
BACKENDS = ("sdpa", "compile", "graph")
LAUNCHES = (
    "*operators*: of a call that runs as it is, views, allocations and the preparation of pictures left "
    "out, here and in what follows. *launches*: what the host launches for "
    "a call under the arm's backend. Under eager, sdpa and flash that is every operator. Under graph a captured "
    "segment is one launch and one more for each dtype and layout of the inputs that are copied into it (what another "
    "graph wrote is read where it lies); operators outside segments are added. A segment that runs compiled launches "
    "fewer kernels than it has operators: they are not counted, and the number of such segments in a mean call is "
    "given."
)
BLOCK = 12  # calls; temporal methods make their dense calls at the beginning


def models(named: Sequence[str] | None) -> list[str]:
    """The names of the models, or of all: at full size on a GPU, else at the size of tests."""
    full = torch.cuda.is_available()
    return [f"{name}_tiny" if name in FULL and not full else name for name in named or FULL]


def shares(named: Sequence[str] | None, minutes: float) -> list[tuple[str, float]]:
    """The models, each with its seconds for the blocks; 60 % of the time is for building, warm-up and compiling."""
    chosen = models(named)
    return [(name, 0.4 * 60 * minutes / len(chosen)) for name in chosen]


def one(
    model: VLA, methods: Methods, recording: Recording, seconds: float, cfg: Any, save: Callable[[Measured], None]
) -> Measured:
    """Measures one model. `save` is called with the results so far, again and again."""
    rules = micro.TimingConfig(
        warmup=BLOCK, calls=10**6, seconds=0.0, block=BLOCK, seed=cfg.seed, windows=0, limit=seconds
    )
    short = micro.TimingConfig(warmup=BLOCK, calls=2 * BLOCK, seconds=0.0, block=BLOCK, seed=cfg.seed)
    backends = BACKENDS if model.device.type == "cuda" else ("sdpa",)
    again = (micro.AGAIN, Dense)
    return measure(model, [again, *methods], recording, rules, backends, quick=short, save=save)


def rows_of(found: Mapping[str, Measured]) -> list[dict[str, Any]]:
    """The rows of all models, by the names of their configurations."""
    return [{**row, "model": name, "refusal": own.refusal or ""} for name, own in found.items() for row in own.rows]


def page_of(found: Mapping[str, Measured]) -> Page:
    """The page with the tables of every model and a summary."""
    page = Page("Every method on every model")
    for name, own in found.items():
        page.parts.append(f"# {name}")
        speed.fill(page, own.rows, own.refusal, own.here)
        page.text(*own.notes)
    page.table("Summary", summary(rows_of(found)))
    page.text(LAUNCHES)
    return page


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """One line for each arm of each model: what a call costs and how near it is to its floor."""
    return [
        {
            "model": r["model"],
            "arm": r["method"],
            "backend": r["kernel"],
            "tokens": f"{r['visual_mean']:.0f} of {r['visual']}",
            "TFLOP": f"{r['flops_call'] / 1e12:.4g}",
            "p50 ms": f"{r['ms_p50']:.2f}",
            "p99 ms": f"{r['ms_p99']:.2f}",
            "launches": launches(r),
            "operators": f"{r['launch_operators']:.0f}",
            "peak MB": f"{r['mb_peak']:.0f}",
            "floor ms": f"{r['floor_ms']:.2f}",
            "share of floor": speed.floor_share(r),
            "speed-up [95 %]": "none" if r["refusal"] else speed.speedup(r),
        }
        for r in rows
    ]


def launches(row: dict[str, Any]) -> str:
    """The number of launches in a mean call of an arm, with words if not all can be counted (`LAUNCHES`)."""
    if row["kernel"] not in ("compile", "graph"):
        return f"{row['launch_operators']:.0f}"
    known = f"{row['launch_outside'] + row['launch_launched']:.0f}"
    compiled = row["launch_segments"] - row["launch_replayed"]
    return known if compiled < 0.05 else f"{known} + {compiled:.1f} compiled segments"


def free() -> None:
    """Frees the memory of a dropped model."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def where(device: str) -> str:
    """The name of the device for a file name."""
    if not device.startswith("cuda"):
        return "cpu"
    return torch.cuda.get_device_name().lower().replace(" ", "-")
