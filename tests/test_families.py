"""Decoders of the Qwen, SmolLM and Phi families against transformers' models with the same random weights."""

import pytest
import torch
from doubles import filled
from transformers import (
    LlamaConfig,
    Phi3Config,
    Phi3Model,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
    SmolLM3Config,
    SmolLM3Model,
)
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLTextConfig, Qwen2VLTextModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextConfig, Qwen3VLTextModel

from vlaprune.meter import Clock, decoder_flops
from vlaprune.nn.block import DecoderConfig
from vlaprune.nn.decoder import Decoder, NullHooks, Tokens
from vlaprune.nn.weights import StateDict, decoder_config, llama_weight_map, load_weights
from vlaprune.pruner import ModelInfo, Plan, Pruner, Selection
from vlaprune.session import Session
from vlaprune.testing import flop_counter
from vlaprune.trace import Layout, View

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "vocab_size": 50,
    "attn_implementation": "eager",
    "pad_token_id": 0,
}
SECTIONS = {"rope_type": "default", "rope_theta": 1e3, "mrope_section": [2, 3, 3]}
KINDS = {
    "qwen2": lambda: Qwen2Model(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3Model(Qwen3Config(**SIZES)),
    "qwen2-vl text": lambda: Qwen2VLTextModel(Qwen2VLTextConfig(**SIZES, rope_parameters=dict(SECTIONS))),
    "qwen3-vl text": lambda: Qwen3VLTextModel(
        Qwen3VLTextConfig(**SIZES, rope_parameters={**SECTIONS, "mrope_interleaved": True})
    ),
    "smollm3": lambda: SmolLM3Model(SmolLM3Config(**SIZES, use_sliding_window=False, no_rope_layer_interval=2)),
}
LENGTH, VISUAL, SIDE = 15, range(1, 10), 3


def pair(kind):
    """transformers' model and our decoder, of the same weights, read from its own configuration."""
    torch.manual_seed(0)
    theirs = KINDS[kind]().eval()
    for p in theirs.parameters():  # biases and norms too, so that a forgotten one shows
        torch.nn.init.normal_(p, std=0.2)
    with torch.device("meta"):
        ours = Decoder(decoder_config(theirs.config.to_dict()))
    return theirs, filled(ours.eval(), theirs)


def axes():
    """[LENGTH, 3] positions of a picture of 3 x 3 tokens between two texts: time, height, width, as Qwen2-VL has them.

    In the picture time stands still; the text behind it goes on after the largest number before it.
    """
    first, side = VISUAL.start, SIDE
    places = [(i, i, i) for i in range(first)]
    places += [(first, first + row, first + column) for row in range(side) for column in range(side)]
    places += [(first + side + i,) * 3 for i in range(LENGTH - VISUAL.stop)]
    return torch.tensor(places)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_hidden_rows_equal_the_library(kind, parity):
    theirs, ours = pair(kind)
    x = torch.randn(1, LENGTH, 64)
    places = axes() if ours.config.mrope_section else None
    given = {} if places is None else {"position_ids": places.T[:, None]}
    want = theirs(inputs_embeds=x, **given).last_hidden_state[0]
    tokens = Tokens(x[0], torch.arange(LENGTH), axes=places)
    rows = ours([tokens], [NullHooks()])[0]
    parity(f"{kind} decoder", "prompt: hidden rows of transformers", rows, want, 1e-5)
    packed = ours([tokens, tokens], [NullHooks()] * 2)
    assert all(torch.allclose(r, want, atol=1e-5) for r in packed)
    if places is not None:  # a control: positions of one number would show
        assert (ours([Tokens(x[0], torch.arange(LENGTH))], [NullHooks()])[0] - want).abs().max() > 1e-3


class Every(Pruner):
    """Keeps every other visual token, from layer 2 on."""

    def plan(self, info):
        return Plan(layers=(2,))

    def select(self, context):
        return Selection(torch.arange(0, context.visual.shape[0], 2))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_pruned_rows_equal_the_library_at_full_length_with_masked_columns(kind, parity):
    """Positions of what stays are the original ones, on every axis."""
    theirs, ours = pair(kind)
    x, places = torch.randn(1, LENGTH, 64), axes() if ours.config.mrope_section else None
    stay = torch.tensor([i for i in range(LENGTH) if i not in VISUAL or (i - VISUAL.start) % 2 == 0])
    hide = torch.full((LENGTH, LENGTH), float("-inf")).triu(1)
    gone = [i for i in range(LENGTH) if i not in stay]
    cut = hide.clone()
    cut[:, gone] = float("-inf")
    cut[gone, gone] = 0.0
    hooks = [
        block.register_forward_pre_hook(
            lambda module, args, kwargs, own=hide if i < 2 else cut: (
                args,
                kwargs | {"attention_mask": own[None, None]},
            ),
            with_kwargs=True,
        )
        for i, block in enumerate(theirs.layers)
    ]
    given = {} if places is None else {"position_ids": places.T[:, None]}
    want = theirs(inputs_embeds=x, **given).last_hidden_state[0][stay]
    assert len(hooks) == 4
    c = ours.config
    info = ModelInfo(kind, c.num_layers, c.num_heads, c.hidden_size, c.head_dim)
    session = Session(Every(), info, c, Clock())
    layout = Layout(LENGTH, VISUAL, range(11, 14), range(14, 15), 14, (View("main", 0, SIDE, SIDE),))
    call = session.begin(layout, (), x)
    with flop_counter() as flops:
        rows = ours([Tokens(x[0], torch.arange(LENGTH), axes=places)], [call])[0]
    parity(f"{kind} decoder", "pruned: hidden rows of transformers, dropped columns masked", rows, want, 1e-5)
    counts = [(LENGTH, LENGTH)] * 2 + [(len(stay), len(stay))] * 2
    assert decoder_flops(c, counts) == flops.get_total_flops()


@torch.no_grad()
def test_partial_rotation_equals_phi3(parity):
    """Phi-3 stores queries, keys and values as one tensor, and gate and up as one: the map says so."""
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    sizes = {k: v for k, v in SIZES.items() if k != "head_dim"}
    theirs = Phi3Model(Phi3Config(**sizes, rope_parameters=rope, sliding_window=None)).eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.2)
    with torch.device("meta"):
        ours = Decoder(DecoderConfig(64, 4, 4, 2, 16, 96, 1e4, theirs.config.rms_norm_eps, partial_rotary_factor=0.5))
    where = {k: w for k, w in llama_weight_map(ours.config, "", "").items() if w.rows is None}
    for name, fused in (("self_attn.qkv_proj", "qkv"), ("mlp.gate_up_proj", "gate_up")):
        where |= {
            f"layers.{i}.{name}.weight": type(where["norm.weight"])(f"blocks.{i}.{fused}.weight") for i in range(4)
        }
    load_weights(ours, StateDict(theirs.state_dict()), where, ("embed_tokens.",), dtype=torch.float32)
    x = torch.randn(1, 9, 64)
    rows = ours.eval()([Tokens(x[0], torch.arange(9))], [NullHooks()])[0]
    want = theirs(inputs_embeds=x).last_hidden_state[0]
    parity("phi3 decoder", "half of each head rotated: hidden rows of transformers", rows, want, 1e-5)


