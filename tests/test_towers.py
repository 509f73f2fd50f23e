"""The vision towers against transformers' DINOv2 with registers and SigLIP, through the key map of timm's names."""

import pytest
import torch
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel, SiglipVisionConfig, SiglipVisionModel

from vlaprune.nn.towers import FusedTower, Tower, TowerShape, dino, siglip, timm_unused, timm_weight_map
from vlaprune.nn.weights import randomise

DINO, SIGLIP = dino(64, 4, 4), siglip(48, 4, 4, 80)


def filled(module):
    randomise(module, 3, "cpu", torch.float32)
    with torch.no_grad():
        for p in module.parameters():  # norms and biases too, so that a forgotten one shows
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.1)
    return module.eval()


def split(prefix, name, tensor):
    return {f"{prefix}{n}.{name}": part for n, part in zip("qkv", tensor.chunk(3), strict=True)}


def library_dino(tower):
    """transformers' model with the tower's weights."""
    shape = tower.shape
    config = Dinov2WithRegistersConfig(
        hidden_size=shape.width,
        num_hidden_layers=shape.used,
        num_attention_heads=shape.heads,
        image_size=56,
        patch_size=14,
        num_register_tokens=4,
    )
    own, out = dict(tower.named_parameters()), {}
    out["embeddings.cls_token"], out["embeddings.register_tokens"] = own["prefix"][None, :1], own["prefix"][None, 1:]
    out["embeddings.position_embeddings"] = torch.cat((torch.zeros(1, shape.width), own["position"]))[None]
    out["embeddings.mask_token"] = torch.zeros(1, shape.width)
    for kind in ("weight", "bias"):
        out[f"embeddings.patch_embeddings.projection.{kind}"] = own[f"embed.{kind}"]
        out[f"layernorm.{kind}"] = torch.zeros(shape.width)
        for i in range(shape.used):
            a, b = f"encoder.layer.{i}.", f"blocks.{i}."
            for theirs, ours in (
                ("norm1", "norm_attention"),
                ("norm2", "norm_mlp"),
                ("attention.o_proj", "out"),
                ("mlp.fc1", "up"),
                ("mlp.fc2", "down"),
            ):
                out[f"{a}{theirs}.{kind}"] = own[f"{b}{ours}.{kind}"]
            for n, part in zip("qkv", own[f"{b}qkv.{kind}"].chunk(3), strict=True):
                out[f"{a}attention.{n}_proj.{kind}"] = part
            out[f"{a}layer_scale1.lambda1"], out[f"{a}layer_scale2.lambda1"] = (
                own[f"{b}scale_attention"],
                own[f"{b}scale_mlp"],
            )
    library = Dinov2WithRegistersModel(config).eval()
    library.load_state_dict(out)
    return library


def library_siglip(tower, act):
    shape = tower.shape
    config = SiglipVisionConfig(
        hidden_size=shape.width,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.used,
        num_attention_heads=shape.heads,
        image_size=56,
        patch_size=14,
        vision_use_head=False,
        hidden_act=act,
    )
    own, out = dict(tower.named_parameters()), {}
    out["embeddings.position_embedding.weight"] = own["position"]
    for kind in ("weight", "bias"):
        out[f"embeddings.patch_embedding.{kind}"] = own[f"embed.{kind}"]
        out[f"post_layernorm.{kind}"] = own.get(f"norm.{kind}", torch.zeros(shape.width))
        for i in range(shape.used):
            a, b = f"encoder.layers.{i}.", f"blocks.{i}."
            for theirs, ours in (
                ("layer_norm1", "norm_attention"),
                ("layer_norm2", "norm_mlp"),
                ("self_attn.out_proj", "out"),
                ("mlp.fc1", "up"),
                ("mlp.fc2", "down"),
            ):
                out[f"{a}{theirs}.{kind}"] = own[f"{b}{ours}.{kind}"]
            for n, part in zip("qkv", own[f"{b}qkv.{kind}"].chunk(3), strict=True):
                out[f"{a}self_attn.{n}_proj.{kind}"] = part
    library = SiglipVisionModel(config).eval()
    library.load_state_dict(out)
    return library


