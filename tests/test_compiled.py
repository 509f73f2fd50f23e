"""What `kernel=compile` compiles: all the arithmetic of a call, on every model, with the same actions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_between_calls import MODELS as SMALL  # few layers: one function computes them all
from torch._inductor.utils import run_and_get_code

from vlaprune import config
from vlaprune.methods.dense import Dense
from vlaprune.models.backends import with_backend
from vlaprune.nn.backend import Compiled
from vlaprune.nn.block import Block, DecoderConfig, rope
from vlaprune.nn.decoder import plain_layer
from vlaprune.nn.extend import extend_layer
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


@pytest.mark.parametrize("name", SMALL)
def test_every_matrix_product_of_a_call_is_in_a_compiled_graph(name):
    torch._dynamo.reset()
    model = SMALL[name](weights="random", device="cpu", dtype="float32")
    policy = Policy(with_segments(model, Compiled(named)), Dense)
    *warm, last = random_observations(model.interface, 56, 5)
    for seen in warm:  # a graph that is traced shows its products, too
        policy.act({0: replace(seen, instruction=last.instruction)})
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        policy.act({0: last})
    products = [event for event in seen.events() if event.name in PRODUCTS]
    left = [event.name for event in products if not within(event)]
    assert len(left) == LEFT.get(name, 0) and len(products) > 20


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


@pytest.mark.parametrize("suffix", [False, True])
def test_a_compiled_layer_copies_no_rows_to_add_them(suffix):
    """A product that adds its residual itself (addmm) copies the residual first."""
    torch._dynamo.reset()
    shape = DecoderConfig(hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=16, intermediate_size=64)
    block = Block(shape).eval().requires_grad_(False)
    x, tables = torch.randn(9, 32), rope(shape, torch.arange(9), torch.float32)
    rows = torch.zeros(2, 20, 16)
    with torch.inference_mode():
        if suffix:
            inputs = (block, x, tables, [(rows, rows.clone(), None)], (9, 0, 0))
            want, (got, code) = extend_layer(*inputs), run_and_get_code(torch.compile(extend_layer), *inputs)
        else:
            inputs = (block, x, *tables, False)
            want, (got, code) = plain_layer(*inputs), run_and_get_code(torch.compile(plain_layer), *inputs)
    assert "addmm" not in "".join(code) and "mm(" in "".join(code)
    assert torch.allclose(want[0], got[0], atol=1e-5)
