"""What one model call is made of (Layout) and what it computed, read and kept (Trace)."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, reduce
from itertools import groupby

import torch
from torch import Tensor

from vlaprune.errors import UserError


class QueryGroup(enum.Flag):
    """Which query rows of an attention matrix a method reads."""

    LAST = enum.auto()  # the last prompt token (in OFT the stop token)
    TEXT = enum.auto()  # the instruction
    VISUAL = enum.auto()  # the visual tokens still computed
    ACTION = enum.auto()  # whatever emits the action: decoded tokens, placeholders, the cognition token
    PREFIX = enum.auto()  # every prompt row still computed that comes before the action rows of the prompt, if any
    PROMPT = enum.auto()  # every prompt row still computed
    ALL = LAST | TEXT | VISUAL | ACTION  # groups that do not overlap, except that the last row may be text or action

    @property
    def groups(self) -> tuple[QueryGroup, ...]:
        """The single groups, in the order of their definition."""
        return _groups(self)


@cache
def _groups(rows: QueryGroup) -> tuple[QueryGroup, ...]:
    return tuple(rows)  # iterating over a flag costs more than a small matrix product


@dataclass(frozen=True)
class View:
    """One camera's tokens: numbers start .. start + height * width - 1 of the V, row by row."""

    camera: str
    start: int
    height: int
    width: int

    @property
    def tokens(self) -> range:
        """The camera's tokens among the V."""
        return range(self.start, self.start + self.height * self.width)

    @property
    def slice(self) -> slice:
        """The camera's tokens among the V as a slice, to index a tensor or an array."""
        return slice(self.start, self.tokens.stop)


@dataclass(frozen=True)
class Layout:
    """Positions of visual tokens, text and actions in a prompt of `length` positions. Each is a contiguous range.

    visual  positions of the V visual tokens
    text    positions of the instruction
    action  positions that emit the action: inside the prompt (placeholders) or after it (decoded tokens)
    last    position of the last prompt token
    views   the cameras, in the order of their tokens

    Two layouts are equal if cameras and instruction have the same positions. The rest of a prompt (pi0.5's state as
    text) may change its length from call to call, and a method can still compare or reuse tokens of earlier calls.

    Errors: UserError if the views do not cover the visual tokens exactly once, or something lies outside the prompt.
    """

    length: int = field(compare=False)
    visual: range
    text: range
    action: range = field(compare=False)
    last: int = field(compare=False)
    views: tuple[View, ...]

    def __post_init__(self) -> None:
        """Checks that the views tile the visual tokens, and that all but the action lies within the prompt."""
        parts = {"visual": self.visual.stop, "text": self.text.stop, "last": self.last + 1}
        if outside := [f"{name} ends at {end}" for name, end in parts.items() if end > self.length]:
            raise UserError(f"a layout of {self.length} positions, but {', '.join(outside)}")
        tiles = [view.tokens for view in self.views]
        ends = [0, *(tile.stop for tile in tiles)]
        if [tile.start for tile in tiles] != ends[:-1] or ends[-1] != len(self.visual):
            raise UserError(f"views {self.views} do not tile the {len(self.visual)} visual tokens")

    @property
    def total(self) -> int:
        """V, the number of visual tokens."""
        return len(self.visual)

    @property
    def sizes(self) -> list[int]:
        """Visual tokens of each camera, in the order of the views."""
        return [len(view.tokens) for view in self.views]

    @property
    def end(self) -> int:
        """One past the last position, decoded tokens included."""
        return max(self.length, self.action.stop)

    @cached_property
    def _groups(self) -> dict[QueryGroup, range]:
        last = range(self.last, self.last + 1)
        return {
            QueryGroup.LAST: last,
            QueryGroup.TEXT: self.text,
            QueryGroup.VISUAL: self.visual,
            QueryGroup.ACTION: self.action,
            QueryGroup.PREFIX: range(self.action.start if self.action.stop <= self.length else self.length),
            QueryGroup.PROMPT: range(self.length),
        }

    def group(self, group: QueryGroup) -> range:
        """Prompt positions of one group of query rows, as if no token had been dropped."""
        return self._groups[group]


