"""pi0 and pi0.5 against what openpi's and lerobot's own modules answered, weights and inputs by formula.

scripts/golden_pi.py and scripts/golden_lerobot.py recorded them.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from golden import PI, load, pi_weight, scene, uniform

from vlaprune.benchmark import Observation
from vlaprune.methods.dense import Dense
from vlaprune.models import paligemma
from vlaprune.models.paligemma import weight_map
from vlaprune.models.pi0 import Pi0, Pi05
from vlaprune.models.tokenizer import Text
from vlaprune.nn.extend import Suffix
from vlaprune.policy import Policy

MODELS = {"pi0": Pi0, "pi05": Pi05}
NOT_SIZES = ("chunk", "text")


def recorded(name, added=True):
    """Our model with the recorded one's weights, text and noise; `added` as the family of the weights has it."""
    sizes = {k: v for k, v in PI.items() if k not in NOT_SIZES}
    model = MODELS[name]("random", sizes=sizes, chunk=PI["chunk"], device="cpu", dtype="float32")
    where, _ = weight_map(model.net, {})
    own = dict(model.net.named_parameters())
    with torch.no_grad():
        for key, piece in where.items():
            place = own[piece.name][slice(None) if piece.rows is None else slice(*piece.rows)]
            place.copy_(torch.from_numpy(pi_weight(key, tuple(place.shape))))
    noise = torch.from_numpy(uniform("noise", PI["chunk"] * 32).reshape(1, -1, 32)).float()
    model.family = replace(model.family, added=added)
    model.text = lambda instruction, state: Text(PI["text"], range(1, 5))
    model._noise = lambda sessions: noise
    return model, noise[0]


def answered(model):
    """Actions [chunk, 32] as the model has them, before they are un-scaled, and the velocity of the first step."""
    seen, velocities = [], []
    net = model.net
    hook = net.action_out.register_forward_hook(lambda module, args, out: velocities.append(out[0]))
    flow = model._flow
    model._flow = lambda *args: seen.append(flow(*args)) or seen[-1]
    pictures = {c: scene(seed, PI["image"], PI["image"]) for c, seed in (("primary", 1), ("wrist", 2))}
    Policy(model, Dense).act({0: Observation(pictures, uniform("state", 8), "as recorded")})
    hook.remove()
    return seen[0][0], velocities[0]


@pytest.mark.parametrize("name", MODELS)
def test_actions_equal_those_of_lerobot(name, parity):
    """lerobot computes the times of the flow each for itself; with openpi's, actions are 2e-5 to 9e-5 elsewhere."""
    golden = {key: torch.from_numpy(load("lerobot")[f"{name}_{key}"]) for key in ("velocity", "actions")}
    actions, velocity = answered(recorded(name, added=False)[0])
    for what, ours in (("velocity", velocity), ("actions", actions)):
        parity(name, f"dense, 2 cameras: {what} of lerobot 0.6.1, recorded", ours, golden[what], 1e-5)
    assert (answered(recorded(name, added=True)[0])[0] - golden["actions"]).abs().max() > 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_actions_equal_those_of_openpi(name, parity):
    model, noise = recorded(name)
    actions, velocity = answered(model)
    golden = {key: torch.from_numpy(load("pi")[f"{name}_{key}"]) for key in ("velocity", "actions")}
    for what, ours in (("velocity", velocity), ("actions", actions)):
        parity(name, f"dense, 2 cameras: {what} of openpi, recorded", ours, golden[what], 1e-5)
    assert (golden["actions"] - noise).abs().mean() > 0.05


def test_the_recording_tells_wrong_arithmetic_from_right(monkeypatch):
    """Controls: positions of the suffix counted after pruning, exact GELU, unscaled words, each changes the answer."""
    golden = torch.from_numpy(load("pi")["pi05_actions"])

    def off(change):
        model, _ = recorded("pi05")
        change(model)
        return (answered(model)[0] - golden).abs().max()

    def shifted(model):
        near = lambda blocks, kv, lengths, *others: Suffix(blocks, kv, [n - 4 for n in lengths], *others)  # noqa: E731
        monkeypatch.setattr(paligemma, "Suffix", near)

    def narrow(model):
        model.net.embedding.weight.data.mul_(PI["width"] ** -0.5)

    def ungated(model):
        for norm in model.net.expert.modules():
            if hasattr(norm, "dense"):
                norm.dense.bias.data[-PI["expert_width"] :] += 1.0

    assert min(off(narrow), off(ungated), off(shifted)) > 1e-3
    assert np.isfinite(golden).all()
