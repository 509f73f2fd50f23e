"""The two worked examples of docs/your-model.md: equal to transformers, obedient when pruned, quoted in the guide."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
    SiglipVisionModel,
)

sys.path.insert(0, str(Path(__file__).with_name("examples")))

from siglip_llama import SiglipLlama
from takeover import Takeover

from vlaprune.benchmark import Observation
from vlaprune.methods.dense import Dense
from vlaprune.methods.fastv import FastV
from vlaprune.policy import Policy
from vlaprune.testing import check_model

VISION = SiglipVisionConfig(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14,
    vision_use_head=False,
)  # fmt: skip
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}
IMAGE = 63


def tokenize(text):
    return [1, *(2 + len(word) for word in text.split())]


def seeded(module):
    for name, p in module.named_parameters():
        torch.nn.init.normal_(p, std=0.2 if p.ndim > 1 else 0.1)
        if "norm" in name and name.endswith("weight"):
            p.data += 1
    return module.eval()


def parts():
    torch.manual_seed(0)
    vision, llama = seeded(SiglipVisionModel(VISION)), seeded(LlamaModel(LlamaConfig(**SIZES)))
    return vision, llama, seeded(torch.nn.Linear(32, 64)), seeded(torch.nn.Linear(64, 7))


def llava():
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=VISION, text_config=Qwen2Config(**SIZES), image_token_id=IMAGE, vision_feature_layer=-1,
        vision_feature_select_strategy="full", image_seq_length=16,
    )  # fmt: skip
    return seeded(LlavaForConditionalGeneration(config))


def ids(text):
    return [1, *[IMAGE] * 16, *tokenize(text)[1:]]


def look(seed=0):
    image = np.random.default_rng(seed).integers(0, 255, (56, 56, 3), dtype=np.uint8)
    return Observation({"main": image}, None, "put the cup away")


def pixels(observation):
    return (torch.from_numpy(observation.images["main"]).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5


MAKE = {"siglip_llama": lambda: SiglipLlama(*parts(), tokenize), "takeover": lambda: Takeover(llava(), ids)}


@torch.no_grad()
def test_a_model_of_ones_own_equals_transformers(parity):
    vision, llama, projector, head = parts()
    model, observation = SiglipLlama(vision, llama, projector, head, tokenize), look()
    visual = projector(vision(pixel_values=pixels(observation)).last_hidden_state[0])
    words = llama.embed_tokens(torch.tensor(tokenize(observation.instruction)))
    want = head(llama(inputs_embeds=torch.cat((visual, words))[None]).last_hidden_state[0, -1:])
    (got,) = Policy(model, Dense).act({0: observation}).values()
    parity("siglip_llama example", "actions of transformers' SigLIP and Llama", got, want, 1e-5)


@torch.no_grad()
def test_a_policy_that_is_taken_over_equals_itself(parity):
    theirs, observation = llava(), look()
    said = torch.tensor([ids(observation.instruction)])
    want = theirs(input_ids=said, pixel_values=pixels(observation)).logits[0, -1:]
    model = Takeover(theirs, ids)
    (got,) = model.logits([observation], [Policy(model, Dense).sessions[0]])
    parity("takeover example", "logits of transformers' Llava with Qwen2", got, want, 1e-5)


@pytest.mark.parametrize("name", MAKE)
def test_it_keeps_every_law_and_a_method_prunes_it(name):
    check_model(MAKE[name], image=56, compiles=False)
    policy = Policy(MAKE[name](), lambda: FastV(layer=1, keep=0.25))
    policy.act({0: look()})
    assert policy.drain(0)[-1].visual == (16, 4, 4, 4)


def test_the_guide_shows_these_files():
    guide = (Path(__file__).parents[1] / "docs" / "your-model.md").read_text()
    for name in MAKE:
        assert (Path(__file__).parent / "examples" / f"{name}.py").read_text() in guide