def attention_rows(queries: Tensor, keys: Tensor, visible: Tensor | None, bias: Tensor | None = None) -> Tensor:
    """Softmax weights [..., H, q, c] in fp32 of some rotated queries [..., H, q, hd] on keys [..., kv, c, hd].

    visible  [..., q, c] bool mask of what a row may attend to, None for everything
    bias     [..., c] added to the logits
    """
    heads, count = queries.shape[-3:-1]
    if keys.shape[-3] != heads:  # each key head serves a run of query heads
        queries = queries.unflatten(-3, (keys.shape[-3], -1)).flatten(-3, -2)
    scale = queries.shape[-1] ** -0.5
    q, k = queries.flatten(0, -3), keys.flatten(0, -3)
    logits = torch.baddbmm(q.new_empty(1, 1, 1), q, k.mT, beta=0, alpha=scale).float()  # scaled within the product
    logits = logits.view(*keys.shape[:-3], heads, count, -1)
    if bias is not None:
        logits = logits + bias.float()
    if visible is not None:
        logits = logits.masked_fill(~visible, float("-inf"))
    return logits.softmax(-1)


def scatter_columns(weights: Tensor, columns: Tensor | None, end: int) -> Tensor:
    """Spreads weights [..., c] on columns [c] (None for 0 .. c - 1) over `end` columns: [..., end], zero elsewhere."""
    if columns is None and weights.shape[-1] == end:
        return weights
    full = weights.new_zeros((*weights.shape[:-1], end))
    if columns is None:
        full[..., : weights.shape[-1]] = weights
        return full
    return full.index_copy_(-1, columns, weights)


@dataclass(eq=False)
class AttentionRows:
    """Some query rows of one layer. Their weights are computed when a method first looks at them.

    queries  [H, q, hd] rotated
    keys     [kv, c, hd] rotated
    columns  [c] positions of the keys; None for 0 .. c - 1
    index    [q] positions of rows that see no later position; None where they see everything
    bias     [c] added to the logits; None for zeros
    """

    queries: Tensor
    keys: Tensor
    columns: Tensor | None = None
    index: Tensor | None = None
    bias: Tensor | None = None
    _weights: Tensor | None = None

    @classmethod
    def known(cls, weights: Tensor, columns: Tensor | None = None) -> AttentionRows:
        """Rows whose weights [H, q, c] are computed already."""
        return cls(weights[..., :0], weights.new_empty(0, weights.shape[-1], 0), columns, _weights=weights)

    @property
    def weights(self) -> Tensor:
        """[H, q, c] softmax weights in fp32."""
        if self._weights is None:
            self._weights = attention_rows(self.queries, self.keys, self._visible(), self.bias)
        return self._weights

    @property
    def pending(self) -> bool:
        """Whether the weights are still to be computed."""
        return self._weights is None

    @property
    def kind(self) -> tuple[object, ...]:
        """A key, equal for rows whose weights one product can compute: same shapes, and a mask for all or for none."""
        return self.queries.shape, self.keys.shape, self.index is None

    @property
    def flops(self) -> float:
        """FLOPs of queries times keys; 0 while nobody has looked at the weights, or where they were known."""
        return 0.0 if self.pending else 2.0 * self.queries.numel() * self.keys.shape[1]

    def _visible(self) -> Tensor | None:
        if self.index is None:
            return None
        columns = self.columns
        if columns is None:
            columns = torch.arange(self.keys.shape[1], device=self.index.device)
        return self.index[:, None] >= columns[None, :]


def compute_together(several: Sequence[AttentionRows]) -> None:
    """Computes the weights of rows of one kind, all of them pending, in one product."""
    first = several[0]
    bias: Tensor | None = None
    visible: Tensor | None = None
    if any(rows.bias is not None for rows in several):
        zeros = first.keys.new_zeros(first.keys.shape[1])
        bias = torch.stack([zeros if rows.bias is None else rows.bias for rows in several])[:, None, None]
    if first.index is not None:
        visible = torch.stack([rows._visible() for rows in several])[:, None]  # type: ignore[misc]
    queries, keys = torch.stack([r.queries for r in several]), torch.stack([r.keys for r in several])
    for rows, weights in zip(several, attention_rows(queries, keys, visible, bias), strict=True):
        rows._weights = weights


