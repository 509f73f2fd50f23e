"""Training goes on bit for bit where it stopped; weights come in strictly and are never unpickled."""

import os
import pickle
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from doubles import Scripted
from omegaconf import OmegaConf
from safetensors.torch import save_file

from vlaprune.bench.toy import Toy
from vlaprune.benchmark import Task
from vlaprune.control import Control
from vlaprune.errors import UserError
from vlaprune.methods.dense import Dense
from vlaprune.models.tiny import Tiny
from vlaprune.models.toy import Toy as ToyModel
from vlaprune.nn.load import fill, read, save
from vlaprune.policy import Policy, episode_seed
from vlaprune.pruner import Plan
from vlaprune.training import demos
from vlaprune.training.cloning import Subject, Teaching, main, record_corrections, teaching
from vlaprune.training.trainer import Frames, Recipe, Trainer, quantiles, rate
from vlaprune.training.trainer import frames as frames_of

RECIPE = Recipe(steps=12, batch=4, lr=3e-3, shift=2, bf16=False, save_every=5)


def model(seed=0, **sizes):
    torch.manual_seed(seed)
    return Tiny(
        "random",
        ("a",),
        **{
            "width": 32,
            "layers": 2,
            "heads": 1,
            "vision_width": 32,
            "vision_layers": 1,
            "image": 32,
            "chunk": 2,
            "device": "cpu",
            **sizes,
        },
    )


def frames(count=8):
    rng = np.random.default_rng(0)
    return Frames(
        rng.integers(0, 255, (count, 1, 32, 32, 3), dtype=np.uint8),
        rng.uniform(-1, 1, (count, 8)).astype(np.float32),
        rng.integers(0, 5, (count, 12)),
        rng.uniform(-1, 1, (count, 2, 7)).astype(np.float32),
        np.full((count, 4), 0.1, np.float32),
        np.arange(count) % 2,
    )


class Stopped(Exception):
    pass


class Still:
    """A world in which nothing happens; it can be looked at and stepped, and no more."""

    name = "still"

    def tasks(self):
        return [Task("wait", "wait", max_steps=1, episodes=1)]

    @contextmanager
    def open(self, task):
        yield self

    def reset(self, episode):
        pass

    def observe(self):
        raise AssertionError("looked at before it was checked")

    def step(self, action):
        return False


class Told(Still):
    """The same, which tells where its objects are."""

    def hint(self):
        return np.zeros(4, np.float32)


@pytest.mark.parametrize(
    ("world", "match"),
    [(Still(), "does not tell where its objects are"), (Told(), "cannot go back.*set teaching.rewind=false")],
)
def test_a_world_that_cannot_show_what_is_learnt_from_is_refused_in_one_line(world, match, tmp_path):
    with pytest.raises(UserError, match=match):
        demos.record(world, world.tasks()[0], [0], tmp_path)


class Taught(Toy):
    """The toy world with an expert, who stands still."""

    @contextmanager
    def open(self, task):
        with super().open(task) as env:
            env.hint = lambda: np.zeros(4, np.float32)
            yield env

    def expert(self, env):
        return lambda: np.zeros(7)


def test_an_episode_that_ends_before_its_first_frame_is_refused_in_one_line(tmp_path):
    class Short(Taught):
        """Done with the first step."""

        @contextmanager
        def open(self, task):
            with super().open(task) as env:
                env.step = lambda action: True
                yield env

    world = Short()
    with pytest.raises(UserError, match=r"before its first frame; lower teaching\.every"):
        demos.record(world, world.tasks()[0], range(3), tmp_path, every=1000, rewind=False)


