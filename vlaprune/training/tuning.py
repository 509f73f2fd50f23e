"""Fine-tuning of a policy together with a learned method (LightVLA)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from vlaprune.errors import UserError
from vlaprune.files import replacing
from vlaprune.meter import Clock
from vlaprune.nn.load import read, save, weights_id
from vlaprune.nn.lora import add_adapters
from vlaprune.policy import HasTrunk, Trainable, TrainableFromScratch
from vlaprune.pruner import Learned
from vlaprune.session import Session
from vlaprune.training import demos
from vlaprune.training.cloning import (
    Subject,
    check_weights,
    corrected_files,
    match_interface,
    record_demonstrations,
    teaching,
)
from vlaprune.training.datasets import load as datasets
from vlaprune.training.trainer import Frames, Recipe, Trainer, frames

SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2,
    "constant": lambda done: 1.0,
    "none": lambda done: 0.0,
}
THIRDS = ("begin", "middle", "end")


@dataclass(frozen=True)
class Tuning:
    """The settings for tuning a policy together with a method.

    weights   weights of the policy to begin with; None for the model's own
    schedule  noise over training: linear (from 1 to 0, LightVLA's), cosine (from 1 to 0.01, ThinkProprio's),
              constant, none
    noise     factor of the schedule; 1 as published
    probe     steps between two measurements of the tokens that the method keeps without noise
    lora      rank (0 trains the whole policy) and alpha of adapters, which are trained in place of the trunk
    recipe    settings that differ from the recipe of cloning
    """

    weights: str | None = None
    schedule: str = "linear"
    noise: float = 1.0
    probe: int = 25
    lora: Mapping[str, float] = field(default_factory=lambda: {"rank": 0, "alpha": 16})
    recipe: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises UserError for an unknown schedule, a rank below 0, or adapters that do nothing."""
        if self.lora["rank"] and not self.lora["alpha"] > 0:
            raise UserError(f"tuning.lora.alpha={self.lora['alpha']}; use a number above 0")
        if self.lora["rank"] < 0:
            raise UserError(f"tuning.lora.rank={self.lora['rank']}; use 0 for none, or 1 and more (32 as published)")
        if self.schedule not in SCHEDULES:
            raise UserError(f"tuning.schedule={self.schedule}; use one of {', '.join(SCHEDULES)}")


def is_learnable(method: object) -> bool:
    """Whether a method can be trained together with a policy."""
    return isinstance(method, Learned)


class Student(nn.Module):
    """A policy and one method; every sequence of a batch has a copy of the method with shared parameters.

    The loss is the mean absolute error of the actions alone; nothing rewards few tokens.
    """

    def __init__(self, policy: Any, method: Any, tuning: Tuning, steps: int, seed: int) -> None:
        super().__init__()
        method.plan(policy.info)  # creates the parameters of the method
        self.policy, self.steps, self.seed, self.tuning = policy, steps, seed, tuning
        self.prototype = method
        self._clock = Clock(str(policy.device))
        self._sessions: list[Session] = []

    def sessions(self, count: int, step: int, noise: float | None) -> Sequence[Session]:
        """`count` sessions with noise of this step; with `noise` None in evaluation mode."""
        while len(self._sessions) < count:
            method = copy.copy(self.prototype)
            self._sessions.append(Session(method, self.policy.info, self.policy.decoder.config, self._clock))
        for i, session in enumerate(self._sessions[:count]):
            session.reset(((self.seed * 1_000_003 + step) * 4096 + i) % 2**46)  # methods multiply it by about 10^5
            if isinstance(session.pruner, Learned):
                session.pruner.train(noise is not None)
                session.pruner.noise_scale = noise or 0.0
        return self._sessions[:count]

    def loss(self, step: int, *batch: Tensor) -> Tensor:
        """The loss of one training step."""
        return self._loss(batch, self.sessions(len(batch[0]), step, self.noise(step)))

    def noise(self, step: int) -> float:
        """The scale of the noise at a step."""
        return self.tuning.noise * SCHEDULES[self.tuning.schedule](step / self.steps)

    def _loss(self, batch: Sequence[Tensor], sessions: Sequence[Session]) -> Tensor:
        blind = (*batch[:-1], torch.full_like(batch[-1], torch.nan))  # without hints on the positions of objects
        loss: Tensor = self.policy.train_loss(*blind, sessions)
        self._clock.read()
        return loss

    @torch.no_grad()
    def probe(self, *batch: Tensor) -> tuple[float, np.ndarray]:
        """The loss in evaluation mode, and [B, V] bool: the tokens of each frame that are kept to the end."""
        sessions = self.sessions(len(batch[0]), 0, None)
        loss = float(self._loss(batch, sessions))
        kept = np.ones((len(sessions), sessions[0].trace.layout.total), bool)
        for row, session in zip(kept, sessions, strict=True):
            if session.trace.kept:
                row[:] = False
                row[list(session.trace.kept.values())[-1].cpu().numpy()] = True
        return loss, kept


