"""OpenVLA-OFT at a reduced size: the sequence, the head's rows, pruning, the authors' answers, files and bad input."""

import math

import numpy as np
import pytest
import torch
from golden import prismatic as golden
from manifests import manifest
from test_meter import counted
from test_openvla import SMALL, look, publish, sessions, statistics

from vlaprune.benchmark import Observation
from vlaprune.methods.dense import Dense
from vlaprune.methods.fastv import FastV
from vlaprune.models.oft import OFT, PUBLISHED
from vlaprune.models.openvla import OpenVLA
from vlaprune.models.prismatic import STOP
from vlaprune.nn.decoder import NullHooks, Tokens
from vlaprune.nn.oft import MLPProjector, ResNet, Schedule, plain_weight_map
from vlaprune.policy import Policy
from vlaprune.pruner import Plan, QueryGroup, Selection
from vlaprune.testing import CheckedPruner

OPTIONS = {"weights": "random", "sizes": SMALL, "device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def model():
    return OFT(**OPTIONS)


def seen(shade=None, instruction="pick up the red cup", cameras=("primary", "wrist"), state=0.3, size=64):
    image = look(shade, instruction, size).images["primary"]
    images = {c: np.roll(image, 7 * i, 0) for i, c in enumerate(cameras)}
    return Observation(images, np.full(8, state), instruction)


# the authors' answers


def test_openvla_answers_as_the_authors_code_does(parity):
    rows = list(golden.openvla())
    assert len(rows) == 4
    for model, check, apart in rows:
        parity(model, f"dense: {check} of openvla/openvla, recorded", apart, 0.0, 2e-5)


def test_oft_answers_as_the_authors_code_does(parity):
    """Fifty passes one after the other turn a change of 1e-6 in the first noise into 5e-5, hence the wider bound."""
    rows = list(golden.oft())
    assert len(rows) == 10
    for model, check, apart in rows:
        what = f"dense: {check}, of moojink/openvla-oft, recorded"
        parity(model, what, apart, 0.0, 5e-4 if "DDIM" in check else 2e-5)


def test_the_schedule_equals_its_definition():
    """Step by step in numpy, from the cosine of the paper (arXiv:2102.09672) and DDIM's formula."""
    schedule, rng = Schedule(10), np.random.default_rng(0)
    bar = [np.cos((i / 50 + 0.008) / 1.008 * np.pi / 2) ** 2 for i in range(51)]
    alphas = np.cumprod([1 - min(1 - bar[i + 1] / bar[i], 0.999) for i in range(50)])
    assert schedule.steps == [45, 40, 35, 30, 25, 20, 15, 10, 5, 0]
    x, noise = rng.normal(size=(8, 7)), rng.normal(size=(8, 7))
    for step, before in ((45, alphas[40]), (5, alphas[0]), (0, 1.0)):
        clean = np.clip((x - np.sqrt(1 - alphas[step]) * noise) / np.sqrt(alphas[step]), -1, 1)
        expected = np.sqrt(before) * clean + np.sqrt(1 - before) * noise
        ours = schedule.back(torch.from_numpy(noise), step, torch.from_numpy(x))
        assert np.abs(ours.numpy() - expected).max() < 1e-4
    with pytest.raises(ValueError, match=r"steps=51; use 1..50"):
        Schedule(51)


# the sequence


def test_the_prompt_is_begin_visual_state_text_slots_stop(model):
    layout = model.layout(20)
    assert layout.visual == range(1, 33) and [v.camera for v in layout.views] == ["primary", "wrist"]
    assert layout.text == range(34, 53) and layout.length == 110 and layout.last == 109
    assert layout.action == range(layout.length - 57, layout.length - 1)  # [-57:-1] of VLA-Pruner and SAFE-Pruner
    assert OFT(**OPTIONS, state=None).layout(20).text.start == 33
    assert OFT(**OPTIONS, head="diffusion").layout(20).text.start == 35
    assert OFT(**OPTIONS, chunk=5, action=14).layout(20).length == 110 + 14


def prompt_of(model, observation):
    """The rows that enter the decoder."""
    heard = []
    hook = model.trunk.decoder.register_forward_pre_hook(lambda module, args: heard.append(args[0]))
    model.units([observation], sessions(model))
    hook.remove()
    return heard[0][0]


@torch.no_grad()
def test_slots_are_zeros_and_stop_keeps_its_embedding(model):
    hidden = prompt_of(model, seen()).hidden
    layout = model.layout(20)
    assert hidden[53:109].abs().max() == 0 and torch.equal(hidden[109], model.trunk.embedding.weight[STOP])
    assert torch.allclose(hidden[33], model.proprio_projector(torch.full((8,), 0.3)), atol=1e-6)
    assert hidden[layout.text.start : layout.text.stop].abs().min(1).values.max() > 0


@torch.no_grad()
@pytest.mark.parametrize("keep", [1.0, 0.25])
def test_the_head_reads_the_rows_of_the_lone_space_to_the_last_slot_but_one(model, keep):
    """Counted from the end, so that pruning before layer 2 does not move them; dropped keys hidden in a full run."""
    session = sessions(model, lambda: FastV(layer=2, keep=keep))[0]
    units = model.units([seen()], [session])[0]
    tokens, layout = prompt_of(model, seen()), session.trace.layout
    kept = set((session.trace.kept[2] + 1).tolist())
    assert len(kept) == 32 * keep

    class Hiding(NullHooks):
        def next_prune_layer(self, layer):
            return layer + 1

        def enter(self, layer, tokens):
            if layer < 2:
                return tokens
            bias = torch.zeros(len(tokens.index))
            bias[[i for i in layout.visual if i not in kept]] = float("-inf")
            return Tokens(tokens.hidden, tokens.index, None, bias)

    rows = model.trunk.decoder([tokens], [Hiding()])[0]
    speaks = rows[layout.action.start - 1 : layout.action.stop - 1]  # a row speaks for the slot behind it
    assert torch.allclose(model.action_head(speaks.reshape(8, 7 * 64)), units, atol=1e-5)


@torch.no_grad()
def test_everything_attends_to_everything(model):
    """The first slot's row changes with the last slot and the stop token behind it."""
    tokens = prompt_of(model, seen())
    moved = tokens.hidden.clone()
    moved[-1] += 1
    before, after = (model.trunk.decoder([Tokens(h, tokens.index)], [NullHooks()])[0] for h in (tokens.hidden, moved))
    assert (before[52] - after[52]).abs().max() > 1e-3


@torch.no_grad()
def test_images_state_and_instruction_reach_the_actions(model):
    base = model.units([seen(0)], sessions(model))[0]
    wrist = Observation({**seen(0).images, "wrist": seen(255).images["wrist"]}, seen().state, seen().instruction)
    for other in (seen(255), wrist, seen(0, state=-0.5), seen(0, "put the bowl down now")):
        assert (model.units([other], sessions(model))[0] - base).abs().max() > 0.01


@torch.no_grad()
def test_packed_calls_equal_single_ones(model):
    looks = [seen(), seen(90, "put the bowl on the plate now"), seen(200, "stop")]
    alone = [model.units([o], sessions(model))[0] for o in looks]
    for a, b in zip(alone, model.units(looks, sessions(model, count=3)), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@torch.no_grad()
def test_flops_of_the_whole_call_at_full_size():
    """8.72 TFLOP with two cameras and 26 text tokens, the specification's figure."""
    big = OFT("random", device="meta")
    session = sessions(big)[0]
    big.predict([seen(instruction="put the wine bottle on top of the cabinet now", size=256)], [session])
    record = session.finish()
    assert sum(record.flops.values()) == pytest.approx(8.72e12, rel=0.01) and record.decoded == 0


# diffusion


@torch.no_grad()
def test_every_step_of_diffusion_prunes_as_the_first(model):
    diffusing = OFT(**OPTIONS, head="diffusion", steps=5)
    session = sessions(diffusing, lambda: CheckedPruner(FastV(layer=2, keep=0.25)))[0]
    pruned = diffusing.units([seen()], [session])[0]
    record, dense = session.finish(), sessions(diffusing)[0]
    full = diffusing.units([seen()], [dense])[0]
    whole = dense.finish()
    assert record.visual == (32, 32, 8, 8, 8, 8) and whole.visual == (32,) * 6
    assert (pruned - full).abs().max() > 1e-3 and pruned.abs().max() <= 1
    one = sessions(diffusing)[0]
    single = OFT(**OPTIONS, head="diffusion", steps=1)
    single.units([seen()], [one])
    assert whole.flops["prompt"] == pytest.approx(5 * one.finish().flops["prompt"])
    assert len(session.pruner.kept) == 1 and record.flops["method"] < record.flops["prompt"] / 100


@pytest.mark.parametrize("make", [Dense, lambda: FastV(layer=2, keep=0.25)])
def test_a_call_of_diffusion_counts_what_torch_counts(make):
    """The state is projected anew in every step."""
    diffusing = OFT(**OPTIONS, head="diffusion", steps=3)
    total, (record,) = counted(Policy(diffusing, make), {0: seen()})
    assert sum(record.flops.values()) == total


@torch.no_grad()
def test_noise_is_a_function_of_seed_and_call(model):
    diffusing = OFT(**OPTIONS, head="diffusion", steps=2)
    session = sessions(diffusing)[0]
    first = diffusing.units([seen()], [session])[0]
    session.finish()
    second = diffusing.units([seen()], [session])[0]
    session.reset(0)
    assert not torch.equal(first, second) and torch.equal(first, diffusing.units([seen()], [session])[0])


@torch.no_grad()
def test_a_method_that_merges_inside_cannot_be_repeated(model):
    class Merger(FastV):
        def plan(self, info):
            return Plan((2,), {1: QueryGroup.LAST})

        def select(self, context):
            return Selection(torch.arange(4), values=context.visual[:4] * 2)

    diffusing = OFT(**OPTIONS, head="diffusion", steps=2)
    with pytest.raises(
        ValueError, match="puts new values in place of rows at layer 2, but this model passes its prompt"
    ):
        diffusing.units([seen()], sessions(diffusing, Merger))


# files


def test_head_and_projector_take_every_tensor_of_their_files():
    with torch.device("meta"):
        modules = {
            "oft_action_head": (ResNet(7 * 4096, 4096, 7), "model."),
            "oft_proprio_projector": (MLPProjector(8, 4096), ""),
        }
    for name, (module, prefix) in modules.items():
        pieces, own = plain_weight_map(module, prefix), dict(module.named_parameters())
        assert {k: p.shape(own[p.name]) for k, p in pieces.items()} == manifest(name)
    counts = [sum(math.prod(s) for s in manifest(name).values()) for name in modules]
    assert counts == [pytest.approx(151.1e6, rel=1e-3), pytest.approx(16.8e6, rel=2e-3)]


HEAD = "action_head--150000_checkpoint.pt"


def save_extras(model, folder, distributed=True):
    for name, prefix in (("action_head", "model."), ("proprio_projector", "")):
        outer = "module." if distributed else ""
        state = {f"{outer}{prefix}{k}": v.clone() for k, v in getattr(model, name).state_dict().items()}
        torch.save(state, folder / f"{name}--150000_checkpoint.pt")


def publish_oft(model, folder, distributed=True):
    proprio = {"q01": [-1.0] * 8, "q99": [3.0] * 8}
    norms = statistics()
    norms["libero_spatial_no_noops"]["proprio"] = proprio
    publish(model, folder, norms)
    save_extras(model, folder, distributed)
    return folder


def opened(folder, **options):
    return OFT(**{"suite": "libero_spatial", **OPTIONS, "weights": str(folder), **options})


@torch.no_grad()
@pytest.mark.parametrize("distributed", [True, False])
def test_a_published_folder_loads_trunk_head_projector_and_statistics(model, tmp_path, distributed):
    ours = opened(publish_oft(model, tmp_path, distributed))
    for name in ("action_head", "proprio_projector"):
        for a, b in zip(getattr(ours, name).parameters(), getattr(model, name).parameters(), strict=True):
            assert torch.equal(a, b)
    torch.save({k: v * 2 for k, v in torch.load(tmp_path / HEAD).items()}, tmp_path / HEAD)
    assert len(ours.card["sha256"]) == 64 and opened(tmp_path).card["sha256"] != ours.card["sha256"]
    assert torch.allclose(ours._states([seen(state=0.5)]), torch.full((1, 8), -0.25))
    assert torch.allclose(ours._states([seen(state=9.0)]), torch.ones(1, 8))  # clipped
    unit, action = ours.units([seen()], sessions(ours))[0], ours.predict([seen()], sessions(ours))[0]
    assert torch.allclose(action[:, :6].float(), (unit[:, :6] + 1) / 2 * 0.75 - 0.5, atol=1e-6)
    assert torch.equal(action[:, 6].float(), unit[:, 6])


def test_a_policy_with_film_or_of_another_head_is_refused(model, tmp_path):
    """It was evaluated without FiLM, and OpenVLA took this folder without a word."""
    publish_oft(model, tmp_path)
    options = {**OPTIONS, "weights": str(tmp_path), "suite": "libero_spatial"}
    with pytest.raises(ValueError, match="which openvla does not read; they are OpenVLA-OFT's: use model=oft"):
        OpenVLA(**options)
    with pytest.raises(ValueError, match=r"proprio_projector--.*use model=oft model.state=eef_pos3"):
        OFT(**options, state=None)
    (tmp_path / "vision_backbone--150000_checkpoint.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"FiLM layers of OpenVLA-OFT\+, which is not implemented"):
        OFT(**options)


def test_missing_or_double_extras_are_named_before_the_weights_are_read(model, tmp_path):
    publish_oft(model, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "action_head--150000_checkpoint.pt").rename(tmp_path / "head.old")
    with pytest.raises(ValueError, match=r"has no action_head--\*_checkpoint.pt; oft needs exactly one"):
        opened(tmp_path)
    save_extras(model, tmp_path)
    torch.save({}, tmp_path / "proprio_projector--2_checkpoint.pt")
    with pytest.raises(ValueError, match=r"has \['proprio_projector--150000_checkpoint.pt', 'proprio_projector--2_"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"head": "film"}, "head=film; use one of l1, tokens, diffusion"),
        ({"head": "diffusion"}, r"has no noisy_action_projector--"),
        ({"cameras": []}, "name one to three different ones"),
        ({"cameras": ["primary", "primary"]}, "name one to three different ones"),
        ({"state": "joints7"}, r"proprio.q01 is .* the model needs 7 finite numbers"),
        ({"unnorm": "bridge_orig"}, r"bridge_orig.proprio lacks q01/q99; it has None"),
        ({"action": 14}, r"action=14: such checkpoints \(ALOHA's\) scale actions by min and max"),
        ({"chunk": 0}, "chunk=0 action=7; use at least 1 of each"),
        ({"state": "eef"}, "state=eef names no sizes; use a name such as"),
        ({"device": "cud"}, "model.device=cud is no device; use auto, cpu, cuda"),
    ],
)
def test_options_that_do_not_fit_are_named(model, tmp_path, options, said):
    with pytest.raises(ValueError, match=said) as caught:
        opened(publish_oft(model, tmp_path), **options)
    assert "\n" not in str(caught.value)


def test_published_names_follow_the_suite():
    assert PUBLISHED["libero_goal"] == "moojink/openvla-7b-oft-finetuned-libero-goal"
    with pytest.raises(ValueError, match=r"published weights for the suites libero_spatial.*, not libero_90"):
        OFT(suite="libero_90")


@pytest.mark.parametrize("state", [None, np.zeros(7), np.full(8, np.nan)])
def test_a_state_that_is_missing_short_or_not_finite_is_refused(model, state):
    with pytest.raises(ValueError, match="oft reads 8 finite numbers"):
        model.units([Observation(seen().images, state, "x")], sessions(model))
