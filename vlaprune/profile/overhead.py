"""The page of `vlaprune-profile mode=overhead`: the cost of vlaprune itself when it prunes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlaprune.errors import UserError
from vlaprune.methods.dense import Dense
from vlaprune.nn.block import DecoderConfig
from vlaprune.nn.decoder import Decoder, NullHooks, Tokens
from vlaprune.nn.weights import StateDict, llama_weight_map, load_weights
from vlaprune.policy import VLA
from vlaprune.profile import micro
from vlaprune.profile.machine import Nvml, Watch
from vlaprune.profile.measured import Methods
from vlaprune.profile.page import Page, percent
from vlaprune.profile.recording import Recording
from vlaprune.pruner import ModelInfo, Plan, PruneContext, Pruner, PrunerWrapper, Selection
from vlaprune.stats.measured import median_interval

ALLOWED = 1.03


class IgnoredChoice(PrunerWrapper):
    """A method that reads and scores as usual, but whose choice is ignored: dense actions at the method's cost."""

    def plan(self, info: ModelInfo) -> Plan:
        """The method's plan, without the promise of a count."""
        return replace(self.inner.plan(info), budget={})

    def select(self, context: PruneContext) -> Selection | None:
        """Lets the method choose, then keeps everything; the rows that it asks to read are read."""
        chosen = self.inner.select(context)
        return None if chosen is None else Selection.all(context, chosen.reads)


