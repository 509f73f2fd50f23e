"""OpenVLA at a reduced size: the sequence, decoding after pruning, files, and what bad input gets."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from vlaprune.benchmark import Observation
from vlaprune.errors import UserError
from vlaprune.methods.dense import Dense
from vlaprune.methods.fastv import FastV
from vlaprune.models.openvla import OpenVLA
from vlaprune.models.pictures import prepared
from vlaprune.models.prismatic import EMPTY, Sizes, closed, decode_bins, format_prompt, stand_in, weight_map
from vlaprune.models.source import read_stats
from vlaprune.nn.backend import EAGER
from vlaprune.policy import Policy
from vlaprune.pruner import Plan, QueryGroup

SMALL = {
    **{"image": 56, "dino_width": 32, "dino_depth": 3, "dino_heads": 2, "siglip_width": 32, "siglip_depth": 3},
    **{"siglip_heads": 2, "siglip_ffn": 48, "width": 64, "layers": 6, "heads": 4, "ffn": 96},
}


@pytest.fixture(scope="module")
def model():
    return OpenVLA("random", sizes=SMALL, device="cpu", dtype="float32")


def look(shade=None, instruction="pick up the red cup", size=64):
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    if shade is not None:
        image[:] = shade
    return Observation({"primary": image}, None, instruction)


def sessions(model, make=Dense, count=1):
    return Policy(model, make, count).sessions


def test_the_prompt_is_as_published(model):
    """begin | visual | text that ends in 29871; 15 ids around the instruction, as Llama-2's tokenizer gives."""
    ids = closed(stand_in(format_prompt("Pick UP the cup")))
    assert ids[0] == 1 and ids[-1] == EMPTY and closed(ids) == ids and len(ids) == 15 + 4
    assert format_prompt("Pick UP") == "In: What action should the robot take to pick up?\nOut:"
    layout = model.layout(len(ids))
    assert (layout.visual, layout.text, layout.last) == (range(1, 17), range(17, 35), 34)
    assert layout.action == range(34, 41) and layout.views[0].camera == "primary"


def test_bins_are_the_middles_of_255_and_the_highest_id_is_the_lowest_number():
    said = decode_bins(torch.tensor([31999, 31998, 31744, 5, 32010]))
    assert said.tolist() == pytest.approx([-1 + 1 / 255, -1 + 3 / 255, 1 - 1 / 255, 1 - 1 / 255, -1 + 1 / 255])


def llama(model):
    """transformers' Llama with the model's decoder."""
    s = model.decoder.config
    config = LlamaConfig(
        hidden_size=s.hidden_size,
        num_hidden_layers=s.num_layers,
        num_attention_heads=s.num_heads,
        num_key_value_heads=s.num_heads,
        intermediate_size=s.intermediate_size,
        vocab_size=32064,
        rms_norm_eps=s.rms_norm_eps,
        attn_implementation="eager",
    )
    own, state = model.trunk.state_dict(), {}
    for key, piece in weight_map(model.trunk).items():
        if key.startswith("language_model."):
            tensor = own[piece.name]
            state[key.removeprefix("language_model.")] = tensor if piece.rows is None else tensor[slice(*piece.rows)]
    library = LlamaForCausalLM(config).eval()
    library.load_state_dict(state)
    return library


@torch.no_grad()
def oracle(model, observation, drop=None, layer=0):
    """Token ids by transformers' Llama at full length; rows `drop` are hidden from layer `layer` on by a mask."""
    library = llama(model)
    seen = prepared([observation], ("primary",), model._pictures, 56, "it", model.device, EAGER)
    visual = model.trunk.projector(model.trunk.vision(seen[0])[0])[0]
    ids = closed(stand_in(format_prompt(observation.instruction)))
    hidden = model.trunk.prompts(visual[None], [ids])[0].hidden[None]
    out = []
    for _ in range(7):
        n = hidden.shape[1]
        causal = torch.full((n, n), float("-inf")).triu(1)
        hiding = causal.clone()
        if drop is not None:
            hiding[:, drop] = float("-inf")
            hiding[drop, drop] = 0.0
        x, rope = hidden, library.model.rotary_emb(hidden, torch.arange(n)[None])
        for i, block in enumerate(library.model.layers):
            mask = (hiding if i >= layer else causal)[None, None]
            x = block(x, attention_mask=mask, position_embeddings=rope, position_ids=torch.arange(n)[None])
        logits = library.lm_head(library.model.norm(x[0, -1]))
        out.append(int(logits.argmax()))
        hidden = torch.cat((hidden, library.model.embed_tokens(torch.tensor([[out[-1]]]))), 1)
    return out


