"""Sites made by hand, and laws that every method which remembers nothing must keep."""

import numpy as np
import torch

from vlaprune.benchmark import Observation
from vlaprune.methods.dense import Dense
from vlaprune.models.tiny import Tiny
from vlaprune.policy import Policy
from vlaprune.pruner import ModelInfo, PruneContext
from vlaprune.trace import Layout, Trace, View

INFO = ModelInfo("handmade", 6, 2, 16, 8)


def prune_context(visual, text=None, layer=0, cameras=((2, 4),), read=(), tower=None, alive=None, seed=0, step=0):
    """A PruneContext whose cameras have grids `cameras` (height, width); `read` is (layer, QueryGroup, [H, q, V])."""
    views, total = [], 0
    for i, (height, width) in enumerate(cameras):
        views.append(View(f"camera{i}", total, height, width))
        total += height * width
    text = torch.randn(3, visual.shape[1]) if text is None else text
    last = 1 + total + len(text)
    layout = Layout(last + 1, range(1, 1 + total), range(1 + total, last), range(last, last + 1), last, tuple(views))
    trace = Trace(layout, (), step, vision_attention=tower)
    for at, rows, attention in read:
        full = torch.zeros(*attention.shape[:2], layout.length)
        full[..., 1 : 1 + total] = attention
        trace.add_weights(at, rows, full)
    alive = torch.arange(total) if alive is None else alive
    return PruneContext(layer, seed, visual, alive, text, text, torch.zeros(len(alive), dtype=torch.bool), trace)


def kept(pruner, at):
    """The rows kept, ascending; they must be there, distinct, and have one finite value each where values are given."""
    chosen = pruner.select(at)
    rows = chosen.keep.tolist()
    assert len(set(rows)) == len(rows) and all(0 <= r < len(at.alive) for r in rows), rows
    assert chosen.values is None or chosen.values.shape == (len(rows), at.visual.shape[1])
    return sorted(rows)


def merged(pruner, at):
    """Row -> value of a Selection with values."""
    chosen = pruner.select(at)
    return dict(zip(chosen.keep.tolist(), chosen.values, strict=True))


def tiny(cameras=("left", "right")):
    torch.manual_seed(0)
    sizes = {"width": 32, "layers": 6, "heads": 2, "vision_width": 64, "vision_layers": 2, "image": 64}
    return Tiny("random", cameras, **sizes, device="cpu")


def look(seed, instruction, cameras=("left", "right")):
    rng = np.random.default_rng(seed)
    images = {c: rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for c in cameras}
    return Observation(images, np.zeros(8), instruction)


def check_memoryless(make, cameras=("left", "right")):
    """A call after other frames, instructions or episodes equals the same call after itself. Gives its record.

    Both have the same number in their episode, since a method may draw anew in each call.
    """
    model, last = tiny(cameras), look(3, "lift the cube", cameras)
    alone = Policy(model, make)
    alone.reset(0, seed=5)
    first, _, third = (alone.act({0: last})[0] for _ in range(3))
    policy = Policy(model, make)
    policy.reset(0, seed=5)
    policy.act({0: look(1, "lift the cube", cameras)})
    policy.act({0: look(2, "push the green block left", cameras)})
    assert np.allclose(policy.act({0: last})[0], third, atol=1e-5)
    policy.reset(0, seed=5)
    assert np.allclose(policy.act({0: last})[0], first, atol=1e-5)
    return alone.drain(0)[0]


def check_keeps_all(make, cameras=("left", "right")):
    """A budget of everything equals no pruning, to the last bit."""
    model, frame = tiny(cameras), look(0, "lift the cube", cameras)
    dense, all_kept = (Policy(model, m).act({0: frame})[0] for m in (Dense, make))
    assert np.array_equal(dense, all_kept)
