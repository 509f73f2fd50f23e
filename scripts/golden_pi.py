"""The `pi` section of record_golden.py: openpi's own pi0 and pi0.5 samplers on models of a few small layers."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from golden import PI, pi_weight, scene, uniform


def pi(source: Path) -> dict[str, np.ndarray]:
    """Actions and the first velocity of both models for two pictures, a third camera masked, the text padded.

    Needs transformers 5.5.4 and, as `source`, a checkout of huggingface/lerobot@7427f31: it carries openpi's PyTorch
    modules (tests/policies/pi0_pi05/openpi_pytorch), changed only where that version of transformers asks for it.
    """
    _packages(source)
    import torch

    out = {}
    for name in ("pi0", "pi05"):
        model = _model(name == "pi05")
        velocities: list[torch.Tensor] = []
        step = model.denoise_step
        model.denoise_step = lambda *a, step=step, seen=velocities: seen.append(step(*a)) or seen[-1]
        noise = torch.from_numpy(uniform("noise", PI["chunk"] * 32).reshape(1, -1, 32)).float()
        actions = model.sample_actions(torch.device("cpu"), _observation(), noise=noise)
        out |= {f"{name}_actions": actions[0].numpy(), f"{name}_velocity": velocities[0][0].numpy()}
    return out


def _packages(source: Path) -> None:
    """Lets the modules be imported by their names without running lerobot's own package files."""
    for name, path in (
        ("lerobot", "src/lerobot"),
        ("lerobot.policies", "src/lerobot/policies"),
        ("tests", "tests"),
        ("tests.policies", "tests/policies"),
        ("tests.policies.pi0_pi05", "tests/policies/pi0_pi05"),
    ):
        package = ModuleType(name)
        package.__path__ = [str(source / path)]
        sys.modules[name] = package
    there = ModuleType("lerobot.utils.import_utils")
    there._transformers_available = True  # type: ignore[attr-defined]
    sys.modules[there.__name__] = there


def _observation() -> SimpleNamespace:
    """Three cameras, the last of them masked; a text with padding."""
    import torch

    pixels = [torch.from_numpy(scene(seed, PI["image"], PI["image"])) for seed in (1, 2)]
    images = [(p.permute(2, 0, 1)[None].float() / 255 * 2 - 1) for p in pixels]
    text = torch.tensor([[*PI["text"], 0, 0, 0]])
    state = torch.zeros(1, 32)
    state[0, :8] = torch.from_numpy(uniform("state", 8)).float()
    cameras = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
    return SimpleNamespace(
        images=dict(zip(cameras, [*images, -torch.ones_like(images[0])], strict=True)),
        image_masks=dict(zip(cameras, [torch.tensor([seen]) for seen in (True, True, False)], strict=True)),
        tokenized_prompt=text,
        tokenized_prompt_mask=text > 0,
        state=state,
    )


def _model(adaptive: bool) -> Any:
    """Openpi's model with smaller parts put in where it fixes their sizes, and weights by formula."""
    import torch
    from tests.policies.pi0_pi05.openpi_pytorch import gemma_pytorch, pi0_pytorch  # type: ignore[import-not-found]
    from torch import nn
    from transformers import SiglipVisionConfig, SiglipVisionModel
    from transformers.models.gemma.modeling_gemma import GemmaTextScaledWordEmbedding

    common = {"depth": PI["layers"], "num_heads": PI["heads"], "num_kv_heads": 1, "head_dim": PI["head_size"]}
    sizes = {
        "big": SimpleNamespace(width=PI["width"], mlp_dim=PI["ffn"], **common),
        "small": SimpleNamespace(width=PI["expert_width"], mlp_dim=PI["expert_ffn"], **common),
    }
    pi0_pytorch._gemma = SimpleNamespace(get_config=sizes.__getitem__)
    vision = {
        "hidden_size": PI["vision_width"],
        "num_hidden_layers": PI["vision_layers"],
        "num_attention_heads": PI["vision_heads"],
        "intermediate_size": PI["vision_ffn"],
        "image_size": PI["image"],
        "patch_size": 14,
        "vision_use_head": False,
    }
    known = gemma_pytorch.CONFIG_MAPPING
    paligemma = known["paligemma"]
    gemma_pytorch.CONFIG_MAPPING = {"paligemma": lambda: paligemma(vision_config=dict(vision)), "gemma": known["gemma"]}
    config = SimpleNamespace(
        pi05=adaptive,
        paligemma_variant="big",
        action_expert_variant="small",
        dtype="float32",
        action_dim=32,
        action_horizon=PI["chunk"],
        pytorch_compile_mode=None,
    )
    model = pi0_pytorch.PI0Pytorch(config).eval()
    gemma_pytorch.CONFIG_MAPPING = known
    inner = model.paligemma_with_expert.paligemma.model
    inner.vision_tower = SiglipVisionModel(SiglipVisionConfig(**vision)).eval()
    inner.multi_modal_projector.linear = nn.Linear(PI["vision_width"], PI["width"])
    scale = PI["width"] ** 0.5
    words = GemmaTextScaledWordEmbedding(PI["vocabulary"], PI["width"], 0, embed_scale=scale)
    inner.language_model.embed_tokens = words
    model._preprocess_observation = lambda o, train: (  # it would resize to 224
        list(o.images.values()),
        list(o.image_masks.values()),
        o.tokenized_prompt,
        o.tokenized_prompt_mask,
        o.state,
    )
    both = "paligemma_with_expert."
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not name.endswith("lm_head.weight"):
                own = f"{both}paligemma.lm_head.weight" if p is words.weight else name
                p.copy_(torch.from_numpy(pi_weight(own, tuple(p.shape))))
    return model