def test_seven_tokens_are_those_of_a_llama_run_at_full_length_each_time(model, parity):
    said = model.tokens([look()], sessions(model))[0]
    parity("openvla", "dense: 7 token ids of transformers' Llama", said, oracle(model, look()), 0)


@torch.no_grad()
def test_decoding_after_pruning_equals_a_run_that_hides_what_was_dropped(model, parity):
    """FastV drops before layer 2: layers 0 and 1 keep all keys, positions go on from the full prompt."""
    session = sessions(model, lambda: FastV(layer=2, keep=0.25))[0]
    said = model.tokens([look()], [session])[0]
    kept = session.trace.kept[2] + 1
    drop = [i for i in range(1, 17) if i not in kept.tolist()]
    assert len(drop) == 12
    what = "pruned before layer 2: 7 token ids of transformers' Llama under a mask"
    parity("openvla", what, said, oracle(model, look(), drop, 2), 0)
    assert session.finish().decoded == 6
    assert session.trace.passes[0] == [37, 37, 25, 25, 25, 25] and session.trace.passes[5][2] == 30


@torch.no_grad()
def test_black_and_white_images_change_the_logits(model):
    def logits(shade):
        session = sessions(model)[0]
        model.tokens([look(shade)], [session])
        heard = []
        hook = model.trunk.head.register_forward_hook(lambda module, args, out: heard.append(out))
        model.tokens([look(shade)], [session])
        hook.remove()
        return heard[0]

    black, white = logits(0), logits(255)
    assert (black - white).abs().max() > 0.05 * black.abs().max()
    assert torch.equal(black, logits(0))


def test_packed_prompts_of_different_length_decode_as_each_alone(model):
    looks = [look(), look(90, "put the bowl on the plate now"), look(200, "stop")]
    alone = [model.tokens([o], sessions(model))[0].tolist() for o in looks]
    assert model.tokens(looks, sessions(model, count=3)).tolist() == alone


def test_action_rows_are_read_while_decoding(model):
    class Reader(Dense):
        def plan(self, info):
            return Plan(reads={5: QueryGroup.LAST | QueryGroup.ACTION | QueryGroup.TEXT})

    session = sessions(model, Reader)[0]
    model.tokens([look()], [session])
    trace = session.trace
    end = trace.layout.end
    assert trace.rows(5, QueryGroup.ACTION).shape == (4, 7, end)
    assert torch.equal(trace.rows(5, QueryGroup.ACTION)[:, :1], trace.rows(5, QueryGroup.LAST))  # decides token 1
    assert trace.rows(5, QueryGroup.TEXT).shape == (4, len(trace.layout.text), end)
    assert torch.allclose(trace.rows(5, QueryGroup.ACTION).sum(-1), torch.ones(4, 7), atol=1e-5)


def test_the_tower_is_told_only_to_who_asks(model):
    class Asker(Dense):
        def plan(self, info):
            return Plan(vision_attention=True)

    asking, quiet = sessions(model, Asker)[0], sessions(model)[0]
    model.tokens([look(), look(3)], [asking, quiet])
    assert (
        asking.trace.vision_attention.shape == (16,)
        and 0 < asking.trace.vision_attention.sum() <= 1
        and quiet.trace.vision_attention is None
    )
    assert asking.finish().flops["method"] > 0 == quiet.finish().flops["method"]


def test_flops_of_the_whole_call_at_full_size():
    """4.16 TFLOP at 25 text tokens after the first, the specification's figure, which counts half the attention."""
    big = OpenVLA("random", device="meta")
    session = sessions(big)[0]
    big.predict([look(instruction="put the wine bottle on top of the cabinet now", size=256)], [session])
    flops = session.finish().flops
    assert sum(flops.values()) == pytest.approx(4.16e12, rel=0.01)
    assert flops["prompt"] / 2 == pytest.approx(1.85e12, rel=0.01)  # MACs of the 32 layers, as VLA-Cache counts


# files


