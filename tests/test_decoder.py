"""The decoder against transformers' Llama and Gemma with the same random weights, and packing against single runs."""

from dataclasses import replace

import pytest
import torch
from doubles import filled
from transformers import GemmaConfig, GemmaModel, LlamaConfig, LlamaModel

from vlaprune.nn.block import DecoderConfig, _rotate, rope, rotate_by_row
from vlaprune.nn.decoder import Cache, Decoder, NullHooks, Tokens
from vlaprune.nn.extend import Suffix
from vlaprune.trace import attention_rows

SHAPE = DecoderConfig(
    hidden_size=64, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=16, intermediate_size=96, rms_norm_eps=1e-5
)


def pair(causal=True):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=96,
        vocab_size=50,
        rms_norm_eps=1e-5,
        attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    llama = LlamaModel(config).eval()
    for p in llama.parameters():  # norms too, so that a forgotten weight shows
        torch.nn.init.normal_(p, std=0.2)
    ours = Decoder(DecoderConfig(**{**vars(SHAPE), "causal": causal})).eval()
    filled(ours, llama)
    return llama, ours


GEMMA = DecoderConfig(
    48, 3, 4, 1, 24, 96, hidden_act="gelu_tanh", norm_plus_one=True
)  # heads wider than the model, one for keys


def gemma_pair(causal=True):
    torch.manual_seed(0)
    config = GemmaConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=24,
        intermediate_size=96,
        vocab_size=50,
        attn_implementation="eager",
    )
    gemma = GemmaModel(config).eval()
    for p in gemma.parameters():
        torch.nn.init.normal_(p, std=0.2)
    ours = Decoder(DecoderConfig(**{**vars(GEMMA), "causal": causal})).eval()
    filled(ours, gemma)
    return gemma, ours


PAIRS = {"llama": pair, "gemma": gemma_pair}


class Remembering(NullHooks):
    """Keeps queries, keys and values of every layer."""

    keeps_kv = True

    def __init__(self):
        self.queries, self.found = {}, {}

    def leave(self, layer, tokens, computed):
        self.queries[layer], self.found[layer] = computed.queries, computed.kv

    def records_attention(self, layer):
        return True

    def kv(self, layer):
        return self.found[layer]

    def left(self, layers):
        return [[(self.kv(n).keys, self.kv(n).values, None)] for n in range(layers)]


@torch.no_grad()
@pytest.mark.parametrize("kind", PAIRS)
def test_prompt_and_two_decode_steps_equal_the_library(kind, parity):
    llama, ours = PAIRS[kind]()
    x = torch.randn(1, 11, ours.config.hidden_size)
    out = llama(inputs_embeds=x[:, :9], use_cache=True)
    session = Remembering()
    rows = ours([Tokens(x[0, :9], torch.arange(9))], [session])[0]
    parity(f"{kind} decoder", "prompt: hidden rows of transformers", rows, out.last_hidden_state[0], 1e-5)
    suffix = Suffix(ours.blocks, session.left(ours.config.num_layers), [9], 2)
    for i in range(2):
        step = x[:, 9 + i : 10 + i]
        out = llama(inputs_embeds=step, past_key_values=out.past_key_values, use_cache=True)
        rows, _ = suffix.extend(step[0], i)
        rows = ours.norm(rows)
        parity(f"{kind} decoder", "decoding: hidden rows of transformers", rows, out.last_hidden_state[0], 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", PAIRS)
def test_bidirectional_equals_the_library_under_an_open_mask(kind, parity):
    llama, ours = PAIRS[kind](causal=False)
    x = torch.randn(1, 9, ours.config.hidden_size)
    out = llama(inputs_embeds=x, attention_mask=torch.zeros(1, 1, 9, 9)).last_hidden_state[0]
    rows = ours([Tokens(x[0], torch.arange(9))], [NullHooks()])[0]
    parity(f"{kind} decoder", "bidirectional: hidden rows of transformers under an open mask", rows, out, 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", PAIRS)
def test_attention_rows_equal_eager_attention(kind, parity):
    llama, ours = PAIRS[kind]()
    x = torch.randn(1, 9, ours.config.hidden_size)
    eager = llama(inputs_embeds=x, output_attentions=True).attentions
    session = Remembering()
    ours([Tokens(x[0], torch.arange(9))], [session])
    for layer, queries in session.queries.items():
        visible = torch.arange(9)[:, None] >= session.kv(layer).columns[None]
        rows = attention_rows(queries, session.kv(layer).keys, visible)
        parity(f"{kind} decoder", "attention rows of transformers' eager attention", rows, eager[layer][0], 2e-6)


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
def test_rows_left_out_leave_no_trace(causal):
    """Dropping rows before layer 0 equals Llama on the remaining rows at their original positions."""
    llama, ours = pair(causal)
    x, keep = torch.randn(1, 9, 64), torch.tensor([0, 2, 3, 7, 8])
    mask = torch.full((5, 5), float("-inf")).triu(1) if causal else torch.zeros(5, 5)
    out = llama(inputs_embeds=x[:, keep], position_ids=keep[None], attention_mask=mask[None, None])
    rows = ours([Tokens(x[0, keep], keep)], [NullHooks()])[0]
    assert torch.allclose(rows, out.last_hidden_state[0], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("lengths", [(9, 5, 7), (6, 6)])
@pytest.mark.parametrize("causal", [True, False])
def test_packed_sequences_equal_single_runs(lengths, causal):
    _, ours = pair(causal)
    tokens = [Tokens(torch.randn(n, 64), torch.arange(n) * 2) for n in lengths]
    packed = ours(tokens, [NullHooks()] * len(tokens))
    for one, rows in zip(tokens, packed, strict=True):
        assert torch.allclose(ours([one], [NullHooks()])[0], rows, atol=1e-5)
    turned = ours(tokens[::-1], [NullHooks()] * len(tokens))[::-1]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(packed, turned, strict=True))


@torch.no_grad()
def test_reused_columns_of_an_unchanged_prompt_change_nothing():
    """Rows that are not computed but attended to from the cache give the other rows what computing them would."""
    _, ours = pair(causal=False)
    x = torch.randn(9, 64)
    session = Remembering()
    dense = ours([Tokens(x, torch.arange(9))], [session])[0]
    session.cache = Cache(SHAPE)
    session.cache.reserve(9, x)
    for layer, kv in session.found.items():
        session.cache.write(layer, kv.columns, kv.keys, kv.values)
    own, old = torch.tensor([0, 1, 5, 8]), torch.tensor([2, 3, 4, 6, 7])
    assert torch.allclose(ours([Tokens(x[own], own, torch.cat((own, old)))], [session])[0], dense[own], atol=1e-5)


def test_an_activation_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="hidden_act=relu; use one of silu, gelu_tanh"):
        DecoderConfig(8, 1, 1, 1, 8, 8, hidden_act="relu")


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_rotation_by_row_gives_the_same_numbers_in_another_order_of_memory(share):
    config = replace(SHAPE, partial_rotary_factor=share)
    cos, sin = rope(config, torch.tensor([0, 3, 4, 9, 20]), torch.float32)
    heads = torch.randn(5, 6, 16).transpose(0, 1)
    plain, by_row = _rotate(heads, cos, sin), rotate_by_row(heads, cos, sin)
    assert torch.equal(plain, by_row)
    assert plain.is_contiguous() and by_row.transpose(0, 1).is_contiguous()
