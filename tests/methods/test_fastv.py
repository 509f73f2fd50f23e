import numpy as np
import pytest
import torch
from doubles import calibrated, filled
from handmade import INFO, check_keeps_all, check_memoryless, kept, prune_context
from transformers import LlamaConfig, LlamaModel

from vlaprune.meter import Clock
from vlaprune.methods.fastv import FastV
from vlaprune.methods.ties.ties import TIES
from vlaprune.models.toy import Toy
from vlaprune.nn.block import DecoderConfig
from vlaprune.nn.decoder import Decoder, Tokens
from vlaprune.policy import Policy
from vlaprune.pruner import ModelInfo
from vlaprune.session import Session
from vlaprune.testing import check_pruner, random_observations
from vlaprune.trace import Layout, QueryGroup, View


def read(rows, attention, cameras=((2, 4),), alive=None):
    visual = torch.randn(attention.shape[-1] if alive is None else len(alive), 16)
    return prune_context(visual, layer=3, cameras=cameras, read=[(2, rows, attention)], alive=alive)


@pytest.mark.parametrize("rows", ["last", "prefix_mean", "text", "action"])
def test_laws(rows):
    if rows == "action":  # when actions are decoded after the prompt, nothing emits them yet
        check_pruner(lambda: FastV(rows=rows), styles=("parallel",))
    else:
        check_pruner(lambda: FastV(rows=rows))


@pytest.mark.parametrize("cameras", [("one",), ("left", "right")])
def test_remembers_nothing_and_keeps_its_budget(cameras):
    total = 16 * len(cameras)
    assert check_memoryless(FastV, cameras).visual == (*[total] * 3, *[total // 4] * 3)
    check_keeps_all(lambda: FastV(keep=1.0), cameras)


def test_hand_made_attention():
    attention = torch.tensor([[[0, 5, 1, 0, 3, 0, 2, 0.0]], [[0, 0, 0, 9, 3, 0, 0, 0.0]]])
    at = read(QueryGroup.LAST, attention)
    assert kept(FastV(keep=3), at) == [1, 3, 4]
    assert kept(FastV(keep=0.25), at) == [3, 4]
    attention = torch.tensor([[[9, 0, 0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0, 1.0]]])
    assert kept(FastV(keep=3, rows="text"), read(QueryGroup.TEXT, attention)) == [0, 1, 2]


@pytest.mark.parametrize("rows", [QueryGroup.LAST, QueryGroup.TEXT, QueryGroup.ACTION])
def test_equals_a_sort(rows):
    attention = torch.rand(2, 1 if rows is not QueryGroup.TEXT else 3, 35)
    at = read(rows, attention, ((3, 5), (4, 5)))
    best = np.argsort(-attention.mean((0, 1)).numpy(), kind="stable")[:9]
    assert kept(FastV(keep=9, rows=rows.name.lower()), at) == sorted(best.tolist())


def test_degenerate_inputs():
    assert kept(FastV(keep=3), read(QueryGroup.LAST, torch.ones(2, 1, 8))) == [0, 1, 2]
    assert kept(FastV(keep=1), read(QueryGroup.LAST, torch.full((2, 1, 8), float("nan")))) == [0]
    some = torch.ones(2, 1, 8)
    some[..., 1] = float("nan")
    assert kept(FastV(keep=7), read(QueryGroup.LAST, some)) == [0, 2, 3, 4, 5, 6, 7]
    assert kept(
        FastV(keep=2), read(QueryGroup.LAST, torch.arange(8.0).expand(2, 1, 8), alive=torch.tensor([2, 5, 7]))
    ) == [
        1,
        2,
    ]
    with pytest.raises(ValueError, match="more than the 8"):
        FastV(keep=9).select(read(QueryGroup.LAST, torch.ones(2, 1, 8)))


@pytest.mark.parametrize("wrong", [{"layer": 0}, {"keep": True}, {"rows": "all"}])
def test_bad_parameters(wrong):
    with pytest.raises(ValueError, match=r"fastv|budget"):
        FastV(**wrong)


def test_a_layer_too_deep():
    with pytest.raises(ValueError, match="layers"):
        FastV(layer=6).plan(INFO).check(INFO, "FastV")


def guest(llama, x, visual, layer, count):
    """FastV by hooks on transformers' Llama: attention of layer - 1 seen, rows taken out before `layer`."""
    seen = {}

    def watch(module, args, out):
        seen["score"] = out[1][0, :, -1, visual.start : visual.stop].mean(0)

    def cut(module, args, kwargs):
        if "keep" not in seen:
            best = seen["score"].argsort(descending=True, stable=True)[:count].sort().values + visual.start
            seen["keep"] = torch.cat((torch.arange(visual.start), best, torch.arange(visual.stop, x.shape[1])))
        keep = seen["keep"]
        kwargs["position_embeddings"] = tuple(p[:, keep] for p in kwargs["position_embeddings"])
        mask = torch.full((len(keep), len(keep)), float("-inf")).triu(1)
        kwargs["attention_mask"] = mask[None, None]
        hidden = args[0]
        return (hidden[:, keep] if hidden.shape[1] == x.shape[1] else hidden, *args[1:]), kwargs

    hooks = [llama.layers[layer - 1].self_attn.register_forward_hook(watch)]
    hooks += [block.register_forward_pre_hook(cut, with_kwargs=True) for block in llama.layers[layer:]]
    out = llama(inputs_embeds=x, use_cache=False).last_hidden_state[0]
    for hook in hooks:
        hook.remove()
    return out, seen["keep"]


@torch.no_grad()
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_equals_hooks_on_llama(layer):
    torch.manual_seed(layer)
    config = LlamaConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        intermediate_size=96, vocab_size=50, rms_norm_eps=1e-5, attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    llama = LlamaModel(config).eval()
    for p in llama.parameters():
        torch.nn.init.normal_(p, std=0.2)
    shape = DecoderConfig(
        hidden_size=64, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=16, intermediate_size=96, rms_norm_eps=1e-5
    )
    ours = Decoder(shape).eval()
    filled(ours, llama)
    x, visual = torch.randn(1, 19, 64), range(1, 16)
    want, keep = guest(llama, x, visual, layer, 6)
    session = Session(FastV(layer, 6), ModelInfo("llama", 4, 4, 64, 16), shape, Clock())
    call = session.begin(Layout(19, visual, range(16, 19), range(18, 19), 18, (View("main", 0, 3, 5),)), (), x)
    rows = ours([Tokens(x[0], torch.arange(19))], [call])[0]
    assert torch.equal(session.trace.kept[layer] + 1, keep[1:7])
    assert torch.allclose(rows, want, atol=1e-5)


@pytest.mark.parametrize("make", [lambda: FastV(2, 0.5, "action"), lambda: TIES(layer=2, rows="action", layers=[0, 1])])
def test_action_rows_that_a_prompt_does_not_have_are_refused_in_one_line(make):
    """Where actions are decoded behind the prompt, none of its rows is one."""
    made = calibrated(make, Toy("autoregressive").info, 64)
    with pytest.raises(ValueError, match=r"rows=action: this model has no action rows in its prompt; use rows=last"):
        policy = Policy(Toy("autoregressive"), made)
        for seen in random_observations(policy.model.interface, 64, 3):
            policy.act({0: seen})