def tokenizer():
    """A tokenizer of Llama-2's ids for words that it does not have."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "\u2581": EMPTY, "robot": 77}
    built = Tokenizer(models.WordLevel(words, "<unk>"))
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    built.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return built


def statistics(**change):
    action = {"q01": [-0.5] * 6 + [0.0], "q99": [0.25] * 6 + [1.0], "mask": [True] * 6 + [False]}
    return {"libero_spatial_no_noops": {"action": {**action, **change}}, "bridge_orig": {"action": action}}


def publish(model, folder, norms=None):
    """Writes the model as its authors would."""
    own, state = model.trunk.state_dict(), {}
    for key, piece in weight_map(model.trunk).items():
        part = own[piece.name] if piece.rows is None else own[piece.name][slice(*piece.rows)]
        state[key] = part.reshape(piece.shape(own[piece.name])).contiguous()
    state["vision_backbone.featurizer.norm.weight"] = torch.zeros(32)
    save_file({k: v.clone() for k, v in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"text_config": {"rms_norm_eps": 1e-5}}))
    stats = [{"mean": [0.5] * 3, "std": [0.25] * 3}, {"mean": [0.5] * 3, "std": [0.5] * 3}]
    (folder / "preprocessor_config.json").write_text(json.dumps({"tvf_normalize_params": stats}))
    (folder / "dataset_statistics.json").write_text(json.dumps(norms or statistics()))
    tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def opened(folder, **options):
    return OpenVLA(str(folder), **{"suite": "libero_spatial", "sizes": SMALL, "device": "cpu", **options})


def test_a_published_folder_loads_with_its_own_norms_tokenizer_and_statistics(model, tmp_path):
    ours = opened(publish(model, tmp_path), dtype="float32")
    assert ours.decoder.config.rms_norm_eps == 1e-5 and ours.trunk.vision.stats[0] == ((0.5,) * 3, (0.25,) * 3)
    assert torch.equal(ours.trunk.decoder.blocks[3].qkv.weight, model.trunk.decoder.blocks[3].qkv.weight)
    assert torch.equal(ours.trunk.vision.dino.prefix, model.trunk.vision.dino.prefix)
    assert len(ours.card["sha256"]) == 64
    session = sessions(ours)[0]
    ids = ours.tokens([look()], [session])
    action = ours.predict([look()], sessions(ours))[0]
    unit = decode_bins(ids)[0]
    assert torch.allclose(action[0, :6], (unit[:6] + 1) / 2 * 0.75 - 0.5) and action[0, 6] == unit[6]
    assert opened(tmp_path).trunk.head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "file", ["dataset_statistics.json", "preprocessor_config.json", "tokenizer.json", "config.json"]
)
def test_the_files_that_scale_and_read_belong_to_what_tells_weights_apart(model, tmp_path, file):
    """Else a run would go on with other statistics under the name of the policy that it began with."""
    before = opened(publish(model, tmp_path)).info.weights
    assert opened(tmp_path).info.weights == before
    text = (tmp_path / file).read_text()
    (tmp_path / file).write_text(text.replace("0.25", "0.75") if "0.25" in text else f"{text}\n")
    assert opened(tmp_path).info.weights != before


def test_padding_and_truncation_that_a_tokenizer_file_kept_do_not_reach_the_prompt(model, tmp_path):
    plain = opened(publish(model, tmp_path))._tokenize("robot robot robot")
    kept = tokenizer()
    kept.enable_padding(length=24, pad_id=0)
    kept.enable_truncation(2)
    kept.save(str(tmp_path / "tokenizer.json"))
    assert opened(tmp_path)._tokenize("robot robot robot") == plain


@pytest.mark.parametrize("text", ["x", {"rms_norm_eps": "x"}, {"rms_norm_eps": 0}])
def test_an_epsilon_that_is_none_is_refused(model, tmp_path, text):
    (publish(model, tmp_path) / "config.json").write_text(json.dumps({"text_config": text}))
    with pytest.raises(UserError, match=r"config.json: text_config.rms_norm_eps of .* is no number between 0 and 1"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"suite": "libero_90"}, r"no statistics 'libero_90'; it has \['bridge_orig', 'libero_spatial_no_noops'\]"),
        ({"suite": None}, r"need unnorm=DATASET or suite=SUITE .* bridge_orig, libero_spatial_no_noops"),
        ({"sizes": {**SMALL, "layers": 7}}, "lacks 9 tensors"),
        ({"sizes": {**SMALL, "ffn": 64}}, "has in other shapes 18 tensors"),
        ({"sizes": {"depth": 3}}, r"sizes \['depth'\] are not known; use image, patch"),
        ({"cameras": ["primary", "wrist"]}, "openvla reads one camera"),
        ({"images": "raw"}, "images=raw"),
        ({"dtype": "int8"}, "dtype=int8; use one of bfloat16"),
    ],
)
def test_options_that_do_not_fit_a_checkpoint_are_named(model, tmp_path, options, said):
    with pytest.raises(ValueError, match=said) as caught:
        opened(publish(model, tmp_path), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("dataset_statistics.json", '{"libero_spatial": {}}', "libero_spatial.action lacks q01/q99"),
        ("dataset_statistics.json", "{", "dataset_statistics.json cannot be read"),
        ("preprocessor_config.json", "{}", "has tvf_normalize_params None"),
        ("tokenizer.json", "{}", "tokenizer.json cannot be read"),
        ("config.json", None, "config.json cannot be read"),
    ],
)
def test_damaged_files_are_named(model, tmp_path, file, content, said):
    publish(model, tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=said) as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"q01": [0.0] * 3}, {"q99": [float("nan")] * 7}, {"mask": [True]}])
def test_statistics_of_the_wrong_length_or_not_finite_are_refused(model, tmp_path, change):
    with pytest.raises(ValueError, match=r"libero_spatial_no_noops.action.* the model needs 7 finite numbers"):
        opened(publish(model, tmp_path, statistics(**change)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"std": [0.5, 0.0, 0.5]}, r"\[1\].std is \[0.5, 0.0, 0.5\]; expected 3 numbers above 0"),
        ({"std": [0.5, -0.5, 0.5]}, r"\[1\].std is .* expected 3 numbers above 0"),
        ({"std": [0.5, float("nan"), 0.5]}, r"\[1\].std is .*nan.* expected 3 numbers above 0"),
        ({"std": [0.5, 0.5]}, r"\[1\].std is \[0.5, 0.5\]; expected 3 numbers above 0"),
        ({"std": None}, r"\[1\].std is None; expected 3 numbers above 0"),
        ({"mean": [0.5] * 4}, r"\[1\].mean is .* expected 3 finite numbers"),
        ({"mean": [0.5, float("inf"), 0.5]}, r"\[1\].mean is .*inf.* expected 3 finite numbers"),
        ({"mean": "0.5"}, r"\[1\].mean is 0.5; expected 3 finite numbers"),
    ],
)
def test_pixels_are_not_scaled_by_statistics_that_are_none(tmp_path, change, said):
    file, own = tmp_path / "preprocessor_config.json", {"mean": [0.0, 0.5, -0.5], "std": [0.5] * 3}
    file.write_text(json.dumps({"tvf_normalize_params": [own, own]}))
    assert read_stats(tmp_path) == (((0.0, 0.5, -0.5), (0.5, 0.5, 0.5)),) * 2
    for params, where in (([own, own | change], said), ([own, None], r"\[1\].mean is None")):
        file.write_text(json.dumps({"tvf_normalize_params": params}))
        with pytest.raises(UserError, match=where) as caught:
            read_stats(tmp_path)
        assert "\n" not in str(caught.value) and str(file) in str(caught.value)


def test_another_models_tokenizer_is_refused(model, tmp_path):
    publish(model, tmp_path)
    text = json.loads(tokenizer().to_str())
    text["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(text))
    with pytest.raises(ValueError, match=r"is not Llama-2's: .*starts a text with \[0\]"):
        opened(tmp_path)


def test_without_weights_or_a_known_suite_the_way_out_is_named():
    with pytest.raises(
        ValueError, match=r"published weights for the suites libero_spatial.*, not None; set model.weights"
    ):
        OpenVLA()


def test_random_weights_differ_by_seed_and_not_by_run():
    a, b, c = (OpenVLA("random", sizes=SMALL, seed=s, device="cpu", dtype="float32") for s in (1, 1, 2))
    assert torch.equal(a.trunk.head.weight, b.trunk.head.weight)
    assert not torch.equal(a.trunk.head.weight, c.trunk.head.weight)
    assert a.card == {"weights": "random", "seed": 1, "tokenizer": "stand-in, one id a word"}
    assert Sizes.of(SMALL).info("x").num_layers == 6


@torch.no_grad()
def test_an_observation_that_lacks_the_camera_is_refused(model):
    with pytest.raises(ValueError, match=r"lacks cameras \['primary'\] that openvla reads; it has \['main'\]"):
        model.predict([Observation({"main": look().images["primary"]}, None, "x")], sessions(model))
