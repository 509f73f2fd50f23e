"""The page of `vlaprune-profile mode=speed`: what each method saves and costs, from timed calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from vlaprune.policy import VLA
from vlaprune.profile.conventions import CONVENTIONS, rosetta
from vlaprune.profile.micro import Pair, TimedArm
from vlaprune.profile.page import Page, percent
from vlaprune.profile.roofline import DEVICES, Device
from vlaprune.records import STAGES, TIMED, StepRecord
from vlaprune.stats.measured import impossible, median_interval

SHOWN = ("H100", "H200", "4090", "A100")
COMPLETE = 0.95  # share of a call's time that its stages must sum up to


def mean(records: Sequence[StepRecord], stage: str) -> float:
    """The mean FLOPs of a stage per call."""
    return float(np.mean([r.flops.get(stage, 0.0) for r in records]))


def dense_share(records: Sequence[StepRecord]) -> float:
    """The share of calls that computed every visual token in every layer: warm-up, key and refresh calls."""
    return float(np.mean([not r.pruned for r in records]))


def described(model: VLA, arm: TimedArm, here: Device) -> dict[str, Any]:
    """The numbers of one arm alone: tokens, FLOPs in every convention, milliseconds, memory, floors."""
    ms, records = arm.ms, arm.records
    p50, p90, p99 = np.percentile(ms, [50, 90, 99])
    pruned = [r for r in records if r.pruned]
    counted = {k: sum(w.flops for w in v) / arm.counted for k, v in arm.products.items()}
    row: dict[str, Any] = {
        "model": model.info.name,
        "method": arm.label,
        "kernel": arm.backend,
        "calls": len(ms),
        "blocks": len(arm.blocks),
        "cold": arm.cold,
        "seconds": ms.sum() / 1e3,
    }
    row |= {"ms_p50": p50, "ms_p90": p90, "ms_p99": p99, "ms_jitter": p99 - p50, "ms_first": arm.first}
    row |= {f"ms_{s}": float(np.mean([r.ms.get(s, 0.0) for r in records])) for s in TIMED}
    row["spans_share"] = sum(row[f"ms_{s}"] for s in TIMED) / float(ms.mean())
    row |= {"other_share": row["ms_other"] / float(ms.mean()), "dense_share": dense_share(records)}
    row |= {f"flops_{s}": mean(records, s) for s in STAGES}
    row |= {k: float(np.mean([rosetta(model.decoder.config, r)[k] for r in records])) for k in CONVENTIONS}
    row["steady_flops"] = float(np.mean([sum(r.flops.values()) for r in pruned])) if pruned else row["flops_call"]
    row["ms_pruned"] = float(np.median([t for t, r in zip(ms, records, strict=True) if r.pruned] or ms))
    row |= {"visual": records[0].total, "flops_method_seen": counted.get("method", 0.0)}
    row["bytes_call"] = sum(w.bytes for v in arm.products.values() for w in v) / arm.counted
    row["floor_ms"] = floor(here, arm)
    row["floor_share"] = row["floor_ms"] / p50
    row |= {f"launch_{key}": number for key, number in asdict(arm.launches).items()}
    row |= {"mb_peak": arm.memory[0], "mb_reserved": arm.memory[1]}
    row |= {"cache_bytes": arm.cache_bytes, "state_bytes": arm.state_bytes}
    row["joules"] = float(np.median(arm.joules)) if arm.joules else None
    return row


def floor(on: Device, arm: TimedArm) -> float:
    """Milliseconds of the mean call of an arm on a device at its roofline, a method's own products left out."""
    return sum(ms for stage, ms in on.floors(arm.products).items() if stage != "method") / arm.counted


def against(row: dict[str, Any], pair: Pair, dense: TimedArm, base: dict[str, Any]) -> dict[str, Any]:
    """Adds the comparison with dense to a row: FLOPs cut, the speed-up they promise, the measured and the largest one.

    `bound` is the larger of the speed-up by FLOPs and the ratio of the floors on the measured device.
    """
    ratios = pair.ratios
    low, high = median_interval(ratios)
    row |= {"flops_cut": 1 - row["flops_call"] / base["flops_call"]}
    beside = [t for i in pair.beside for t in dense.blocks[i]]
    row["method_share"] = row["ms_method"] / float(np.mean(beside))
    row |= {"speedup_flops": base["flops_call"] / row["flops_call"]}
    row |= {"speedup": float(np.median(ratios)), "speedup_low": low, "speedup_high": high}
    row["speedup_busy"] = float(np.median(pair.busy_ratios)) if dense.policy.model.device.type == "cpu" else None
    row["bound"] = max(row["speedup_flops"], base["floor_ms"] / row["floor_ms"])
    row |= {"speedup_q1": np.percentile(ratios, 25), "speedup_q3": np.percentile(ratios, 75)}
    row |= {
        "prompt_flops": base["flops_prompt"] / row["flops_prompt"],
        "prompt": float(np.median(pair.stage_ratios("prompt"))),
    }
    row |= {f"ceiling_{n}": floor(DEVICES[n], dense) / floor(DEVICES[n], pair.arm) for n in SHOWN}
    return row


