"""OFT is tuned with adapters from LIBERO's files: what is trained, saved, merged, and gone on with bit for bit."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from test_demos_formats import HDF5, RLDS, WORDS, episode, write_hdf5, write_rlds
from test_oft import OPTIONS, seen
from test_train import RECIPE, Stopped, stop_at
from torch import nn

from vlaprune import cli, config
from vlaprune.benchmark import Interface, Task
from vlaprune.methods.dense import Dense
from vlaprune.methods.lightvla import LightVLA
from vlaprune.models.oft import OFT
from vlaprune.nn.load import read, save, trainable_state
from vlaprune.nn.lora import LoRA, add_adapters, merge
from vlaprune.policy import Policy
from vlaprune.training.cloning import match_interface
from vlaprune.training.trainer import Frames, Trainer
from vlaprune.training.tuning import Student, Tuning, add_lora

STEPS = replace(RECIPE, steps=4, save_every=2, batch=2, shift=0)


def policy(**options):
    return OFT(**{**OPTIONS, "chunk": 2, **options})


def frames(model, number=4):
    rng = np.random.default_rng(0)
    rows = [model.words(text) for text in ("lift the cube", "lift the red cube")]
    words = np.array([row + [0] * (len(rows[1]) - len(row)) for row in rows])
    return Frames(
        rng.integers(0, 255, (number, 2, 64, 64, 3), dtype=np.uint8),
        rng.uniform(-1, 1, (number, 8)).astype(np.float32),
        words[np.arange(number) % 2],
        rng.uniform(-1, 1, (number, 2, 7)).astype(np.float32),
        np.full((number, 4), np.nan, np.float32),
        np.arange(number) % 2,
    )


def batch(model, number=2):
    return frames(model, number).batch(np.random.default_rng(0), number, 0)


def tuned(**options):
    model = policy(**options)
    said = add_lora(model, 4, 16, 7)
    return model, said


def trainer(folder, method=LightVLA):
    model, _ = tuned()
    student = Student(model, method(), Tuning(), STEPS.steps, 7)
    return Trainer(student, frames(model), STEPS, folder, student.loss, "these")


def stirred(model):
    """As after training: B is no longer zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.05 * torch.randn(p.shape, generator=generator)
    return model


# the adapters


def test_nothing_changes_before_training_and_the_sum_is_the_formula_after():
    generator, layer, x = torch.Generator().manual_seed(0), nn.Linear(6, 10), torch.randn(3, 6)
    lora = LoRA(layer, 2, 16, (4, 6), generator)
    assert torch.equal(lora(x), layer(x))
    with torch.no_grad():
        [b.normal_() for b in lora.b]
    expected = layer(x) + 8 * torch.cat((x @ lora.a[:2].T @ lora.b[0].T, x @ lora.a[2:].T @ lora.b[1].T), 1)
    assert torch.allclose(lora(x), expected, atol=1e-5)
    assert torch.allclose(lora.merged()(x), expected, atol=1e-5)


def test_fused_rows_have_pairs_of_their_own_and_the_output_layer_has_none():
    model = policy()
    layers = sum(isinstance(m, nn.Linear) for m in model.trunk.modules())
    add_adapters(model.trunk, 4, 16)
    adapters = {n: m for n, m in model.trunk.named_modules() if isinstance(m, LoRA)}
    assert len(adapters) == layers - 1 and "head" not in adapters
    width, ffn = model.decoder.config.hidden_size, model.decoder.config.intermediate_size
    block = model.trunk.decoder.blocks[0]
    assert [tuple(b.shape) for b in block.qkv.b] == [(width, 4)] * 3 and block.qkv.a.shape == (12, width)
    assert [tuple(b.shape) for b in block.gate_up.b] == [(ffn, 4)] * 2
    assert len(model.trunk.vision.dino.blocks[0].qkv.b) == 1  # one layer in the authors' tower, too


def test_a_is_drawn_as_peft_draws_its_gaussian_ones():
    model = nn.Sequential(nn.Linear(512, 64))
    add_adapters(model, 32, 16)
    a = model[0].a.detach()
    assert float(a.std()) == pytest.approx(1 / 32, rel=0.03) and a.mean().abs() < 1e-3
    assert not any(b.any() for b in model[0].b) and model[0].scale == 0.5


def test_merged_adapters_answer_as_they_did_beside_and_leave_the_module_as_it_was_made():
    model = stirred(tuned()[0])
    names = set(policy().state_dict())
    sight = [seen()]
    before = Policy(model, Dense).act({0: sight[0]})[0]
    merge(model.trunk)
    assert set(model.state_dict()) == names
    assert np.abs(Policy(model, Dense).act({0: sight[0]})[0] - before).max() < 1e-4


