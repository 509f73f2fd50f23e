"""Operators of a dense call that no segment holds: what no backend can compile or capture away, at full depth."""

from dataclasses import replace

import pytest
import torch
from launches import Launches, Marked

from vlaprune.methods.dense import Dense
from vlaprune.models.cogact import CogACT
from vlaprune.models.oft import OFT
from vlaprune.models.openvla import OpenVLA
from vlaprune.models.pi0 import Pi0, Pi05
from vlaprune.policy import Policy
from vlaprune.testing import random_observations, with_segments

ALLOWED = 12
NARROW = {
    "image": 56,
    "dino_width": 16,
    "dino_heads": 2,
    "siglip_width": 16,
    "siglip_heads": 2,
    "siglip_ffn": 16,
    "width": 32,
    "heads": 2,
    "ffn": 32,
}
FLOW = {
    "image": 56,
    "vision_width": 16,
    "vision_heads": 2,
    "vision_ffn": 16,
    "heads": 2,
    "head_size": 8,
    "width": 32,
    "ffn": 32,
    "expert_width": 16,
    "expert_ffn": 16,
    "vocabulary": 300,
}
MODELS = {
    "openvla": (OpenVLA, NARROW),
    "oft": (OFT, NARROW),
    "cogact": (CogACT, NARROW),
    "pi0": (Pi0, FLOW),
    "pi05": (Pi05, FLOW),
}


@pytest.mark.parametrize("name", MODELS)
def test_few_operators_of_a_dense_call_are_outside_its_segments(name):
    make, sizes = MODELS[name]
    launches = Launches()
    model = make(weights="random", sizes=sizes, device="cpu", dtype="float32")
    policy = Policy(with_segments(model, Marked(launches)), Dense)
    first, second = random_observations(model.interface, 56, 2)
    policy.act({0: first})
    with launches:
        policy.act({0: replace(second, instruction=first.instruction)})
    outside, inside = launches.outside.total(), launches.inside.total()
    assert outside <= ALLOWED < inside / 10, f"{outside} of {outside + inside}: {launches.outside}"


def test_the_counter_counts_what_runs_and_not_what_only_looks():
    x, launches = torch.randn(4, 6), Launches()
    with launches:
        x[1:].t().mul_(2).sum()
        Marked(launches).run("k", lambda y: y + 1, x)
    assert launches.outside.total() == 2
    assert launches.inside.total() == 1
