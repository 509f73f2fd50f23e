"""What one model call is made of (Layout) and what it computed, read and kept (Trace)."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, reduce
from itertools import groupby

import torch
from torch import Tensor


class QueryGroup(enum.Flag):
    """Which query rows of an attention matrix a method reads."""

    LAST = enum.auto()  # the last prompt token (in OFT the stop token)
    TEXT = enum.auto()  # the instruction
    VISUAL = enum.auto()  # the visual tokens still computed
    ACTION = enum.auto()  # whatever emits the action: decoded tokens, placeholders, the cognition token
    PREFIX = enum.auto()  # every prompt row still computed that comes before the action rows of the prompt, if any
    PROMPT = enum.auto()  # every prompt row still computed
    ALL = LAST | TEXT | VISUAL | ACTION  # the groups that do not overlap, save that the last row may be text or action

    @property
    def groups(self) -> tuple[QueryGroup, ...]:
        """The single groups, in the order above."""
        return _groups(self)


@cache
def _groups(rows: QueryGroup) -> tuple[QueryGroup, ...]:
    return tuple(rows)  # to iterate over a flag costs more than a small matrix product


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


@dataclass(frozen=True)
class Layout:
    """Where things stand in a prompt of `length` positions. The groups are runs of neighbours.

    visual  positions of the V visual tokens
    text    positions of the instruction
    action  positions that emit the action: inside the prompt (placeholders) or after it (decoded tokens)
    last    position of the last prompt token
    views   the cameras, in the order of their tokens

    Two layouts are equal where cameras and instruction are: what else a prompt holds (pi0.5's state, in words) may
    change its length from call to call, and methods that remember tokens need not forget them for that.
    """

    length: int = field(compare=False)
    visual: range
    text: range
    action: range = field(compare=False)
    last: int = field(compare=False)
    views: tuple[View, ...]

    def __post_init__(self) -> None:
        """The views must tile the visual tokens."""
        tiles = [i for view in self.views for i in view.tokens]
        if tiles != list(range(len(self.visual))):
            raise ValueError(f"views {self.views} do not tile the {len(self.visual)} visual tokens")

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

    def group(self, rows: QueryGroup) -> range:
        """Prompt positions of one group of query rows, as if no token had been dropped."""
        return self._groups[rows]


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


def unfolded(weights: Tensor, columns: Tensor | None, end: int) -> Tensor:
    """Weights [..., c] on columns [c] (None for 0 .. c - 1) as weights [..., end], zero elsewhere."""
    if columns is None and weights.shape[-1] == end:
        return weights
    full = weights.new_zeros((*weights.shape[:-1], end))
    if columns is None:
        full[..., : weights.shape[-1]] = weights
        return full
    return full.index_copy_(-1, columns, weights)


@dataclass(frozen=True, eq=False)
class AttentionRows:
    """Query rows of one layer that a method may look at; their weights are computed when it does.

    queries  [H, q, hd] rotated
    keys     [kv, c, hd] rotated
    columns  [c] positions of the keys; None for 0 .. c - 1
    index    [q] positions of rows that see nothing behind themselves; None where they see everything
    bias     [c] added to the logits; None for zeros
    whole    the read that this is a part of, from which of its rows on; None for a read of its own
    """

    queries: Tensor
    keys: Tensor
    columns: Tensor | None = None
    index: Tensor | None = None
    bias: Tensor | None = None
    whole: tuple[AttentionRows, int] | None = None

    @classmethod
    def known(cls, weights: Tensor, columns: Tensor | None = None) -> AttentionRows:
        """A read whose weights [H, q, c] somebody has computed already."""
        read = cls(weights[..., :0], weights.new_empty(0, weights.shape[-1], 0), columns)
        read.__dict__["weights"] = weights
        return read

    def cut(self, start: int, stop: int) -> AttentionRows:
        """Rows start .. stop - 1 of it as a read of their own."""
        index = None if self.index is None else self.index[start:stop]
        return AttentionRows(self.queries[:, start:stop], self.keys, self.columns, index, self.bias)

    def part(self, start: int, stop: int) -> AttentionRows:
        """The same, but the first part that is looked at has all of it computed."""
        if stop - start == self.queries.shape[1]:
            return self
        return replace(self.cut(start, stop), whole=(self, start))

    @cached_property
    def weights(self) -> Tensor:
        """[H, q, c] in fp32."""
        if self.whole is None:
            return attention_rows(self.queries, self.keys, self._visible(), self.bias)
        read, start = self.whole
        return read.weights[:, start : start + self.queries.shape[1]]

    @cached_property
    def summed(self) -> Tensor:
        """[q, c] sum over heads."""
        if self.whole is None:
            return self.weights.float().sum(0)
        read, start = self.whole
        return read.summed[start : start + self.queries.shape[1]]

    @property
    def waits(self) -> bool:
        """Whether its weights are still to be computed."""
        return "weights" not in vars(self) and (self.whole is None or self.whole[0].waits)

    def _visible(self) -> Tensor | None:
        if self.index is None:
            return None
        columns = self.columns
        if columns is None:
            columns = torch.arange(self.keys.shape[1], device=self.index.device)
        return self.index[:, None] >= columns[None, :]

    @classmethod
    def together(cls, reads: Sequence[AttentionRows]) -> Tensor:
        """[n, H, q, c] weights of n reads of one shape; those that wait are computed in one product."""
        if len(reads) == 1 or not all(read.waits for read in reads):
            return torch.stack([read.weights for read in reads])
        bias = None
        if any(read.bias is not None for read in reads):
            zeros = reads[0].keys.new_zeros(reads[0].keys.shape[1])
            bias = torch.stack([zeros if read.bias is None else read.bias for read in reads])[:, None, None]
        visible = None
        if reads[0].index is not None:
            visible = torch.stack([read._visible() for read in reads])[:, None]  # type: ignore[misc]
        queries, keys = torch.stack([r.queries for r in reads]), torch.stack([r.keys for r in reads])
        weights = attention_rows(queries, keys, visible, bias)
        for read, own in zip(reads, weights, strict=True):
            read.__dict__["weights"] = own
        return weights


def _alike(reads: Iterable[AttentionRows], key: Callable[[AttentionRows], object]) -> list[list[AttentionRows]]:
    """Runs of neighbours with the same key."""
    return [list(run) for _, run in groupby(reads, key)]


Runs = list[tuple[range, list[tuple[QueryGroup, int, int]]]]  # rows computed together, where in them each group stands


@dataclass
class Trace:
    """Everything one model call has computed, read and kept so far, in full prompt coordinates.

    images  one [h, w, 3] uint8 image per view, as the vision tower sees it
    step    model calls since the episode began
    kept    site -> [k] numbers, among the V, of the visual tokens computed from that layer on
    reused  site -> [r] prompt positions attended to from there on with an earlier call's keys and values
    counts  per layer (rows computed, columns attended to) of the prompt pass
    decode  per decode pass, the columns attended to at each layer
    expert  per pass of an action expert (a step of its flow), the columns attended to at each layer
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
    kept: dict[int, Tensor] = field(default_factory=dict)
    reused: dict[int, Tensor] = field(default_factory=dict)
    counts: list[tuple[int, int]] = field(default_factory=list)
    decode: list[list[int]] = field(default_factory=list)
    expert: list[list[int]] = field(default_factory=list)
    vision_attention: Tensor | None = None
    state: Tensor | None = None
    executed: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.float64))
    elapsed: int = 0
    _reads: dict[tuple[int, QueryGroup], list[AttentionRows]] = field(default_factory=dict, repr=False)
    _noted: list[tuple[int, Runs, AttentionRows]] = field(default_factory=list, repr=False)

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

    def add(self, layer: int, group: QueryGroup, read: AttentionRows) -> None:
        """Takes one group of query rows of a layer."""
        self._reads.setdefault((layer, group), []).append(read)

    def note(self, layer: int, runs: Runs, read: AttentionRows) -> None:
        """Takes all rows of a layer, of which only `runs` are meant; they are cut out when somebody looks at any."""
        self._noted.append((layer, runs, read))

    def _settle(self) -> None:
        for layer, runs, read in self._noted:
            for rows, groups in runs:
                run = read.cut(rows.start, rows.stop)
                for group, start, stop in groups:
                    self.add(layer, group, run.part(start, stop))
        self._noted.clear()

    def has(self, layer: int, rows: QueryGroup) -> bool:
        """Whether all groups of `rows` were read at `layer`."""
        self._settle()
        return all((layer, g) in self._reads for g in rows.groups)

    def rows(self, layer: int, rows: QueryGroup) -> Tensor:
        """[H, q, P] softmax weights, zero where a token was gone; groups in the order of QueryGroup.

        KeyError names what was not read.
        """
        parts = [unfolded(read.weights, read.columns, self.layout.end) for read in self._found(layer, rows)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _found(self, layer: int, rows: QueryGroup) -> list[AttentionRows]:
        self._settle()
        found: list[AttentionRows] = []
        for group in rows.groups:
            if (layer, group) not in self._reads:
                read = sorted(f"{g.name}@{i}" for i, g in self._reads)
                raise KeyError(f"rows {group.name} of layer {layer} were not read in this call; read were {read}")
            found += self._reads[layer, group]
        return found

    def visual(self, layer: int, rows: QueryGroup) -> Tensor:
        """[H, q, V]: the same, on all V visual tokens."""
        span = self.layout.visual
        return self.rows(layer, rows)[..., span.start : span.stop]

    def received(self, layer: int, rows: QueryGroup) -> Tensor:
        """[V] mean over heads and query rows of what `visual` gives, in fp32, without ever joining the rows."""
        reads = self._found(layer, rows)
        count = sum(read.queries.shape[1] for read in reads)
        parts = [
            unfolded(reduce(torch.add, [read.summed.sum(0) for read in same]), same[0].columns, self.layout.end)
            for same in _alike(reads, lambda read: id(read.columns))
        ]
        span, scale = self.layout.visual, 1 / (count * reads[0].queries.shape[0])
        return reduce(torch.add, parts)[span.start : span.stop] * scale

    def per_row(self, layers: Iterable[int], group: QueryGroup) -> Tensor:
        """[q, V] weights of one group of query rows on all visual tokens, mean over `layers` and heads, in fp32.

        Neighbouring layers of one shape are computed together. KeyError as in `rows`.
        """
        reads = [read for layer in layers for read in self._found(layer, group)]
        parts = []
        for run in _alike(reads, lambda read: (read.queries.shape, read.keys.shape)):
            weights = AttentionRows.together(run)
            for same in _alike(run, lambda read: id(read.columns)):
                own, weights = weights[: len(same)], weights[len(same) :]
                parts.append(unfolded(own.sum((0, 1)), same[0].columns, self.layout.end))
        scale = 1 / (len(reads) * reads[0].queries.shape[0])
        return reduce(torch.add, parts)[:, self.layout.visual.start : self.layout.visual.stop] * scale

    def per_head(self, layers: Sequence[int], group: QueryGroup) -> Tensor:
        """[L, H, V] weights of one group of query rows on all visual tokens, mean over its rows, in fp32.

        Computed together where the layers are of one shape. KeyError as in `rows`.
        """
        found = [self._found(layer, group) for layer in layers]
        reads = [read for each in found for read in each]
        if len(reads) > len(found) or len(_alike(reads, lambda r: (r.queries.shape, r.keys.shape, id(r.columns)))) > 1:
            return torch.stack([self.visual(layer, group).float().mean(1) for layer in layers])
        mean = unfolded(AttentionRows.together(reads).mean(2), reads[0].columns, self.layout.end)
        return mean[..., self.layout.visual.start : self.layout.visual.stop]
