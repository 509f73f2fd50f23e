"""What one model call is made of (Layout) and what it computed, read and kept (Trace)."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property

import torch
from torch import Tensor


class Rows(enum.Flag):
    """Which query rows of an attention matrix a method reads."""

    LAST = enum.auto()  # the last prompt token (in OFT the stop token)
    TEXT = enum.auto()  # the instruction
    VISUAL = enum.auto()  # the visual tokens still computed
    ACTION = enum.auto()  # whatever emits the action: decoded tokens, placeholders, the cognition token
    ALL = LAST | TEXT | VISUAL | ACTION

    @property
    def groups(self) -> tuple[Rows, ...]:
        """The single groups, in the order above."""
        return _groups(self)


@cache
def _groups(rows: Rows) -> tuple[Rows, ...]:
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
    """

    length: int
    visual: range
    text: range
    action: range
    last: int
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
    def end(self) -> int:
        """One past the last position, decoded tokens included."""
        return max(self.length, self.action.stop)

    @cached_property
    def _groups(self) -> dict[Rows, range]:
        last = range(self.last, self.last + 1)
        return {Rows.LAST: last, Rows.TEXT: self.text, Rows.VISUAL: self.visual, Rows.ACTION: self.action}

    def group(self, rows: Rows) -> range:
        """Prompt positions of one group of query rows, as if no token had been dropped."""
        return self._groups[rows]


@dataclass
class Trace:
    """Everything one model call has computed, read and kept so far, in full prompt coordinates.

    images  one [h, w, 3] uint8 image per view, as the vision tower sees it
    step    model calls since the episode began
    kept    site -> [k] numbers, among the V, of the visual tokens computed from that layer on
    counts  per layer (rows computed, columns attended to) of the prompt pass
    decode  per decode pass, the columns attended to at each layer
    expert  per pass of an action expert (a step of its flow), the columns attended to at each layer
    tower   [V] attention each visual token received in the vision tower's last attention layer: mean over heads and
            over the query tokens of its own image (the CLS row alone, where a tower has one); None if nobody asked
    """

    layout: Layout
    images: Sequence[Tensor]
    step: int
    kept: dict[int, Tensor] = field(default_factory=dict)
    counts: list[tuple[int, int]] = field(default_factory=list)
    decode: list[list[int]] = field(default_factory=list)
    expert: list[list[int]] = field(default_factory=list)
    tower: Tensor | None = None
    _rows: dict[tuple[int, Rows], list[Tensor]] = field(default_factory=dict, repr=False)

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

    def add(self, layer: int, group: Rows, probs: Tensor, columns: Tensor | None) -> None:
        """Notes attention [H, q, c] of one group of query rows; columns [c] are positions, None for 0 .. c - 1."""
        end = self.layout.end
        if columns is not None or probs.shape[2] != end:
            full = probs.new_zeros((*probs.shape[:2], end))
            if columns is None:
                full[..., : probs.shape[2]] = probs
            else:
                full = full.index_copy(2, columns, probs)
            probs = full
        self._rows.setdefault((layer, group), []).append(probs)

    def has(self, layer: int, rows: Rows) -> bool:
        """Whether all groups of `rows` were read at `layer`."""
        return all((layer, g) in self._rows for g in rows.groups)

    def rows(self, layer: int, rows: Rows) -> Tensor:
        """[H, q, P] softmax weights, zero where a token was gone; groups in the order LAST, TEXT, VISUAL, ACTION.

        KeyError names what was not read.
        """
        parts = []
        for group in rows.groups:
            if (layer, group) not in self._rows:
                read = sorted(f"{g.name}@{i}" for i, g in self._rows)
                raise KeyError(f"rows {group.name} of layer {layer} were not read in this call; read were {read}")
            parts += self._rows[layer, group]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def visual(self, layer: int, rows: Rows) -> Tensor:
        """[H, q, V]: the same, on all V visual tokens."""
        span = self.layout.visual
        return self.rows(layer, rows)[..., span.start : span.stop]
