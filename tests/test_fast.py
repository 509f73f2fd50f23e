"""The fast path: segments of layers that run without interruption give what the layer loop gives.

That every method chooses the same there is a law of `check_pruner`.
"""

import numpy as np
import pytest
import torch
from doubles import calibrated

from vlaprune.methods.dense import Dense
from vlaprune.methods.fastv import FastV
from vlaprune.methods.ties.ties import TIES
from vlaprune.methods.vlacache import VLACache
from vlaprune.models.backends import kernel, with_backend
from vlaprune.models.tiny import Tiny
from vlaprune.models.toy import STYLES, Toy
from vlaprune.nn.decoder import Tokens
from vlaprune.nn.fast import Fast
from vlaprune.policy import Policy
from vlaprune.profile.recording import actions, synthetic

TIED = calibrated(lambda: TIES(keep=0.25), Toy().info, 64)
METHODS = {"dense": Dense, "fastv": lambda: FastV(keep=0.5), "ties": TIED, "vlacache": VLACache}


def ran(model, make):
    """Actions and records of an episode in which little changes from call to call."""
    policy = Policy(model, make)
    chunks = actions(policy, synthetic(model.interface, 64, episodes=1, steps=4).episodes[0], 3)
    return chunks, policy.drain(0)


@pytest.mark.parametrize("backend", [None, "eager"])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("method", METHODS)
def test_stretches_act_and_count_as_the_loop_does(method, style, backend):
    plain, fast = (ran(with_backend(Toy(style), rung, backend), METHODS[method]) for rung in ("sdpa", "compile"))
    assert np.allclose(plain[0], fast[0], atol=1e-5)
    for a, b in zip(plain[1], fast[1], strict=True):
        assert (a.rows, a.columns, a.visual, a.decoded, a.flops) == (b.rows, b.columns, b.visual, b.decoded, b.flops)


class Watching:
    """A session that may change rows before some layers, and notes what it is told."""

    cache = None

    def __init__(self, *sites):
        self.sites, self.told = sites, []

    def enter(self, layer, tokens):
        self.told.append(("enter", layer))
        return tokens

    def leave(self, layer, tokens, queries, keys, columns):
        self.told.append(("leave", layer))

    def next_prune_layer(self, layer):
        return next((s for s in self.sites if s > layer), 99)

    def records_attention(self, layer):
        return False


def test_a_stretch_ends_before_every_layer_that_may_change_rows():
    model = Toy("parallel")
    session = Watching(0, 2)
    x = torch.randn(7, model.decoder.config.hidden_size)
    with torch.inference_mode():
        out = Fast(model.decoder, backend=None)([Tokens(x, torch.arange(7))], [session])[0]
        same = model.decoder([Tokens(x, torch.arange(7))], [Watching()])[0]
    assert torch.allclose(out, same, atol=1e-6)
    layers = list(range(model.decoder.config.num_layers))
    assert [n for what, n in session.told if what == "enter"] == [0, 2]
    assert [n for what, n in session.told if what == "leave"] == layers
    assert session.told.index(("enter", 2)) > session.told.index(("leave", 1))


def test_what_cannot_be_run_here_is_refused_in_one_line():
    with pytest.raises(ValueError, match="kernel=graph needs a CUDA device, and the model is on cpu; use sdpa"):
        with_backend(Toy("parallel"), "graph")
    with pytest.raises(ValueError, match="'quick' is not one of"):
        with_backend(Toy("parallel"), "quick")


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_captured_stretches_act_as_the_loop_does(method):
    """Enough calls for every segment with a fixed count to be captured, and then replayed on other observations."""
    model = Tiny(weights="random", device="cuda")
    frames = synthetic(model.interface, 128, episodes=2, steps=8)
    found = []
    for rung in ("sdpa", "graph"):
        with kernel(rung):
            policy = Policy(with_backend(model, rung, None), METHODS[method])
            found.append([a for episode in frames.episodes for a in actions(policy, episode, 3)])
    assert np.allclose(found[0], found[1], atol=1e-4)
