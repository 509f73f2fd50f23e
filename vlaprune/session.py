"""Carries out what a pruner decides: the only module that knows both the decoder and the method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from vlaprune.meter import Clock, block_flops, decoder_flops
from vlaprune.nn.decoder import Cache, DecoderConfig, Tokens
from vlaprune.pruner import ModelInfo, Plan, PruneContext, Pruner, Selection
from vlaprune.records import STAGES, StepRecord
from vlaprune.trace import AttentionRows, Layout, QueryGroup, Runs, Trace


class Session:
    """One sequence (one environment slot), from episode to episode: its pruner, its cache, its bookkeeping.

    The decoder calls `enter` and `leave`, a model `begin` and `charge`, the policy `reset` and `finish`.
    A pruner never sees it.

    Errors: ValueError from `finish` where a method named rows that are not there or broke its own budget. Such checks
    are made when the call is over, so that no call waits for them.
    """

    def __init__(self, pruner: Pruner, info: ModelInfo, config: DecoderConfig, clock: Clock) -> None:
        self.pruner, self.info, self.config, self.clock = pruner, info, config, clock
        self.name = type(pruner).__name__
        self.plan: Plan = pruner.plan(info)
        self.plan.check(info, self.name)
        self.cache: Cache | None = None
        self._store = Cache(config)
        self._layout: Layout | None = None
        self._numbers = torch.arange(0)
        self.reset(0)

    def reset(self, seed: int) -> None:
        """A new episode: everything earlier calls left behind is forgotten."""
        self.seed, self._step, self._elapsed = seed, 0, 0
        self._state: Tensor | None = None
        self._executed = torch.empty(0, 0, dtype=torch.float64)
        self._forget()
        self.pruner.reset()

    def sees(self, state: Tensor | None) -> None:
        """Takes the robot state [s] of the observation that the next call is about."""
        self._state = state

    def executes(self, actions: Tensor) -> None:
        """Takes the actions [n, action_dim] that the robot executes before the next call."""
        self._executed, self._elapsed = actions, self._elapsed + actions.shape[0]

    def _forget(self) -> None:
        self._store.clear()
        self._filled: Tensor | None = None

    # -- the model's side ------------------------------------------------------------------------------------

    def begin(self, layout: Layout, images: Sequence[Tensor], like: Tensor) -> None:
        """Opens a model call. `images` as in Trace; `like` is any tensor of the device and dtype computed in."""
        if layout != self._layout:
            self._forget()  # an earlier prompt's slots mean other tokens
        self._layout = layout
        self.trace = Trace(
            layout, images, self._step, state=self._state, executed=self._executed, elapsed=self._elapsed
        )
        if self._numbers.shape[0] < layout.length or self._numbers.device != like.device:
            self._numbers = torch.arange(layout.length, device=like.device)
        self._alive = self._numbers[: layout.total]
        self._reads = dict(self.plan.reads)
        self._flops: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self._suspect: list[tuple[int, Tensor, Selection]] = []  # layer, what was alive, what was made of it
        self._selected: set[int] = set()
        self._decoding = False
        self._spans: dict[tuple[QueryGroup, int, bool], Runs] = {}  # see _runs
        self._live: list[Tensor] = []
        self._biases: list[Tensor | None] = []
        self._joined: tuple[Tensor, Tensor, Tensor] | None = None
        self._chosen: dict[int, Selection | None] = {}
        self._repeats = False
        decodes = layout.end > layout.length
        self.cache = self._store if decodes or self.plan.reuses else None
        if self.cache is not None:
            self.cache.reserve(layout.end, like)
        if self._filled is None:
            self._filled = torch.zeros(layout.total, dtype=torch.bool, device=like.device)

    def repeat_pass(self) -> None:
        """Opens another pass of the same prompt in the same call, such as a step of diffusion.

        The method is not asked a second time: what it selected in the first pass goes on, and nothing more is read.
        """
        self._flops["prompt"] += decoder_flops(self.config, self.trace.counts)
        self.trace.counts.clear()
        self.trace.decode.clear()
        self._alive = self._numbers[: self.trace.layout.total]
        self._reads, self._repeats, self._decoding = {}, True, False

    def charge(self, stage: str, flops: float) -> None:
        """Adds the model's own FLOPs outside the decoder to a stage: vision, projector, head."""
        self._flops[stage] += flops

    @property
    def wants_vision_attention(self) -> bool:
        """Whether the method reads the vision tower. If not, the model computes no attention for it."""
        return self.plan.vision_attention

    def record_vision_attention(self, attention: Tensor) -> None:
        """Takes the attention [V] inside the vision tower, as described at Trace.vision_attention."""
        if attention.shape != (self.trace.layout.total,):
            raise ValueError(
                f"tower attention has shape {tuple(attention.shape)}; give one number for each of the "
                f"{self.trace.layout.total} visual tokens"
            )
        self.trace.vision_attention = attention

    def kv_positions(self, layer: int) -> tuple[Tensor, Tensor | None]:
        """Positions [m] that rows after the prompt attend to at `layer`, and what is added to their logits, if any.

        Their keys and values are in `cache`.
        """
        bias = self._biases[layer]
        return self._live[layer], None if bias is None else bias[1:]

    def record_attention(self, layer: int, queries: Tensor, keys: Tensor, columns: Tensor, bias: Tensor | None) -> None:
        """Shows the action rows of an action expert: as `leave`, but what it computes the model itself charges.

        queries  [H, n, hd] rotated, every column visible to every row
        keys     [kv, c, hd] at the positions `columns` [c]
        bias     [c] added to the logits, None for zeros

        The keys are copied: the next pass of the expert writes to the same buffer.
        """
        if self._reads.get(layer, QueryGroup(0)) & QueryGroup.ACTION:
            self.trace.add(layer, QueryGroup.ACTION, AttentionRows(queries, keys.clone(), columns, None, bias))
            self.charge("method", 2.0 * queries.numel() * keys.shape[1])

    def record_expert_pass(self, columns: Sequence[int]) -> None:
        """Notes a pass of an action expert: the columns it attended to at each layer."""
        self.trace.expert.append(list(columns))

    # -- the decoder's side ----------------------------------------------------------------------------------

    def enter(self, layer: int, tokens: Tokens) -> Tokens:
        """The rows that go on into `layer`."""
        if self._decoding:
            return replace(tokens, columns=self._grown(tokens.index, self._live[layer]), bias=self._biases[layer])
        if layer not in self.plan.layers:
            return tokens
        with self.clock.span("method"):
            selection = self._chosen[layer] if self._repeats else self.pruner.select(self._site(layer, tokens))
            self._chosen[layer] = selection
            if selection is None:
                return tokens
            if self._repeats and selection.values is not None and layer:
                raise ValueError(
                    f"{self.name} puts new values in place of rows at layer {layer}, but this model passes its prompt "
                    "several times a call and cannot repeat that; use a method that drops rows, or acts before layer 0"
                )
            tokens = self._apply(layer, tokens, replace(selection, reads={}) if self._repeats else selection)
            if tokens.columns is not None:
                self.trace.reused[layer] = tokens.columns[tokens.index.shape[0] :]
            return tokens

    def next_prune_layer(self, layer: int) -> int:
        """The first layer after this one before which the method is asked."""
        return next((site for site in self.plan.layers if site > layer), self.info.num_layers)

    def records_attention(self, layer: int) -> bool:
        """Whether attention rows of this layer are read in this call."""
        return bool(self._reads.get(layer))

    def _grown(self, index: Tensor, live: Tensor) -> Tensor:
        """Columns of a decode pass: its own row and those the layer has; joined once for layers that share them."""
        if self._joined is None or self._joined[0] is not index or self._joined[1] is not live:
            self._joined = index, live, torch.cat((index, live))
        return self._joined[2]

    def leave(self, layer: int, tokens: Tokens, queries: Tensor, keys: Tensor, columns: Tensor) -> None:
        """Notes the shapes that were really computed and reads the attention rows that were asked for."""
        rows, seen = tokens.index.shape[0], columns.shape[0]
        wanted = self._reads.get(layer)
        if wanted:
            self._read(layer, wanted, tokens, queries, keys, columns)
        if self.cache is not None:
            self._live[layer : layer + 1] = [columns]
            bias = tokens.bias
            self._biases[layer : layer + 1] = [None if bias is None else torch.cat((bias.new_zeros(1), bias))]
        last = layer == self.info.num_layers - 1
        if self._decoding:
            self.trace.decode[-1].append(seen)
            if last:
                self.trace.decode.append([])
            return
        self.trace.counts.append((rows, seen))
        if last:
            self._decoding = True
            self.trace.decode.append([])

    def _rows_of(self, group: QueryGroup) -> range:
        """Row numbers of a group of query rows at this moment; all but the visual ones are always there."""
        layout, span = self.trace.layout, self.trace.layout.group(group)
        if self._decoding:
            return range(1) if group is QueryGroup.ACTION else range(0)
        gone, after = layout.total - self._alive.shape[0], layout.visual.stop
        start, stop = span.start, min(span.stop, layout.length)
        return range(start - gone if start >= after else start, stop - gone if stop >= after else stop)

    def _read(
        self, layer: int, wanted: QueryGroup, tokens: Tokens, queries: Tensor, keys: Tensor, columns: Tensor
    ) -> None:
        whole = not self._decoding and tokens.columns is None and columns.shape[0] == self.trace.layout.length
        index = tokens.index if self.config.causal else None
        runs, (heads, _, size) = self._runs(wanted), queries.shape
        self.trace.note(layer, runs, AttentionRows(queries, keys, None if whole else columns, index, tokens.bias))
        self._flops["method"] += 2.0 * heads * size * keys.shape[1] * sum(len(rows) for rows, _ in runs)

    def _runs(self, wanted: QueryGroup) -> Runs:
        """Runs of rows to compute together, and where in each the groups stand; all in one where that wastes little."""
        key = wanted, self._alive.shape[0], self._decoding
        if key not in self._spans:
            own = {group: span for group in wanted.groups if len(span := self._rows_of(group))}
            hull = range(min(r.start for r in own.values()), max(r.stop for r in own.values())) if own else range(0)
            one = 2 * sum(map(len, own.values())) >= len(hull)
            runs = [(hull, own)] if own and one else [(span, {group: span}) for group, span in own.items()]
            self._spans[key] = [
                (run, [(g, r.start - run.start, r.stop - run.start) for g, r in groups.items()]) for run, groups in runs
            ]
        return self._spans[key]

    def _site(self, layer: int, tokens: Tokens) -> PruneContext:
        visual, text = self._rows_of(QueryGroup.VISUAL), self._rows_of(QueryGroup.TEXT)
        assert self._filled is not None
        return PruneContext(
            layer=layer,
            seed=self.seed,
            visual=tokens.hidden[visual.start : visual.stop],
            alive=self._alive,
            text=tokens.hidden[text.start : text.stop],
            task=tokens.hidden[visual.stop :],
            reusable=self._filled if self._alive.shape == self._filled.shape else self._filled[self._alive],
            trace=self.trace,
        )

    def _apply(self, layer: int, tokens: Tokens, chosen: Selection) -> Tokens:
        for extra, rows in chosen.reads.items():
            if not layer <= extra < self.info.num_layers:
                raise ValueError(
                    f"{self.name} at layer {layer} asks to read layer {extra}; layers still to run are "
                    f"{layer}..{self.info.num_layers - 1}"
                )
            self._reads[extra] = self._reads.get(extra, QueryGroup(0)) | rows
        self._selected.add(layer)
        alive, count = self._alive, self._alive.shape[0]
        self._promise(layer, chosen)
        if chosen.keep.shape[0] == count and chosen.values is None and chosen.multiplicity is None:
            self.trace.kept[layer] = alive
            return tokens
        keep, order = chosen.keep.clamp(0, count - 1).sort()
        self._alive = self.trace.kept[layer] = alive.index_select(0, keep)
        own = tokens.index.shape[0]
        start, stop = self.trace.layout.visual.start, self.trace.layout.visual.start + count
        stay = torch.cat((self._numbers[:start], keep + start, self._numbers[stop:own]))
        hidden, index = tokens.hidden.index_select(0, stay), tokens.index.index_select(0, stay)
        if chosen.values is not None:
            values = chosen.values.index_select(0, order).to(hidden)
            hidden = torch.cat((tokens.hidden[:start], values, tokens.hidden[stop:]))
        cached = [] if tokens.columns is None else [tokens.columns[own:]]
        if chosen.reuse is not None and chosen.reuse.shape[0]:
            cached.append(alive.index_select(0, chosen.reuse.clamp(0, count - 1)) + start)
        columns = torch.cat((index, *cached)) if cached else None
        return Tokens(hidden, index, columns, self._weighed(tokens, stay, order, chosen))

    def _weighed(self, tokens: Tokens, stay: Tensor, order: Tensor, chosen: Selection) -> Tensor | None:
        """The bias [n + m] of the rows that go on and the columns that stay, where there is one."""
        if tokens.bias is None and chosen.multiplicity is None:
            return None
        start, own = self.trace.layout.visual.start, tokens.index.shape[0]
        gone = 0 if chosen.reuse is None else chosen.reuse.shape[0]
        seen = own if tokens.columns is None else tokens.columns.shape[0]
        old = tokens.hidden.new_zeros(seen) if tokens.bias is None else tokens.bias
        bias = torch.cat((old.index_select(0, stay), old[own:], old.new_zeros(gone)))
        if chosen.multiplicity is not None:
            bias[start : start + order.shape[0]] = chosen.multiplicity.index_select(0, order).to(bias).log()
        return bias

    def _promise(self, layer: int, chosen: Selection) -> None:
        """Refuses what can be refused at once, and notes the rest of a selection for `_verify`."""
        for what, given in (("values", chosen.values), ("multiplicity", chosen.multiplicity)):
            if given is not None and given.shape[0] != chosen.keep.shape[0]:
                raise ValueError(
                    f"{self.name} at layer {layer} gives {given.shape[0]} {what} for "
                    f"{chosen.keep.shape[0]} kept rows; give one each"
                )
        if chosen.reuse is not None and chosen.reuse.shape[0] and not self.plan.reuses:
            raise ValueError(f"{self.name} reuses rows at layer {layer} but its plan does not say reuses=True")
        self._suspect.append((layer, self._alive, chosen))

    def _verify(self, layer: int, alive: Tensor, chosen: Selection) -> None:
        """ValueError where a selection names rows that are not there, or a row twice, or rows that nobody cached."""
        count, reuse = alive.shape[0], chosen.reuse
        named = chosen.keep.tolist() + ([] if reuse is None else reuse.tolist())
        if named and not 0 <= min(named) <= max(named) < count:
            raise ValueError(f"{self.name} names rows at layer {layer} outside 0..{count - 1}")
        if len(set(named)) < len(named):
            raise ValueError(f"{self.name} names a row twice at layer {layer}; a row has one fate")
        if reuse is not None:
            assert self._filled is not None
            if not self._filled[alive[reuse]].all():
                raise ValueError(
                    f"{self.name} reuses rows at layer {layer} that no earlier call has cached; "
                    "intersect with context.reusable"
                )

    # -- the policy's side -----------------------------------------------------------------------------------

    def finish(self) -> StepRecord:
        """Closes the call: lets the method observe it, checks what was promised, counts tokens and FLOPs."""
        trace = self.trace
        with self.clock.span("method"):
            self.pruner.observe(trace)
        for promised in self._suspect:
            self._verify(*promised)
        self._check_budget()
        assert self._filled is not None
        if self.plan.reuses:
            self._filled = self._filled.index_fill(0, self._alive, True)
        passes = [p for p in trace.decode if p]
        self._flops["prompt"] += decoder_flops(self.config, trace.counts)
        self._flops["decode"] += sum(block_flops(self.config, 1, columns) for p in passes for columns in p)
        self._step += 1
        others = trace.layout.length - trace.layout.total
        return StepRecord(
            rows=tuple(rows for rows, _ in trace.counts),
            columns=tuple(columns for _, columns in trace.counts),
            total=trace.layout.total,
            visual=tuple(rows - others for rows, _ in trace.counts),
            decoded=len(passes) + len(trace.expert),
            flops=self._flops,
            ms={},
        )

    def _check_budget(self) -> None:
        """The proof of pruning: what the layer after a site really computed, against what was configured."""
        layout = self.trace.layout
        for layer in self._selected & set(self.plan.budget):
            asked = self.plan.budget[layer].count(layout.total)
            seen = self.trace.counts[layer][0] - (layout.length - layout.total)
            if seen != asked:
                raise ValueError(
                    f"{self.name} promised {asked} of {layout.total} visual tokens from layer {layer} on, "
                    f"but {seen} were computed; no number of this run can be believed"
                )


@contextmanager
def stage(sessions: Sequence[Session], name: str, flops: float = 0.0) -> Iterator[None]:
    """Times one stage of a packed call and charges each of its sequences `flops`; without sessions it does nothing."""
    for session in sessions:
        session.charge(name, flops)
    with sessions[0].clock.span(name) if sessions else nullcontext():
        yield
