"""The `cogact` section of record_golden.py: microsoft/CogACT's own predict_action on a model of a few small layers."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from golden import COGACT as SIZES
from golden import scene, weights, words

IMAGENET, HALF = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NUMBERS = {"q01": [-1.0] * 7, "q99": [1.0] * 7, "mask": [True] * 6 + [False]}
SAMPLING = {"cfg_scale": 1.5, "use_ddim": True, "num_ddim_steps": 10, "do_sample": False}


def cogact(source: Path) -> dict[str, np.ndarray]:
    """Noise, cognition feature, sampled chunk and normalised actions for two pictures.

    Needs the environment of microsoft/CogACT@b174a1b, a checkout of it as `source`, and `python -O`: with assertions
    on, upstream refuses any width but 4096.
    """
    sys.path.insert(0, str(source))
    import torch
    from PIL import Image

    model = _model()
    model.action_model.create_ddim(SAMPLING["num_ddim_steps"])
    loop, seen = model.action_model.ddim_diffusion.ddim_sample_loop, []

    def watched(fn, shape, noise, **options):
        chunk = loop(fn, shape, noise, **options)
        seen[:] = noise[0], options["model_kwargs"]["z"][0, 0], chunk[0]
        return chunk

    model.action_model.ddim_diffusion.ddim_sample_loop = watched
    out = {}
    for seed in (1, 2):
        torch.manual_seed(seed)
        picture = Image.fromarray(scene(seed, 48, 64))
        _, unit = model.predict_action(picture, "Close the DRAWER", unnorm_key="it", **SAMPLING)
        for name, array in zip(("noise", "feature", "chunk"), seen, strict=True):
            out[f"{name}_{seed}"] = array.numpy()
        out[f"unit_{seed}"] = unit
    return out


def _model():
    """Upstream's classes at small sizes, with weights by formula under the names of a checkpoint."""
    import torch
    from action_model.action_model import DiT_models
    from action_model.models import DiT
    from prismatic.models.vlms import PrismaticVLM
    from vla.cogactvla import CogACT

    DiT_models["small"] = lambda **sizes: DiT(depth=2, hidden_size=32, num_heads=2, **sizes)
    vlm = PrismaticVLM("it", _towers(), _llama(), arch_specifier="no-align+fused-gelu-mlp")
    model = CogACT(vlm, "small", token_size=SIZES["width"], norm_stats={"it": {"action": NUMBERS}}).eval()
    model.action_model.net.z_embedder.uncondition = torch.nn.Parameter(torch.empty(1, SIZES["width"]))
    parts = {name: getattr(vlm, name) for name in ("vision_backbone", "llm_backbone", "projector")}
    for part, module in (parts | {"action_model": model.action_model}).items():
        shapes = {f"{part}.{name}": tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        made = {k.removeprefix(f"{part}."): torch.from_numpy(v) for k, v in weights(shapes).items()}
        module.load_state_dict(made)
    return model.requires_grad_(False)


def _towers():
    import torch
    from PIL import Image
    from prismatic.models.backbones.vision.base_vision import unpack_tuple
    from prismatic.models.backbones.vision.dinosiglip_vit import DinoSigLIPViTBackbone
    from timm.models.vision_transformer import VisionTransformer

    def tower(kind, **options):
        width, depth, heads = (SIZES[f"{kind}_{size}"] for size in ("width", "depth", "heads"))
        vit = VisionTransformer(
            SIZES["image"], 14, num_classes=0, embed_dim=width, depth=depth, num_heads=heads, **options
        )
        vit.forward = unpack_tuple(lambda x: vit.get_intermediate_layers(x, n={depth - 2}))
        return vit

    class Towers(DinoSigLIPViTBackbone):
        """forward() is upstream's. What torchvision would do to a picture is done here, so that nothing is fetched."""

        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.dino_featurizer = tower("dino", init_values=1e-5, reg_tokens=4, no_embed_class=True)
            ratio = SIZES["siglip_ffn"] / SIZES["siglip_width"]
            self.siglip_featurizer = tower("siglip", mlp_ratio=ratio, class_token=False, global_pool="map")
            self.image_transform = self.prepare

        def prepare(self, picture):
            small = picture.resize((SIZES["image"], SIZES["image"]), Image.BICUBIC)
            unit = torch.from_numpy(np.asarray(small, dtype=np.float32) / 255)
            stats = {"dino": IMAGENET, "siglip": HALF}
            return {k: ((unit - torch.tensor(m)) / torch.tensor(s)).permute(2, 0, 1) for k, (m, s) in stats.items()}

    return Towers()


def _llama():
    import torch
    from prismatic.models.backbones.llm.llama2 import LLaMa2LLMBackbone
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizerFast

    class Words(LlamaTokenizerFast):
        """Ids by formula; upstream asks for this very class."""

        def __init__(self) -> None:
            pass

        def encode(self, text, **_):
            return words(text)

        def __call__(self, text, **_):
            return SimpleNamespace(input_ids=torch.tensor([words(text)]))

    class Llama(LLaMa2LLMBackbone):
        """forward() and prompt are upstream's."""

        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.identifier, self.tokenizer = "llama2-7b-pure", Words()
            config = LlamaConfig(
                hidden_size=SIZES["width"],
                intermediate_size=SIZES["ffn"],
                num_hidden_layers=SIZES["layers"],
                num_attention_heads=SIZES["heads"],
                vocab_size=SIZES["vocabulary"],
                rms_norm_eps=1e-5,
            )
            self.llm = LlamaForCausalLM(config)

    return Llama()
