"""OpenVLA and OpenVLA-OFT against what the authors' code answered: every check and its largest difference."""

from collections.abc import Iterator

import numpy as np
import torch

from golden import IDS, PRISMATIC, STATE, load, scene, uniform, weight
from vlaprune.benchmark import Observation
from vlaprune.methods.dense import Dense
from vlaprune.models.oft import OFT
from vlaprune.models.openvla import OpenVLA
from vlaprune.models.prismatic import weight_map
from vlaprune.nn.oft import plain_weight_map
from vlaprune.nn.weights import load_weights
from vlaprune.policy import Policy

OPTIONS = {"weights": "random", "images": "rlds", "sizes": PRISMATIC, "device": "cpu", "dtype": "float32"}
PREFIXES = {"action_head": {"l1": "l1.model.", "diffusion": "diffusion.noise_predictor.mlp_resnet."}}


class Formula:
    """A checkpoint whose tensors are computed from their names."""

    path = "formula"

    def __init__(self, module, pieces):
        own = dict(module.named_parameters())
        self.shapes = {key: piece.shape(own[piece.name]) for key, piece in pieces.items()}

    def tensor(self, key):
        return torch.from_numpy(weight(key, self.shapes[key]))

    def close(self):
        """Nothing is open."""


def formulated(model):
    """The model with the formula's weights and the fixed token ids."""
    modules = {"trunk": weight_map(model.trunk)}
    if isinstance(model, OFT):
        for name, prefix in (
            ("proprio_projector", "proprio."),
            ("noisy_action_projector", "noisy."),
            ("action_head", PREFIXES["action_head"].get(model._head)),
        ):
            if hasattr(model, name):
                modules[name] = plain_weight_map(getattr(model, name), prefix)
        model._noise = lambda sessions: torch.from_numpy(uniform("noise", 56).reshape(1, 8, 7)).float()
    for name, own in modules.items():
        module = getattr(model, name)
        load_weights(module, Formula(module, own), own, dtype=torch.float32)
    model._tokenize = lambda text: list(IDS[:-1])
    return model


def look(cameras=("primary",)):
    return Observation({c: scene(i + 1, 56, 56) for i, c in enumerate(cameras)}, np.array(STATE), "it")


def heard(module, act):
    """What a module answers while `act` runs."""
    out = []
    hook = module.register_forward_hook(lambda module, args, answer: out.append(answer))
    said = act()
    hook.remove()
    return said, out


def apart(ours, theirs):
    return float(np.abs(np.asarray(ours, dtype=np.float64) - theirs).max())


@torch.no_grad()
def openvla() -> Iterator[tuple[str, str, float]]:
    """Checks of OpenVLA: (model, check, largest difference)."""
    model, golden = formulated(OpenVLA(**OPTIONS)), load("openvla")
    session = Policy(model, Dense).sessions[0]
    visual, _ = heard(model.trunk.projector, lambda: model.tokens([look()], [session]))
    rows, hidden = heard(model.trunk.decoder, lambda: model.tokens([look()], [session]))
    tokens, projected = heard(model.trunk.projector, lambda: model.tokens([look()], [session]))
    assert torch.equal(visual, rows) and torch.equal(rows, tokens)
    yield "openvla", "visual tokens", apart(projected[0][0], golden["visual"])
    yield "openvla", "logits of every prompt row", apart(model.trunk.head(hidden[0][0])[:, ::501], golden["logits"])
    yield "openvla", "7 greedy tokens", apart(tokens[0], golden["tokens"])
    action = model.predict([look()], [session])[0]
    yield "openvla", "actions", apart(action[0], golden["actions"])


@torch.no_grad()
def oft() -> Iterator[tuple[str, str, float]]:
    """Checks of OpenVLA-OFT with 1 and 2 cameras and each head."""
    golden = load("oft")
    for cameras in (("primary",), ("primary", "wrist")):
        n = len(cameras)
        for head, state in (("l1", True), ("l1", False), ("tokens", True), ("diffusion", True)):
            options = {"head": head, "cameras": cameras} | ({} if state else {"state": None})
            model = formulated(OFT(**OPTIONS, **options))
            session = Policy(model, Dense).sessions[0]
            units, hidden = heard(model.trunk.decoder, lambda m=model, s=session, c=cameras: m.units([look(c)], [s]))
            if head == "l1" and state:
                yield "oft", f"hidden rows of the slots, {n} cameras", apart(hidden[0][0][-58:-2], golden[f"rows_{n}"])
            name = head if state else "stateless"
            label = {"l1": "L1 head", "stateless": "L1 head without state", "tokens": "discrete"}.get(
                name, "50 steps of DDIM"
            )
            yield "oft", f"actions, {label}, {n} cameras", apart(units[0], golden[f"{name}_{n}"])


def differences() -> Iterator[tuple[str, str, float]]:
    """All checks of the family."""
    yield from openvla()
    yield from oft()


if __name__ == "__main__":
    for row in differences():
        print(*row)
