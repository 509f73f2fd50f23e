"""Captured graphs, on tapes: whatever the order of their replays, each call gives what the eager run gives."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from doubles import calibrated
from taped import tape_graphs

from vlaprune import config
from vlaprune.models.toy import STYLES, Toy
from vlaprune.nn import backend
from vlaprune.nn.backend import REPEATS, Captured
from vlaprune.policy import Policy
from vlaprune.testing import scenes, with_segments

STEPS = 40


@pytest.fixture
def graphs(monkeypatch):
    """A backend that captures tapes and compiles nothing."""
    tape_graphs(monkeypatch)
    return Captured(None)


def spread(x):
    return (x[:, None] - x).exp().sum(1)


def twice(x):
    return 2 * x


def first(*given):
    return given[0] + 1 if given[0] is not None else given[1] - 1


def settled(graphs, *run):
    """The output of a segment that is replayed from now on."""
    return [graphs.run(*run) for _ in range(REPEATS)][-1]


def test_what_a_graph_wrote_outlives_a_graph_that_was_captured_before(graphs):
    a, b = torch.rand(5), torch.rand(9)
    settled(graphs, "early", spread, a)
    late = settled(graphs, "late", spread, b)
    graphs.run("early", spread, a)
    assert graphs.replayed and torch.equal(late, spread(b))


def test_a_graph_reads_in_place_what_another_wrote_and_copies_all_else(graphs):
    x = torch.rand(5)
    settled(graphs, "one", spread, x)
    settled(graphs, "two", twice, graphs.run("one", spread, x))
    for given in (torch.rand(5), torch.rand(5)):
        out, before = graphs.run("one", spread, given), graphs.launched
        assert torch.equal(graphs.run("two", twice, out), twice(spread(given)))
        assert graphs.launched == before + 1
        own = torch.rand(5)
        assert torch.equal(graphs.run("two", twice, own), twice(own))


def test_memory_that_torch_holds_unused_is_free_for_a_graph(graphs, monkeypatch, capsys):
    """It is handed back before a graph is refused; a refusal is said once, and every run goes on without the graph."""
    free = [0]
    backend._say_once.cache_clear()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free[0], 100))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    x = torch.rand(5)
    for key in ("one", "two"):
        assert torch.equal(settled(graphs, key, twice, x), twice(x)) and not graphs.captured
    assert capsys.readouterr().err.count("kernel=graph: less than 20% of the GPU's memory is free") == 1
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: free.__setitem__(0, 90))
    assert torch.equal(settled(graphs, "three", twice, x), twice(x)) and graphs.captured == 1
    assert not capsys.readouterr().err


def test_a_graph_serves_only_the_places_of_what_is_left_out(graphs):
    x = torch.rand(3)
    assert torch.equal(settled(graphs, "one", first, x, None), x + 1)
    assert torch.equal(settled(graphs, "one", first, None, x), x - 1)
    assert graphs.captured == 2


def test_forks_and_cleared_backends_share_no_graph(graphs):
    x = torch.rand(5)
    out = settled(graphs, "one", spread, x)
    settled(graphs, "two", twice, out)
    twin = graphs.fork()
    assert torch.equal(settled(twin, "two", twice, out), twice(out))
    graphs.clear()
    fresh = graphs.run("one", spread, x + 1)
    assert torch.equal(out, spread(x)) and torch.equal(fresh, spread(x + 1))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("method", ["specprune", "vlacache"])
def test_methods_whose_counts_vary_act_as_in_the_eager_run(graphs, composed, method, style):
    """Segments of new counts are captured late, and run before segments captured long ago."""
    model = Toy(style)
    make = partial(config.make, "method", composed("model=toy", f"method={method}").method)
    told = (replace(f, instruction=f.instruction + " gently" * (n // 10)) for n, f in enumerate(scenes(0, 1, STEPS)))
    frames, chunks = list(told), []
    for own in (model, with_segments(model, graphs)):
        policy = Policy(own, calibrated(make, model.info, 64))
        chunks.append([policy.act({0: frame})[0] for frame in frames])
    assert graphs.replayed and np.allclose(*chunks, atol=1e-5)