class Curve:
    """A CSV file with a line per probe. A resumed one continues after its last line up to `step`."""

    head = "step,noise,l1_training,l1_test,tokens"

    def __init__(self, path: Path, step: int) -> None:
        old = path.read_text().splitlines()[1:] if path.is_file() else []
        self.path, self.lines = path, [line for line in old if int(line.split(",")[0]) <= step]

    def add(self, step: int, *values: float) -> None:
        """Adds a line and writes the file."""
        self.lines.append(",".join([str(step), *(f"{v:.4f}" for v in values)]))
        with replacing(self.path) as part:
            part.write_text("\n".join([self.head, *self.lines]) + "\n")


def tune(trainer: Trainer, student: Student, curve: Curve, batch: Sequence[Tensor]) -> None:
    """Trains to the end and probes a fixed batch at regular steps."""
    tuning = student.tuning

    def measure(step: int) -> float:
        loss, kept = student.probe(*batch)
        trained = float(np.mean(trainer.losses[-tuning.probe :])) if trainer.losses else loss
        tokens = float(kept.sum(1).mean())
        curve.add(step, student.noise(step), trained, loss, tokens)
        return tokens

    if not trainer.step:
        curve.lines = []
        measure(0)
    with tqdm(total=trainer.recipe.steps, initial=trainer.step, unit="step") as bar:

        def progress(step: int, loss: float) -> None:
            if step % tuning.probe == 0:
                bar.set_postfix_str(f"L1 {np.mean(trainer.losses[-50:]):.4f}, {measure(step):.1f} tokens at test")
            bar.update()

        trainer.run(progress)


def kept_by_phase(student: Student, arrays: Mapping[str, np.ndarray], shown: Frames, most: int = 128) -> Iterator[str]:
    """Lines of a CSV: tokens kept in evaluation by task, third of the episode and camera, from `most` frames each."""
    yield "task,third,camera,frames,tokens,of"
    device = student.policy.device
    place = np.concatenate([np.arange(n) / n for n in _runs(arrays["task"], arrays["episode"])])
    for name in dict.fromkeys(arrays["task"].tolist()):
        for i, third in enumerate(THIRDS):
            pick = np.flatnonzero((arrays["task"] == name) & ((3 * place).astype(int) == i))
            if not len(pick):
                continue
            pick = pick[np.linspace(0, len(pick) - 1, min(most, len(pick))).astype(int)]
            parts = (shown.images, shown.state, shown.words, shown.labels, shown.hints)
            kept = student.probe(*(torch.from_numpy(a[pick]).to(device) for a in parts))[1]
            for view in student.sessions(1, 0, None)[0].trace.layout.views:
                own = kept[:, view.slice].sum(1)
                yield f"{name},{third},{view.camera},{len(pick)},{own.mean():.2f},{len(view.tokens)}"


def _runs(*keys: np.ndarray) -> list[int]:
    """Lengths of the runs of neighbours that are equal in all keys."""
    change = np.flatnonzero(np.any([k[1:] != k[:-1] for k in keys], axis=0)) + 1
    return np.diff([0, *change, len(keys[0])]).tolist()


def add_lora(policy: Any, rank: int, alpha: float, seed: int) -> dict[str, object]:
    """Freezes a policy's trunk and adds adapters; the rest is trained in full, in fp32. Returns the entry for the card.

    UserError for a policy without a trunk.
    """
    fits = isinstance(policy, HasTrunk)  # a separate variable: mypy would narrow `policy` otherwise
    if not fits:
        raise UserError(f"model {policy.info.name} has no trunk for LoRA; set tuning.lora.rank=0")
    add_adapters(policy.trunk, rank, alpha, seed)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return {"rank": rank, "alpha": alpha, "weights": weights_id(policy.card)}