@torch.inference_mode()
def decoders(page: Page, config: DecoderConfig, lengths: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Times our decoder and transformers' Llama under SDPA with the same weights, in turns."""
    rows = []
    for length in lengths:
        theirs, ours = _both(config, length)
        difference = float((ours() - theirs()).abs().max())
        if difference > 1e-3:
            raise UserError(f"our decoder and transformers' differ by {difference:.2g} at {length} tokens")
        times = alternate([theirs, ours], rounds)
        row: dict[str, Any] = {"arm": f"prompt of {length} tokens", "calls": rounds, "difference": difference}
        rows.append(row | ratios(times[:, 0], times[:, 1]))
    page.table(
        "Dense: our decoder against transformers' Llama", [_shown(r, "transformers, ms", "ours, ms") for r in rows]
    )
    page.text(
        f"The same random weights, width {config.hidden_size}, {config.num_layers} layers, {config.num_heads} heads, "
        f"feed-forward {config.intermediate_size}, fp32, SDPA in both, causal, batch 1, no cache. Calls take "
        "turns. A ratio below 1 means that ours is faster. Final hidden states differ by at most "
        + ", ".join(f"{r['difference']:.1g}" for r in rows)
        + "."
    )
    return rows


def _both(config: DecoderConfig, length: int) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Two functions that run transformers' model and ours on one prompt."""
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    theirs_config = LlamaConfig(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        intermediate_size=config.intermediate_size,
        rms_norm_eps=config.rms_norm_eps,
        vocab_size=32,
        attn_implementation="sdpa",  # type: ignore[call-arg]
    )
    model, decoder = LlamaModel(theirs_config).eval(), Decoder(config).eval()
    load_weights(
        decoder,
        StateDict(model.state_dict()),
        llama_weight_map(config, "", ""),
        ("embed_tokens.",),
        dtype=torch.float32,
    )
    prompt, index = torch.randn(length, config.hidden_size), torch.arange(length)
    sessions = [NullHooks()]

    def theirs() -> Tensor:
        return model(inputs_embeds=prompt[None], use_cache=False).last_hidden_state[0]

    return theirs, lambda: decoder([Tokens(prompt, index)], sessions)[0]


def alternate(calls: Sequence[Callable[[], object]], rounds: int, warmup: int = 2) -> np.ndarray:
    """[rounds, calls, 2] wall and processor milliseconds of calls in turn, the order reversed after every round."""
    out = np.zeros((rounds + warmup, len(calls), 2))
    for number in range(len(out)):
        order = range(len(calls)) if number % 2 else reversed(range(len(calls)))
        for i in order:
            wall, busy = time.perf_counter(), time.process_time()
            calls[i]()
            out[number, i] = time.perf_counter() - wall, time.process_time() - busy
    return 1e3 * out[warmup:]


def ratios(base: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """The medians of base and other [n, 2] (wall, processor) and of their ratios, with 95 % intervals of the ratios."""
    each = other / base
    low, high = median_interval(each[:, 0])
    busy_low, busy_high = median_interval(each[:, 1])
    return {
        "ms_base": float(np.median(base[:, 0])),
        "ms": float(np.median(other[:, 0])),
        "ratio": float(np.median(each[:, 0])),
        "low": low,
        "high": high,
        "busy": float(np.median(each[:, 1])),
        "busy_low": busy_low,
        "busy_high": busy_high,
    }


def _shown(row: dict[str, Any], base: str, other: str) -> dict[str, str]:
    return {
        "arm": row["arm"],
        "calls": str(row["calls"]),
        base: f"{row['ms_base']:.2f}",
        other: f"{row['ms']:.2f}",
        "ratio [95 %]": f"{row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]",
        "by processor time [95 %]": f"{row['busy']:.3f} [{row['busy_low']:.3f}, {row['busy_high']:.3f}]",
    }


def kept(every: Methods, info: ModelInfo) -> list[tuple[str, Callable[[], Pruner]]]:
    """Each method at keep=1.0; a method that promises no count at its default settings, with its choice ignored."""
    arms = dict(every)
    out = [(n, m) for n, m in arms.items() if n.endswith(" keep=1.0") and m().plan(info).budget]
    full = {label.split()[0] for label, _ in out}
    return out + [
        (f"{n}, choice thrown away", partial(_unheeded, m))
        for n, m in arms.items()
        if n.split()[0] not in full and " keep=" not in n
    ]


def _unheeded(make: Callable[[], Pruner]) -> Pruner:
    return IgnoredChoice(make())


def methods(
    page: Page,
    model: VLA,
    every: Methods,
    recording: Recording,
    rules: micro.TimingConfig,
    tell: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Times calls that read and score with a method but prune nothing, beside `method=dense`."""
    watch, rules = Watch(model.device, Nvml(model.device)), replace(rules, look=False, windows=0)
    base = micro.TimedArm("dense", recording.policy(model, Dense), "sdpa")
    again = micro.TimedArm(micro.AGAIN, recording.policy(model, Dense), "sdpa")
    arms = [
        again,
        *(micro.TimedArm(label, recording.policy(model, make), "sdpa") for label, make in kept(every, model.info)),
    ]
    base.warm(rules.blocks(recording.episodes), rules)
    rows: list[dict[str, Any]] = []
    refused: list[str] = []
    for pair in micro.compare(base, arms, recording.episodes, rules, watch, tell):
        arm = pair.arm
        if arm.refused:
            refused.append(f"- no row for {arm.label}: {arm.refused}")
            continue
        theirs = np.array([(np.median(base.blocks[i]), base.busy[i]) for i in pair.beside])
        ours = np.array([(np.median(b), busy) for b, busy in zip(arm.blocks, arm.busy, strict=True)])
        row: dict[str, Any] = {"arm": arm.label, "calls": len(arm.ms)} | ratios(theirs, ours)
        rows.append(row | {"ms_method": float(np.median([r.ms.get("method", 0.0) for r in arm.records]))})
    page.table("Methods that keep everything, against dense", [_method(r) for r in rows])
    config = model.decoder.config
    layout = base.policy.trace(0).layout
    page.text(
        f"{model.info.name}: width {config.hidden_size}, {config.num_layers} layers, {layout.length} positions, "
        f"{layout.total} of them visual; {recording.card['bench']}. Blocks of {rules.block} calls take turns with "
        "dense; a figure is the median of the blocks' ratios. *method* is the time in the method's own span: scoring, "
        f"top-k and the attention rows it looked at. The aim is at most {ALLOWED:.2f}; *dense again* shows what "
        "noise makes of no difference at all."
    )
    page.text(*refused, *([f"- {watch.shared}"] if watch.shared else []))
    return rows


def _method(row: dict[str, Any]) -> dict[str, str]:
    sure = {row["busy_high"] <= ALLOWED: "yes", row["busy_low"] > ALLOWED: "no"}
    inside = f"{sure.get(True, 'undecided')}, of it method {percent(row['ms_method'] / row['ms'])}"
    return _shown(row, "dense, ms", "ms") | {"method, ms": f"{row['ms_method']:.2f}", "at most 3 %": inside}
