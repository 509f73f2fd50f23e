"""The job of vlaprune-train: expert demonstrations, behaviour cloning by mean absolute error, corrections (DAgger)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from vlaprune.benchmark import Interface, Observation, SupportsExpert, what_is_seen
from vlaprune.control import Control, as_model_actions
from vlaprune.errors import UserError
from vlaprune.nn.load import save
from vlaprune.policy import Policy, TrainableFromScratch
from vlaprune.training import demos
from vlaprune.training.datasets import load as datasets
from vlaprune.training.trainer import Recipe, Trainer, check_least, frames, quantiles


def match_interface(arrays: dict[str, np.ndarray], world: Interface, model: Interface) -> dict[str, np.ndarray]:
    """The demonstrations with the cameras and the gripper convention of a model. UserError for a missing camera."""
    missing = sorted(set(model.cameras) - set(world.cameras))
    if missing:
        raise UserError(f"demonstrations lack cameras {missing} that the model reads; set model.cameras")
    images, order = arrays["images"], [world.cameras.index(c) for c in model.cameras]
    if order != list(range(images.shape[1])):
        images = images[:, order]
    return arrays | {"images": images, "labels": as_model_actions(arrays["labels"], world.gripper, model.gripper)}


@dataclass(frozen=True)
class Teaching:
    """The plan of demonstrations, corrections and training rounds.

    episodes     training episodes per task
    first        number of the first of them
    noises       standard deviations of the noise on the arm's actions, executed in turn
    every        control steps between two kept frames
    workers      processes that record
    rounds       further rounds: the policy acts, the expert labels the states it visits (DAgger, arXiv:1011.0686)
    steps        optimiser steps of every round but the last, which has the recipe's; None for the recipe's everywhere
    corrections  episodes per task of such a round
    beta         share of the chunks that the expert executes in such a round
    rewind       labels are rolled out and undone; otherwise they come from the visited states (see `demos.record`)
    weights      task name -> factor on its episodes, its corrections and its share of a batch; 1 for a task not named
    """

    episodes: int = 180
    first: int = 1000
    noises: tuple[float, ...] = (0.0, 0.2, 0.4)
    every: int = 3
    workers: int = 2
    rounds: int = 1
    steps: int | None = None
    corrections: int = 50
    beta: float = 0.25
    rewind: bool = True
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises UserError for impossible numbers."""
        positive = dict.fromkeys(("episodes", "every", "workers", "corrections", "steps"), 1)
        check_least("teaching", self, {**positive, "rounds": 0, "first": 0})
        if not 0 <= self.beta <= 1 or any(noise < 0 for noise in self.noises):
            raise UserError(f"teaching.beta={self.beta} noises={list(self.noises)}; use 0 to 1, and 0 or more")
        if not self.noises:
            raise UserError("teaching.noises is empty; use [0.0] for none")
        for task, weight in self.weights.items():
            number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
            if not number or not 0 < weight < math.inf:
                raise UserError(f"teaching.weights: {task}: {weight}; use a number above 0, or leave the task out")

    def weight(self, task: str) -> float:
        """The factor of one task."""
        return self.weights.get(task, 1.0)

    def demonstrations(self, task: str) -> range:
        """Numbers of the episodes of `task` that the expert demonstrates."""
        return range(self.first, self.first + max(1, round(self.episodes * self.weight(task))))

    def corrected(self, task: str, number: int) -> range:
        """Numbers of the episodes of `task` in round `number` (from 1); no other round or demonstration has them."""
        count = max(1, round(self.corrections * self.weight(task)))
        start = self.demonstrations(task).stop + (number - 1) * count
        return range(start, start + count)


TURN = 25  # episodes of a task that are recorded one after the other


def teaching(cfg: Any) -> Teaching:
    """The plan from the section `teaching` of a configuration."""
    return Teaching(**{**cfg.teaching, "noises": tuple(cfg.teaching.noises), "weights": dict(cfg.teaching.weights)})


