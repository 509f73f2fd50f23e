"""pi0.5's expert against openpi's formula; texts, scaling, images, weights and costs of pi0 and pi0.5."""

import json
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from doubles import Reuser, calibrated, play
from hydra import compose, initialize_config_dir
from manifests import manifest
from safetensors.torch import save_file
from test_pi0 import CHUNK, OPTIONS, SIZES, TOKENS, look, noise_of, played, staged

from vlaprune import config
from vlaprune.benchmark import Observation
from vlaprune.errors import UserError
from vlaprune.methods.dense import Dense
from vlaprune.methods.fastv import FastV
from vlaprune.methods.vlapruner import VLAPruner
from vlaprune.models.family import Family
from vlaprune.models.letterbox import resize_pil, resize_torch
from vlaprune.models.paligemma import PaliGemma, Sizes, weight_map
from vlaprune.models.pi0 import Pi0, Pi05
from vlaprune.models.scaling import Scaling
from vlaprune.models.tokenizer import Words, stand_in
from vlaprune.nn.weights import fits
from vlaprune.policy import Policy
from vlaprune.testing import flop_counter

MODELS = {"pi0": Pi0, "pi05": Pi05}


@pytest.fixture(scope="module")
def models():
    return {name: make(**OPTIONS) for name, make in MODELS.items()}


def rms(x):
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()


def turned(x, positions):
    """RoPE on [n, H, hd], one pair of coordinates after the other."""
    half = x.shape[-1] // 2
    out = x.clone()
    for i in range(half):
        angle = positions / 10000 ** (i / half)
        a, b = x[..., i], x[..., i + half]
        out[..., i] = a * angle.cos()[:, None] - b * angle.sin()[:, None]
        out[..., i + half] = b * angle.cos()[:, None] + a * angle.sin()[:, None]
    return out


def layer(block, x, positions, adapt, seen=None):
    """One Gemma layer as openpi writes it: rows [n, d], which attend to `seen` and themselves, and their keys, values.

    adapt  (norm, rows) -> normed rows, gate
    """
    heads, size = SIZES["heads"], SIZES["head_size"]
    y, gate = adapt(block.norm_attention, x)
    q, k, v = (y @ block.qkv.weight.T).split((heads * size, size, size), -1)
    q, k = turned(q.unflatten(-1, (heads, size)), positions), turned(k[:, None], positions)[:, 0]
    keys, values = (k, v) if seen is None else (torch.cat((seen[0], k)), torch.cat((seen[1], v)))
    weights = torch.einsum("nhd,cd->hnc", q, keys).div(size**0.5).softmax(-1)
    attended = torch.einsum("hnc,cd->nhd", weights, values).flatten(1)
    x = x + gate * (attended @ block.out.weight.T)
    y, gate = adapt(block.norm_mlp, x)
    one, two = (y @ block.gate_up.weight.T).chunk(2, -1)
    return x + gate * ((F.gelu(one, approximate="tanh") * two) @ block.down.weight.T), (k, v)


def plain(norm, x):
    return rms(x) * (1 + norm.weight), 1.0


