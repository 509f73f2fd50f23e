"""The page of `vlaprune-profile mode=floors`: least times of full-size models, and the most that pruning can save."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlaprune.profile.page import Page, percent
from vlaprune.profile.published import MODELS, Model
from vlaprune.profile.roofline import DEVICES, Device, ceiling, total
from vlaprune.profile.times import table
from vlaprune.pruner import Budget

LAYERS = (0, 2)  # layers before which tokens are dropped


def fill(page: Page, keeps: Sequence[float]) -> list[dict[str, Any]]:
    """Adds a table per device; returns the plain numbers. UserError for a budget that is none."""
    page.text(
        "One call at batch 1 in bf16, from the models' public sizes, without weights or a device: per matrix "
        "product the longer of its arithmetic and its memory traffic.",
        "No launch, no synchronisation, no method's own cost: a real call takes longer, and no pruning of the language "
        "model's visual tokens can give more than the last column says.",
        "Attention counts as the full rectangle.",
    )
    settings = [(1.0, 0), *((keep, layer) for keep in keeps for layer in LAYERS)]
    rows = [_row(m, on, keep, layer) for on in DEVICES.values() for m in MODELS.values() for keep, layer in settings]
    for on in DEVICES.values():
        mine = [r for r in rows if r["device"] == on.name]
        page.table(f"{on.name}", [_shown(r) for r in mine])
        page.text(
            f"{on.flops / 1e12:.0f} TFLOP/s, {on.bandwidth / 1e12:.2f} TB/s ({on.source}); below {on.ridge:.0f} rows a "
            "layer's weights bound it."
        )
    page.table("Published times of whole calls", table())
    page.text(
        "None was measured here. A floor for 8 bits is half of that for 16. Where the prompt is not told, the floor is "
        "that of no text at all.",
    )
    return rows


def _row(model: Model, on: Device, keep: float, layer: int) -> dict[str, Any]:
    visual = Budget(keep).count(model.visual)
    dense, call = model.call(), model.call(visual, layer)
    floors = on.floors(call)
    return {
        "device": on.name,
        "model": model.name,
        "keep": keep,
        "layer": layer,
        "visual": visual,
        "flops": total(call).flops,
        "bytes": total(call).bytes,
        **{f"ms_{stage}": ms for stage, ms in floors.items()},
        "ms": sum(floors.values()),
        "flops_cut": 1 - total(call).flops / total(dense).flops,
        "ceiling": ceiling(on, dense, call),
    }


def _shown(row: dict[str, Any]) -> dict[str, str]:
    dense = row["flops_cut"] == 0
    out = {
        "model": row["model"],
        "visual tokens": f"{row['visual']}" + ("" if dense else f" from layer {row['layer']} on"),
        "TFLOPs": f"{row['flops'] / 1e12:.3f}",
        "GB moved": f"{row['bytes'] / 1e9:.1f}",
    }
    out |= {
        s: f"{row[f'ms_{s}']:.2f}" if f"ms_{s}" in row else ""
        for s in ("vision", "projector", "prompt", "decode", "head")
    }
    out |= {"floor, ms": f"{row['ms']:.2f}", "FLOPs cut": "" if dense else percent(row["flops_cut"])}
    return out | {"largest speed-up": "" if dense else f"{row['ceiling']:.2f}x"}