def beside_sdpa(arms: Sequence[TimedArm]) -> dict[str, dict[str, float]]:
    """Backend -> time of a dense call relative to sdpa: median over blocks on the same observations, with its interval.

    Call it right after the backends were compared, while all arms have the same blocks. Empty if sdpa did not run.
    """
    run = {arm.backend: arm for arm in arms if not arm.refused}
    if "sdpa" not in run:
        return {}
    base, out = run["sdpa"], {}
    for name, arm in run.items():
        pairs = list(zip(arm.blocks, base.blocks, strict=True))
        ratios = np.array([np.median(ours) / np.median(theirs) for ours, theirs in pairs])
        low, high = median_interval(ratios)
        busy = float(np.median(np.array(arm.busy) / np.array(base.busy)))
        out[name] = {"sdpa_blocks": len(pairs), "sdpa_time": float(np.median(ratios)), "sdpa_busy": busy}
        out[name] |= {"sdpa_low": low, "sdpa_high": high}
    return out


def fill(page: Page, rows: Sequence[dict[str, Any]], refusal: str | None, here: Device) -> None:
    """Adds the tables of speed, stages, FLOPs, floors and memory to the page."""
    page.table("Speed", [_speed(r, refusal) for r in rows])
    page.text(
        "*cold*: calls after warm-up that compiled, captured a graph or took new memory. Blocks with such a call are "
        "in none of the times."
    )
    if any("?" in _speed(r, refusal)["speed-up [95 %]"] for r in rows):
        page.text(
            "? A speed-up above what FLOPs and floors allow is none of the method's: calls were not steady (no "
            "warm-up, too few calls), or the baseline was slowed down. Measure again with more warm-up and blocks."
        )
    backends = [r for r in rows if "sdpa_time" in r]
    if len(backends) > 1:
        page.table("Dense under each backend", [_backend_row(r) for r in backends])
        page.text("Time of a call over that under sdpa, in turns on the same observations; below 1 is faster.")
    page.table("Stages", [_stages(r) for r in rows])
    page.text(
        "Mean milliseconds a call. *pictures* is preparing the cameras' pictures; *method* is scoring, "
        "top-k, gathers and attention rows; *other* is bringing other input to the device, actions to the host, "
        f"and bookkeeping. The sum must be at least {COMPLETE:.0%} of the call as timed from outside.",
    )
    page.table("Counted", [_flops(r) for r in rows])
    page.text(*(f"- {name}: {text}" for name, text in CONVENTIONS.items()))
    page.table("Floors", [_floors(r) for r in rows])
    single = "" if here.single is None else f" ({here.single / 1e9:.0f} for products in fp32)"
    page.text(
        f"Floor: {here.name}, {here.flops / 1e9:.0f} GFLOP/s{single} and {here.bandwidth / 1e9:.1f} GB/s "
        f"({here.source}). "
        "The largest speed-up that pruning could give on other devices is the ratio of the floors there, for this "
        "model's products in this dtype.",
    )
    page.table("Memory and energy", [_memory(r) for r in rows])


def floor_share(row: dict[str, Any]) -> str:
    """The floor as a share of the time, with a mark if the time is below the floor, which is impossible."""
    return percent(row["floor_share"]) + (" ? a floor above the time is wrong" if row["floor_share"] > 1 else "")


def speedup(row: dict[str, Any]) -> str:
    """The speed-up and its interval, with a warning if such a speed-up is impossible."""
    if "speedup" not in row:
        return "baseline" if row.get("baseline") else ""
    around = f" [{row['speedup_low']:.2f}, {row['speedup_high']:.2f}]" if row["blocks"] > 2 else ""
    sure = row["speedup_low"] if row["blocks"] > 2 else row["speedup"]
    doubt = f" ? above what is possible, {row['bound']:.2f}x" if impossible(sure, 1 - 1 / row["bound"]) else ""
    return f"{row['speedup']:.2f}x{around}{doubt}"


