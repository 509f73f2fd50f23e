"""Drives a pruner call by call without a model: the test gives features and attention, and sees what is kept."""

from dataclasses import MISSING, fields
from pathlib import Path

import torch
import yaml

from vlaprune.models.toy import Toy
from vlaprune.policy import Policy
from vlaprune.pruner import ModelInfo, PruneContext
from vlaprune.testing import scenes
from vlaprune.trace import Layout, QueryGroup, Trace, View

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "method"


def prompt(grids=((4, 4),), words=3, slots=4, decoded=False):
    views, total = [], 0
    for i, (height, width) in enumerate(grids):
        views.append(View(f"camera{i}", total, height, width))
        total += height * width
    text = range(1 + total, 1 + total + words)
    slots = range(text.stop, text.stop + slots)
    length = text.stop if decoded else slots.stop + 1
    return Layout(length, range(1, 1 + total), text, slots, length - 1, tuple(views))


def attend(seed, total, shift=0.0):
    """Random softmax weights [2, q, total] of any layer and group, the same whenever asked."""

    def rows(layer, group, count):
        generator = torch.Generator().manual_seed(seed * 1009 + layer * 17 + group.value)
        return (torch.randn(2, count, total, generator=generator) * 2 + shift).softmax(-1)

    return rows


def constant(score):
    """Every row of every layer attends with `score` [total], or by {layer: score, (layer, group): score}."""

    def rows(layer, group, count):
        if not isinstance(score, dict):
            return score.expand(2, count, -1)
        return score.get((layer, group), score.get(layer, score.get(None))).expand(2, count, -1)

    return rows


class Episode:
    """One pruner on one made-up model; `call` gives {site: kept numbers, or None where it did not select}."""

    def __init__(self, pruner, layout, layers=6):
        self.pruner, self.layout = pruner, layout
        self.info = ModelInfo("handmade", layers, 2, 16, 8)
        self.plan = pruner.plan(self.info)
        self.plan.check(self.info, "it")
        self.reset()

    filled = False  # whether every token's keys and values are there to be reused

    def reset(self):
        self.number = 0
        self.pruner.reset()

    def call(self, attention, visual=None, text=None, images=(), layout=None, tower=None, executed=None):
        layout = layout or self.layout
        visual = torch.randn(layout.total, 16, generator=torch.Generator().manual_seed(0)) if visual is None else visual
        text = torch.ones(len(layout.text), 16) if text is None else text
        done = torch.empty(0, 0, dtype=torch.float64) if executed is None else executed
        self.trace = Trace(layout, images, self.number, executed=done, vision_attention=tower)
        self.reads, self.values = dict(self.plan.reads), []
        chosen, alive = self._pass(attention, visual, text, False)
        end = self._context(self.info.num_layers, visual, text, alive, False)
        if self.plan.second_pass and self.pruner.wants_second_pass(end):
            self.trace.kept.clear()
            self.reads, self.values = dict(self.plan.reads), []
            chosen, alive = self._pass(attention, visual, text, True)
        for layer, rows in self.reads.items():
            if layout.action.start >= layout.length and QueryGroup.ACTION in rows:
                self._read(layer, QueryGroup.ACTION, attention, self.trace.kept.get(layer, alive))
        self.pruner.observe(self.trace)
        self.number += 1
        return chosen

    def _context(self, layer, visual, text, alive, second):
        reusable = torch.full((len(alive),), self.filled)
        rows = visual if len(alive) == len(visual) else visual[alive]
        return PruneContext(layer, 0, rows, alive, text, text, reusable, self.trace, second)

    def _pass(self, attention, visual, text, second):
        """What is kept at each site of a pass over the prompt, and the tokens that reach its end."""
        layout, chosen = self.trace.layout, {}
        alive, decoded = torch.arange(layout.total), layout.action.start >= layout.length
        for layer in range(self.info.num_layers):
            if layer in self.plan.layers:
                picked = self.pruner.select(self._context(layer, visual, text, alive, second))
                chosen[layer] = None
                if picked is not None:
                    self.values.append(picked.values)
                    for extra, rows in picked.reads.items():
                        assert extra >= layer
                        self.reads[extra] = self.reads.get(extra, QueryGroup(0)) | rows
                    keep = picked.keep.sort().values
                    assert len(keep) and len(keep.unique()) == len(keep) and keep[0] >= 0 and keep[-1] < len(alive)
                    alive = self.trace.kept[layer] = alive[keep]
                    chosen[layer] = alive.tolist()
            if layer in self.plan.outputs:
                self.trace.add_outputs(layer, alive, visual[alive])
            for group in self.reads.get(layer, QueryGroup(0)):
                if not (decoded and group is QueryGroup.ACTION):
                    self._read(layer, group, attention, alive)
        return chosen, alive

    def _read(self, layer, group, attention, alive):
        layout = self.trace.layout
        rows = layout.group(group)
        gone = layout.total - len(alive) if rows.start <= layout.visual.start < rows.stop else 0
        count = len(rows) - gone
        if count:
            probs = attention(layer, group, count)
            full = torch.zeros(probs.shape[0], count, layout.end)
            full[..., layout.visual.start + alive] = probs[..., alive]
            self.trace.add_weights(layer, group, full)


def check_config(cls):
    """The YAML names the class and exactly its parameters, with its defaults."""
    given = yaml.safe_load((CONFIGS / f"{cls.__module__.rsplit('.', 1)[1]}.yaml").read_text())
    assert given.pop("_target_") == f"{cls.__module__}.{cls.__qualname__}"
    assert list(given) == [f.name for f in fields(cls) if f.init]
    for field in fields(cls):
        assert field.default is not MISSING
        default = list(field.default) if type(field.default) is tuple else field.default
        assert given[field.name] == default and type(given[field.name]) is type(default), field.name


def play(make, style, steps=6, **toy):
    """Step records of an episode of the toy world, and its actions."""
    policy = Policy(Toy(style, **toy), make)
    policy.reset(0, seed=1)
    actions = [policy.act({0: frame})[0] for frame in scenes(0, 3, steps)]
    return policy.drain(0), actions