def load_demonstrations(cfg: Any, subject: Subject, policy: Any) -> tuple[dict[str, np.ndarray], Frames]:
    """Loads demonstrations as `policy` reads them: published ones, if the folder has some, or those of the experts.

    The experts' come with the corrections of the same plan, as many rounds as exist.
    """
    data, plan, bench = Path(cfg.data), teaching(cfg), subject.bench
    check_weights(plan, bench)
    instructions, weights = {t.name: t.instruction for t in bench.tasks()}, dict(plan.weights)
    if datasets.files(data):
        arrays = datasets.load(data, policy.chunk, plan.every)
        foreign = sorted(set(arrays["task"].tolist()) - set(instructions.values()))
        if foreign:
            raise UserError(
                f"{data} demonstrates {foreign[:2]}, no task of bench {bench.name}; set bench.suite to theirs"
            )
        weights = {instructions[task]: weight for task, weight in weights.items()}
        instructions = {t: t for t in dict.fromkeys(arrays["task"].tolist())}
    else:
        shown = record_demonstrations(bench, plan, data / "demos", policy.chunk, subject.world)
        for number in range(1, plan.rounds + 1):
            shown += [p for p in corrected_files(bench, plan, data / f"corrections{number}", number) if p.is_file()]
        arrays = demos.load(*shown)
    arrays = match_interface(arrays, bench.interface, policy.interface)
    return arrays, frames(arrays, instructions, policy.words, weights)


def main(cfg: Any, subject: Subject) -> None:
    """The job of fine-tuning: demonstrations, training, weights with cards, curve, tokens kept. It can be resumed."""
    tuning, bench = Tuning(**cfg.tuning), subject.bench
    recipe = Recipe(**{**cfg.recipe, **tuning.recipe})
    folder = Path(cfg.output)
    torch.manual_seed(recipe.seed)
    policy, method = subject.make_model(), subject.make_method()
    trainable = isinstance(policy, Trainable)
    if not trainable:
        raise UserError(f"model {policy.info.name} cannot be trained; use model=tiny")
    whole = isinstance(policy, TrainableFromScratch)
    if whole == bool(tuning.lora["rank"]):
        said = (
            "has no adapters to load (or its own): set tuning.lora.rank=0"
            if whole
            else ("loads adapters, and whole weights only as a checkpoint's folder: set tuning.lora.rank=32")
        )
        raise UserError(f"model {policy.info.name} {said}")
    arrays, shown = load_demonstrations(cfg, subject, policy)
    learning = {k: v for k, v in asdict(tuning).items() if k not in ("probe", "recipe")}
    taught = asdict(replace(teaching(cfg), workers=1))
    origin = subject.origin(weights_id(policy.card), learning, taught)
    lora = None
    if tuning.lora["rank"]:
        lora = add_lora(policy, int(tuning.lora["rank"]), tuning.lora["alpha"], recipe.seed)
    student = Student(policy, method, tuning, recipe.steps, recipe.seed)
    trainer = Trainer(student, shown, recipe, folder, student.loss, origin)
    look = min(128, 4 * recipe.batch)
    probe = [t.to(policy.device) for t in shown.batch(np.random.default_rng(0), look, 0)]
    tune(trainer, student, Curve(folder / "curve.csv", trainer.step), probe)
    (folder / "kept.csv").write_text("\n".join(kept_by_phase(student, arrays, shown, look)) + "\n")
    card = {
        "model": policy.info.name,
        "bench": bench.name,
        "method": type(method).__name__,
        "from": policy.card,
        "frames": len(shown.images),
        "recipe": asdict(recipe),
        "tuning": {**asdict(tuning), "lora": dict(tuning.lora), "recipe": dict(tuning.recipe)},
        **({"lora": lora} if lora else {}),
        "loss": float(np.mean(trainer.losses[-100:])),
    }
    path = folder / ("adapter.safetensors" if lora else "policy.safetensors")
    save(path, policy, card, torch.float32 if lora else torch.float16)
    option = "adapter" if lora else "weights"
    print(f"{path}\n{subject.evaluation(option, path, '...')}")
    if isinstance(method, Learned) and list(method.parameters()):
        method.save(folder / "method.safetensors", weights_id(read(path)[1]))
        print(f"{folder / 'method.safetensors'}, for method.weights=")