@torch.no_grad()
def reference(model, observation, noise):
    """pi0.5 by the formulas of openpi@15a9616 (pi0_pytorch.py, gemma_pytorch.py, transformers_replace), dense."""
    net, cameras = model.net, model.interface.cameras
    pixels = torch.stack([torch.from_numpy(observation.images[c]).float() / 127.5 - 1 for c in cameras])
    visual = net.projector(net.tower(pixels.permute(0, 3, 1, 2))[0]).flatten(0, 1)
    ids = model._text(observation.instruction, observation.state).ids
    text = net.embedding.weight[list(ids)] * math.sqrt(SIZES["width"])
    x, seen = torch.cat((visual, text)), []
    for block in net.decoder.blocks:
        x, cached = layer(block, x, torch.arange(len(x)).double().float(), plain)
        seen.append(cached)
    positions, width = torch.arange(len(x), len(x) + CHUNK).float(), SIZES["expert_width"]
    actions, time = noise, torch.tensor(1.0)
    dt = torch.tensor(-1.0 / model.steps)
    while time >= -dt / 2:
        fraction = torch.linspace(0, 1, width // 2, dtype=torch.float64)
        phase = time.double() * 2 * math.pi / (4e-3 * (4.0 / 4e-3) ** fraction)
        embedded = torch.cat((phase.sin(), phase.cos())).float()
        cond = F.silu(net.time_out(F.silu(net.time_in(embedded))))

        def adapt(norm, rows, cond=cond):
            scale, shift, gate = norm.dense(cond).chunk(3)
            return rms(rows) * (1 + scale) + shift, gate

        rows = net.action_in(actions)
        for block, own in zip(net.expert.blocks, seen, strict=True):
            rows, _ = layer(block, rows, positions, adapt, own)
        actions = actions + dt * net.action_out(adapt(net.expert.norm, rows)[0])
        time = time + dt
    return actions


@pytest.mark.parametrize("cameras", [("primary",), ("primary", "wrist")])
def test_adaptive_norms_equal_the_formula_of_openpi(cameras, parity):
    model = Pi05(**OPTIONS, cameras=cameras, seed=2)
    observation = look(cameras)
    actions, record, _ = played(model, observation)
    expected = reference(model, observation, noise_of(model))[:, :7]
    parity("pi05", f"dense, {len(cameras)} cameras: actions by plain loops over the formulas", actions, expected, 1e-5)
    assert record.decoded == 10 and (expected - noise_of(model)[:, :7]).abs().mean() > 0.1


def test_the_text_of_pi05_holds_the_state_in_256_levels(models, monkeypatch):
    said = []
    monkeypatch.setattr(
        models["pi05"], "words", Words(lambda text: said.append(text) or list(range(len(text.split()))))
    )
    state = np.array([-1.5, -1.0, -0.996, 0.0, 0.999, 1.0, 7.0, 0.5])
    text = models["pi05"]._text(" pick_up the\ncan ", state)
    assert said[0] == "Task: pick up the can, State: -1 0 0 128 255 255 255 192;\nAction: "
    assert text.told == range(2, 6) and len(text.ids) == 1 + 15


def test_what_methods_remember_outlives_a_state_that_changes_the_length_of_the_text(models):
    """vlapruner's history and vlacache's keys and values are of visual tokens, whose places do not change."""
    model, first = models["pi05"], look()
    lengths = []
    for make, kept in ((VLAPruner, 8), (Reuser, 16)):
        policy = Policy(model, make)
        for level in (-0.99, -0.9, 0.3, -0.99):
            policy.act({0: Observation(first.images, np.full(8, level), first.instruction)})
            lengths.append(policy.sessions[0].trace.layout.length)
        assert policy.drain(0)[-1].visual[-1] == kept
        other = Observation(first.images, first.state, "open the drawer")
        policy.act({0: other})
        assert policy.drain(0)[-1].visual[-1] == 32
    assert len(set(lengths)) > 1


def test_pi05_without_a_state_needs_none_and_reads_the_text_of_pi0(models):
    model = Pi05(**OPTIONS, state_as="none")
    assert model.interface.state is None and models["pi05"].interface.state
    text = model._text("go_there", None)
    assert text == models["pi0"]._text("go_there", None)
    assert text.ids == (2, *stand_in("go there", 300), *stand_in("\n", 300)) and text.told == range(1, 3)
    look_ = look()
    played(model, Observation(look_.images, None, look_.instruction))
    with pytest.raises(ValueError, match="has state None; pi0 reads 8 numbers"):
        played(models["pi0"], Observation(look_.images, None, look_.instruction))


def test_relative_actions_have_the_state_added_to_position_and_rotation():
    observation = look()
    plain_, relative = (played(Pi0(**OPTIONS, delta=delta), observation)[0].numpy() for delta in (False, True))
    assert np.allclose(relative - plain_, np.append(observation.state[:6], 0.0), atol=1e-6)


def test_a_prompt_that_upstream_would_cut_is_refused(models):
    with pytest.raises(ValueError, match="makes 52 tokens; pi0 reads 48"):
        played(models["pi0"], look(instruction="go " * 50))


@pytest.mark.parametrize("name", MODELS)
def test_every_input_reaches_the_actions(models, name):
    observation = look()
    base = played(models[name], observation)[0]
    black, white = (
        Observation({**observation.images, "wrist": np.full((56, 56, 3), n, np.uint8)}, observation.state, "go")
        for n in (0, 255)
    )
    assert (played(models[name], black)[0] - played(models[name], white)[0]).abs().max() > 1e-3
    other = Observation(observation.images, -observation.state, observation.instruction)
    assert (played(models[name], other)[0] - base).abs().max() > 1e-3
    other = Observation(observation.images, observation.state, "put the blue box away")
    assert (played(models[name], other)[0] - base).abs().max() > 1e-3


# -- costs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "make", [Dense, staged(), lambda: FastV(layer=2, keep=0.25), lambda: FastV(layer=1, keep=0.5, rows="text")]
)
def test_a_whole_call_counts_what_torch_counts(models, name, make):
    assert models[name].constants  # charged to no call
    with flop_counter() as flops:
        _, record, _ = played(models[name], look(), make)
    assert sum(record.flops.values()) == flops.get_total_flops()
    assert min(record.flops[s] for s in ("vision", "projector", "prompt", "decode", "head")) > 0


