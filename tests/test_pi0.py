"""pi0 against transformers' own PI0: dense, and pruned against a full-length run that masks what was dropped."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from doubles import Reuser, Scripted
from torch import nn
from transformers import DynamicCache, PI0Config, PI0ForConditionalGeneration

from vlaprune.benchmark import Observation
from vlaprune.methods.dense import Dense
from vlaprune.methods.vlapruner import VLAPruner
from vlaprune.models.paligemma import weight_map
from vlaprune.models.pi0 import Pi0
from vlaprune.nn.expert import flow_times
from vlaprune.policy import Policy
from vlaprune.pruner import Plan, Selection
from vlaprune.trace import QueryGroup

SIZES = {
    "image": 56,
    "vision_width": 32,
    "vision_layers": 3,
    "vision_heads": 4,
    "vision_ffn": 48,
    "layers": 4,
    "heads": 4,
    "head_size": 24,
    "width": 64,
    "ffn": 96,
    "expert_width": 32,
    "expert_ffn": 48,
    "vocabulary": 300,
}
S, CHUNK, TOKENS = SIZES, 6, 16  # tokens of one image
IMAGE_TOKEN = S["vocabulary"]
OPTIONS = {"weights": "random", "sizes": SIZES, "chunk": CHUNK, "device": "cpu", "dtype": "float32"}


@cache
def library():
    """transformers' PI0 with random weights large enough that attention is not even."""
    torch.manual_seed(0)
    config = PI0Config(
        vlm_config={
            "model_type": "paligemma",
            "text_config": {
                "model_type": "gemma",
                "hidden_size": S["width"],
                "num_hidden_layers": S["layers"],
                "intermediate_size": S["ffn"],
                "num_attention_heads": S["heads"],
                "num_key_value_heads": 1,
                "head_dim": S["head_size"],
                "vocab_size": S["vocabulary"] + 1,
            },
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": S["vision_width"],
                "intermediate_size": S["vision_ffn"],
                "num_hidden_layers": S["vision_layers"],
                "num_attention_heads": S["vision_heads"],
                "image_size": S["image"],
                "patch_size": 14,
                "vision_use_head": False,
            },
            "projection_dim": S["width"],
            "image_token_id": IMAGE_TOKEN,
        },
        dit_config={
            "model_type": "gemma",
            "hidden_size": S["expert_width"],
            "num_hidden_layers": S["layers"],
            "intermediate_size": S["expert_ffn"],
            "num_attention_heads": S["heads"],
            "num_key_value_heads": 1,
            "head_dim": S["head_size"],
        },
        chunk_size=CHUNK,
        attn_implementation="eager",
    )
    model = PI0ForConditionalGeneration(config).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.2 if p.ndim > 1 else 0.1)
    return model


def look(cameras=("primary", "wrist"), size=56, instruction="pick up the red can", seed=0):
    rng = np.random.default_rng(seed)
    pictures = {c: rng.integers(0, 255, (size, size, 3), dtype=np.uint8) for c in cameras}
    return Observation(pictures, rng.uniform(-1, 1, 8), instruction)


@cache
def ours(cameras=("primary", "wrist")):
    """The library's weights in our model, by the names of its checkpoint."""
    sizes = {**SIZES, "vocabulary": S["vocabulary"] + 1}
    model = Pi0(**{**OPTIONS, "sizes": sizes, "cameras": cameras})
    state = {k.removeprefix("model."): v for k, v in library().state_dict().items()}
    where, unused = weight_map(model.net, state)
    own = dict(model.net.named_parameters())
    left = {k for k in state if k not in where and not k.startswith(unused)}
    assert not left and not where.keys() - state.keys(), (left, where.keys() - state.keys())
    with torch.no_grad():
        for key, piece in where.items():
            place = own[piece.name] if piece.rows is None else own[piece.name][slice(*piece.rows)]
            place.copy_(state[key].view(place.shape))
    return model


def prompt_of(model, observation):
    """What transformers calls the inputs: image placeholders and text, pixels, a padded state."""
    text = model._text(observation.instruction, None).ids
    ids = [IMAGE_TOKEN] * TOKENS * len(model.interface.cameras) + list(text)
    pixels = [torch.from_numpy(observation.images[c]).float() / 127.5 - 1 for c in model.interface.cameras]
    state = torch.zeros(1, 32)
    state[0, :8] = torch.from_numpy(observation.state)
    return ids, torch.stack(pixels).permute(0, 3, 1, 2), state


def sampled(model, observation, noise, pad=5, empty=1):
    """transformers' sample_actions on the same inputs, with padded text and cameras that are not there."""
    ids, pixels, state = prompt_of(model, observation)
    blank = torch.full((empty, *pixels.shape[1:]), -1.0)
    return library().sample_actions(
        state=state,
        input_ids=torch.tensor([ids + [0] * pad]),
        pixel_values=torch.cat((pixels, blank))[None],
        noise=noise[None],
        attention_mask=torch.tensor([[1] * len(ids) + [0] * pad]),
        pixel_attention_mask=torch.tensor([[True] * len(pixels) + [False] * empty]),
    )[0]


