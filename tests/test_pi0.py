"""pi0 and pi0.5: against transformers' own PI0, against openpi's formulas, pruned against a masked full-length oracle."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PI0Config, PI0ForConditionalGeneration

from vlaprune.benchmark import Observation
from vlaprune.methods.dense import Dense
from vlaprune.models.pi0 import Pi0, Pi05
from vlaprune.policy import Policy

SIZES = {
    "image": 56,
    "vision_width": 32,
    "vision_layers": 3,
    "vision_heads": 4,
    "vision_ffn": 48,
    "layers": 4,
    "heads": 4,
    "head_size": 24,
    "width": 64,
    "ffn": 96,
    "expert_width": 32,
    "expert_ffn": 48,
    "vocabulary": 300,
}
S = SIZES
IMAGE_TOKEN = S["vocabulary"]


@cache
def library():
    """transformers' PI0 with random weights large enough that attention is not even."""
    torch.manual_seed(0)
    config = PI0Config(
        vlm_config={
            "model_type": "paligemma",
            "text_config": {
                "model_type": "gemma",
                "hidden_size": S["width"],
                "num_hidden_layers": S["layers"],
                "intermediate_size": S["ffn"],
                "num_attention_heads": S["heads"],
                "num_key_value_heads": 1,
                "head_dim": S["head_size"],
                "vocab_size": S["vocabulary"] + 1,
            },
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": S["vision_width"],
                "intermediate_size": S["vision_ffn"],
                "num_hidden_layers": S["vision_layers"],
                "num_attention_heads": S["vision_heads"],
                "image_size": S["image"],
                "patch_size": 14,
                "vision_use_head": False,
            },
            "projection_dim": S["width"],
            "image_token_id": IMAGE_TOKEN,
        },
        dit_config={
            "model_type": "gemma",
            "hidden_size": S["expert_width"],
            "num_hidden_layers": S["layers"],
            "intermediate_size": S["expert_ffn"],
            "num_attention_heads": S["heads"],
            "num_key_value_heads": 1,
            "head_dim": S["head_size"],
        },
        chunk_size=6,
    )
    config._attn_implementation = "sdpa"
    model = PI0ForConditionalGeneration(config).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.2 if p.ndim > 1 else 0.1)
    return model


def look(cameras=("primary", "wrist"), size=56, instruction="pick up the red can", seed=0):
    lot = np.random.default_rng(seed)
    pictures = {c: lot.integers(0, 255, (size, size, 3), dtype=np.uint8) for c in cameras}
    return Observation(pictures, lot.uniform(-1, 1, 8), instruction)


OPTIONS = {"weights": "random", "sizes": SIZES, "chunk": 6, "device": "cpu", "dtype": "float32"}


@cache
def ours(cameras=("primary", "wrist")):
    """The library's weights in our model, by the names of its checkpoint."""
    from vlaprune.models.paligemma import pieces

    sizes = {**SIZES, "vocabulary": S["vocabulary"] + 1}
    model = Pi0(**{**OPTIONS, "sizes": sizes, "cameras": cameras})
    state = {k.removeprefix("model."): v for k, v in library().state_dict().items()}
    state["vlm.language_model.embed_tokens.weight"] = state["vlm.language_model.embed_tokens.weight"]
    where, unused = pieces(model.net, state)
    own = dict(model.net.named_parameters())
    left = {k for k in state if k not in where and not k.startswith(unused)}
    assert not left and not where.keys() - state.keys(), (left, where.keys() - state.keys())
    with torch.no_grad():
        for key, piece in where.items():
            place = own[piece.name] if piece.rows is None else own[piece.name][slice(*piece.rows)]
            place.copy_(state[key].view(place.shape))
    return model


def reference(model, observation, noise, pad=5, empty=1):
    """transformers' sample_actions on the same inputs, with padded text and cameras that are not there."""
    cameras = model.interface.cameras
    pixels = torch.stack([torch.from_numpy(observation.images[c]) for c in cameras]).permute(0, 3, 1, 2).float()
    text = model._text(observation.instruction, None)
    tokens = (S["image"] // 14) ** 2
    blank = torch.full((empty, 3, S["image"], S["image"]), -1.0)
    ids = [IMAGE_TOKEN] * tokens * len(cameras) + text + [0] * pad
    mask = [1] * (len(ids) - pad) + [0] * pad
    state = torch.zeros(1, 32)
    state[0, :8] = torch.from_numpy(observation.state)
    return library().sample_actions(
        state=state,
        input_ids=torch.tensor([ids]),
        pixel_values=torch.cat((pixels / 127.5 - 1, blank))[None],
        noise=noise[None],
        attention_mask=torch.tensor([mask]),
        pixel_attention_mask=torch.tensor([[True] * len(cameras) + [False] * empty]),
    )[0]


def played(model, observation, make=Dense, seed=3):
    """Actions and the record of one call."""
    policy = Policy(model, make)
    policy.reset(0, seed)
    return torch.from_numpy(policy.act({0: observation})[0]), policy.drain(0)[0], policy.sessions[0]


def noise_of(model, seed=3, step=0):
    class It:
        pass

    it = It()
    it.seed, it.trace = seed, It()
    it.trace.step = step
    return model._noise([it])[0]


@pytest.mark.parametrize("cameras", [("primary",), ("primary", "wrist"), ("a", "b", "c")])
def test_dense_actions_equal_the_library(cameras):
    model = ours(cameras)
    observation = look(cameras)
    actions, _, _ = played(model, observation)
    expected = reference(model, observation, noise_of(model))
    print((actions - expected[:, :7]).abs().max(), expected.abs().max())
    assert torch.allclose(actions.float(), expected[:, :7], atol=1e-5)