def test_every_stage_counts_what_torch_counts(models):
    model, (vision, head) = models["pi0"], (flop_counter(), flop_counter())
    with vision:
        model.net.tower(torch.rand(2, 3, 56, 56))
    with head:
        model.net.suffix(torch.rand(1, CHUNK, 32), torch.rand(32), torch.rand(1, 32))
        model.net.action_out(torch.rand(1, CHUNK, 32))
    _, record, _ = played(model, look())
    assert record.flops["vision"] == vision.get_total_flops()
    assert record.flops["projector"] == 2 * 2 * TOKENS * SIZES["vision_width"] * SIZES["width"]
    state = 2 * 32 * SIZES["expert_width"]
    assert record.flops["head"] == 10 * (head.get_total_flops() - state) + state


def test_reading_the_tower_is_charged_and_equals_attention_by_hand(models):
    from vlaprune.pruner import Plan

    class Reader(Dense):
        def plan(self, info):
            return Plan(vision_attention=True)

    with flop_counter() as flops:
        _, record, session = played(models["pi0"], look(), Reader)
    assert sum(record.flops.values()) == flops.get_total_flops()
    assert session.trace.vision_attention.shape == (2 * TOKENS,)
    assert session.trace.vision_attention[:TOKENS].sum().item() == pytest.approx(1, abs=1e-5)


# -- checkpoints ---------------------------------------------------------------------------------------------------


class Listed:
    """A checkpoint of which only names and shapes are known."""

    path = "pi"

    def __init__(self, tensors):
        self.shapes = {k.removeprefix("model."): s for k, s in tensors.items()}


@pytest.mark.parametrize(
    ("name", "count", "total"),
    [("pi0_transformers", 777, 3.5014e9), ("pi0_openpi", 777, 3.5014e9), ("pi05_openpi", 812, 3.6168e9)],
)
def test_every_tensor_of_a_published_checkpoint_has_its_place(name, count, total):
    tensors = manifest(name)
    if name == "pi05_openpi":  # as a newer transformers would save it
        tensors = {k.replace("vision_tower.vision_model.", "vision_tower."): s for k, s in tensors.items()}
    assert len(tensors) == count and sum(map(math.prod, tensors.values())) == pytest.approx(total, rel=2e-5)
    with torch.device("meta"):
        net = PaliGemma(Sizes(), name.startswith("pi05"))
    checkpoint = Listed(tensors)
    where, unused = weight_map(net, checkpoint.shapes)
    fits(net, checkpoint, where, unused)
    over = {k: s for k, s in checkpoint.shapes.items() if k not in where}
    assert len(over) == 1 and math.prod(*over.values()) == 257152 * 1024  # the expert's word table: it reads no words
    assert sum(p.numel() for p in net.parameters()) == sum(map(math.prod, tensors.values())) - 257152 * 1024