def test_what_is_frozen_gets_no_gradient_and_is_in_no_file(tmp_path):
    model, _ = tuned()
    model.train_loss(*batch(model)).backward()
    names = set(trainable_state(model))
    assert {n for n, p in model.named_parameters() if p.grad is not None} == names
    assert all(".a" in n or ".b." in n for n in names if n.startswith("trunk"))
    assert {n.split(".")[0] for n in names} == {"trunk", "action_head", "proprio_projector"}
    save(tmp_path / "x.safetensors", model, {})
    assert set(read(tmp_path / "x.safetensors")[0]) == names


# the loss


def test_the_loss_is_the_mean_absolute_error_of_what_the_policy_would_say():
    model = policy()
    shown = frames(model, 1)
    observation = replace(seen(), state=shown.state[0].astype(float), instruction="lift the cube")
    observation.images.update(primary=shown.images[0, 0], wrist=shown.images[0, 1])
    said = Policy(model, Dense).act({0: observation})[0]
    loss = model.train_loss(*shown.batch(np.random.default_rng(0), 1, 0))
    assert float(loss.detach()) == pytest.approx(np.abs(said - shown.labels[0].clip(-1, 1)).mean(), abs=1e-5)


def test_labels_and_states_are_scaled_by_the_statistics_of_the_weights():
    model = policy()
    images, state, words, labels, hints = batch(model)
    plain = model.train_loss(images, state, words, labels, hints)
    for span in (model._range, model._proprio):
        span.mask[:] = True
        span.low[:], span.high[:] = 1.0, 3.0
    assert torch.allclose(model.train_loss(images, state + 2, words, labels + 2, hints), plain, atol=1e-5)


def test_sessions_that_keep_everything_change_nothing_and_others_are_asked():
    model = policy()
    student = Student(model, Dense(), Tuning(), 4, 7)
    data = batch(model)
    assert torch.allclose(student.loss(0, *data), model.train_loss(*data), atol=1e-6)
    student = Student(model, LightVLA(), Tuning(schedule="none"), 4, 7)
    student.loss(0, *data).backward()
    session = student._sessions[0]
    assert len(session.trace.kept[0]) == 32 > len(set(session.trace.kept[0].tolist()))  # duplicates, full length
    assert all(p.grad.abs().sum() > 0 for p in model.trunk.projector.parameters())


@pytest.mark.parametrize("autocast", [False, True])
def test_adapters_beside_a_trunk_in_bf16_are_trained_in_fp32(autocast):
    model, _ = tuned(dtype="bfloat16")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = Student(model, LightVLA(), Tuning(), 4, 7).loss(0, *batch(model))
    loss.backward()
    assert loss.isfinite() and model.trunk.embedding.weight.dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    assert np.isfinite(Policy(model, LightVLA).act({0: seen()})[0]).all()


def test_a_head_that_is_not_trained_here_is_refused():
    model = policy(head="tokens")
    with pytest.raises(ValueError, match=r"oft with head=tokens is not trained here; use model.head=l1"):
        model.train_loss(*batch(model))


# the run


@pytest.mark.parametrize("stop", [1, 3])
def test_a_tuning_with_adapters_goes_on_bit_for_bit_and_its_checkpoint_has_nothing_frozen(tmp_path, stop):
    whole, cut = trainer(tmp_path / "whole"), trainer(tmp_path / "cut")
    expected = {k: v.clone() for k, v in whole.run().items()}
    with pytest.raises(Stopped):
        cut.run(stop_at(stop))
    resumed = trainer(tmp_path / "cut")
    assert resumed.step == stop // 2 * 2
    found = resumed.run()
    assert resumed.losses == whole.losses and all(torch.equal(found[k], expected[k]) for k in expected)
    saved = torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)
    frozen = {n for n, p in resumed.model.named_parameters() if not p.requires_grad}
    assert frozen and not frozen & {*saved["model"], *saved["average"]}
    assert any(v.any() for k, v in found.items() if ".b." in k)


def test_a_checkpoint_of_other_weights_is_refused_in_one_line(tmp_path):
    trainer(tmp_path).run(lambda *_: None)
    model, _ = tuned()
    student = Student(model, LightVLA(), Tuning(), STEPS.steps, 7)
    with pytest.raises(
        ValueError, match="training that began with these; now it is those; use the same settings"
    ) as error:
        Trainer(student, frames(model), STEPS, tmp_path, student.loss, "those")
    assert "\n" not in str(error.value)