def masking(layers, masks):
    """Hooks that give each layer of a library model its own mask."""

    def hook(mask):
        return lambda module, args, kwargs: (args, {**kwargs, "attention_mask": mask[None, None]})

    return [layer.register_forward_pre_hook(hook(m), with_kwargs=True) for layer, m in zip(layers, masks, strict=True)]


@torch.no_grad()
def masked(model, observation, noise, gone, sizes=None):
    """The library on all rows; from layer n on nobody attends to the positions gone[n], and keys in sizes[n] count so
    often. Gives actions [chunk, 32] and, step by step, the expert's attention [H, 1 + chunk, P + 1 + chunk] by layer.
    """
    lib, (ids, pixels, state) = library(), prompt_of(model, observation)
    length, rows = len(ids), CHUNK + 1
    prompt, suffix, hidden, often = [], [], set(), {}
    for layer in range(S["layers"]):
        hidden |= set(gone.get(layer, ()))
        often |= (sizes or {}).get(layer, {})
        columns = torch.zeros(length)
        columns[list(often)] += torch.tensor(list(often.values())).log()
        columns[sorted(hidden)] = float("-inf")
        own = columns.repeat(length, 1)
        own[sorted(hidden), sorted(hidden)] = 0.0  # a dropped row may look at itself: nobody sees what becomes of it
        prompt.append(own)
        tail = torch.cat((columns.repeat(rows, 1), torch.zeros(rows, rows)), 1)
        tail[0, length + 1 :] = float("-inf")  # the state sees no action
        suffix.append(tail)
    cache_, at = DynamicCache(), torch.arange(length + rows)[None]
    open_ = torch.tensor([[True] * len(pixels)])
    hooks = masking(lib.model.vlm.language_model.layers, prompt) + masking(lib.model.dit.layers, suffix)
    embeds = lib.model.embed_prefix(torch.tensor([ids]), pixels[None], open_)
    mask = torch.zeros(1, 1, length, length)
    lib.model.vlm.language_model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=at[:, :length], past_key_values=cache_, use_cache=True
    )
    x, attentions = noise[None], []
    for step in range(model.steps):
        embeds = lib.embed_action_time(state, x, torch.tensor([1 - step / model.steps]))
        out = lib.model.dit(
            inputs_embeds=embeds,
            attention_mask=torch.zeros(1, 1, rows, length + rows),
            position_ids=at[:, length:],
            past_key_values=cache_,
            output_attentions=True,
        )
        cache_.crop(-rows)
        x = x - lib.action_out_proj(out.last_hidden_state[:, 1:]) / model.steps
        attentions.append([a[0] for a in out.attentions])
    for hook in hooks:
        hook.remove()
    return x[0], attentions


def played(model, observation, make=Dense, seed=3):
    """Actions of one call, its record and its session."""
    policy = Policy(model, make)
    policy.reset(0, seed)
    return torch.from_numpy(policy.act({0: observation})[0]).float(), policy.drain(0)[0], policy.sessions[0]


def noise_of(model, seed=3):
    """The noise of an episode's first call."""
    session = Policy(model, Dense).sessions[0]
    session.reset(seed)
    session.begin(model.layout(model.words.plain("go")), (), torch.zeros(1))
    return model._noise([session])[0]


