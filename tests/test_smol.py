"""Smol: a pretrained language model out of a GGUF file, what is trained on it, its prompt, its charges, bad input."""

import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_meter import counted

from vlaprune.benchmark import Observation
from vlaprune.doctor.checks import models as doctor
from vlaprune.methods.dense import Dense
from vlaprune.methods.divprune import DivPrune
from vlaprune.methods.fastv import FastV
from vlaprune.methods.random import Random
from vlaprune.models import smollm
from vlaprune.models.smol import Smol
from vlaprune.models.tiny import Tiny
from vlaprune.nn.decoder import Decoder, NullHooks, Tokens
from vlaprune.nn.gguf import GGUF
from vlaprune.nn.load import save
from vlaprune.policy import Policy
from vlaprune.training.trainer import Frames, Recipe, Trainer

gguf = pytest.importorskip("gguf")
SIZES = {"width": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocabulary": 300}
VIEW = {"cameras": ("a", "b"), "vision_width": 64, "image": 64}
SMALL = {"backbone": "random", "layers": 4, **VIEW, "chunk": 5, "text": 8, "rank": 2, "sizes": SIZES, "device": "cpu"}
INSTRUCTIONS = (
    "pick up the alphabet soup and place it in the basket",
    "pick up the black bowl between the plate and the ramekin and place it on the plate",
    "open the middle drawer of the cabinet",
    "turn on the stove and put the moka pot on it",
    "put the white mug on the left plate and put the yellow and white mug on the right plate",
    "push the plate to the front of the stove",
    "lift the red cube",
    "stack 2 cubes, then 13 more",
    "Don't drop the milk!",
    "slide the ketchup 20 cm to the left",
)


def look(instruction="lift the cube", shade=0):
    rng = np.random.default_rng(shade)
    images = {c: rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for c in "ab"}
    return Observation(images, np.full(8, 0.1 * shade), instruction)


def frames(model, count=12):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (count, 2, 64, 64, 3), dtype=np.uint8)
    words = np.array([model.words("lift the cube"), model.words("stack the red cube")])[np.arange(count) % 2]
    state, labels = rng.normal(size=(count, 8)), rng.normal(size=(count, model.chunk, 7))
    hints = np.full((count, 4), np.nan)
    return Frames(
        images,
        *(a.astype(t) for a, t in ((state, "f4"), (words, "i8"), (labels, "f4"), (hints, "f4"))),
        np.arange(count) % 2,
    )


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """A policy after some steps of training, and the file that vlaprune-train would write of it."""
    torch.manual_seed(0)
    folder, model = tmp_path_factory.mktemp("smol"), Smol("random", **SMALL)
    Trainer(
        model, frames(model), Recipe(steps=12, batch=6, lr=3e-3, ema_decay=0.0, bf16=False, save_every=12), folder
    ).run()
    save(folder / "smol.safetensors", model, {"model": "smol", "from": model.card})
    return model, folder / "smol.safetensors"


@pytest.fixture(scope="module")
def model(learnt):
    return Smol(str(learnt[1]), **SMALL)


# what is trained


def test_the_backbone_is_frozen_and_all_else_is_trained(learnt):
    """Adapters and new parts have moved; the language model is what it was; the file holds none of it."""
    model, path = learnt
    torch.manual_seed(0)
    fresh = dict(Smol("random", **SMALL).named_parameters())
    for name, p in model.named_parameters():
        frozen = name.startswith("trunk.") and not re.search(r"\.(a|b\.\d)$", name)
        assert p.requires_grad != frozen, name
        assert torch.equal(p, fresh[name]) == frozen or name.startswith("locate."), name  # no hints, no change
    assert all(re.search(r"\.(a|b\.\d)$", name) for name in names(path) if name.startswith("trunk."))