def test_adapters_come_back_and_other_weights_refuse_them(tmp_path):
    model, said = tuned()
    path = tmp_path / "adapter.safetensors"
    save(path, stirred(model), {"lora": said})
    again = policy(adapter=str(path))
    expected, found = (Policy(m, Dense).act({0: seen()})[0] for m in (model, again))
    assert np.abs(found - expected).max() < 1e-4
    assert np.abs(Policy(policy(), Dense).act({0: seen()})[0] - expected).max() > 1e-3
    assert again.card["adapter"] == str(path) and again.card["sha256"] and "adapter" not in policy().card
    with pytest.raises(
        ValueError, match=r"were trained on weights random, seed 0, but these are random, seed 1"
    ) as one:
        policy(adapter=str(path), seed=1)
    save(tmp_path / "other.safetensors", model, {})
    with pytest.raises(ValueError, match=r"other\.safetensors are no adapters; give them as model.weights") as two:
        policy(adapter=str(tmp_path / "other.safetensors"))
    with pytest.raises(ValueError, match="do not fit OFT") as three:
        policy(adapter=str(path), sizes={**OPTIONS["sizes"], "layers": 1})
    assert not any("\n" in str(e.value) for e in (one, two, three))


def test_a_model_without_a_trunk_and_a_rank_below_zero_are_refused():
    with pytest.raises(ValueError, match=r"model x has no trunk for LoRA; set tuning.lora.rank=0"):
        add_lora(SimpleNamespace(info=SimpleNamespace(name="x")), 4, 16, 7)
    with pytest.raises(ValueError, match=r"tuning.lora.rank=-1; use 0"):
        Tuning(lora={"rank": -1, "alpha": 16})


def test_demonstrations_are_brought_to_what_the_model_reads():
    world = Interface("axis_angle", "close_positive", "delta", ("primary", "wrist"), None)
    images, _, actions = episode()
    arrays = {"images": images, "labels": actions[:, None]}
    found = match_interface(arrays, world, replace(world, cameras=("wrist",), gripper="zero_one"))
    assert np.array_equal(found["images"], images[:, [1]])
    assert np.array_equal(found["labels"][..., -1], (1 - actions[:, None, -1]) / 2)
    with pytest.raises(ValueError, match=r"demonstrations lack cameras \['front'\]"):
        match_interface(arrays, world, replace(world, cameras=("front",)))


# the command


@pytest.fixture
def train():
    config.prepare()
    with initialize_config_dir(config.config_path(), version_base="1.3"):

        def call(*overrides):
            cfg = compose("train", [*overrides], return_hydra_config=True)
            HydraConfig.instance().set_config(cfg)
            cli._train(cfg)

        yield call


SIZES = ",".join(f"{key}:{value}" for key, value in OPTIONS["sizes"].items())


@pytest.mark.parametrize(("name", "write"), [(HDF5, write_hdf5), (RLDS, write_rlds)])
def test_the_whole_command_leaves_adapters_and_a_curve(tmp_path, monkeypatch, train, name, write, capsys):
    monkeypatch.setattr("vlaprune.bench.libero.Libero.tasks", lambda self: [Task("x", WORDS, 10, 2)])
    write(tmp_path / "data" / name, [episode(0), episode(1)])
    lightvla = ("model=oft_tiny", f"+model.sizes={{{SIZES}}}", "model.chunk=4", "method=lightvla", "bench=libero")
    where = (f"data={tmp_path}/data", f"output={tmp_path}/out", "teaching.every=2", "recipe.bf16=false")
    short = ("tuning.recipe.steps=4", "recipe.batch=4", "tuning.probe=2", "tuning.recipe.save_every=2")
    command = (*lightvla, *where, *short, "tuning.weights=random", "tuning.lora.rank=4")
    train(*command)
    path = tmp_path / "out" / "adapter.safetensors"
    state, card = read(path)
    assert card["lora"] == {"rank": 4, "alpha": 16, "weights": "random, seed 0"} and card["method"] == "LightVLA"
    assert any(".b." in key for key in state) and not any(key.endswith("layer.weight") for key in state)
    curve = (tmp_path / "out" / "curve.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in curve] == ["step", "0", "2", "4"]
    rows = [row.split(",") for row in (tmp_path / "out" / "kept.csv").read_text().splitlines()[1:]]
    assert {row[0] for row in rows} == {WORDS} and all(1 <= float(row[4]) <= 16 for row in rows)
    assert f"model.adapter={path}" in capsys.readouterr().out
    model = policy(chunk=4, adapter=str(path))
    assert np.isfinite(Policy(model, LightVLA).act({0: seen()})[0]).all()
    shutil.copy(tmp_path / "out" / "checkpoint.pt", tmp_path / "kept.pt")
    train(*command)  # done already
    assert (tmp_path / "kept.pt").read_bytes() == (tmp_path / "out" / "checkpoint.pt").read_bytes()


def test_demonstrations_of_another_suite_are_refused_in_one_line(tmp_path, train):
    write_hdf5(tmp_path / "data" / HDF5, [episode()], "dance")
    with pytest.raises(
        ValueError, match=r"demonstrates \['dance'\], no task of bench libero; set bench.suite"
    ) as error:
        train(
            *("model=oft_tiny", "method=lightvla", "bench=libero", "tuning.weights=random", "tuning.lora.rank=4"),
            *(f"data={tmp_path}/data", f"output={tmp_path}/out"),
        )
    assert "\n" not in str(error.value)