LOADED = {k: v for k, v in OPTIONS.items() if k != "chunk"}
STATS = {"mean": 0.5, "std": 2.0, "q01": -1.0, "q99": 3.0}


def norms(state=8, action=7):
    """norm_stats of openpi: number i of a group has the statistics of STATS plus i."""
    return {
        n: {k: [v + i for i in range(s)] for k, v in STATS.items()} for n, s in (("state", state), ("actions", action))
    }


OPENPI = {  # as examples/convert_jax_model_to_pytorch.py writes it
    "action_dim": 32,
    "action_horizon": 10,
    "paligemma_variant": "gemma_2b",
    "action_expert_variant": "gemma_300m",
    "precision": "bfloat16",
}
LEROBOT = {  # of lerobot v0.4.4's config.json, what is looked at
    "type": "pi05",
    "n_obs_steps": 1,
    "chunk_size": CHUNK,
    "max_state_dim": 32,
    "max_action_dim": 32,
    "num_inference_steps": 10,
    "image_resolution": [56, 56],
    "tokenizer_max_length": 200,
    "paligemma_variant": "gemma_2b",
    "action_expert_variant": "gemma_300m",
    "min_period": 0.004,
    "max_period": 4.0,
}
V044 = {"use_peft": False, "rtc_config": None}
V051 = {**V044, "use_relative_actions": False, "relative_exclude_joints": ["gripper"], "action_feature_names": None}


def saved(folder, model, lerobot=False, **config):
    """A checkpoint of a small model in the names of openpi and lerobot, with statistics and a tokenizer."""
    said = {**(LEROBOT | {"type": model.name} if lerobot else OPENPI), **config}
    (folder / "config.json").write_text(json.dumps(said))
    where, _ = weight_map(model.net, {})
    own, state = dict(model.net.named_parameters()), {}
    for key, piece in where.items():
        rows = slice(None) if piece.rows is None else slice(*piece.rows)
        state[f"model.{key}"] = own[piece.name][rows].clone()
    state["model.paligemma_with_expert.gemma_expert.lm_head.weight"] = torch.zeros(3, 3)
    save_file(state, folder / "model.safetensors")
    tokenizer(folder)
    if not lerobot:
        file = folder / "assets" / "physical-intelligence" / "libero" / "norm_stats.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"norm_stats": norms()}))
        return
    processor(folder, norms())


def processor(folder, said, state="QUANTILES"):
    """Statistics as lerobot keeps them."""
    names = {"state": "observation.state", "actions": "action"}
    flat = {f"{names[n]}.{k}": torch.tensor(v) for n, own in said.items() for k, v in own.items()}
    save_file(flat, folder / "step_2.safetensors")
    step = {"registry_name": "normalizer_processor", "state_file": "step_2.safetensors"}
    step["config"] = {"norm_map": {"VISUAL": "IDENTITY", "STATE": state, "ACTION": "MEAN_STD"}}
    (folder / "policy_preprocessor.json").write_text(json.dumps({"steps": [{"registry_name": "to_batch"}, step]}))


@pytest.mark.parametrize("kind", [Pi0, Pi05])
def test_weights_beside_a_checkpoint_that_nobody_reads_are_refused_by_name(tmp_path, kind):
    """A LoRA adapter beside the base weights would silently be left out."""
    saved(tmp_path, kind(**OPTIONS), lerobot=True)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors, which pi0\w* does not read; it is a LoRA"):
        kind(str(tmp_path), device="meta")


