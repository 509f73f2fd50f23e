"""Applies a method's selection to the rows of one sequence, and checks what it promises. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlaprune.errors import UserError
from vlaprune.nn.decoder import Tokens
from vlaprune.pruner import Budget, Selection
from vlaprune.trace import Layout


@dataclass(frozen=True, eq=False)
class Promise:
    """A selection to be verified when the call is over, so that no call waits for the check.

    layer      before which the method selected
    alive      [n] numbers, among the V, of the visual tokens it chose from
    selection  what it answered
    counts     (rows, columns) of every layer of the pass; a reference, complete when the pass is over
    """

    layer: int
    alive: Tensor
    selection: Selection
    counts: list[tuple[int, int]]


def apply_selection(tokens: Tokens, selection: Selection, alive: Tensor, layout: Layout) -> tuple[Tokens, Tensor]:
    """Applies a selection: returns the rows that go on, and the numbers [k] of the visual tokens among them.

    tokens  rows in prompt order: those before the visual tokens, the n visual rows, those behind
    alive   [n] numbers of the visual rows among the V, sorted

    Row numbers out of range are clamped here; `verify` names them when the call is over.
    """
    count = alive.shape[0]
    start = layout.visual.start
    total = tokens.index.shape[0]
    if selection.keep.shape[0] == count and selection.values is None and selection.multiplicity is None:
        return tokens, alive
    keep, order = selection.keep.clamp(0, count - 1).sort()
    rows = torch.arange(total, device=alive.device)
    stay = torch.cat((rows[:start], keep + start, rows[start + count :]))
    hidden = tokens.hidden.index_select(0, stay)
    index = tokens.index.index_select(0, stay)
    if selection.values is not None:
        values = selection.values.index_select(0, order).to(hidden)
        hidden = torch.cat((tokens.hidden[:start], values, tokens.hidden[start + count :]))
    cached = [] if tokens.columns is None else [tokens.columns[total:]]
    if selection.reuse is not None and selection.reuse.shape[0]:
        cached.append(alive.index_select(0, selection.reuse.clamp(0, count - 1)) + start)
    columns = torch.cat((index, *cached)) if cached else None
    bias = _bias(tokens, stay, order, selection, start)
    return replace(tokens, hidden=hidden, index=index, columns=columns, bias=bias), alive.index_select(0, keep)


def _bias(tokens: Tokens, stay: Tensor, order: Tensor, selection: Selection, start: int) -> Tensor | None:
    """The bias [k + m] of the rows that go on and of the cached columns; None where there is none."""
    if tokens.bias is None and selection.multiplicity is None:
        return None
    total = tokens.index.shape[0]
    reused = 0 if selection.reuse is None else selection.reuse.shape[0]
    seen = total if tokens.columns is None else tokens.columns.shape[0]
    old = tokens.hidden.new_zeros(seen) if tokens.bias is None else tokens.bias
    bias = torch.cat((old.index_select(0, stay), old[total:], old.new_zeros(reused)))
    if selection.multiplicity is not None:
        counts = selection.multiplicity.index_select(0, order)
        bias[start : start + order.shape[0]] = counts.to(bias).log()
    return bias


def check_shapes(method: str, layer: int, selection: Selection, reuses: bool) -> None:
    """Raises UserError for what can be refused at once.

    That is: values or multiplicities that are not one for each kept row, and reuse that the plan does not declare.
    """
    rows = selection.keep.shape[0]
    for what, given in (("values", selection.values), ("multiplicity", selection.multiplicity)):
        if given is not None and given.shape[0] != rows:
            raise UserError(
                f"{method} at layer {layer} gives {given.shape[0]} {what} for {rows} kept rows; give one each"
            )
    if selection.reuse is not None and selection.reuse.shape[0] and not reuses:
        raise UserError(f"{method} reuses rows at layer {layer} but its plan does not say reuses=True")


def verify(method: str, promise: Promise, cached: Tensor) -> None:
    """Raises UserError where a selection names rows that are not there, a row twice, or reused rows that nobody cached.

    cached  [V] bool: an earlier call of this episode left keys and values of the visual token
    """
    layer = promise.layer
    chosen = promise.selection
    count = promise.alive.shape[0]
    reuse = chosen.reuse
    named = chosen.keep.tolist() + ([] if reuse is None else reuse.tolist())
    if named and not 0 <= min(named) <= max(named) < count:
        raise UserError(f"{method} names rows at layer {layer} outside 0..{count - 1}")
    if len(set(named)) < len(named):
        raise UserError(f"{method} names a row twice at layer {layer}; a row has one fate")
    if reuse is not None and not cached[promise.alive[reuse]].all():
        raise UserError(
            f"{method} reuses rows at layer {layer} that no earlier call has cached; intersect with context.reusable"
        )


def check_budget(method: str, layer: int, budgets: Mapping[int, Budget], layout: Layout, seen: int) -> None:
    """Raises UserError where the visual tokens computed from a layer on, `seen`, are not those of the method's budget.

    This is the proof of pruning: the number comes from the layer itself, the budget from the configuration.
    """
    if layer not in budgets:
        return
    asked = budgets[layer].count(layout.total)
    if seen != asked:
        raise UserError(
            f"{method} promised {asked} of {layout.total} visual tokens from layer {layer} on, "
            f"but {seen} were computed; no number of this run can be believed"
        )
