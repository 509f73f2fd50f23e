"""What `kernel=compile` compiles: all the arithmetic of a call, on every model, with the same actions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_launches import MODELS

from vlaprune import config
from vlaprune.methods.dense import Dense
from vlaprune.models.backends import with_backend
from vlaprune.nn.backend import Compiled
from vlaprune.policy import Policy
from vlaprune.testing import random_observations, with_segments

PRODUCTS = {"aten::linear", "aten::matmul", "aten::bmm", "aten::conv2d", "aten::scaled_dot_product_attention"}
GRAPH = "compiled graph"
LEFT = {"oft": 2}  # the two layers that project the robot's state


def named(graph, inputs):
    """A compiler for torch.compile that runs the graph as it is, under a name that the profiler sees."""

    def run(*args):
        with torch.profiler.record_function(GRAPH):
            return graph.forward(*args)

    return run


def within(event):
    return event is not None and (event.name == GRAPH or within(event.cpu_parent))


@pytest.mark.parametrize("name", MODELS)
def test_every_matrix_product_of_a_call_is_in_a_compiled_graph(name):
    torch._dynamo.reset()
    make, sizes = MODELS[name]
    model = make(weights="random", sizes=sizes, device="cpu", dtype="float32")
    policy = Policy(with_segments(model, Compiled(named)), Dense)
    *warm, last = random_observations(model.interface, 56, 5)
    for seen in warm:  # a graph that is traced shows its products, too
        policy.act({0: replace(seen, instruction=last.instruction)})
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        policy.act({0: last})
    products = [event for event in seen.events() if event.name in PRODUCTS]
    left = [event.name for event in products if not within(event)]
    assert len(left) == LEFT.get(name, 0) and len(products) > 40


@pytest.mark.parametrize("name", ["pi0_tiny", "pi05_tiny"])
def test_a_flow_really_compiled_gives_the_same_actions(composed, name):
    """By inductor, as on the command line."""
    torch._dynamo.reset()
    model = config.make("model", composed(f"model={name}", "model.weights=random").model)
    fast = with_backend(model, "compile")
    plain, compiled = Policy(model, Dense), Policy(fast, Dense)
    for seen in random_observations(model.interface, 64, 2):
        (want,), (got,) = plain.act({0: seen}).values(), compiled.act({0: seen}).values()
        assert np.allclose(got, want, atol=1e-5)
    assert fast.backend.compiled and fast.backend.entered