@pytest.mark.parametrize("kind", [Pi0, Pi05])
def test_a_folder_of_jax_weights_is_named_with_its_converter(tmp_path, kind):
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "_METADATA").write_text("{}")
    with pytest.raises(ValueError, match=r"openpi's JAX weights .*convert_jax_model_to_pytorch"):
        kind(str(tmp_path), device="meta")


def tokenizer(folder, begin=2):
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import models as kinds

    words = ["<pad>", "<eos>", "<bos>", "\n", *"abcdefgh"] if begin == 2 else ["<bos>", "\n"]
    it = Tokenizer(kinds.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    it.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    it.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize(("kind", "chunk"), [("pi0", 50), ("pi05", 10)])
def test_a_folder_converted_by_openpi_says_how_it_is_read(tmp_path, models, kind, chunk):
    """It loaded with lerobot's defaults: 50 actions instead of 10, a state in words, no deltas."""
    saved(tmp_path, models[kind], action_horizon=chunk)
    model = MODELS[kind](**{**LOADED, "weights": str(tmp_path), "tokenizer": str(tmp_path)})
    assert (model.chunk, model.steps, model.resize) == (chunk, 10, "pil")
    assert model.delta == (kind == "pi0") and model.state_as == {"pi0": "row", "pi05": "none"}[kind]
    assert (model.interface.state is None) == (kind == "pi05")
    observation = look()
    said = model._text("a b", model._state(observation)).ids
    assert said == (2, 4, 5, 3)  # begin, two words, line break
    (actions,) = Policy(model, Dense).act({0: observation}).values()
    assert actions.shape == (chunk, 7) and model.card["family"] == "openpi"
    with (
        pytest.raises(ValueError, match=rf"model.chunk=50, but .*\(openpi\) says {chunk}; leave it out")
        if (chunk != 50)
        else nullcontext()
    ):
        MODELS[kind](**{**LOADED, "weights": str(tmp_path), "tokenizer": str(tmp_path), "chunk": 50})


def test_openpis_other_pi05_asks_whether_the_text_holds_the_state(tmp_path, models):
    saved(tmp_path, models["pi05"], action_horizon=16)
    options = {**LOADED, "weights": str(tmp_path), "tokenizer": str(tmp_path)}
    with pytest.raises(ValueError, match=r"does not say whether the text holds the state: set model.state_as=none for"):
        Pi05(**options)
    assert Pi05(**options, state_as="text").reads_state


@pytest.mark.parametrize(
    ("config", "state"), [({}, "padded"), (V044, None), (V051, "text")], ids=["v0.4.0", "v0.4.4 to v0.5.0", "v0.5.1"]
)
def test_lerobots_versions_are_told_apart_by_their_keys(tmp_path, models, config, state):
    saved(tmp_path, models["pi05"], lerobot=True, **config)
    options = {**LOADED, "weights": str(tmp_path), "tokenizer": str(tmp_path)}
    if state is None:
        with pytest.raises(ValueError, match=r"does not say whether .* set model.state_as=padded for .*v0\.4\.4"):
            Pi05(**options)
    for given in (None, "padded", "text"):
        if state is not None and given not in (None, state):
            with pytest.raises(ValueError, match=f"state_as={given}, but .* says {state}; leave it out"):
                Pi05(**options, state_as=given)
        elif given or state:
            model = Pi05(**options, state_as=given)
            assert model.state_as == (given or state)
            assert (model.chunk, model.resize, model.delta) == (CHUNK, "torch", False)
    with pytest.raises(ValueError, match=r"state_as=none, but weights .*\(lerobot\) read it as text or padded"):
        Pi05(**options, state_as="none")


def test_the_published_fine_tune_is_known_by_its_name(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LEROBOT | V044))
    for name, said in (("lerobot/pi05_libero_finetuned@main", "padded"), ("me/pi05_libero_finetuned", None)):
        assert Family.of(tmp_path, name, True).state_as == said


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"type": "pi0"}, "is of a pi0; model=pi05 reads pi05's"),
        ({"type": "smolvla"}, "is of a smolvla; model=pi05"),
        ({"use_visual_memory": True}, "has use_visual_memory=True instead of False, which is not computed here"),
        ({"max_state_dim": 24}, "has max_state_dim=24 instead of 32"),
        ({"use_peft": True}, r"has use_peft=True instead of False, .*merge adapters \(LoRA\) first"),
        ({"use_relative_actions": True}, "has use_relative_actions: .* model.delta=true if they are the first six"),
        ({"image_resolution": [224, 224]}, "reads pictures of 224 pixels, not 56"),
    ],
)
def test_what_a_checkpoint_needs_and_is_not_here_is_refused(tmp_path, models, config, said):
    saved(tmp_path, models["pi05"], lerobot=True, **config)
    with pytest.raises(ValueError, match=said):
        Pi05(**{**LOADED, "weights": str(tmp_path), "tokenizer": str(tmp_path)})


