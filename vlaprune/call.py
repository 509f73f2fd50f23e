"""One model call of one sequence: the hooks that the decoder calls, and what the model and the method see of it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from vlaprune.errors import UserError
from vlaprune.meter import Clock, decoder_flops
from vlaprune.nn.backend import Backend
from vlaprune.nn.block import DecoderConfig
from vlaprune.nn.decoder import Cache, Computed, LayerKV, Tokens
from vlaprune.pruner import ModelInfo, Plan, PruneContext, Pruner, Selection
from vlaprune.records import STAGES
from vlaprune.selection import Promise, apply_selection, check_shapes
from vlaprune.trace import AttentionRows, QueryGroup, Spans, Trace


@dataclass(frozen=True, eq=False)
class CallSetup:
    """What every call of a slot has in common: the method at work, and the decoder that it prunes.

    name     of the method, for messages
    backend  gives what runs the model's segments now
    """

    pruner: Pruner
    name: str
    plan: Plan
    info: ModelInfo
    config: DecoderConfig
    clock: Clock
    backend: Callable[[], Backend]


class Call:
    """One model call: made by `Session.begin`, closed by `Session.finish`.

    The decoder calls the hooks; the model calls the recording methods.

    cached  [V] bool, visual tokens whose keys and values are in `cache`, from an earlier call of this episode
    """

    def __init__(
        self, setup: CallSetup, trace: Trace, seed: int, like: Tensor, cache: Cache | None, cached: Tensor
    ) -> None:
        layout = trace.layout
        self.setup = setup
        self.trace = trace
        self.seed = seed
        self.cache = cache
        self.cached = cached
        self.keeps_kv = layout.end > layout.length  # rows behind the prompt will attend to it
        self.alive = torch.arange(layout.total, device=like.device)
        self.flops: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self.promises: list[Promise] = []
        self.entered: set[int] = set()
        self._reads = dict(setup.plan.reads)
        self._selections: dict[int, Selection | None] = {}
        self._kv: dict[int, LayerKV] = {}
        self._repeats = False
        self._may_repeat = setup.plan.second_pass
        self._second = False

    # -- the model's side ------------------------------------------------------------------------------------

    @property
    def clock(self) -> Clock:
        """The clock that times the stages of the call."""
        return self.setup.clock

    @property
    def config(self) -> DecoderConfig:
        """The configuration of the decoder."""
        return self.setup.config

    def charge(self, stage: str, flops: float) -> None:
        """Adds the model's own FLOPs outside the decoder to a stage: vision, projector, decode, head."""
        self.flops[stage] += flops

    def repeat_pass(self) -> None:
        """Opens another pass over the same prompt, such as a step of diffusion.

        The method is not asked again: its last selections apply, and no attention is read.
        """
        self._rewind()
        self._reads = {}
        self._repeats = True

    def _rewind(self) -> None:
        """Charges the pass that is over; the next one begins with all tokens."""
        self.flops["prompt"] += decoder_flops(self.config, self.trace.counts)
        self.trace.counts = []
        self.alive = torch.arange(self.trace.layout.total, device=self.alive.device)
        self.entered = set()

    @property
    def wants_vision_attention(self) -> bool:
        """Whether the method reads the attention of the vision tower. If not, the model does not compute it."""
        return self.setup.plan.vision_attention

    def record_vision_attention(self, attention: Tensor) -> None:
        """Takes the attention [V] inside the vision tower, as described at Trace.vision_attention."""
        total = self.trace.layout.total
        if attention.shape != (total,):
            raise UserError(
                f"vision attention has shape {tuple(attention.shape)}; give one number for each of the {total} "
                "visual tokens"
            )
        self.trace.vision_attention = attention

    def kv(self, layer: int) -> LayerKV:
        """The keys and values at `layer` that rows behind the prompt attend to."""
        return self._kv[layer]

    @property
    def kv_bytes(self) -> int:
        """Memory that keys and values for rows behind the prompt hold, in bytes."""
        return sum(t.numel() * t.element_size() for kv in self._kv.values() for t in (kv.keys, kv.values))

    def records_action(self, layer: int) -> bool:
        """Whether the method reads the action rows of this layer."""
        wanted = self._reads.get(layer)
        return wanted is not None and QueryGroup.ACTION in wanted

    def record_attention(self, layer: int, rows: AttentionRows) -> None:
        """Takes the action rows of a layer that are computed behind the prompt."""
        self.trace.add(layer, rows, {QueryGroup.ACTION: (0, rows.queries.shape[1])})

    def record_passes(self, columns: Sequence[Sequence[int]]) -> None:
        """Notes passes behind the prompt: for each pass, the number of columns attended to at each layer."""
        self.trace.passes += [list(counts) for counts in columns]

    # -- the decoder's side ----------------------------------------------------------------------------------

    def enter(self, layer: int, tokens: Tokens) -> Tokens:
        """The rows that go on into `layer`; asks the method where its plan says so."""
        if layer not in self.setup.plan.layers:
            return tokens
        self.entered.add(layer)
        with self.clock.span("method"):
            if not self._repeats:
                self._selections[layer] = self.setup.pruner.select(self._context(layer, tokens.hidden))
            selection = self._selections[layer]
            if selection is None:
                return tokens
            return self._select(layer, tokens, selection)

    def leave(self, layer: int, tokens: Tokens, computed: Computed) -> None:
        """Notes the sizes that were really computed, and takes what was asked for: attention rows and outputs."""
        self.trace.counts.append((tokens.index.shape[0], computed.seen))
        if computed.outputs is not None:
            rows = self._span(QueryGroup.VISUAL)
            self.trace.add_outputs(layer, self.alive, computed.outputs[rows.start : rows.stop])
        kv = computed.kv
        queries = computed.queries
        if kv is None:
            return
        wanted = self._reads.get(layer)
        if wanted and queries is not None:
            if self._second:
                self.trace.forget(layer)
            self._read(layer, wanted, tokens, queries, kv)
        if self.keeps_kv:
            self._kv[layer] = kv
        if self.cache is not None:
            count = tokens.index.shape[0]
            self.cache.write(layer, tokens.index, kv.keys[:, :count], kv.values[:, :count])

    def next_prune_layer(self, layer: int) -> int:
        """The first layer after this one before which the method is asked."""
        return next((n for n in self.setup.plan.layers if n > layer), self.setup.info.num_layers)

    def records_attention(self, layer: int) -> bool:
        """Whether attention rows of this layer are read in this call."""
        return bool(self._reads.get(layer))

    def records_outputs(self, layer: int) -> bool:
        """Whether the method reads the attention outputs of this layer. Repeated passes read nothing."""
        return layer in self.setup.plan.outputs and not self._repeats

    def begin_second_pass(self, hidden: Tensor) -> bool:
        """Asks the method once a call whether the prompt is to be computed again; if so, opens that pass."""
        if not self._may_repeat:
            return False
        self._may_repeat = False
        layers = self.setup.info.num_layers
        with self.clock.span("method"):
            context = self._context(layers, hidden)
            if not self.setup.pruner.wants_second_pass(context):
                return False
        self.trace.first_counts = self.trace.counts
        self._rewind()
        self.trace.kept.clear()
        self.trace.reused.clear()
        self._reads = dict(self.setup.plan.reads)
        self._second = True
        return True

    # -- inside ------------------------------------------------------------------------------------------------

    def _select(self, layer: int, tokens: Tokens, selection: Selection) -> Tokens:
        """Applies a selection. UserError for what can be refused at once."""
        name = self.setup.name
        if self._repeats and selection.values is not None and layer:
            raise UserError(
                f"{name} puts new values in place of rows at layer {layer}, but this model passes its prompt several "
                "times a call and cannot repeat that; use a method that drops rows, or prunes before layer 0"
            )
        if not self._repeats:
            self._extend_reads(layer, selection)
        check_shapes(name, layer, selection, self.setup.plan.reuses)
        self.promises.append(Promise(layer, self.alive, selection, self.trace.counts))
        selected, self.alive = apply_selection(tokens, selection, self.alive, self.trace.layout)
        self.trace.kept[layer] = self.alive
        if selected.columns is not None:
            self.trace.reused[layer] = selected.columns[selected.index.shape[0] :]
        return selected

    def _extend_reads(self, layer: int, selection: Selection) -> None:
        """Adds the attention rows that a selection asks for in this call only."""
        last = self.setup.info.num_layers - 1
        for extra, groups in selection.reads.items():
            if not layer <= extra <= last:
                raise UserError(
                    f"{self.setup.name} at layer {layer} asks to read layer {extra}; layers still to run are "
                    f"{layer}..{last}"
                )
            self._reads[extra] = self._reads.get(extra, QueryGroup(0)) | groups

    def _span(self, group: QueryGroup) -> range:
        """Row numbers of a query group now, after pruning; empty for rows behind the prompt."""
        layout = self.trace.layout
        span = layout.group(group)
        gone = layout.total - self.alive.shape[0]
        behind = layout.visual.stop
        start, stop = span.start, min(span.stop, layout.length)
        return range(start - gone if start >= behind else start, stop - gone if stop >= behind else stop)

    def _read(self, layer: int, wanted: QueryGroup, tokens: Tokens, queries: Tensor, kv: LayerKV) -> None:
        """Takes the rows of the wanted groups; neighbouring groups are computed in one product."""
        whole = tokens.columns is None and kv.columns.shape[0] == self.trace.layout.length
        columns = None if whole else kv.columns
        for run, spans in runs_of({g: s for g in wanted.groups if len(s := self._span(g))}):
            index = tokens.index[run.start : run.stop] if self.config.causal else None
            rows = AttentionRows(queries[:, run.start : run.stop], kv.keys, columns, index, tokens.bias)
            self.trace.add(layer, rows, spans)

    def _context(self, layer: int, hidden: Tensor) -> PruneContext:
        visual = self._span(QueryGroup.VISUAL)
        text = self._span(QueryGroup.TEXT)
        return PruneContext(
            layer=layer,
            seed=self.seed,
            visual=hidden[visual.start : visual.stop],
            alive=self.alive,
            text=hidden[text.start : text.stop],
            task=hidden[visual.stop :],
            reusable=self.cached if self.alive.shape == self.cached.shape else self.cached[self.alive],
            trace=self.trace,
            second_pass=self._second,
            run=self._run,
        )

    def _run(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """Runs a part of the method as a segment. Its result stays as it is, whatever is run later."""
        backend = self.setup.backend()
        out = backend.run(("method", function), function, *inputs)
        return pytree.tree_map_only(Tensor, Tensor.clone, out) if backend.static else out


def runs_of(groups: dict[QueryGroup, range]) -> list[tuple[range, Spans]]:
    """Which rows to compute together: all in one range if at least half of its rows are wanted, else group by group."""
    if not groups:
        return []
    hull = range(min(r.start for r in groups.values()), max(r.stop for r in groups.values()))
    together = 2 * sum(map(len, groups.values())) >= len(hull)
    runs = [(hull, groups)] if together else [(rows, {group: rows}) for group, rows in groups.items()]
    return [(run, {g: (r.start - run.start, r.stop - run.start) for g, r in spans.items()}) for run, spans in runs]


@contextmanager
def stage(calls: Sequence[Call], name: str, flops: float = 0.0) -> Iterator[None]:
    """Times one stage of a packed call and charges each of its sequences `flops`; without calls it does nothing."""
    for call in calls:
        call.charge(name, flops)
    with calls[0].clock.span(name) if calls else nullcontext():
        yield


def call_noise(calls: Sequence[Call], *size: int) -> Tensor:
    """Normal noise [B, *size] in fp32, drawn on the CPU: the episode's seed and the number of the call decide it."""
    seeds = [zlib.crc32(f"{call.seed}/{call.trace.step}".encode()) for call in calls]
    return torch.stack([torch.randn(size, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def decode_flops(config: DecoderConfig, columns: Sequence[Sequence[int]]) -> float:
    """FLOPs of passes of one row each, from the columns attended to at each layer."""
    return decoder_flops(config, [(1, count) for counts in columns for count in counts])