@pytest.fixture
def library_time(monkeypatch):
    """transformers computes the phase of the time in fp32 where openpi, and this package, take fp64."""

    def embed(times, width):
        fraction = torch.linspace(0.0, 1.0, width // 2)
        phase = times[:, None] * (1.0 / (4e-3 * 1000**fraction) * 2 * math.pi)
        return torch.cat((phase.sin(), phase.cos()), 1)

    ours.cache_clear()  # a model computes its times once
    monkeypatch.setattr("vlaprune.models.paligemma.embed_time", embed)
    monkeypatch.setattr("vlaprune.models.paligemma.flow_times", lambda steps, added: flow_times(steps, added=False))
    yield
    ours.cache_clear()


@pytest.mark.parametrize("cameras", [("primary",), ("primary", "wrist"), ("a", "b", "c")])
def test_dense_actions_equal_the_library_which_pads_and_masks(cameras, library_time, parity):
    model, observation = ours(cameras), look(cameras)
    actions, record, _ = played(model, observation)
    expected = sampled(model, observation, noise_of(model))[:, :7]
    parity("pi0", f"dense, {len(cameras)} cameras: actions of transformers' PI0", actions, expected, 1e-5)
    assert (expected - noise_of(model)[:, :7]).abs().mean() > 0.1
    assert record.total == TOKENS * len(cameras) and record.decoded == 10


def test_the_time_of_openpi_differs_from_the_librarys_by_rounding_only():
    model, observation = ours(), look()
    assert (played(model, observation)[0] - sampled(model, observation, noise_of(model))[:, :7]).abs().max() < 1e-4


STAGES = {1: [0, 1, 3, 4, 6, 7, 9, 15, 16, 20, 21, 30], 3: [1, 2, 4, 9, 11]}  # the second among the first's
GONE = {1: sorted(set(range(32)) - set(STAGES[1])), 3: [STAGES[1][i] for i in range(12) if i not in STAGES[3]]}


def staged(sizes=None):
    """Prunes before layers 1 and 3, and reads what the action rows attend to."""

    def choose(context):
        own = None if sizes is None else torch.arange(1.0, len(STAGES[context.layer]) + 1)
        return Selection(torch.tensor(STAGES[context.layer]), multiplicity=own)

    class Looking(Scripted):
        def observe(self, trace):
            for layer, rows in self._plan.reads.items():
                trace.rows(layer, rows)

    return lambda: Looking(
        Plan((1, 3), {0: QueryGroup.ACTION, 2: QueryGroup.ACTION, 3: QueryGroup.ACTION | QueryGroup.LAST}), choose
    )


@pytest.mark.parametrize("sizes", [None, {1: {p: i + 1.0 for i, p in enumerate(STAGES[1])}}])
def test_pruned_actions_equal_the_library_with_columns_masked(sizes, library_time, parity):
    """Suffix positions go on at the ORIGINAL length, every layer of the expert reads its own layer's columns."""
    model, observation = ours(), look()
    actions, record, session = played(model, observation, staged(sizes))
    if sizes:
        sizes[3] = {STAGES[1][j]: i + 1.0 for i, j in enumerate(STAGES[3])}
    expected, attention = masked(model, observation, noise_of(model), GONE, sizes)
    how = "merged" if sizes else "pruned"
    what = f"{how} before layers 1 and 3: actions of transformers' PI0 under masks"
    parity("pi0", what, actions, expected[:, :7], 1e-5)
    dense = played(model, observation)[0]
    assert (actions - dense).abs().max() > 1e-2
    assert record.visual == (32, 12, 12, 5)

    words = len(model._text(observation.instruction, None).ids)
    assert session.trace.passes == [[n + words + 1 + CHUNK for n in record.visual]] * 10
    for layer in (0, 2, 3):
        rows = session.trace.rows(layer, QueryGroup.ACTION)  # of every step of the flow
        assert (rows - torch.cat([step[layer][:, 1:] for step in attention], 1)).abs().max() < 1e-5


def test_vla_pruner_averages_the_experts_rows_over_all_steps_of_the_flow(library_time):
    """The dense call's history equals the library's own attention; the prompt's last row is no action row."""
    model, observation = ours(), look()
    session = played(model, observation, VLAPruner)[2]
    _, steps = masked(model, observation, noise_of(model), {})
    layer = (S["layers"] - 1) // 2
    expected = torch.stack([step[layer][:, 1:, : 2 * TOKENS].mean((0, 1)) for step in steps]).mean(0)
    assert (session.pruner._past[-1] - expected).abs().max() < 1e-6


def test_columns_of_the_prompt_masked_by_the_oracle_matter(library_time):
    """The oracle itself: without masks it is the library's sampler."""
    model, observation = ours(), look()
    expected, _ = masked(model, observation, noise_of(model), {})
    assert (expected - sampled(model, observation, noise_of(model), pad=0, empty=0)).abs().max() < 1e-5


def test_several_slots_with_texts_of_several_lengths_equal_single_runs():
    model = ours()
    looks = {0: look(seed=1), 1: look(seed=2, instruction="open the drawer and put the bowl in it")}
    policy = Policy(model, staged(), slots=2)
    for slot in looks:
        policy.reset(slot, slot)
    both = policy.act(looks)
    for slot, own in looks.items():
        assert np.allclose(both[slot], played(model, own, staged(), seed=slot)[0], atol=1e-5)


def test_noise_follows_the_episode_and_the_call_and_nothing_else():
    model, observation = ours(), look()
    policy = Policy(model, Dense, slots=2)
    for slot in (0, 1):
        policy.reset(slot, 5)
    first = policy.act({0: observation})[0]
    second = policy.act({0: observation, 1: observation})
    assert np.allclose(first, second[1], atol=1e-5) and not np.allclose(first, second[0], atol=1e-2)
    assert np.allclose(first, played(model, observation, seed=5)[0], atol=1e-6)
    assert not np.allclose(first, played(model, observation, seed=6)[0], atol=1e-2)


def test_reusing_keys_and_values_of_a_world_that_stands_still_changes_nothing():
    """The expert reads reused columns as it reads computed ones."""
    model, observation = ours(), look()
    reusing, dense = Policy(model, Reuser), Policy(model, Dense)
    for _ in range(2):
        acted = [policy.act({0: observation})[0] for policy in (reusing, dense)]
        assert np.allclose(*acted, atol=1e-5)
    assert reusing.drain(0)[1].visual == (16,) * 4 and reusing.drain(0)[1].columns == dense.drain(0)[1].columns
