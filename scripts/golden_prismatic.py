"""What the authors' code of OpenVLA and OpenVLA-OFT answers; sections `openvla` and `oft` of record_golden.py."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
from golden import IDS, PRISMATIC, STATE, pixels, uniform, weights

Arrays = dict[str, np.ndarray]


def prismatic(source: Path) -> tuple[Any, Any]:
    """The authors' model at the size of golden.PRISMATIC with the formula's weights, and its module."""
    import timm
    import torch
    import transformers

    for name in ("", ".extern", ".extern.hf", ".training", ".vla", ".models"):  # without their __init__, which needs TF
        package = types.ModuleType(f"prismatic{name}")
        package.__path__ = [str(source / "prismatic" / name.replace(".", "/").strip("/"))]
        sys.modules[f"prismatic{name}"] = package
    module = importlib.import_module("prismatic.extern.hf.modeling_prismatic")
    configuration = importlib.import_module("prismatic.extern.hf.configuration_prismatic")
    made = timm.create_model

    def small(model_id: str, **options: object) -> Any:
        tower = "dino" if "dino" in model_id else "siglip"
        width, depth, heads = (PRISMATIC[f"{tower}_{what}"] for what in ("width", "depth", "heads"))
        return made(model_id, **options, embed_dim=width, depth=depth, num_heads=heads)

    timm.create_model = small
    config = configuration.OpenVLAConfig(
        vision_backbone_id="dinosiglip-vit-so-224px",
        arch_specifier="no-align+fused-gelu-mlp",
        text_config={
            "hidden_size": PRISMATIC["width"],
            "intermediate_size": PRISMATIC["ffn"],
            "num_hidden_layers": PRISMATIC["layers"],
            "num_attention_heads": PRISMATIC["heads"],
            "num_key_value_heads": PRISMATIC["heads"],
            "vocab_size": 32064,
            "rms_norm_eps": 1e-6,
            "pad_token_id": 32000,
        },
        norm_stats={"it": {"action": {"q01": [-1.0] * 7, "q99": [1.0] * 7, "min": [-1.0] * 7, "max": [1.0] * 7}}},
    )
    config.image_sizes = [PRISMATIC["image"]] * 2
    model = module.OpenVLAForActionPrediction(config).eval()
    assert "Sdpa" in type(model.language_model.model.layers[0].self_attn).__name__
    fill(model)
    print(transformers.__version__, timm.__version__, torch.__version__)
    return model, module


def fill(module: Any, prefix: str = "") -> Any:
    """Gives a torch module the formula's weights; `prefix` tells apart modules whose names repeat."""
    import torch

    state = weights({prefix + key: tuple(value.shape) for key, value in module.state_dict().items()})
    module.load_state_dict({key.removeprefix(prefix): torch.from_numpy(value) for key, value in state.items()})
    return module.eval()


def half(model: Any) -> Any:
    """The model in bf16 as from_pretrained loads it: all but the rotary frequencies, which stay in fp32."""
    import torch

    turning = [layer.self_attn.rotary_emb for layer in model.language_model.model.layers]
    kept = [each.inv_freq.clone() for each in turning]
    model.to(torch.bfloat16)
    for each, frequencies in zip(turning, kept, strict=True):
        each.inv_freq = frequencies
    return model


def openvla(source: Path) -> Arrays:
    """OpenVLA's decoding. Needs transformers 4.40.1, timm 0.9.10 and openvla/openvla@c8f03f4 as source."""
    import torch

    model, _ = prismatic(source)
    ids, seen = torch.tensor([IDS]), torch.from_numpy(pixels(1))
    with torch.no_grad():
        out = model(input_ids=ids, pixel_values=seen, output_projector_features=True)
        said = model.generate(ids, pixel_values=seen, max_new_tokens=7, do_sample=False)[0, -7:]
        actions = model.predict_action(ids[:, :-1], unnorm_key="it", pixel_values=seen, do_sample=False)
        coarse = half(model)(input_ids=ids, pixel_values=seen.bfloat16(), output_projector_features=True)
    return {
        "visual": out.projector_features[0].numpy(),
        "logits": out.logits[0, :, ::501].numpy(),
        "tokens": said.numpy(),
        "actions": actions,
        "visual_bf16": coarse.projector_features[0].float().numpy(),
        "logits_bf16": coarse.logits[0, :, ::501].float().numpy(),
    }


def oft(source: Path) -> Arrays:
    """OFT with each head. Needs moojink/transformers-openvla-oft@bc339d9, timm 0.9.10 and diffusers 0.30.3.

    Its source is moojink/openvla-oft@213c5ff.
    """
    import torch

    model, _ = prismatic(source)
    heads = importlib.import_module("prismatic.models.action_heads")
    projectors = importlib.import_module("prismatic.models.projectors")
    width = PRISMATIC["width"]
    proprio = fill(projectors.ProprioProjector(width, 8), "proprio.")
    l1 = fill(heads.L1RegressionActionHead(width, width, 7), "l1.")
    diffusion = fill(heads.DiffusionActionHead(width, width, 7, 50), "diffusion.")
    diffusion.noise_scheduler.set_timesteps(50)
    noisy = fill(projectors.NoisyActionProjector(width), "noisy.")
    noise = torch.from_numpy(uniform("noise", 56).reshape(1, 8, 7)).float()
    torch.randn = lambda *args, **options: noise.clone()  # where its code draws the first noise
    out: Arrays = {}
    for cameras in (1, 2):
        seen = torch.from_numpy(np.concatenate([pixels(i) for i in range(1, cameras + 1)], 1))
        model.vision_backbone.set_num_images_in_input(cameras)
        common = {"input_ids": torch.tensor([IDS]), "pixel_values": seen, "unnorm_key": "it"}
        common["attention_mask"] = torch.ones(1, len(IDS), dtype=torch.long)
        state = {"proprio": np.float32(STATE), "proprio_projector": proprio}
        with torch.no_grad():
            actions, rows = model.predict_action(**common, **state, action_head=l1)
            out |= {f"l1_{cameras}": actions, f"rows_{cameras}": rows[0].numpy()}
            out[f"stateless_{cameras}"], _ = model.predict_action(**common, action_head=l1)
            out[f"tokens_{cameras}"], _ = model.predict_action(**common, **state)
            out[f"diffusion_{cameras}"], _ = model.predict_action(
                **common, **state, action_head=diffusion, noisy_action_projector=noisy
            )
    half(model), proprio.bfloat16(), l1.bfloat16()
    with torch.no_grad():
        actions, rows = model.predict_action(**common | {"pixel_values": seen.bfloat16()}, **state, action_head=l1)
    return out | {"l1_2_bf16": actions, "rows_2_bf16": rows[0].float().numpy()}