@dataclass(frozen=True, eq=False)
class RowSlice:
    """Rows start .. stop - 1 of some attention rows: one query group of one layer."""

    rows: AttentionRows
    start: int
    stop: int

    @property
    def weights(self) -> Tensor:
        """[H, q, c] softmax weights in fp32."""
        return self.rows.weights[:, self.start : self.stop]

    @property
    def key(self) -> tuple[object, ...]:
        """A key, equal for slices that can be stacked: same row numbers, shapes and columns."""
        return self.start, self.stop, self.rows.queries.shape, self.rows.keys.shape, id(self.rows.columns)


Spans = Mapping[QueryGroup, tuple[int, int]]  # of query groups within computed rows: first row, and one past the last


@dataclass
class Trace:
    """What one model call has computed, read and kept so far. Positions are those of the prompt before pruning.

    images  one [h, w, 3] uint8 image per view, as the vision tower sees it
    step    model calls since the episode began
    kept    layer -> [k] indices, 0 .. V - 1, of the visual tokens computed from that layer on
    reused  layer -> [r] prompt positions whose keys and values come from an earlier call, from that layer on
    counts  per layer (rows computed, columns attended to) of the prompt pass; of the second one if there are two
    first_counts  counts of the first pass if the method asked for a second; else empty
    passes  per pass behind the prompt (a decoded token, a denoising step), the columns attended to at each layer
    vision_attention  [V] attention that each visual token received in the last attention layer of the vision tower: the
            mean over heads and over the query tokens of its own image (only the CLS row, where a tower has one);
            None if the method does not read it
    state     [s] robot state of the observation, as the benchmark gives it; None where it gives none
    executed  [n, action_dim] float64 actions that the robot executed since the previous call; none in the first call
    elapsed   control steps since the episode began
    """

    layout: Layout
    images: Sequence[Tensor]
    step: int
    state: Tensor | None = None
    executed: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.float64))
    elapsed: int = 0
    kept: dict[int, Tensor] = field(default_factory=dict)
    reused: dict[int, Tensor] = field(default_factory=dict)
    counts: list[tuple[int, int]] = field(default_factory=list)
    first_counts: list[tuple[int, int]] = field(default_factory=list)
    passes: list[list[int]] = field(default_factory=list)
    vision_attention: Tensor | None = None
    _read: dict[tuple[int, QueryGroup], list[RowSlice]] = field(default_factory=dict, repr=False)
    _added: list[AttentionRows] = field(default_factory=list, repr=False)
    _products: float = field(default=0.0, repr=False)
    _outputs: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @cached_property
    def pixels(self) -> Tensor:
        """[V, p, p, 3] uint8, the image patch behind each visual token; all views must have one patch size."""
        patches = []
        for view, image in zip(self.layout.views, self.images, strict=True):
            h, w = image.shape[0] // view.height, image.shape[1] // view.width
            image = image[: h * view.height, : w * view.width]
            grid = image.reshape(view.height, h, view.width, w, 3).transpose(1, 2)
            patches.append(grid.reshape(-1, h, w, 3))
        return torch.cat(patches)

    def add(self, layer: int, rows: AttentionRows, spans: Spans) -> None:
        """Takes attention rows of a layer, and where in them each query group is."""
        self._added.append(rows)
        for group, (start, stop) in spans.items():
            self._read.setdefault((layer, group), []).append(RowSlice(rows, start, stop))

    def charge(self, rows: int, columns: int, depth: int) -> None:
        """Counts a product [rows, depth] x [depth, columns] of the method's own: 2 rows columns depth FLOPs.

        The attention rows of this trace are counted when they are looked at. Products of a matrix and a vector, sums
        and sorts are not counted.
        """
        self._products += 2.0 * rows * columns * depth

    @property
    def method_flops(self) -> float:
        """FLOPs of the method so far: attention rows that were looked at, and products of its own."""
        return self._products + sum(rows.flops for rows in self._added)

    def add_outputs(self, layer: int, alive: Tensor, outputs: Tensor) -> None:
        """Takes the attention outputs [n, d] of a layer for visual tokens with the numbers `alive` [n], ascending."""
        self._outputs[layer] = alive, outputs

    def outputs_of(self, layer: int, alive: Tensor) -> Tensor:
        """[k, d] attention output at `layer` of visual tokens with the numbers `alive` [k], all computed there.

        KeyError names what was not read.
        """
        if layer not in self._outputs:
            raise KeyError(f"outputs of layer {layer} were not read in this call; read were {sorted(self._outputs)}")
        there, outputs = self._outputs[layer]
        if alive.shape == there.shape:
            return outputs
        return outputs.index_select(0, torch.searchsorted(there, alive))

    def forget(self, layer: int) -> None:
        """Drops the attention rows of a layer: the second pass is about to read them again."""
        for key in [key for key in self._read if key[0] == layer]:
            del self._read[key]

    def add_weights(self, layer: int, group: QueryGroup, weights: Tensor) -> None:
        """Takes softmax weights [H, q, P] of one query group that are computed already, such as hand-made ones."""
        self.add(layer, AttentionRows.known(weights), {group: (0, weights.shape[1])})

    def has(self, layer: int, groups: QueryGroup) -> bool:
        """Whether all query groups were read at `layer`."""
        return all((layer, group) in self._read for group in groups.groups)

    def rows(self, layer: int, groups: QueryGroup) -> Tensor:
        """[H, q, P] softmax weights, zero where a token was gone; groups in the order of QueryGroup.

        KeyError names what was not read.
        """
        parts = [scatter_columns(s.weights, s.rows.columns, self.layout.end) for s in self._slices([layer], groups)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def visual(self, layer: int, groups: QueryGroup) -> Tensor:
        """[H, q, V] softmax weights on the V visual tokens, zero where a token was gone; groups as in `rows`.

        KeyError names what was not read.
        """
        return self._on_visual(self.rows(layer, groups))

    def received(self, layer: int, groups: QueryGroup) -> Tensor:
        """[V] mean over heads and query rows of what `visual` gives, in fp32."""
        slices = self._slices([layer], groups)
        count = sum(s.stop - s.start for s in slices) * slices[0].rows.queries.shape[0]
        return self._total(slices, (0, 1, 2)) / count

    def per_row(self, layers: Iterable[int], group: QueryGroup) -> Tensor:
        """[q, V] weights of one query group on all visual tokens, mean over `layers` and heads, in fp32.

        KeyError names what was not read.
        """
        slices = self._slices(layers, group)
        return self._total(slices, (0, 1)) / (len(slices) * slices[0].rows.queries.shape[0])

    def per_head(self, layers: Sequence[int], group: QueryGroup) -> Tensor:
        """[L, H, V] weights of one query group on all visual tokens, mean over its rows, in fp32.

        KeyError names what was not read.
        """
        by_layer = [self._slices([layer], group) for layer in layers]
        count = sum(s.stop - s.start for s in by_layer[0])
        reads = [
            torch.cat([self._full(w.sum(2), columns) for w, columns in self._stacked(same)])
            for same in zip(*by_layer, strict=True)
        ]
        return reduce(torch.add, reads) / count

    def _slices(self, layers: Iterable[int], groups: QueryGroup) -> list[RowSlice]:
        slices: list[RowSlice] = []
        for layer in layers:
            for group in groups.groups:
                if (layer, group) not in self._read:
                    read = sorted(f"{g.name}@{i}" for i, g in self._read)
                    raise KeyError(f"rows {group.name} of layer {layer} were not read in this call; read were {read}")
                slices += self._read[layer, group]
        return slices

    @staticmethod
    def _stacked(slices: Sequence[RowSlice]) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Weights [n, H, q, c] and columns of neighbouring slices that are alike, each run computed in one product."""
        for _, run in groupby(slices, lambda s: s.rows.kind):
            alike = list(run)
            pending = list({id(s.rows): s.rows for s in alike if s.rows.pending}.values())
            if len(pending) > 1:
                compute_together(pending)
            for _, same in groupby(alike, lambda s: s.key):
                several = list(same)
                weights = [s.weights for s in several]
                yield weights[0][None] if len(weights) == 1 else torch.stack(weights), several[0].rows.columns

    def _total(self, slices: Sequence[RowSlice], dims: tuple[int, ...]) -> Tensor:
        """Sum over slices and the dimensions `dims` of [n, H, q, c], on the V visual tokens."""
        parts = [self._full(w.sum(dims), columns) for w, columns in self._stacked(slices)]
        return reduce(torch.add, parts)

    def _full(self, weights: Tensor, columns: Tensor | None) -> Tensor:
        return self._on_visual(scatter_columns(weights, columns, self.layout.end))

    def _on_visual(self, weights: Tensor) -> Tensor:
        """Takes from weights [..., P] on all positions those [..., V] on the visual tokens."""
        return weights[..., self.layout.visual.start : self.layout.visual.stop]
