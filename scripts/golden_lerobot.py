"""The `lerobot` section of record_golden.py: lerobot's own pi0 and pi0.5 on models of a few small layers.

lerobot's PyTorch modules are rewritten for transformers 5 and no longer those of openpi (golden_pi.py): another mask,
another loop over the steps, other norms.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from golden import PI, pi_weight, scene, uniform

STUBS = {  # of lerobot: configuration classes and device helpers that the modules import and the sampler does not use
    "lerobot.configs": (
        "PreTrainedConfig",
        "RTCAttentionSchedule",
        "FeatureType",
        "NormalizationMode",
        "PolicyFeature",
    ),
    "lerobot.policies.pretrained": ("PreTrainedPolicy", "T"),
    "lerobot.policies.rtc.modeling_rtc": ("RTCProcessor",),
    "lerobot.policies.pi0.configuration_pi0": ("PI0Config",),
    "lerobot.policies.pi05.configuration_pi05": ("PI05Config",),
}
PACKAGES = ("", ".utils", ".policies", ".policies.pi0", ".policies.pi05", ".policies.common", ".policies.rtc")


def lerobot(source: Path) -> dict[str, np.ndarray]:
    """Actions and the first velocity of both models for two pictures, a third camera masked, the text padded.

    Needs transformers 5.5.4 and, as `source`, the unpacked wheel lerobot 0.6.1 of the package index. Nothing of what it
    depends on is needed: packages are entered by path, and configurations are plain objects.
    """
    _packages(source)
    import torch

    out = {}
    for name in ("pi0", "pi05"):
        model = _model(name)
        velocities: list[torch.Tensor] = []
        step = model.denoise_step
        model.denoise_step = lambda *a, step=step, seen=velocities, **k: seen.append(step(*a, **k)) or seen[-1]
        noise = torch.from_numpy(uniform("noise", PI["chunk"] * 32).reshape(1, -1, 32)).float()
        pictures, masks, text, state = _inputs()
        last = () if name == "pi05" else (state,)
        actions = model.sample_actions(pictures, masks, text, text > 0, *last, noise=noise)
        out |= {f"{name}_actions": actions[0].numpy(), f"{name}_velocity": velocities[0][0].numpy()}
    return out


def _packages(source: Path) -> None:
    """Lets the modules be imported by their names without running lerobot's own package files."""
    for name in PACKAGES:
        package = ModuleType(f"lerobot{name}")
        package.__path__ = [str(source / f"lerobot{name}".replace(".", "/"))]
        sys.modules[package.__name__] = package
    for name, classes in STUBS.items():
        stub = ModuleType(name)
        for own in classes:
            setattr(stub, own, type(own, (), {"__class_getitem__": classmethod(lambda cls, item: cls)}))
        stub.DEFAULT_IMAGE_SIZE = PI["image"]  # type: ignore[attr-defined]
        sys.modules[name] = stub
    there = ModuleType("lerobot.utils.import_utils")
    there._transformers_available = True  # type: ignore[attr-defined]
    there.require_package = lambda *names, **more: None  # type: ignore[attr-defined]
    sys.modules[there.__name__] = there
    device = ModuleType("lerobot.utils.device_utils")
    device.get_safe_dtype = lambda dtype, device: dtype  # type: ignore[attr-defined]
    sys.modules[device.__name__] = device


def _inputs() -> tuple[Any, Any, Any, Any]:
    """Three cameras in [-1, 1], their masks (the last one false), a text with padding, a padded state."""
    import torch

    pixels = [torch.from_numpy(scene(seed, PI["image"], PI["image"])) for seed in (1, 2)]
    pictures = [p.permute(2, 0, 1)[None].float() / 255 * 2 - 1 for p in pixels]
    state = torch.zeros(1, 32)
    state[0, :8] = torch.from_numpy(uniform("state", 8)).float()
    masks = [torch.tensor([seen]) for seen in (True, True, False)]
    return [*pictures, -torch.ones_like(pictures[0])], masks, torch.tensor([[*PI["text"], 0, 0, 0]]), state


def _model(name: str) -> Any:
    """Lerobot's model with smaller parts put in where it fixes their sizes, and weights by formula."""
    import torch
    from torch import nn
    from transformers import SiglipVisionConfig, SiglipVisionModel
    from transformers.models.gemma.modeling_gemma import GemmaTextScaledWordEmbedding

    module = import_module(f"lerobot.policies.{name}.modeling_{name}")
    common = {"depth": PI["layers"], "num_heads": PI["heads"], "num_kv_heads": 1, "head_dim": PI["head_size"]}
    sizes = {
        "big": SimpleNamespace(width=PI["width"], mlp_dim=PI["ffn"], **common),
        "small": SimpleNamespace(width=PI["expert_width"], mlp_dim=PI["expert_ffn"], **common),
    }
    module.get_gemma_config = sizes.__getitem__
    vision = {
        "hidden_size": PI["vision_width"],
        "num_hidden_layers": PI["vision_layers"],
        "num_attention_heads": PI["vision_heads"],
        "intermediate_size": PI["vision_ffn"],
        "image_size": PI["image"],
        "patch_size": 14,
        "vision_use_head": False,
    }
    known = module.CONFIG_MAPPING
    paligemma = known["paligemma"]
    module.CONFIG_MAPPING = {"paligemma": lambda: paligemma(vision_config=dict(vision)), "gemma": known["gemma"]}
    config = SimpleNamespace(
        paligemma_variant="big",
        action_expert_variant="small",
        dtype="float32",
        image_resolution=(PI["image"], PI["image"]),
        freeze_vision_encoder=False,
        train_expert_only=False,
        max_action_dim=32,
        max_state_dim=32,
        chunk_size=PI["chunk"],
        num_inference_steps=10,
        min_period=4e-3,
        max_period=4.0,
        compile_model=False,
        rtc_config=None,
        use_visual_memory=False,
        use_proprioceptive_memory=False,
        rtc_training_max_delay=0,
    )
    model = getattr(module, f"{name.upper()}Pytorch")(config).eval()
    module.CONFIG_MAPPING = known
    inner = model.paligemma_with_expert.paligemma.model
    inner.vision_tower = SiglipVisionModel(SiglipVisionConfig(**vision)).eval()
    inner.multi_modal_projector.linear = nn.Linear(PI["vision_width"], PI["width"])
    words = GemmaTextScaledWordEmbedding(PI["vocabulary"], PI["width"], 0, embed_scale=PI["width"] ** 0.5)
    inner.language_model.embed_tokens = words
    both = "paligemma_with_expert."
    with torch.no_grad():
        for key, p in model.named_parameters():
            if not key.endswith("lm_head.weight"):
                own = f"{both}paligemma.lm_head.weight" if p is words.weight else _as_openpi(key)
                p.copy_(torch.from_numpy(pi_weight(own, tuple(p.shape))))
    return model


def _as_openpi(key: str) -> str:
    """The name that weights of golden_pi.py have: transformers has dropped `vision_model.` since."""
    return key.replace("vision_tower.", "vision_tower.vision_model.") if "vision_model." not in key else key