def names(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return list(file.keys())


def test_merged_adapters_answer_what_adapters_beside_the_backbone_answer(learnt, model):
    apart = Smol(str(learnt[1]), merged=False, **SMALL)
    assert torch.equal(apart.trunk.decoder.blocks[1].qkv.a, learnt[0].trunk.decoder.blocks[1].qkv.a)
    one, two = (Policy(m, Dense).act({0: look()})[0] for m in (apart, model))
    fresh = Policy(Smol("random", **SMALL), Dense).act({0: look()})[0]
    assert np.abs(one - two).max() < 1e-5 < np.abs(one - fresh).max()


def test_merged_adapters_are_not_trained_on(model):
    with pytest.raises(ValueError, match=r"train on with model.merged=false"):
        model.train_loss(*frames(model).batch(np.random.default_rng(0), 2, 0))


def test_a_policy_trained_further_keeps_the_adapters_it_has(tmp_path):
    """Whatever rank and alpha the one who loads it would give to new ones."""
    new = Smol("random", **{**SMALL, "rank": 3, "alpha": 32.0})
    with torch.no_grad():
        for name, parameter in new.named_parameters():
            if ".b." in name:
                parameter.normal_()
    save(tmp_path / "a.safetensors", new, {"model": "smol", "from": new.card})
    further = Smol(str(tmp_path / "a.safetensors"), **SMALL, merged=False)
    save(tmp_path / "b.safetensors", further, {"model": "smol", "from": further.card})
    one, two = (Smol(str(tmp_path / f"{name}.safetensors"), **SMALL) for name in "ab")
    chunks = [Policy(m, Dense).act({0: look()})[0] for m in (one, two)]
    assert np.array_equal(*chunks) and further.card["lora"] == {"rank": 3, "alpha": 32.0}
    assert one.info.weights == one.card["sha256"] != "none"


def test_a_new_policy_begins_with_the_tower_of_a_trained_one(tmp_path):
    tiny = Tiny("random", ("a", "b"), width=32, layers=1, heads=2, vision_width=64, image=64, chunk=5, device="cpu")
    save(tmp_path / "tiny.safetensors", tiny, {})
    model = Smol("random", tower=str(tmp_path / "tiny.safetensors"), **SMALL)
    assert all(torch.equal(v, model.vision.state_dict()[k]) for k, v in tiny.vision.state_dict().items())
    assert torch.equal(model.camera, tiny.camera) and model.card["tower"]["weights"] == "tiny.safetensors"
    with pytest.raises(ValueError, match=r"tiny.safetensors do not fit VisionState: has wrong shapes"):
        Smol("random", tower=str(tmp_path / "tiny.safetensors"), **SMALL | {"vision_width": 96})


# the prompt and its charges


def test_the_prompt_is_begin_visual_state_text_padding_slots_stop(model):
    layout = model.layout(3)
    assert layout.visual == range(1, 33) and [v.camera for v in layout.views] == ["a", "b"]
    assert layout.text == range(34, 37) and layout.action == range(42, 47)
    assert layout.last == 47 and layout.length == 48
    words = torch.tensor([model.words("lift the cube")])
    rows = model.embed(torch.zeros(1, 32, 32), torch.zeros(1, 8), words)[0].hidden
    table = model.trunk.embedding.weight
    assert torch.equal(rows[0], table[1]) and torch.equal(rows[-1], table[2])
    assert torch.equal(rows[34:37], table[words[0, :3]]) and torch.equal(rows[37:42], table[[0] * 5])
    assert torch.equal(rows[42:47], model.slot)


def test_a_larger_picture_is_averaged_to_the_policys_size():
    """Every pixel fourfold is the same picture; a mean of four differs from each of them; other sizes are refused."""
    policy, rng = Tiny(weights="random"), np.random.default_rng(0)

    def act(pictures):
        seen = dict(zip(policy.interface.cameras, pictures, strict=True))
        return Policy(policy, Dense).act({0: replace(look(), images=seen)})[0]

    small = rng.integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    np.testing.assert_array_equal(act(small.repeat(2, 1).repeat(2, 2)), act(small))
    fine = rng.integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    mean = fine.reshape(2, 128, 2, 128, 2, 3).astype(float).mean((2, 4)).round().astype(np.uint8)
    np.testing.assert_array_equal(act(fine), act(mean))
    for wrong in ((128, 256), (192, 192), (0, 0)):
        with pytest.raises(ValueError, match="tiny reads 128 px uint8 or a multiple, set"):
            act(np.zeros((2, *wrong, 3), np.uint8))


@pytest.mark.parametrize(
    "make", [Dense, lambda: Random(layer=0, keep=0.25), lambda: Random(layer=2, keep=0.5), lambda: FastV(layer=2)]
)
def test_a_whole_call_counts_what_torch_counts(model, make):
    total, (record,) = counted(Policy(model, make), {0: look()})
    assert sum(record.flops.values()) == total


@pytest.mark.parametrize("make", [Dense, lambda: FastV(layer=2, keep=0.25), lambda: DivPrune(keep=0.5)])
def test_packed_calls_answer_what_single_ones_answer(model, make):
    looks = {0: look(), 1: look("stack the red cube", 1), 2: look("lift the can", 2)}
    together = Policy(model, make, slots=3).act(looks)
    for slot, frame in looks.items():
        alone = Policy(model, make).act({0: frame})[0]
        assert np.allclose(alone, together[slot], atol=1e-5)


def test_keeping_everything_is_dense_to_the_last_bit(model):
    dense, kept = (Policy(model, make).act({0: look()})[0] for make in (Dense, lambda: FastV(layer=2, keep=1.0)))
    assert np.array_equal(dense, kept)


# the GGUF file


def written(path, dtype=None, **changes):
    """A Llama of random numbers as GGUF, its query and key rows in GGUF's order by transformers' own converter."""
    said = {"arch": "llama", "layers": 2, "pre": "smollm", "tokens": 32, **changes}
    writer, rng = gguf.GGUFWriter(str(path), said["arch"]), np.random.default_rng(0)
    writer.add_block_count(said["layers"])
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(1e4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_name("small")
    writer.add_vocab_size(32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(said["pre"])
    writer.add_token_list([*smollm.SPECIAL, "ab", *(chr(97 + i) for i in range(said["tokens"] - 4))])
    writer.add_token_merges(["a b"])
    shapes = {"token_embd": (32, 64), "output_norm": (64,)}
    for i in range(said["layers"]):
        block = {"attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64), "attn_output": (64, 64)}
        block |= {"ffn_gate": (96, 64), "ffn_up": (96, 64), "ffn_down": (64, 96), "attn_norm": (64,), "ffn_norm": (64,)}
        shapes |= {f"blk.{i}.{name}": shape for name, shape in block.items()}
    for name, shape in shapes.items():
        values = rng.normal(size=shape, scale=0.2).astype(np.float32)
        if dtype is None or len(shape) < 2:
            writer.add_tensor(f"{name}.weight", values)
        else:
            writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, dtype), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def theirs(path):
    """Transformers' Llama out of the same file."""
    from transformers import AutoConfig, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    llama = LlamaForCausalLM(config).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=llama)["tensors"]
    llama.load_state_dict(state, strict=False)
    llama.tie_weights()
    return llama


def ours(path, layers):
    """Embeddings and causal decoder."""
    trunk, *_ = smollm.pretrained(path, layers, torch.device("cpu"))
    decoder = Decoder(replace(trunk.decoder.config, causal=True))
    decoder.load_state_dict(trunk.decoder.state_dict())
    return trunk.embedding.weight, decoder


@torch.no_grad()
@pytest.mark.parametrize("kind", ["F32", "F16", "Q4_1", "Q8_0"])
def test_a_small_llama_computes_what_transformers_computes_from_the_same_file(tmp_path, kind):
    path = written(tmp_path / "small.gguf", None if kind == "F32" else gguf.GGMLQuantizationType[kind])
    table, decoder = ours(path, 2)
    ids = torch.arange(3, 20)
    hidden = decoder([Tokens(table[ids], torch.arange(len(ids)))], [NullHooks()])[0]
    expected = theirs(path).model(ids[None]).last_hidden_state[0]
    assert torch.allclose(hidden, expected, atol=1e-5) and hidden.abs().max() > 0.1


def test_fewer_layers_are_the_first_ones(tmp_path):
    path = written(tmp_path / "small.gguf")
    one, two = (smollm.pretrained(path, n, torch.device("cpu"))[0].decoder for n in (1, 2))
    assert len(one.blocks) == 1 and torch.equal(one.blocks[0].qkv.weight, two.blocks[0].qkv.weight)


@pytest.mark.parametrize(
    ("layers", "changes", "said"),
    [
        (3, {}, r"layers=3, but small.gguf has 2; use 1..2"),
        (0, {}, r"layers=0, but small.gguf has 2; use 1..2"),
        (2, {"arch": "gpt2"}, r"small.gguf holds a gpt2; a llama is needed"),
        (2, {"pre": "llama-bpe"}, r"no tokenizer of SmolLM2: gpt2/llama-bpe instead of gpt2/smollm"),
        (2, {"tokens": 30}, r"no tokenizer of SmolLM2: .* 30 tokens for 32 embeddings"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(tmp_path, layers, changes, said):
    path = written(tmp_path / "small.gguf", **changes)
    with pytest.raises(ValueError, match=said) as error:
        Smol("random", str(path), layers, **VIEW, device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", [lambda raw: b"", lambda raw: raw[: len(raw) // 2], lambda raw: b"GGUF no more"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, damage):
    path = written(tmp_path / "small.gguf")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"small.gguf cannot be read .*; it is damaged or no GGUF file") as error:
        Smol("random", str(path), 2, **VIEW, device="cpu")
    assert "\n" not in str(error.value)


def test_a_quantisation_that_cannot_be_undone_is_refused_in_one_line(tmp_path, monkeypatch):
    path = written(tmp_path / "small.gguf")
    monkeypatch.setattr("gguf.quants.dequantize", lambda *_: (_ for _ in ()).throw(NotImplementedError))
    with pytest.raises(ValueError, match=r"quantised as F32, which the package gguf cannot undo; use a file in Q4_1"):
        Smol("random", str(path), 2, **VIEW, device="cpu")


def test_what_was_trained_on_one_quantisation_is_refused_on_another(tmp_path):
    kinds = [written(tmp_path / f"{k}.gguf", gguf.GGMLQuantizationType[k]) for k in ("Q4_1", "Q8_0")]
    model = Smol("random", str(kinds[0]), 2, **VIEW, device="cpu")
    save(tmp_path / "it.safetensors", model, {"model": "smol", "from": model.card})
    Smol(str(tmp_path / "it.safetensors"), str(kinds[0]), 2, **VIEW, device="cpu")
    with pytest.raises(ValueError, match=r"trained with backbone .*Q4_1.gguf.*, now it is .*Q8_0.gguf") as error:
        Smol(str(tmp_path / "it.safetensors"), str(kinds[1]), 2, **VIEW, device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text": 9}, r"trained with text 8, now it is 9"),
        ({"layers": 3}, r"do not fit Smol: has foreign \['trunk.decoder.blocks.3"),
        ({"chunk": 6}, r"do not fit Smol: has wrong shapes \['slot \(5, 32\) instead of \(6, 32\)"),
    ],
)
def test_weights_of_another_shape_are_refused_in_one_line(learnt, changes, said):
    with pytest.raises(ValueError, match=said) as error:
        Smol(str(learnt[1]), **SMALL | changes)
    assert "\n" not in str(error.value)


def test_weights_of_another_model_are_refused_in_one_line(tmp_path):
    save(tmp_path / "tiny.safetensors", torch.nn.Linear(1, 1), {"model": "tiny"})
    with pytest.raises(ValueError, match=r"tiny.safetensors are no smol's; they are a tiny's"):
        Smol(str(tmp_path / "tiny.safetensors"), **SMALL)


def test_without_the_wheel_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(smollm, "WHEEL", "no-such-package")
    with pytest.raises(ValueError, match=r"not installed; pip install --no-deps no-such-package==0.1.2"):
        Smol("random", device="cpu")


def test_the_doctor_says_that_the_wheel_is_missing_and_what_to_do(monkeypatch):
    monkeypatch.setattr(smollm, "WHEEL", "no-such-package")
    said, fine, _ = doctor.model({"_target_": "vlaprune.models.smol.Smol", "weights": "random", "device": "auto"})
    assert not fine and said.endswith("is not installed; pip install --no-deps no-such-package==0.1.2")


def test_an_instruction_that_does_not_fit_its_slots_is_refused(model):
    with pytest.raises(ValueError, match=r"tokens; smol reads at most 8"):
        model.words("one two three four five six seven eight nine")


# SmolLM2 itself, where the wheel is installed


@pytest.fixture(scope="module")
def wheel():
    try:
        return smollm.installed_gguf()
    except ValueError as absent:
        pytest.skip(str(absent))


@torch.no_grad()
def test_smollm2_computes_what_transformers_computes_from_the_same_file(wheel, parity):
    """A row's best next token is that of transformers' greedy decoding: so, one by one, is each of the 32."""
    table, decoder = ours(wheel, 30)
    prompt, llama = torch.arange(1000, 1024), theirs(wheel)
    ids = llama.generate(prompt[None], max_new_tokens=32, min_new_tokens=32, do_sample=False)[0]
    expected = llama.model(ids[None]).last_hidden_state[0]
    hidden = decoder([Tokens(table[ids], torch.arange(len(ids)))], [NullHooks()])[0]
    parity("smol", "SmolLM2, 30 layers: hidden rows of transformers' Llama from the GGUF file", hidden, expected, 2e-4)
    best = (hidden @ table.T).argmax(-1)[len(prompt) - 1 : -1]
    parity("smol", "SmolLM2: 32 greedy tokens of transformers' Llama from the GGUF file", best, ids[len(prompt) :], 0.0)


def test_instructions_become_the_tokens_that_transformers_makes_of_them(wheel, parity):
    from transformers import AutoTokenizer

    known, encode = AutoTokenizer.from_pretrained(wheel.parent, gguf_file=wheel.name), smollm.tokenizer_of(GGUF(wheel))
    for instruction in INSTRUCTIONS:
        what = "SmolLM2: token ids of ten instructions, by transformers' tokenizer from the GGUF file"
        parity("smol", what, encode(instruction), known(instruction).input_ids, 0.0)


def test_the_doctor_checks_names_and_shapes_and_reads_no_weights(wheel):
    model = Smol("random", device="meta")
    assert model.trunk.embedding.weight.is_meta and model.info.num_layers == 16
    assert all(0 not in model.tokenize(instruction) for instruction in INSTRUCTIONS)