def test_a_folder_without_config_asks_for_it(tmp_path, models):
    saved(tmp_path, models["pi05"])
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has no config\.json, which says whether openpi or lerobot trained it"):
        Pi05(**{**LOADED, "weights": str(tmp_path), "tokenizer": str(tmp_path)})


# Made by hand from lerobot's processor_pi05.py: tags v0.4.0 and v0.4.4 pad the scaled state, v0.5.0 does not.
BY_HAND = {
    "padded": "Task: pick up the can, State: -1 0 0 128 255 255 255 192 "
    "128 128 128 128 128 128 128 128 128 128 128 128 "
    "128 128 128 128 128 128 128 128 128 128 128 128;\nAction: ",
    "text": "Task: pick up the can, State: -1 0 0 128 255 255 255 192;\nAction: ",
}


@pytest.mark.parametrize("state_as", BY_HAND)
def test_both_prompts_of_lerobots_pi05_equal_strings_made_by_hand(state_as, monkeypatch):
    model, said = Pi05(**OPTIONS, state_as=state_as), []
    monkeypatch.setattr(model, "words", Words(lambda text: said.append(text) or list(range(len(text.split())))))
    state = np.array([-1.5, -1.0, -0.996, 0.0, 0.999, 1.0, 7.0, 0.5])
    text = model._text(" pick_up the\ncan ", state)
    assert said[0] == BY_HAND[state_as] and text.told == range(2, 6)


def test_statistics_padded_to_32_numbers_are_read_as_openpi_reads_them(tmp_path):
    """openpi reads the first ones; only zeros and ones may stand behind them."""
    x = np.random.default_rng(0).normal(size=(5, 8))
    plain_, long = norms(8, 7), norms(8, 7)
    for group in long.values():
        for name, numbers in group.items():
            group[name] = numbers + [float(name in ("std", "q99"))] * (32 - len(numbers))
    found = []
    for said in (plain_, long):
        (tmp_path / "norm_stats.json").write_text(json.dumps({"norm_stats": said}))
        found += [Scaling.of(tmp_path, quantiles, 8, 7) for quantiles in (False, True)]
    for a, b in zip(found[:2], found[2:], strict=True):
        assert np.array_equal(a.state.scale(x), b.state.scale(x))
        assert np.array_equal(a.action.restore(x), b.action.restore(x))
    long["state"]["mean"][20] = 0.25
    (tmp_path / "norm_stats.json").write_text(json.dumps({"norm_stats": long}))
    with pytest.raises(ValueError, match=r"state.mean is .* the model needs 8 finite numbers"):
        Scaling.of(tmp_path, False, 8, 7)