class Endless(Taught):
    """A world in which every step takes a second, and which says which process is in it."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    @contextmanager
    def open(self, task):
        with super().open(task) as env:
            env.step = lambda action: time.sleep(1)
            (self.folder / str(os.getpid())).touch()
            yield env


RECORD = """
import sys
from pathlib import Path
from test_train import Endless
from vlaprune.training import demos
folder = Path(sys.argv[1])
tasks = Endless(folder).tasks()
plan = [demos.DemoJob(task.name, 0, 0.0) for task in tasks]
demos.collect(Endless(folder), plan, folder / "demos", 2, demos.Style(rewind=False))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's promise is Linux's")
def test_processes_that_record_end_with_the_one_that_started_them(tmp_path):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    with subprocess.Popen([sys.executable, "-c", RECORD, str(tmp_path)], env=env) as training:
        try:
            assert eventually(lambda: len(list(tmp_path.iterdir())) == 2, 60)
        finally:
            training.kill()
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert eventually(lambda: not any(map(running, workers)), 10)


def eventually(holds, seconds):
    """Whether something comes true within some seconds."""
    end = time.monotonic() + seconds
    while not (true := holds()) and time.monotonic() < end:
        time.sleep(0.05)
    return true


def running(pid):
    """Whether a process exists and has not ended, waiting for somebody to ask how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_a_policy_draws_in_corrections_is_fixed_by_seed_task_and_episode(tmp_path):
    drawn, bench = {}, Taught()
    plan = Teaching(episodes=1, first=100, every=1, corrections=2, beta=0.0, rewind=False)
    for seed in (7, 8):
        seeds = drawn.setdefault(seed, [])
        pruner = Scripted(Plan((0,)), lambda context, seeds=seeds: seeds.append(context.seed))
        policy = Policy(ToyModel(), lambda p=pruner: p)
        record_corrections(bench, plan, tmp_path / str(seed), policy, 1, seed, f"policy {seed}", "")
    expected = [episode_seed(7, task.name, episode) for task in bench.tasks() for episode in (101, 102)]
    assert list(dict.fromkeys(drawn[7])) == expected and not {*drawn[7]} & {*drawn[8]}


def test_corrections_of_another_policy_are_met_before_anything_is_recorded_or_trained(tmp_path):
    bench, place = Taught(), tmp_path / "data" / "corrections1"
    whole = OmegaConf.load("configs/train.yaml")
    whole.pop("defaults"), whole.pop("hydra")
    asked = {"episodes": 1, "every": 5, "rewind": False, "corrections": 1, "workers": 1, "weights": {}}
    paths = {"data": str(tmp_path / "data"), "output": str(tmp_path / "out")}
    cfg = OmegaConf.merge(whole, {"teaching": asked, **paths})
    number = teaching(cfg).corrected("reach-red", 1)
    how = {"every": 5, "chunk": 2, "rewind": False, "beta": cfg.teaching.beta}
    demos.record(bench, bench.tasks()[0], number, place, by="policy 123", **how)
    identity = {"model": {"name": "tiny"}, "method": {"name": "dense"}, "bench": {"name": "toy"}}
    with pytest.raises(UserError, match=r"by policy 123, now .* or another data=, or remove .*corrections1") as error:
        main(cfg, Subject(bench, model, Dense, Control(), identity, []))
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists() and not (tmp_path / "data/demos").exists()


def stop_at(number):
    def progress(step, loss):
        if step == number:
            raise Stopped

    return progress


def test_the_loss_falls(tmp_path):
    trainer = Trainer(model(), frames(2), replace(RECIPE, steps=60, save_every=60, shift=0), tmp_path)
    trainer.run()
    assert np.mean(trainer.losses[-5:]) < 0.6 * np.mean(trainer.losses[:5])


def test_in_a_short_training_the_random_initial_weights_do_not_count(tmp_path):
    """With a decay of 0.998 alone, 40 steps would leave 92 % of them in the average."""
    trainer = Trainer(model(), frames(), replace(RECIPE, steps=40, save_every=40), tmp_path)
    first, last = {k: v.clone() for k, v in trainer.average.items()}, {}
    average = trainer.run(lambda step, loss: last.update({k: v.clone() for k, v in trainer.model.state_dict().items()}))
    moved = [name for name in average if not torch.equal(first[name], last[name])]
    new, old = (sum(float((average[n] - other[n]).norm()) for n in moved) for other in (last, first))
    assert moved and new < old


@pytest.mark.parametrize("scale", [1e6, 1e-6])
def test_no_step_is_taken_with_gradients_longer_than_one(tmp_path, scale):
    learner, lengths = model(), []
    trainer = Trainer(learner, frames(), RECIPE, tmp_path, lambda step, *batch: scale * learner.train_loss(*batch))

    def measure(*_):
        lengths.append(float(torch.cat([p.grad.flatten() for p in learner.parameters() if p.grad is not None]).norm()))

    trainer.optimiser.register_step_pre_hook(measure)
    trainer.run()
    assert len(lengths) == RECIPE.steps
    # long ones are shortened to it, short ones stay
    assert lengths == pytest.approx([1.0] * RECIPE.steps, abs=1e-3) if scale > 1 else 0 < max(lengths) < 1e-3


def test_decay_shrinks_matrices_and_leaves_vectors(tmp_path):
    """Without a gradient nothing else moves a weight."""
    learner, after = model(), {}
    before = {name: p.detach().clone() for name, p in learner.named_parameters()}
    recipe = replace(RECIPE, steps=1, lr=0.1, decay=1.0)
    still = lambda step, *batch: 0.0 * sum(p.sum() for p in learner.parameters())  # noqa: E731
    seen = lambda step, loss: after.update({n: p.detach().clone() for n, p in learner.named_parameters()})  # noqa: E731
    Trainer(learner, frames(), recipe, tmp_path, still).run(seen)
    assert {p.ndim for p in before.values()} >= {1, 2}
    for name, old in before.items():
        assert torch.allclose(after[name], (0.9 if old.ndim > 1 else 1.0) * old), name


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("stop", [3, 7, 12])  # before the first checkpoint, between two, just before the last
def test_a_run_that_was_stopped_equals_one_that_was_not_bit_for_bit(tmp_path, stop, bf16):
    recipe = replace(RECIPE, bf16=bf16)
    whole = Trainer(model(), frames(), recipe, tmp_path / "whole")
    expected = {k: v.clone() for k, v in whole.run().items()}
    with pytest.raises(Stopped):
        Trainer(model(), frames(), recipe, tmp_path / "cut").run(stop_at(stop))
    resumed = Trainer(model(), frames(), recipe, tmp_path / "cut")
    assert resumed.step == stop // 5 * 5
    found = resumed.run()
    assert resumed.losses == whole.losses
    assert all(torch.equal(found[k], expected[k]) for k in expected)
    assert all(torch.equal(v, expected[k]) for k, v in resumed.model.state_dict().items())


@pytest.mark.gpu
def test_a_run_that_was_stopped_goes_on_on_the_device(tmp_path):
    with pytest.raises(Stopped):
        Trainer(model(device="cuda"), frames(), RECIPE, tmp_path).run(stop_at(7))
    found = Trainer(model(device="cuda"), frames(), RECIPE, tmp_path).run()
    assert {tensor.device.type for tensor in found.values()} == {"cuda"}


def test_every_step_draws_a_batch_of_its_own(tmp_path, monkeypatch):
    drawn, batch = [], Frames.batch
    monkeypatch.setattr(Frames, "batch", lambda *args: drawn.append(batch(*args)) or drawn[-1])
    Trainer(model(), frames(), replace(RECIPE, steps=4), tmp_path).run()
    assert len({tuple(state.flatten().tolist()) for _, state, *_ in drawn}) == 4


def test_a_finished_run_is_not_trained_again(tmp_path):
    expected = {k: v.clone() for k, v in Trainer(model(), frames(), RECIPE, tmp_path).run().items()}
    again = Trainer(model(seed=1), frames(), RECIPE, tmp_path)
    assert again.step == 12 and all(torch.equal(v, expected[k]) for k, v in again.run(stop_at(1)).items())


@pytest.mark.parametrize("damage", [lambda raw: b"", lambda raw: raw[: len(raw) // 2], lambda raw: b"not a checkpoint"])
def test_a_corrupt_checkpoint_is_refused_in_one_line(tmp_path, damage):
    Trainer(model(), frames(), replace(RECIPE, steps=1), tmp_path).run()
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"checkpoint\.pt cannot be read .*; delete it to start anew") as error:
        Trainer(model(), frames(), replace(RECIPE, steps=1), tmp_path)
    assert "\n" not in str(error.value)


def test_another_recipe_is_refused_in_one_line(tmp_path):
    Trainer(model(), frames(), replace(RECIPE, steps=1), tmp_path).run()
    with pytest.raises(ValueError, match="use the same settings, or another output=") as error:
        Trainer(model(), frames(), replace(RECIPE, steps=1, lr=1.0), tmp_path)
    assert "\n" not in str(error.value)


def test_another_model_is_refused_in_one_line(tmp_path):
    Trainer(model(), frames(), replace(RECIPE, steps=1), tmp_path).run()
    with pytest.raises(ValueError, match=r"checkpoint\.pt") as error:
        Trainer(model(layers=3), frames(), replace(RECIPE, steps=1), tmp_path)
    assert "\n" not in str(error.value)


def test_a_loss_that_is_none_ends_the_run(tmp_path):
    data = frames()
    data.labels[:] = np.nan
    with pytest.raises(ValueError, match="loss is nan at step 0; lower lr"):
        Trainer(model(), data, RECIPE, tmp_path).run()


@pytest.mark.parametrize("share", [None, [0.8, 0.2], [0.0, 1.0]])
def test_batches_hold_the_share_of_each_task_and_depend_on_the_step_alone(share):
    data = replace(frames(100), task=np.repeat([0, 1], [90, 10]), share=share and np.array(share))
    data.state[:] = data.task[:, None]
    _, state, *_ = data.batch(np.random.default_rng(0), 2000, 0)
    assert state.mean() == pytest.approx(share[1] if share else 0.5, abs=0.05)
    one, two = (data.batch(np.random.default_rng((7, 3)), 8, 2) for _ in "ab")
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_shift_moves_the_picture_and_repeats_its_edges():
    data = frames(1)
    images, *_ = data.batch(np.random.default_rng(1), 64, 3)
    assert images.shape == (64, 1, 32, 32, 3) and images.dtype == torch.uint8
    original = torch.from_numpy(data.images[0, 0])
    padded = (
        torch.nn.functional.pad(original.permute(2, 0, 1).float(), [3] * 4, mode="replicate").byte().permute(1, 2, 0)
    )
    windows = [padded[y : y + 32, x : x + 32] for y in range(7) for x in range(7)]
    found = {next(i for i, w in enumerate(windows) if torch.equal(w, image)) for image in images[:, 0]}
    assert len(found) > 20


def test_the_rate_warms_up_and_falls_to_a_hundredth():
    recipe = replace(RECIPE, steps=200)
    rates = [rate(step, recipe) for step in range(200)]
    assert rates[:6] == sorted(rates[:6]) and max(rates) == 1 and rates[6:] == sorted(rates[6:], reverse=True)
    assert rates[-1] == pytest.approx(0.01, abs=0.001)


def test_quantiles_stay_apart():
    low, high = quantiles(np.stack((np.linspace(0, 1, 101), np.zeros(101)), 1))
    assert low.tolist() == pytest.approx([0.01, 0]) and high.tolist() == pytest.approx([0.99, 0.001])


# weights in and out


def test_weights_and_card_come_back_as_they_went(tmp_path):
    path, one, two = tmp_path / "w.safetensors", model(0), model(1)
    save(path, one, {"seed": 7, "success": {"Lift": 0.9}})
    state, card = read(path)
    assert card["seed"] == 7 and card["success"] == {"Lift": 0.9}
    fill(two, state, str(path))
    assert all(torch.equal(v, one.state_dict()[k]) for k, v in two.state_dict().items())
    loaded = Tiny(str(path), ("a",), 32, 2, 1, 32, 1, 32, 2, device="cpu")
    assert all(torch.equal(v, one.state_dict()[k]) for k, v in loaded.state_dict().items()) and loaded.card["seed"] == 7


def test_half_precision_halves_the_file_and_comes_back_in_full(tmp_path):
    one, two = model(0), model(1)
    for dtype in (torch.float32, torch.float16):
        save(tmp_path / str(dtype), one, {}, dtype)
    assert (tmp_path / "torch.float16").stat().st_size < 0.6 * (tmp_path / "torch.float32").stat().st_size
    fill(two, read(tmp_path / "torch.float16")[0], "it")
    assert all(v.dtype == torch.float32 for v in two.state_dict().values())
    assert all(torch.allclose(v, one.state_dict()[k], atol=2e-3) for k, v in two.state_dict().items())


def test_saving_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save(path, model(0), {"is": "old"})
    monkeypatch.setattr("safetensors.torch.save_file", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save(path, model(1), {"is": "new"})
    assert read(path)[1]["is"] == "old"


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_never_executes(tmp_path):
    fuse = tmp_path / "executed"
    for name in ("weights.safetensors", "checkpoint.pt"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb(fuse)))
    with pytest.raises(ValueError, match="the file is damaged or no safetensors file"):
        read(tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="cannot be read"):
        Trainer(model(), frames(), RECIPE, tmp_path)
    torch.save({"recipe": Bomb(fuse)}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="cannot be read"):
        Trainer(model(), frames(), RECIPE, tmp_path)
    assert not fuse.exists()


def write_foreign(path):
    save_file({"a": torch.zeros(2)}, path)


def write_cut(path):
    save(path, model(), {})
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (lambda path: None, "do not exist; give a .safetensors file, or `random`"),
        (lambda path: path.write_bytes(b""), "damaged or no safetensors file"),
        (lambda path: path.write_bytes(b"\xff" * 1000), "damaged or no safetensors file"),
        (write_cut, "damaged or no safetensors file"),
        (write_foreign, "carry no vlaprune card; they were not written by vlaprune-train"),
        (lambda path: save_file({}, path, {"vlaprune": "[1"}), "cannot be read"),
        (lambda path: save_file({}, path, {"vlaprune": "[1]"}), "carry no vlaprune card"),
    ],
)
def test_a_file_that_is_not_ours_is_refused_in_one_line(tmp_path, write, match):
    path = tmp_path / "w.safetensors"
    write(path)
    with pytest.raises(ValueError, match=match) as error:
        read(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_weights_of_another_shape_are_refused_with_what_is_wrong(tmp_path):
    state = model().state_dict()
    with pytest.raises(ValueError, match=r"do not fit Tiny: lacks \['decoder.blocks.2"):
        fill(model(layers=3), state, "it")
    with pytest.raises(
        ValueError, match=r"has foreign \['decoder.blocks.1.*has wrong shapes \['slot \(2, 32\) instead of"
    ):
        fill(model(layers=1, chunk=3), state, "it")


def test_demonstrations_of_another_style_or_policy_are_not_taken_for_these(tmp_path):
    """Else a policy would learn from what its card does not name."""
    world, how = Taught(), {"every": 5, "chunk": 4, "rewind": False}
    task = world.tasks()[0]
    before = demos.record(world, task, [100], tmp_path, **how)
    assert demos.record(world, task, [100], tmp_path, **how) == before
    for other in ({"every": 3}, {"noise": 0.1}, {"chunk": 8}, {"beta": 0.5}, {"by": "policy abc"}):
        with pytest.raises(
            UserError, match=r"was recorded with every 5, chunk 4, .* by the expert, now .*another data="
        ):
            demos.record(world, task, [100], tmp_path, **{**how, **other})


def test_training_that_began_otherwise_is_not_gone_on_with(tmp_path):
    Trainer(model(), frames(), replace(RECIPE, steps=2), tmp_path, origin="tower A").run()
    with pytest.raises(UserError, match="training that began with tower A; now it is tower B; use the same settings"):
        Trainer(model(), frames(), replace(RECIPE, steps=2), tmp_path, origin="tower B")


def test_tasks_that_are_not_there_are_named(tmp_path):
    arrays = {"task": np.array(["Lift", "Stack"])}
    with pytest.raises(UserError, match=r"demonstrations of \['Stack'\], which are no tasks here \(\['Lift'\]\)"):
        frames_of(arrays, {"Lift": "lift"}, lambda words: [1])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rounds": -1}, "teaching.rounds=-1; use 0 or more"),
        ({"episodes": 0}, "teaching.episodes=0; use 1 or more"),
        ({"steps": 0}, "teaching.steps=0; use 1 or more"),
        ({"beta": 2.0}, "teaching.beta=2.0"),
        ({"noises": ()}, "teaching.noises is empty"),
        ({"weights": {"Lift": "a"}}, "Lift: a; use a number above 0"),
        ({"weights": {"Lift": -1}}, "Lift: -1; use a number above 0"),
    ],
)
def test_a_plan_that_cannot_be_is_one_line(wrong, said):
    with pytest.raises(UserError, match=said) as error:
        Teaching(**wrong)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"seed": -1}, {"ema_decay": 1.0}, {"steps": 0}, {"save_every": 0}])
def test_a_recipe_that_cannot_be_is_one_line(wrong):
    with pytest.raises(UserError, match=f"recipe.{next(iter(wrong))}|{next(iter(wrong))}="):
        Recipe(**wrong)


def test_demonstrations_of_another_world_are_refused_and_old_files_that_name_none_are_not(tmp_path):
    world, how = Taught(), {"every": 1, "rewind": False}
    task = world.tasks()[0]
    demos.record(world, task, [100], tmp_path, **how)
    demos.record(world, task, [100], tmp_path, **how, world="{}")  # recorded before worlds were named
    demos.record(world, task, [101], tmp_path, **how, world="{}")
    with pytest.raises(UserError, match=r'was recorded with .*, in \{\}, now it is .*, in \{"stress": "light"\}'):
        demos.record(world, task, [101], tmp_path, **how, world='{"stress": "light"}')
    assert demos.planned([demos.DemoJob(task.name, 101, 0.0)], tmp_path)[0].is_file()
    one, both = demos.load(*demos.planned([demos.DemoJob(task.name, 101, 0.0)], tmp_path)), demos.load(tmp_path)
    assert set(one["episode"]) == {101} and set(both["episode"]) == {100, 101}


@pytest.mark.parametrize(("key", "value"), [("heads", 2), ("text", 20), ("cameras", ("b",))])
def test_weights_go_with_the_heads_words_and_cameras_that_they_were_trained_with(tmp_path, key, value):
    """No tensor's shape tells them, and the policy would be another one."""
    one, path = model(), tmp_path / "one.safetensors"
    save(path, one, {"model": "tiny", "from": one.card})
    same = {"width": 32, "layers": 2, "heads": 1, "vision_width": 32, "vision_layers": 1, "image": 32, "chunk": 2}
    Tiny(str(path), ("a",), **same, device="cpu")
    with pytest.raises(UserError, match=f"were trained with {key} .*; use the same"):
        Tiny(str(path), **({"cameras": ("a",), **same, "device": "cpu"} | {key: value}))


def test_a_saved_policy_scales_states_and_actions_as_the_trained_one_does(tmp_path):
    """Parameters are rounded to half the bytes, the bounds of the normalisation are not."""
    policy, third = model(), torch.full((8,), 1 / 3)
    policy.normalise((-third, third), (-third[:7], third[:7]))
    save(tmp_path / "p.safetensors", policy, {}, torch.float16)
    state, _ = read(tmp_path / "p.safetensors")
    buffers = dict(policy.named_buffers())
    assert buffers.keys() < state.keys() and all(torch.equal(state[name], b) for name, b in buffers.items())
    assert all(state[name].dtype == torch.float16 for name, _ in policy.named_parameters())
