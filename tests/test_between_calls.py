"""A call depends on its own observation alone, whatever a model or a clock kept from the calls before."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from test_launches import FLOW, NARROW

from vlaprune.benchmark import Observation
from vlaprune.meter import Clock
from vlaprune.methods.dense import Dense
from vlaprune.models.cogact import CogACT
from vlaprune.models.oft import OFT
from vlaprune.models.openvla import OpenVLA
from vlaprune.models.pi0 import Pi0, Pi05
from vlaprune.nn.backend import Backend
from vlaprune.policy import Policy
from vlaprune.testing import SimulatedGraphs, random_observations, with_segments

TRUNK = NARROW | {"layers": 3, "dino_depth": 3, "siglip_depth": 3}
FLOWS = FLOW | {"layers": 3, "vision_layers": 2}
MODELS = {
    "openvla": partial(OpenVLA, sizes=TRUNK),
    "oft": partial(OFT, sizes=TRUNK),
    "cogact": partial(CogACT, sizes=TRUNK, head="DiT-tiny"),
    "pi0": partial(Pi0, sizes=FLOWS),
    "pi05": partial(Pi05, sizes=FLOWS),
}


def different(first: Observation, second: Observation) -> list[Observation]:
    """Observations that differ from the first one in one thing each, and the first one again."""
    said = first.instruction.replace("red", "blue")  # as many words, so all shapes stay
    state = None if first.state is None else first.state + 0.125
    turned = dict(zip(first.images, reversed(first.images.values()), strict=True))  # the cameras change places
    return [
        first,
        replace(first, instruction=said),
        replace(first, instruction=second.instruction),
        replace(first, state=state),
        replace(first, images=turned),
        replace(first, images=second.images),
        first,
    ]


@pytest.mark.parametrize("backend", [Backend, SimulatedGraphs])
@pytest.mark.parametrize("name", MODELS)
def test_a_call_is_that_of_a_model_that_made_no_other(name, backend):
    build = partial(MODELS[name], weights="random", device="cpu", dtype="float32")
    model = build()
    policy = Policy(with_segments(model, backend()), Dense)
    for seed, seen in enumerate(different(*random_observations(model.interface, 56, 2))):
        fresh = Policy(with_segments(build(), backend()), Dense)
        records = []
        for one in (policy, fresh):
            one.reset(0, seed // 2)
            records.append((one.act({0: seen})[0], *one.drain(0)))
        (kept, record), (alone, expected) = records
        assert np.array_equal(kept, alone)
        assert replace(record, ms={}, cold="") == replace(expected, ms={}, cold="")


def test_two_instructions_and_two_states_give_two_actions():
    model = MODELS["oft"](weights="random", device="cpu", dtype="float32")
    policy, seen = Policy(model, Dense), different(*random_observations(model.interface, 56, 2))
    out = [policy.act({0: one})[0] for one in seen]
    for i, a in enumerate(out[:-1]):
        assert not any(np.array_equal(a, b) for b in out[:i])
    assert np.array_equal(out[0], out[-1])


def test_events_of_a_call_are_used_again_after_they_are_read(monkeypatch):
    """All are recorded in the stream that was current when the outermost span began; also after a call that raised."""
    made, asked, used = [], [], []

    class Event:
        """Takes a millisecond."""

        def __init__(self, enable_timing):
            made.append(self)

        def record(self, stream):
            self.at = next(times)
            used.append(stream)

        def elapsed_time(self, end):
            return end.at - self.at

    times = iter(range(100))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: asked.append(len(asked)) or asked[-1])
    clock, found = Clock("cuda"), []
    for _ in range(3):
        with clock.span("outer"):  # 0 .. 5
            with clock.span("inner"):  # 1 .. 2
                pass
            with clock.span("inner"):  # 3 .. 4
                pass
        found.append(clock.read())
    assert found == [{"inner": 2, "outer": 3}] * 3
    assert len(made) == 6
    assert asked == [0, 1, 2] and used == [0] * 6 + [1] * 6 + [2] * 6
    with pytest.raises(ValueError, match="lost"), clock.span("outer"):
        raise ValueError("lost")
    with clock.span("outer"):
        pass
    assert used[-4:] == [3, 3, 4, 4]