@pytest.mark.parametrize("lerobot", [False, True])
def test_a_checkpoint_loads_into_the_same_numbers(tmp_path, models, lerobot):
    saved(tmp_path, models["pi05"], lerobot=lerobot)
    options = {**LOADED, "weights": str(tmp_path), "tokenizer": str(tmp_path)}
    model = Pi05(**options)
    for (name, a), b in zip(model.net.named_parameters(), models["pi05"].net.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert model.card["sha256"] and model._text("a b", None).ids == (2, 4, 5, 3)
    raw, out = np.arange(8.0), np.zeros((model.chunk, 32))
    i = np.arange(8)
    assert np.allclose(model.scaling.state.scale(raw), (raw - (i - 1)) / 4 * 2 - 1, atol=1e-5)
    centre = 0.5 + np.arange(7) if lerobot else 1.0 + np.arange(7)
    assert np.allclose(model.restore(out, raw), centre, atol=1e-5)
    assert Pi05(**{**options, "device": "meta"}).card["sha256"] == model.card["sha256"]  # as the doctor looks at it
    half = Pi05(**{**options, "dtype": "bfloat16"}).net
    assert half.decoder.blocks[0].qkv.weight.dtype == torch.bfloat16
    for precise in (half.action_in, half.time_out, half.expert.norm.dense, half.decoder.norm):
        assert precise.weight.dtype == torch.float32
    assert torch.equal(half.action_in.weight, models["pi05"].net.action_in.weight)


def test_half_precision_stays_near(models):
    observation = look()
    for name, make in MODELS.items():
        half = make(**{**OPTIONS, "dtype": "bfloat16"})
        with torch.no_grad():
            for a, b in zip(half.net.parameters(), models[name].net.parameters(), strict=True):
                a.copy_(b)
        exact = played(models[name], observation)[0]
        assert (played(half, observation)[0] - exact).abs().mean() < 0.1 * exact.abs().mean()


@pytest.mark.parametrize(("lerobot", "inward", "outward"), [(False, 1e-6, 1e-6), (True, 1e-8, 0.0)])
def test_a_number_that_never_varied_is_divided_by_the_guard_of_its_authors(tmp_path, lerobot, inward, outward):
    """openpi adds it both ways; lerobot adds it where it divides, and gives the mean back."""
    said = norms(8, 7)
    for group in said.values():
        group["std"][2] = 0.0

    def read():
        if lerobot:
            processor(tmp_path, said, "MEAN_STD")
        else:
            (tmp_path / "norm_stats.json").write_text(json.dumps({"norm_stats": said}))
        return Scaling.of(tmp_path, False, 8, 7)

    scaling = read()
    x, mean = np.arange(8.0), 2.5
    for scale, size in ((scaling.state, 8), (scaling.action, 7)):
        assert scale.scale(x[:size])[2] == pytest.approx((2.0 - mean) / inward, rel=1e-6)
        assert scale.restore(np.full(size, 3.0))[2] == pytest.approx(3.0 * outward + mean, rel=1e-12)
        assert scale.scale(x[:size])[0] == pytest.approx((0 - 0.5) / 2.0, rel=1e-6)
    said["state"]["std"][2] = float("nan")
    with pytest.raises(UserError, match=r"state.std is .*nan.* the model needs 8 finite numbers") as caught:
        read()
    assert "\n" not in str(caught.value)


def test_scaling_is_undone_by_its_inverse_and_says_what_is_wrong(tmp_path):
    x = np.random.default_rng(0).normal(size=(5, 8))
    for quantiles in (False, True):
        (tmp_path / "norm_stats.json").write_text(json.dumps({"norm_stats": norms(8, 8)}))
        scale = Scaling.of(tmp_path, quantiles, 8, 8).state
        assert np.allclose(scale.restore(scale.scale(x)), x)
    expected = (x - 0.5 - np.arange(8)) / (2 + np.arange(8))
    assert np.allclose(Scaling.of(tmp_path, False, 8, 8).state.scale(x), expected, atol=1e-5)
    for broken, message in (
        ({}, "has no norm_stats of `state` and `actions`; it has None"),
        ({"norm_stats": norms(8, 6)}, "action.mean is .* the model needs 8 finite numbers"),
        ({"norm_stats": {"state": {"mean": [0.0] * 8}, "actions": {}}}, "state lacks std; it has"),
    ):
        (tmp_path / "norm_stats.json").write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=message):
            Scaling.of(tmp_path, False, 8, 8)
    (tmp_path / "norm_stats.json").unlink()
    with pytest.raises(ValueError, match=r"has no statistics .* such as pi05_base have none: fine-tune them first, or"):
        Scaling.of(tmp_path, False, 8, 8)