def test_a_bias_or_norm_that_the_decoder_has_no_place_for_is_named():
    """A6 of the fault list: a Qwen2 poured into a Llama lost its biases and said that all keys matched."""
    for kind, wrong in (("qwen2", r"self_attn\.k_proj\.bias"), ("qwen3", r"self_attn\.k_norm\.weight")):
        theirs, ours = pair(kind)
        plain = Decoder(DecoderConfig(**{**vars(ours.config), "qkv_bias": False, "qk_norm": False}))
        with pytest.raises(ValueError, match=rf"has besides \d+ tensors: \['layers.0.{wrong}'"):
            filled(plain, theirs)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "bloom"}, "model_type=bloom is no decoder that is known here; use one of llama"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "has rope_type=yarn, which the decoder"),
        ({"attention_bias": True, "mlp_bias": True}, "has attention_bias, mlp_bias, which"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "has sliding_window, which"),
        ({"hidden_act": "gelu"}, "has hidden_act=gelu, which"),
        ({"rope_parameters": None}, r"lacks rope_theta; give the whole `config.to_dict\(\)`"),
    ],
)
def test_a_configuration_that_would_be_computed_wrong_is_refused(change, said):
    given = {**LlamaConfig(**SIZES).to_dict(), **change}
    with pytest.raises(ValueError, match=said):
        decoder_config(given)


def test_a_rotation_that_does_not_fit_the_heads_is_refused():
    with pytest.raises(ValueError, match=r"mrope_section=\[2, 2\] are not the 8 frequencies of a head"):
        DecoderConfig(64, 1, 4, 4, 16, 96, mrope_section=(2, 2))
    with pytest.raises(ValueError, match=r"partial_rotary_factor=0\.2 rotates 3 of 16 numbers of a head; use an even"):
        DecoderConfig(64, 1, 4, 4, 16, 96, partial_rotary_factor=0.2)