@torch.no_grad()
def test_dino_equals_the_library_at_its_second_to_last_block_without_the_prefix(parity):
    tower = filled(Tower(DINO, 56))
    pixels = torch.randn(2, 3, 56, 56)
    theirs = library_dino(tower)(pixels, output_hidden_states=True).hidden_states[-1][:, 5:]
    parity("DINOv2 tower", "second-to-last block of transformers' Dinov2WithRegisters", tower(pixels)[0], theirs, 1e-5)


@torch.no_grad()
def test_siglip_equals_the_library_before_its_final_norm(parity):
    tower = filled(Tower(SIGLIP, 56))
    pixels = torch.randn(2, 3, 56, 56)
    theirs = library_siglip(tower, "gelu")(pixels, output_hidden_states=True).hidden_states[-1]
    parity("SigLIP tower", "second-to-last block of transformers' Siglip", tower(pixels)[0], theirs, 1e-5)


@torch.no_grad()
def test_a_whole_siglip_with_tanh_and_final_norm_equals_the_library(parity):
    """As PaliGemma uses it."""
    tower = filled(Tower(TowerShape(48, 3, 3, 4, 80, tanh=True, normed=True), 56))
    pixels = torch.randn(2, 3, 56, 56)
    theirs = library_siglip(tower, "gelu_pytorch_tanh")(pixels).last_hidden_state
    parity("PaliGemma tower", "features of transformers' Siglip", tower(pixels)[0], theirs, 1e-5)


@torch.no_grad()
def test_the_fused_tower_puts_dino_first_and_normalises_each_its_own_way():
    tower = filled(FusedTower(DINO, SIGLIP, 56))
    images = torch.randint(0, 256, (2, 56, 56, 3), dtype=torch.uint8)
    unit = images.permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(s)[:, None, None] for s in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    out, _ = tower(images)
    assert out.shape == (2, 16, 112)
    assert torch.allclose(out[..., :64], tower.dino((unit - mean) / std)[0], atol=1e-5)
    assert torch.allclose(out[..., 64:], tower.siglip((unit - 0.5) / 0.5)[0], atol=1e-5)


@torch.no_grad()
def test_what_the_tower_tells_is_the_attention_of_the_cls_token():
    tower = filled(FusedTower(DINO, SIGLIP, 56))
    images = torch.randint(0, 256, (2, 56, 56, 3), dtype=torch.uint8)
    quiet, nothing = tower(images)
    features, told = tower(images, reads=True)
    assert nothing is None and torch.equal(features, quiet)
    library = library_dino(tower.dino)
    library.set_attn_implementation("eager")
    weights = library(tower.pixels(images, 0), output_attentions=True).attentions[-1]
    assert torch.allclose(told, weights[:, :, 0, 5:].mean(1), atol=1e-6) and told.shape == (2, 16)


@torch.no_grad()
def test_flops_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        tower = FusedTower(dino(), siglip())
    with FlopCounterMode(display=False) as counter:
        tower(torch.empty(1, 224, 224, 3, dtype=torch.uint8, device="meta"))
    assert tower.flops == pytest.approx(counter.get_total_flops(), rel=1e-6)
    assert tower.flops == pytest.approx(0.369e12, rel=2e-3)  # of the specification


def test_names_of_timm_cover_the_tower_and_nothing_twice():
    with torch.device("meta"):
        tower = FusedTower(DINO, SIGLIP, 56)
    pieces = timm_weight_map(DINO, "a.", "dino.") | timm_weight_map(SIGLIP, "b.", "siglip.")
    named = [p.name for p in pieces.values() if p.rows is None or p.rows[0] == 0]
    assert sorted(named) == sorted(name for name, _ in tower.named_parameters())
    assert timm_unused(DINO, "a.") == ("a.blocks.3.", "a.attn_pool.", "a.norm.")
    assert "a.blocks.0.ls1.gamma" in timm_weight_map(DINO, "a.", "dino.", gamma="gamma")


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"image=60 is no multiple of the 14 px patch; use e.g. 56"):
        Tower(DINO, 60)
    with pytest.raises(ValueError, match="cannot be built"):
        dino(65, 4, 4)