def test_a_checkpoint_of_the_other_model_and_a_foreign_tokenizer_are_named(tmp_path, models):
    saved(tmp_path, models["pi05"])
    options = {**LOADED, "weights": str(tmp_path), "tokenizer": str(tmp_path)}
    with pytest.raises(ValueError, match=r"does not fit PaliGemma; it lacks .*has besides"):
        Pi0(**options)
    tokenizer(tmp_path, begin=0)
    with pytest.raises(ValueError, match="is not PaliGemma's: <bos> is 0 instead of 2"):
        Pi05(**options)
    for wrong, message in (
        ({"cameras": ()}, "reads one to three"),
        ({"resize": "cubic"}, "resize=cubic; use one of torch, pil"),
        ({"sizes": {"depth": 3}}, r"sizes \['depth'\] are not known"),
        ({"steps": 0}, "use at least 1"),
        ({"dtype": "int8"}, "dtype=int8; use one of"),
    ):
        with pytest.raises(ValueError, match=message):
            Pi0(**{**OPTIONS, **wrong})


# -- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resize", [resize_pil, resize_torch])
def test_letterbox_keeps_proportions_and_pads_with_black(resize):
    image = np.full((256, 128, 3), 200, np.uint8)
    out = resize(image, 224)
    assert out.shape == (224, 224, 3) and np.allclose(out[:, 56:168], 200)
    assert not out[:, :56].any() and not out[:, 168:].any()
    same = np.random.default_rng(0).integers(0, 255, (224, 224, 3), dtype=np.uint8)
    assert np.array_equal(resize(same, 224), same)
    odd = resize(np.full((224, 101, 3), 9, np.uint8), 224)
    assert not odd[:, :61].any() and (odd[:, 61:162] == 9).all() and not odd[:, 162:].any()


def test_the_two_filters_are_pils_and_torchs():
    from PIL import Image

    image = np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)
    assert np.array_equal(resize_pil(image, 224), np.asarray(Image.fromarray(image).resize((224, 224), Image.BILINEAR)))
    plain_ = F.interpolate(torch.from_numpy(image).permute(2, 0, 1)[None] / 255, (224, 224), mode="bilinear")
    assert np.allclose(resize_torch(image, 224) / 255, plain_[0].permute(1, 2, 0), atol=1e-6)
    assert np.abs(resize_pil(image, 224) - resize_torch(image, 224)).max() > 8


# -- the harness -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dense", "ties", "infoentropy", "vlapruner", "safe", "lightvla", "vlacache"])
@pytest.mark.parametrize("name", ["pi0_tiny", "pi05_tiny"])
def test_methods_run_on_the_toy_world(tmp_path, name, method):
    config.prepare()
    with initialize_config_dir(config.config_path(), version_base="1.3"):
        given = [f"model={name}", f"method={method}", "bench=toy", "model.device=cpu"]
        given += ["method.within_camera=true"] if method == "safe" else []  # both cameras show the same picture
        cfg = compose("eval", given)
    model, make, bench = config.build(cfg)
    make = calibrated(make, model.info, 32)
    run = play(tmp_path, bench, make, episodes=1, execute=2, model=model)
    calls = [call for episode in run.episodes.values() for call in episode.calls]
    assert len(calls) >= 6 and all(call.total == 32 and call.decoded == 4 for call in calls)
    assert (method == "dense") == all(call.visual[-1] == 32 for call in calls)