def _speed(row: dict[str, Any], refusal: str | None) -> dict[str, str]:
    out = {
        "arm": row["method"],
        "kernel": row["kernel"],
        "visual tokens": f"{row['visual_mean']:.1f} of {row['visual']}",
        "dense calls": percent(row["dense_share"]),
        "cold": str(row["cold"]),
        "GFLOPs/call": f"{row['flops_call'] / 1e9:.4g}",
        "FLOPs cut": percent(row["flops_cut"]) if "flops_cut" in row else "",
        "FLOPs promise": f"{row['speedup_flops']:.2f}x" if "flops_cut" in row else "",
    }
    if "speedup" in row:
        out["speed-up [95 %]"] = f"none: {refusal}" if refusal else speedup(row)
        out["by processor time"] = "" if refusal or row["speedup_busy"] is None else f"{row['speedup_busy']:.2f}x"
        reached = f"{row['prompt']:.2f}x of {row['prompt_flops']:.2f}x, {row['prompt'] / row['prompt_flops']:.0%}"
        out["prompt alone"] = "" if refusal else reached
    else:
        out |= {
            "speed-up [95 %]": "baseline" if row.get("baseline") else "",
            "by processor time": "",
            "prompt alone": "",
        }
    return out | {
        name: f"{row[key]:.2f}"
        for name, key in (
            ("ms p50", "ms_p50"),
            ("p90", "ms_p90"),
            ("p99", "ms_p99"),
            ("jitter", "ms_jitter"),
            ("after reset", "ms_first"),
        )
    }


def _backend_row(row: dict[str, Any]) -> dict[str, str]:
    return {
        "backend": row["kernel"],
        "blocks": str(row["sdpa_blocks"]),
        "time / sdpa [95 %]": f"{row['sdpa_time']:.3f} [{row['sdpa_low']:.3f}, {row['sdpa_high']:.3f}]",
        "by processor time": f"{row['sdpa_busy']:.3f}",
    }


def _stages(row: dict[str, Any]) -> dict[str, str]:
    out = {"arm": row["method"], "kernel": row["kernel"]}
    out |= {s: f"{row[f'ms_{s}']:.3f}" for s in TIMED}
    out["method / dense call"] = percent(row["method_share"]) if "method_share" in row else ""
    missing = "" if row["spans_share"] >= COMPLETE else " TOO LITTLE"
    return out | {"sum / whole": percent(row["spans_share"]) + missing, "of it other": percent(row["other_share"])}


def _flops(row: dict[str, Any]) -> dict[str, str]:
    out = {"arm": row["method"], "kernel": row["kernel"]}
    out |= {s: f"{row[f'flops_{s}'] / 1e9:.4g}" for s in STAGES}
    out["method, all products seen"] = f"{row['flops_method_seen'] / 1e9:.4g}"
    out |= {name: f"{row[name] / 1e9:.4g}" for name in CONVENTIONS if name != "visual_mean"}
    return out | {"steady": f"{row['steady_flops'] / 1e9:.4g}", "visual_mean": f"{row['visual_mean']:.1f}"}


def _floors(row: dict[str, Any]) -> dict[str, str]:
    out = {"arm": row["method"], "kernel": row["kernel"], "MB moved": f"{row['bytes_call'] / 1e6:.1f}"}
    out |= {"floor ms": f"{row['floor_ms']:.3f}", "share of floor reached": floor_share(row)}
    return out | {f"most on {n}": f"{row[f'ceiling_{n}']:.2f}x" if f"ceiling_{n}" in row else "" for n in SHOWN}


def _memory(row: dict[str, Any]) -> dict[str, str]:
    reserved, joules = row["mb_reserved"], row["joules"]
    return {
        "arm": row["method"],
        "kernel": row["kernel"],
        "peak MB": f"{row['mb_peak']:.0f}" + ("" if reserved is not None else " (whole process)"),
        "reserved MB": "unknown" if reserved is None else f"{reserved:.0f}",
        "KV kept, bytes": str(row["cache_bytes"]),
        "method's state, bytes": str(row["state_bytes"]),
        "J/call": row["no_energy"] if joules is None else f"{joules:.3g}",
    }
