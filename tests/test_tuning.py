"""A learnt method is trained with the policy: its noise, what is trained and looked at, going on bit for bit."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from test_train import RECIPE, Stopped, frames, model, stop_at

from vlaprune.benchmark import Observation, Task
from vlaprune.control import Control
from vlaprune.errors import UserError
from vlaprune.methods.dense import Dense
from vlaprune.methods.grids import GridS
from vlaprune.methods.lightvla import LightVLA
from vlaprune.methods.lightvla_star import LightVLAStar
from vlaprune.methods.thinkproprio import ThinkProprio
from vlaprune.models.tiny import WORDS
from vlaprune.nn.load import read, weights_id
from vlaprune.policy import Policy
from vlaprune.training import demos
from vlaprune.training.cloning import Subject
from vlaprune.training.trainer import Trainer
from vlaprune.training.tuning import Curve, Student, Tuning, is_learnable, kept_by_phase, main, tune

STEPS = replace(RECIPE, shift=0)


def student(method=LightVLA, **tuning):
    return Student(model(), method(), Tuning(probe=5, **tuning), STEPS.steps, 7)


def trainer(folder, learner, recipe=STEPS):
    return Trainer(learner, frames(), recipe, folder, learner.loss)


def batch(count=4):
    return frames(count).batch(np.random.default_rng(0), count, 0)


@pytest.mark.parametrize("stop", [3, 7])
@pytest.mark.parametrize("method", [LightVLA, LightVLAStar, lambda: GridS(tokens=3), ThinkProprio])
def test_a_tuning_that_was_stopped_equals_one_that_was_not_bit_for_bit(tmp_path, method, stop):
    whole, cut = trainer(tmp_path / "whole", student(method)), trainer(tmp_path / "cut", student(method))
    expected = {k: v.clone() for k, v in whole.run().items()}
    with pytest.raises(Stopped):
        cut.run(stop_at(stop))
    resumed = trainer(tmp_path / "cut", student(method))
    assert resumed.step == stop // 5 * 5
    found = resumed.run()
    assert resumed.losses == whole.losses and all(torch.equal(found[k], expected[k]) for k in expected)


@pytest.mark.parametrize(
    ("schedule", "scales"),
    [
        ("linear", [1.0, 0.5, 1 / 12]),
        ("cosine", [1.0, 0.505, 0.0268667160]),
        ("constant", [1.0, 1.0, 1.0]),
        ("none", [0.0, 0.0, 0.0]),
    ],
)
def test_the_noise_follows_its_schedule(schedule, scales):
    learner = student(schedule=schedule)
    for step, scale in zip((0, 6, 11), scales, strict=True):
        learner.loss(step, *batch())
        assert [s.pruner.noise_scale for s in learner._sessions] == pytest.approx([scale] * 4)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match=r"tuning.schedule=square; use one of linear, cosine, constant, none"):
        Tuning(schedule="square")


def test_without_noise_training_picks_what_test_picks():
    learner = student(schedule="none")
    learner.loss(0, *batch())
    trained = [set(s.trace.kept[0].tolist()) for s in learner._sessions]
    kept = learner.probe(*batch())[1]
    assert trained == [set(np.flatnonzero(row)) for row in kept]


def test_every_step_and_every_sequence_has_noise_of_its_own():
    learner, seen = student(), []
    for step in (0, 1, 0):
        learner.loss(step, *[torch.cat((x[:1], x[:1])) for x in batch()])  # the same frame twice
        seen.append([s.trace.kept[0].tolist() for s in learner._sessions])
    assert seen[0] == seen[2] and seen[0] != seen[1] and seen[0][0] != seen[0][1]


def test_the_probe_keeps_what_the_policy_keeps():
    learner, shown = student(), frames(1)
    _, kept = learner.probe(*shown.batch(np.random.default_rng(0), 1, 0))
    policy = Policy(learner.policy.eval(), LightVLA)
    policy.reset(0, 3)
    words = " ".join(WORDS[number] for number in shown.words[0])
    policy.act({0: Observation({"a": shown.images[0, 0]}, shown.state[0].astype(float), words)})
    assert policy.sessions[0].trace.kept[0].tolist() == np.flatnonzero(kept[0]).tolist()


@pytest.mark.parametrize("method", [LightVLA, LightVLAStar, lambda: GridS(tokens=3), ThinkProprio])
def test_in_the_midst_of_training_the_probe_measures_what_the_policy_would_do(method):
    """What goes on, and how far the actions are from the labels; training passes each winner once for every vote."""
    learner, shown = student(method), frames(4)
    shown = replace(shown, words=1 + shown.words % 4)  # no padding between words
    learner.train()
    learner.loss(0, *batch())
    loss, kept = learner.probe(
        *map(torch.from_numpy, (shown.images, shown.state, shown.words, shown.labels, shown.hints))
    )
    policy = Policy(learner.policy, lambda: copy.copy(learner.prototype).eval())
    half = ((learner.policy.action_high - learner.policy.action_low) / 2).numpy()
    wrong = []
    for i in range(4):
        policy.reset(0, 3)
        words = " ".join(WORDS[number] for number in shown.words[i])
        chunk = policy.act({0: Observation({"a": shown.images[i, 0]}, shown.state[i].astype(float), words)})[0]
        wrong.append(np.abs((chunk - shown.labels[i]) / half).mean())
        assert policy.sessions[0].trace.kept[0].sort().values.tolist() == np.flatnonzero(kept[i]).tolist()
    assert loss == pytest.approx(np.mean(wrong), rel=1e-4)
    assert learner.training and learner.policy.training


def test_hints_are_hidden_from_the_loss():
    learner = student(schedule="none")
    told = batch()
    untold = (*told[:-1], torch.full_like(told[-1], torch.nan))
    assert torch.equal(learner.loss(0, *told), learner.loss(0, *untold))


def test_the_gradient_reaches_tokens_that_were_not_chosen():
    learner = student(schedule="none")
    learner.loss(0, *batch()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learner.policy.projector.parameters())


def test_the_queries_of_the_star_are_trained_and_shared(tmp_path):
    learner = student(LightVLAStar)
    before = learner.prototype.query.detach().clone()
    trainer(tmp_path, learner).run()
    assert not torch.equal(learner.prototype.query, before)
    assert all(s.pruner.query is learner.prototype.query for s in learner._sessions)


def test_the_sampler_is_trained_and_shared_and_asks_for_its_points(tmp_path):
    learner = student(lambda: GridS(tokens=3))
    before = learner.prototype.points[0].weight.detach().clone()
    trainer(tmp_path, learner).run()
    assert not torch.equal(learner.prototype.points[0].weight, before)
    assert all(s.pruner.points is learner.prototype.points for s in learner._sessions)
    assert learner.probe(*batch())[1].sum(1).tolist() == [3] * 4


def test_the_control_is_tuned_without_a_method(tmp_path):
    learner = student(Dense)
    assert not is_learnable(Dense()) and is_learnable(LightVLA()) and is_learnable(LightVLAStar())
    assert learner.probe(*batch())[1].all()
    trainer(tmp_path, learner, replace(STEPS, steps=2)).run()


def test_a_curve_goes_on_behind_the_last_checkpoint(tmp_path):
    path = tmp_path / "curve.csv"
    for step in (0, 5, 10):
        Curve(path, step).add(step, 1.0, 0.1, 0.2, 9.0)
    again = Curve(path, 5)
    again.add(10, 0.5, 0.1, 0.2, 8.0)
    rows = path.read_text().splitlines()
    assert [r.split(",")[0] for r in rows] == ["step", "0", "5", "10"] and rows[-1].endswith("8.0000")


def test_the_curve_has_a_line_per_probe(tmp_path):
    learner = student()
    tune(trainer(tmp_path, learner), learner, Curve(tmp_path / "curve.csv", 0), batch())
    steps = [line.split(",")[0] for line in (tmp_path / "curve.csv").read_text().splitlines()[1:]]
    assert steps == ["0", "5", "10"]


def test_what_is_kept_by_phase_counts_every_frame_once():
    learner, shown = student(), frames(6)
    arrays = {"task": np.array(["x"] * 6), "episode": np.array([1, 1, 1, 2, 2, 2])}
    rows = [line.split(",") for line in kept_by_phase(learner, arrays, shown)][1:]
    assert [r[:4] for r in rows] == [["x", third, "a", "2"] for third in ("begin", "middle", "end")]
    assert all(1 <= float(r[4]) <= float(r[5]) == 4 for r in rows)


class World:
    """A benchmark whose demonstrations are all there already."""

    name = "world"
    interface = SimpleNamespace(cameras=("a",), gripper="close_positive")

    def tasks(self):
        return [Task("x", "lift the cube", 10, 2)]

    def expert(self, env):
        raise AssertionError("nothing is left to demonstrate")

    def open(self, task):
        from contextlib import nullcontext

        return nullcontext()


def settings(tmp_path, method, **tuning):
    whole = OmegaConf.load("configs/train.yaml")
    whole.pop("defaults"), whole.pop("hydra")
    return OmegaConf.merge(
        whole,
        {
            "method": {"_target_": f"{method.__module__}.{method.__name__}"},
            "data": str(tmp_path / "data"),
            "output": str(tmp_path / "out"),
            "teaching": {"episodes": 2, "first": 1000, "workers": 1, "weights": {}},
            "tuning": {"probe": 2, "recipe": {"steps": 4, "save_every": 2, "batch": 4}, **tuning},
        },
    )


def subject(method, **world):
    identity = {"model": {"name": "tiny"}, "method": {"name": method.__name__}, "bench": {"name": "x", **world}}
    return Subject(World(), model, method, Control(), identity, ["model=tiny", "bench=x", "bench.suite=y"])


@pytest.fixture
def shown(tmp_path):
    fake = frames(4)
    for episode in (1000, 1001):
        own = slice(2 * (episode - 1000), 2 * (episode - 1000) + 2)
        parts = {"images": fake.images[own], "state": fake.state[own], "labels": fake.labels[own]}
        facts = {"task": "x", "episode": episode, "success": True, "steps": 2, "noise": 0.0}
        demos._write(tmp_path / "data" / "demos" / f"x_{episode:06d}.npz", parts | {"hints": fake.hints[own]} | facts)


@pytest.mark.parametrize("method", [LightVLA, LightVLAStar])
def test_the_whole_command_leaves_weights_a_curve_and_what_is_kept(tmp_path, shown, method, capsys):
    main(settings(tmp_path, method), subject(method))
    state, card = read(tmp_path / "out" / "policy.safetensors")
    assert (
        card["method"] == method.__name__ and card["recipe"]["steps"] == 4 and set(state) == set(model().state_dict())
    )
    assert (tmp_path / "out" / "curve.csv").is_file() and (tmp_path / "out" / "kept.csv").is_file()
    saved = tmp_path / "out" / "method.safetensors"
    assert saved.is_file() is (method is LightVLAStar)
    if method is LightVLAStar:
        policy = tmp_path / "out" / "policy.safetensors"
        tuned = replace(model().info, weights=weights_id(read(policy)[1]))
        LightVLAStar(weights=str(saved)).plan(tuned)
        with pytest.raises(ValueError, match="was trained together with a policy of weights"):
            LightVLAStar(weights=str(saved)).plan(model().info)
        with pytest.raises(ValueError, match=r"policy\.safetensors"):
            LightVLAStar(weights=str(policy)).plan(tuned)
        with pytest.raises(ValueError, match="were trained at layer 0; set layer=0"):
            LightVLAStar(weights=str(saved), layer=1).plan(tuned)
    said = capsys.readouterr().out
    assert f"vlaprune-eval model=tiny bench=x bench.suite=y model.weights={tmp_path}/out/policy.safetensors" in said


def test_a_damaged_checkpoint_of_a_tuning_is_refused_in_one_line(tmp_path, shown):
    main(settings(tmp_path, LightVLA), subject(LightVLA))
    path = tmp_path / "out" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"checkpoint\.pt cannot be read .*; delete it to start anew") as error:
        main(settings(tmp_path, LightVLA), subject(LightVLA))
    assert "\n" not in str(error.value)


def test_another_world_or_plan_does_not_go_on_from_a_checkpoint(tmp_path, shown):
    cfg = settings(tmp_path, LightVLA)
    main(cfg, subject(LightVLA))
    with pytest.raises(UserError, match="is of training that began with"):
        main(cfg, subject(LightVLA, stress="light"))
    cfg.teaching.weights = {"x": 0.5}
    with pytest.raises(UserError, match="is of training that began with"):
        main(cfg, subject(LightVLA))
    cfg.teaching.weights, cfg.teaching.workers = {}, 3  # which changes nothing
    main(cfg, subject(LightVLA))
    cfg.teaching.weights = {"y": 2}
    with pytest.raises(UserError, match=r"teaching.weights of \['y'\]"):
        main(cfg, subject(LightVLA))


def test_only_the_planned_demonstrations_are_learnt_from(tmp_path, shown):
    """More may lie in the folder, of an earlier, larger plan."""
    cfg = settings(tmp_path, LightVLA)
    cfg.teaching.episodes = 1
    main(cfg, subject(LightVLA))
    assert read(tmp_path / "out" / "policy.safetensors")[1]["frames"] == 2


def test_a_seed_of_any_size_draws_noise(tmp_path):
    learner = Student(model(), LightVLA(), Tuning(), 4, seed=20240101)
    parts = (frames().images, frames().state, frames().words, frames().labels, frames().hints)
    assert torch.isfinite(learner.loss(3, *map(torch.from_numpy, parts)))