def check_weights(plan: Teaching, bench: Any) -> None:
    """Raises UserError for a weight of a task that the benchmark does not have."""
    if unknown := sorted(set(plan.weights) - {t.name for t in bench.tasks()}):
        raise UserError(f"teaching.weights of {unknown}; bench {bench.name} has {[t.name for t in bench.tasks()]}")


def record_demonstrations(bench: Any, plan: Teaching, folder: Path, chunk: int, world: str) -> list[Path]:
    """Records demonstrations of every task of a benchmark with experts; keeps those in `folder`. Returns their files.

    world  identity of the benchmark as text, see `Subject.world`
    """
    teaches = isinstance(bench, SupportsExpert)  # a separate variable: mypy would narrow `bench` otherwise
    if not teaches:
        raise UserError(f"bench {bench.name} has no scripted experts to learn from; use bench=robosuite")
    check_weights(plan, bench)
    if evaluated := [t.name for t in bench.tasks() if plan.first < t.episodes]:
        raise UserError(f"teaching.first={plan.first} begins with initial states that {evaluated[0]} is evaluated on")
    jobs = [
        demos.DemoJob(task.name, episode, plan.noises[(episode + i) % len(plan.noises)])
        for i, task in enumerate(bench.tasks())
        for episode in plan.demonstrations(task.name)
    ]
    turns = {task.name: i for i, task in enumerate(bench.tasks())}  # an early stop leaves some of each task
    jobs.sort(key=lambda job: ((job.episode - plan.first) // TURN, turns[job.task], job.episode))
    demos.collect(bench, jobs, folder, plan.workers, demos.Style(plan.every, chunk, plan.rewind, world=world))
    return demos.planned(jobs, folder)


def record_corrections(
    bench: Any, teaching: Teaching, folder: Path, policy: Policy, number: int, seed: int, by: str, world: str
) -> list[Path]:
    """Records episodes of the policy, labelled by the expert; keeps those in `folder`. Returns their files.

    seed   seed of the run, which with task and episode fixes the noise of the policy
    by     identity of the policy as text
    world  identity of the benchmark as text
    """

    def act(observation: Observation) -> np.ndarray:
        return policy.act({0: observation})[0]

    def episodes(task: str) -> Iterator[int]:
        for episode in teaching.corrected(task, number):
            policy.begin(0, task, episode, seed)
            yield episode

    for task in bench.tasks():
        demos.record(
            bench,
            task,
            episodes(task.name),
            folder,
            every=teaching.every,
            chunk=policy.model.chunk,
            policy=act,
            beta=teaching.beta,
            rewind=teaching.rewind,
            by=by,
            world=world,
        )
    return corrected_files(bench, teaching, folder, number)


def check_corrections(bench: Any, plan: Teaching, data: Path, chunk: int, by: str, world: str) -> None:
    """Raises UserError if `data` has corrections of this plan that another policy made, or in another way."""
    style = demos.Style(plan.every, chunk, plan.rewind, plan.beta, by, world)
    for number in range(1, 1 + plan.rounds):
        for path in corrected_files(bench, plan, data / f"corrections{number}", number):
            if path.is_file():
                demos.recorded(path, style)


def corrected_files(bench: Any, plan: Teaching, folder: Path, number: int) -> list[Path]:
    """The files of the corrections of round `number`."""
    jobs = [demos.DemoJob(t.name, episode, 0.0) for t in bench.tasks() for episode in plan.corrected(t.name, number)]
    return demos.planned(jobs, folder)


@dataclass(frozen=True)
class Subject:
    """The model and method to train, and the benchmark.

    make_model, make_method  constructors of the model and the method
    control   how the model drives the benchmark's robot
    identity  identity of model, method and bench, as in a journal
    words     words of the command line that name model and benchmark, for the command that evaluates the result
    """

    bench: Any
    make_model: Callable[[], Any]
    make_method: Callable[[], Any]
    control: Control
    identity: Mapping[str, Mapping[str, Any]]
    words: Sequence[str]

    @property
    def world(self) -> str:
        """The identity of the benchmark's demonstrations as text: that of the benchmark without what it scores."""
        return json.dumps(what_is_seen(self.identity["bench"]), sort_keys=True, default=str)

    def origin(self, *parts: Any) -> str:
        """The identity of this training as text: model, method, world, and `parts` that JSON can hold."""
        model = {key: value for key, value in self.identity["model"].items() if key != "device"}
        return json.dumps([model, self.identity["method"], self.world, *parts], sort_keys=True, default=str)

    def evaluation(self, option: str, path: Path, method: str) -> str:
        """The command that evaluates the weights in a file."""
        return " ".join(["vlaprune-eval", *self.words, f"model.{option}={path}", f"method={method}"])


def main(cfg: Any, subject: Subject) -> None:
    """vlaprune-train: demonstrations, training, corrections, training; weights and card. Run again, it continues."""
    recipe, plan, bench = Recipe(**cfg.recipe), teaching(cfg), subject.bench
    folder, data = Path(cfg.output), Path(cfg.data)
    torch.manual_seed(recipe.seed)
    model = subject.make_model()
    trainable = isinstance(model, TrainableFromScratch)
    if not trainable:
        raise UserError(f"model {model.info.name} cannot be trained from nothing; use model=tiny, or tune=true")
    if datasets.files(data):
        raise UserError(f"{data} holds published demonstrations, of which only fine-tuning learns; use another data=")
    taught, learning = asdict(replace(plan, workers=1)), asdict(replace(recipe, save_every=1))
    origin = subject.origin(model.card, taught, learning)
    by = f"policy {hashlib.sha256(origin.encode()).hexdigest()[:12]}"
    check_corrections(bench, plan, data, model.chunk, by, subject.world)  # each round meets its own, hours later
    shown = record_demonstrations(bench, plan, data / "demos", model.chunk, subject.world)
    losses: list[float] = []
    for number in range(1 + plan.rounds):
        if number:
            policy, place = Policy(model, subject.make_method, control=subject.control), data / f"corrections{number}"
            shown += record_corrections(bench, plan, place, policy, number, recipe.seed, by, subject.world)
        arrays = match_interface(demos.load(*shown), bench.interface, model.interface)
        learnt = frames(arrays, {t.name: t.instruction for t in bench.tasks()}, model.words, plan.weights)
        if not number:
            model.normalise(quantiles(learnt.state), quantiles(learnt.labels.reshape(-1, learnt.labels.shape[-1])))
        steps = recipe.steps if number == plan.rounds else plan.steps or recipe.steps
        trainer = Trainer(model, learnt, replace(recipe, steps=steps), folder / f"round{number}", origin=origin)
        losses += _run(trainer)
    (folder / "curve.csv").write_text("step,loss\n" + "".join(f"{i + 1},{x:.6f}\n" for i, x in enumerate(losses)))
    card = {
        "model": model.info.name,
        "from": model.card,
        "bench": bench.name,
        "world": json.loads(subject.world),
        "tasks": sorted(set(arrays["task"].tolist())),
        "frames": len(learnt.images),
        "recipe": asdict(recipe),
        "teaching": asdict(plan),
        "loss": float(np.mean(losses[-100:])),
    }
    path = folder / f"{model.info.name}-{bench.name}.safetensors"
    save(path, model, card, torch.float16)
    print(f"{path}\n{subject.evaluation('weights', path, 'dense')}")


def _run(trainer: Trainer) -> list[float]:
    with tqdm(total=trainer.recipe.steps, initial=trainer.step, unit="step") as bar:

        def progress(step: int, loss: float) -> None:
            bar.set_postfix_str(f"loss {np.mean(trainer.losses[-100:]):.4f}")
            bar.update()

        trainer.run(progress)
    return trainer.losses
