"""Backends: segments give what the eager run gives, one graph per unit, and what cannot be run is refused."""

import numpy as np
import pytest
import torch
from doubles import calibrated

from vlaprune import config
from vlaprune.methods.cdpruner import CDPruner
from vlaprune.methods.dense import Dense
from vlaprune.methods.divprune import DivPrune
from vlaprune.methods.fastv import FastV
from vlaprune.methods.ties.ties import TIES
from vlaprune.methods.vlacache import VLACache
from vlaprune.methods.vlapruner import VLAPruner
from vlaprune.models.backends import kernel, with_backend
from vlaprune.models.tiny import Tiny
from vlaprune.models.toy import STYLES, Toy
from vlaprune.nn.decoder import NullHooks, Tokens
from vlaprune.policy import Policy
from vlaprune.profile.recording import actions, synthetic
from vlaprune.testing import SimulatedGraphs, with_segments

TIED = calibrated(lambda: TIES(keep=0.25), Toy().info, 64)
METHODS = {
    "dense": Dense,
    "fastv": lambda: FastV(keep=0.5),
    "ties": TIED,
    "vlacache": VLACache,
    "divprune": lambda: DivPrune(keep=0.5),
    "cdpruner": lambda: CDPruner(keep=0.5),
    "vlapruner": lambda: VLAPruner(keep=0.5, layer=1),
}


def ran(model, make):
    """Actions and records of an episode in which little changes from call to call."""
    policy = Policy(model, make)
    chunks = actions(policy, synthetic(model.interface, 64, episodes=1, steps=4).episodes[0], 3)
    return chunks, policy.drain(0)


def twins(style):
    """The toy under backends that reorder nothing: simulated replay, and graphs that torch.compile runs unchanged."""
    yield with_segments(Toy(style), SimulatedGraphs())
    yield with_backend(Toy(style), "compile", "eager")


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("method", METHODS)
def test_backends_act_and_count_as_the_eager_run_does(method, style):
    plain = ran(Toy(style), METHODS[method])
    for model in twins(style):
        fast = ran(model, METHODS[method])
        assert model.backend.entered and np.allclose(plain[0], fast[0], atol=1e-5)
        for a, b in zip(plain[1], fast[1], strict=True):
            assert (a.rows, a.columns, a.visual, a.decoded, a.flops) == (
                b.rows,
                b.columns,
                b.visual,
                b.decoded,
                b.flops,
            )


class Watching(NullHooks):
    """Hooks that may change rows before some layers, and note what they are told."""

    def __init__(self, *layers):
        self.layers, self.told = layers, []

    def enter(self, layer, tokens):
        self.told.append(("enter", layer))
        return tokens

    def leave(self, layer, tokens, computed):
        self.told.append(("leave", layer))

    def next_prune_layer(self, layer):
        return next((n for n in self.layers if n > layer), 99)


def test_a_segment_ends_before_every_layer_that_may_change_rows():
    model = Toy("parallel")
    hooks, x = Watching(0, 2), torch.randn(7, model.decoder.config.hidden_size)
    with torch.inference_mode():
        out = model.decoder([Tokens(x, torch.arange(7))], [hooks])[0]
        same = model.decoder([Tokens(x, torch.arange(7))], [Watching()])[0]
    assert torch.equal(out, same)
    layers = list(range(model.decoder.config.num_layers))
    assert [n for what, n in hooks.told if what == "enter"] == [0, 2]
    assert [n for what, n in hooks.told if what == "leave"] == layers
    assert hooks.told.index(("enter", 2)) > hooks.told.index(("leave", 1))


@pytest.mark.parametrize("method", ["divprune", "cdpruner", "vlapruner"])
def test_a_greedy_choice_is_one_segment_and_outlives_the_next_run(method):
    """A hundred small steps are one launch, and what one layer or call chose is not overwritten by another."""
    backend = SimulatedGraphs()
    model = with_segments(Toy("parallel"), backend)
    policy = Policy(model, METHODS[method])
    kept = []
    for frame in synthetic(model.interface, 64, episodes=1, steps=6).frames:
        policy.act({0: frame.observation})
        kept += [(k, k.clone()) for k in policy.trace(0).kept.values()]
    assert any(key[0][0] == "method" for key in backend._outputs)
    assert len(kept) > 1 and all(torch.equal(a, b) for a, b in kept)


def test_what_cannot_be_run_here_is_refused_in_one_line():
    with pytest.raises(ValueError, match="kernel=graph needs a CUDA device, and the model is on cpu; use sdpa"):
        with_backend(Toy("parallel"), "graph")
    with pytest.raises(ValueError, match="'quick' is not one of"):
        with_backend(Toy("parallel"), "quick")


def test_the_original_model_stays_eager():
    """Or every later dense baseline would be compiled."""
    model = Toy("parallel")
    twin = with_backend(model, "compile", "eager")
    assert twin.backend is not model.backend and model.backend.name == "sdpa" and twin.decoder is model.decoder


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_captured_segments_act_as_the_eager_run_does(method):
    """Enough calls for every segment with a fixed count to be captured, and then replayed on other observations."""
    model = Tiny(weights="random", device="cuda")
    frames = synthetic(model.interface, 128, episodes=2, steps=8)
    make = METHODS[method]
    if method == "ties":
        make = calibrated(lambda: TIES(keep=0.25), model.info, model.layout(1).total)
    found = []
    for name in ("sdpa", "graph"):
        with kernel(name):
            policy = Policy(with_backend(model, name, None), make)
            found.append([a for episode in frames.episodes for a in actions(policy, episode, 3)])
    assert np.allclose(found[0], found[1], atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["openvla_tiny", "oft_tiny", "cogact_tiny", "pi0_tiny", "pi05_tiny"])
@pytest.mark.parametrize("method", ["dense", "fastv"])
def test_captured_models_act_as_the_eager_run_does(name, method, composed):
    """Every family, its pictures resized on the device; bf16 products differ between shapes, fp32 ones hardly."""
    model = config.build(composed(f"model={name}", "model.device=cuda"))[0]
    frames = synthetic(model.interface, 96, episodes=1, steps=8)
    found = []
    for backend in ("sdpa", "graph"):
        with kernel(backend):
            policy = Policy(with_backend(model, backend, None), METHODS[method])
            found.append([a for episode in frames.episodes for a in actions(policy, episode, 3)])
    assert np.allclose(found[0], found[1], atol=1e-3)
