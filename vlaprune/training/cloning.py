"""The job of vlaprune-train: expert demonstrations, behaviour cloning by mean absolute error, corrections (DAgger)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from vlaprune.benchmark import Interface, Observation, SupportsExpert
from vlaprune.control import as_model_actions
from vlaprune.errors import UserError
from vlaprune.nn.load import save
from vlaprune.policy import Policy, TrainableFromScratch
from vlaprune.pruner import Pruner
from vlaprune.training import demos
from vlaprune.training.datasets import load as datasets
from vlaprune.training.trainer import Recipe, Trainer, frames, quantiles


def match_interface(arrays: dict[str, np.ndarray], world: Interface, model: Interface) -> dict[str, np.ndarray]:
    """The same demonstrations with the cameras that a model reads and the gripper that it says."""
    missing = sorted(set(model.cameras) - set(world.cameras))
    if missing:
        raise UserError(f"demonstrations lack cameras {missing} that the model reads; set model.cameras")
    images, order = arrays["images"], [world.cameras.index(c) for c in model.cameras]
    if order != list(range(images.shape[1])):
        images = images[:, order]
    return arrays | {"images": images, "labels": as_model_actions(arrays["labels"], world.gripper, model.gripper)}


@dataclass(frozen=True)
class Teaching:
    """What is demonstrated.

    episodes     training episodes per task
    first        number of the first of them
    noises       standard deviations of the noise on the arm's actions, executed in turn
    every        control steps between two kept frames
    workers      processes that record
    rounds       further rounds: the policy acts, the expert labels the states it visits (DAgger, arXiv:1011.0686)
    steps        optimiser steps of every round but the last, which has the recipe's; None for the recipe's everywhere
    corrections  episodes per task of such a round
    beta         share of the chunks that the expert executes in it
    rewind       labels are rolled out and taken back; without, they come from the states met (see `demos.record`)
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

    def weight(self, task: str) -> float:
        """The factor of one task."""
        return self.weights.get(task, 1.0)

    def demonstrations(self, task: str) -> range:
        """Numbers of the episodes of `task` that the expert demonstrates."""
        return range(self.first, self.first + round(self.episodes * self.weight(task)))

    def corrected(self, task: str, number: int) -> range:
        """Numbers of the episodes of `task` in round `number`, from 1; no other round or demonstration has them."""
        count = round(self.corrections * self.weight(task))
        start = self.demonstrations(task).stop + (number - 1) * count
        return range(start, start + count)


TURN = 25  # episodes of a task that are recorded one after the other


def teaching(cfg: Any) -> Teaching:
    """The section `teaching` of a configuration."""
    if not cfg.teaching.noises:
        raise UserError("teaching.noises is empty; use [0.0] for none")
    return Teaching(**{**cfg.teaching, "noises": tuple(cfg.teaching.noises), "weights": dict(cfg.teaching.weights)})


def record_demonstrations(bench: Any, plan: Teaching, folder: Path, chunk: int) -> None:
    """Demonstrations of every task of a benchmark with experts; those already in `folder` are kept."""
    teaches = isinstance(bench, SupportsExpert)  # a name of its own: mypy would narrow `bench` to it
    if not teaches:
        raise UserError(f"bench {bench.name} has no scripted experts to learn from; use bench=robosuite")
    if unknown := sorted(set(plan.weights) - {t.name for t in bench.tasks()}):
        raise UserError(f"teaching.weights of {unknown}; bench {bench.name} has {[t.name for t in bench.tasks()]}")
    if evaluated := [t.name for t in bench.tasks() if plan.first < t.episodes]:
        raise UserError(f"teaching.first={plan.first} begins with initial states that {evaluated[0]} is evaluated on")
    jobs = [
        demos.Job(task.name, episode, plan.noises[(episode + i) % len(plan.noises)])
        for i, task in enumerate(bench.tasks())
        for episode in plan.demonstrations(task.name)
    ]
    turns = {task.name: i for i, task in enumerate(bench.tasks())}  # after an early stop there is some of each task
    jobs.sort(key=lambda job: ((job.episode - plan.first) // TURN, turns[job.task], job.episode))
    demos.collect(bench, jobs, folder, plan.workers, demos.Style(plan.every, chunk, plan.rewind))


def record_corrections(
    bench: Any, teaching: Teaching, folder: Path, policy: Policy, number: int, seed: int, by: str
) -> None:
    """Episodes of the policy itself, labelled by the expert; those already in `folder` are kept.

    seed  of the run, which with task and episode fixes what the policy draws
    by    what tells the policy from others
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
        )


def main(cfg: Any, bench: Any, make_model: Callable[[], Any], make_pruner: Callable[[], Pruner]) -> None:
    """vlaprune-train: demonstrations, training, corrections, training; weights and card. Run again, it goes on."""
    recipe, plan = Recipe(**cfg.recipe), teaching(cfg)
    folder, data = Path(cfg.output), Path(cfg.data)
    torch.manual_seed(recipe.seed)
    model = make_model()
    trainable = isinstance(model, TrainableFromScratch)
    if not trainable:
        raise UserError(f"model {model.info.name} cannot be trained from nothing; use model=tiny, or tune=true")
    if datasets.files(data):
        raise UserError(f"{data} holds published demonstrations, of which only fine-tuning learns; use another data=")
    shown = [data / "demos"]
    record_demonstrations(bench, plan, shown[0], model.chunk)
    losses: list[float] = []
    origin = json.dumps([model.card, asdict(plan), asdict(replace(recipe, save_every=0))], sort_keys=True, default=str)
    by = f"policy {hashlib.sha256(origin.encode()).hexdigest()[:12]}"
    for number in range(1 + plan.rounds):
        if number:
            shown.append(data / f"corrections{number}")
            record_corrections(bench, plan, shown[-1], Policy(model, make_pruner), number, recipe.seed, by)
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
        "tasks": sorted(set(arrays["task"].tolist())),
        "frames": len(learnt.images),
        "recipe": asdict(recipe),
        "teaching": asdict(plan),
        "loss": float(np.mean(losses[-100:])),
    }
    path = folder / f"{model.info.name}-{bench.name}.safetensors"
    save(path, model, card, torch.float16)
    print(f"{path}\nvlaprune-eval model={model.info.name} model.weights={path} method=dense bench={bench.name}")


def _run(trainer: Trainer) -> list[float]:
    with tqdm(total=trainer.recipe.steps, initial=trainer.step, unit="step") as bar:

        def progress(step: int, loss: float) -> None:
            bar.set_postfix_str(f"loss {np.mean(trainer.losses[-100:]):.4f}")
            bar.update()

        trainer.run(progress)
    return trainer.losses
