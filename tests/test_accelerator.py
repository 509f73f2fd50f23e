"""Every method with every kind of model on an accelerator that is pretended: one device, and few places that wait.

It needs no GPU. What is listed here is what a call costs in waiting; a new place is entered with its reason.
"""

from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from doubles import calibrated
from pretended import DEVICE, Pretended, moved

from vlaprune import config
from vlaprune.methods.dense import Dense
from vlaprune.policy import Policy
from vlaprune.testing import random_observations

MODELS = ("openvla_tiny", "oft_tiny", "cogact_tiny", "pi0_tiny", "pi05_tiny", "tiny")
METHODS = sorted(p.stem for p in (Path(config.config_path()) / "method").glob("*.yaml"))
ANSWER = {"nn/resident.py:to_host", "models/flow.py:predict_guided", "policy.py:<dictcomp>"}  # the actions themselves
PROOF = {"selection.py:verify"}  # behind the actions: the rows that the method named
SHARED = "methods/shared/"
WAITS = {  # how many rows go on depends on what is seen, or the whole call does; each place is one number or one list
    "adp": {"methods/adp.py:select", "methods/adp.py:_motion"},
    "dtp": {"methods/dtp.py:select", "methods/dtp.py:wants_second_pass"},
    "infoentropy": {SHARED + "selecting.py:split_mask"},
    "lightvla": {SHARED + "selecting.py:distinct_winners"},
    "lightvla_star": {SHARED + "selecting.py:distinct_winners"},
    "prumerge": {"methods/prumerge.py:outliers", "methods/prumerge.py:_merge"},
    "safe": {"methods/safe.py:_is_key"},
    "specprune": {"methods/specprune.py:select"},
    "spvla": {SHARED + "patches.py:_connected", "methods/spvla.py:select"},
    "teamvla": {SHARED + "selecting.py:random_mask", "methods/teamvla.py:select"},
    "thinkproprio": {SHARED + "selecting.py:distinct_winners"},
    "ties": {"methods/ties/ties.py:_is_anchor", "methods/ties/agreement.py:tau"},
    "ties_hard": {"methods/ties/ties.py:_is_anchor", "methods/ties/agreement.py:tau"},
    "vlacache": {"methods/vlacache.py:select", SHARED + "selecting.py:split_mask", SHARED + "scoring.py:sharpness"},
    "vlaiap": {"methods/vlaiap.py:select"},
}


@pytest.fixture(scope="module")
def models(composed):
    """Each model on the pretended device, three observations, and the visual tokens that it makes of them."""
    out = {}
    for name in MODELS:
        model = config.build(composed(f"model={name}"))[0]
        first, *others = random_observations(model.interface, 128, 3)
        policy = Policy(model, Dense)
        policy.act({0: first})
        fresh = config.build(composed(f"model={name}"))[0]  # it has kept nothing on the CPU yet
        out[name] = moved(fresh), [first, *(replace(o, instruction=first.instruction) for o in others)]
        out[name] += (policy.trace(0).layout.total,)
    return out


@pytest.mark.parametrize("method", METHODS)
def test_a_call_stays_on_one_device_and_waits_only_where_it_must(composed, models, method):
    """Calls of one episode, so that the later ones have a past to look at."""
    waits, node = Counter(), composed("model=toy", f"method={method}").method
    make = partial(config.make, "method", node)
    for name, (model, seen, total) in models.items():
        policy = Policy(model, calibrated(make, model.info, total))
        for observation in seen if name == "oft_tiny" else seen[:2]:
            with Pretended() as device:
                policy.act({0: observation})
            waits += device.waits
    assert set(waits) - ANSWER - PROOF <= WAITS.get(method, set())


def test_the_pretended_device_catches_what_a_real_one_does():
    with torch.inference_mode(), Pretended() as device:
        there, here = torch.arange(4).to(DEVICE), torch.arange(4)
        with pytest.raises(AssertionError, match="mixes the device with the CPU"):
            there + here
        with pytest.raises(AssertionError, match="mixes the device with the CPU"):
            there[here]
        for product in (lambda: there.view(2, 2) @ there[:2], lambda: there.view(2, 2) @ there.view(2, 2)):
            with pytest.raises(AssertionError, match="whole numbers"):
                product()
        assert not device.waits
        assert (there + 1).device.type == DEVICE.type and (there[1:] * torch.tensor(2)).shape == (3,)
        assert not device.waits and device.uploads.total() == 1
        for wait in (lambda: there.sum().item(), lambda: there[there > 1], lambda: (there > 1).nonzero(), there.cpu):
            before = device.waits.total()
            wait()
            assert device.waits.total() == before + 1
        there[there > 1] = 0
        assert device.waits.total() == 4 and there.tolist() == [0, 1, 0, 0]
