"""The training loop: frames, learning rate, checkpoints, weight average. Resumable, on a CPU or a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlaprune.errors import UserError
from vlaprune.files import replacing
from vlaprune.nn.load import fill, trainable_state


def check_least(section: str, plan: object, least: Mapping[str, int]) -> None:
    """Raises UserError for a number of a plan that is below its least value; None is allowed."""
    for name, low in least.items():
        value = vars(plan)[name]
        if value is not None and value < low:
            raise UserError(f"{section}.{name}={value}; use {low} or more")


@dataclass(frozen=True)
class Recipe:
    """The settings of a training.

    steps       optimiser steps
    batch       frames per step
    lr          peak learning rate: linear warm-up over 3 % of the steps, then a cosine down to a hundredth of it
    decay       AdamW weight decay of matrices and convolutions; vectors (norms, biases) have none
    ema_decay   decay of the exponential moving average of the weights, which is saved; smaller in the first steps, so
                that the random initial weights do not count
    shift       largest random translation of each image in pixels; 0 for cameras that stand still, because a
                translation hides where things are
    bf16        compute matrix products in bfloat16
    save_every  steps between two checkpoints
    seed        seed of a policy's initial weights and of the batches; adapters start the same for every seed
    """

    steps: int = 2500
    batch: int = 64
    lr: float = 1e-3
    decay: float = 0.05
    ema_decay: float = 0.998
    shift: int = 0
    bf16: bool = True
    save_every: int = 250
    seed: int = 7

    def __post_init__(self) -> None:
        """Raises UserError for impossible numbers."""
        check_least("recipe", self, {"steps": 1, "batch": 1, "save_every": 1, "seed": 0, "shift": 0, "decay": 0})
        if not self.lr > 0 or not 0 <= self.ema_decay < 1:
            raise UserError(f"recipe.lr={self.lr} ema_decay={self.ema_decay}; use above 0, and 0 to below 1")


@dataclass(frozen=True)
class Frames:
    """Demonstrated frames: images [n, cameras, h, w, 3] uint8, state [n, s], words [n, w], labels [n, chunk, a].

    hints [n, h] are positions of objects, NaN for objects that do not exist.
    task [n] is the number of the task that a frame is from.
    share [tasks] is the expected share of a batch that comes from each task; None for equal shares.
    """

    images: np.ndarray
    state: np.ndarray
    words: np.ndarray
    labels: np.ndarray
    hints: np.ndarray
    task: np.ndarray
    share: np.ndarray | None = None

    @cached_property
    def by_task(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Frame numbers sorted by task [n]; number of frames of each task, and position of its first one."""
        counts = np.bincount(self.task)
        return np.argsort(self.task, kind="stable"), counts, np.cumsum(counts) - counts

    def batch(self, rng: np.random.Generator, size: int, shift: int) -> tuple[Tensor, ...]:
        """A random batch; every image moved by up to `shift` pixels, its edges repeated."""
        order, counts, starts = self.by_task
        share = np.ones(len(counts)) if self.share is None else self.share
        which = np.searchsorted(np.cumsum(share)[:-1] / share.sum(), rng.random(size), side="right")
        pick = order[starts[which] + (rng.random(size) * counts[which]).astype(int)]
        images = torch.from_numpy(self.images[pick])
        if shift:
            n, cameras, h, w, _ = images.shape
            padded = F.pad(images.flatten(0, 1).permute(0, 3, 1, 2).float(), [shift] * 4, mode="replicate").byte()
            corners = rng.integers(0, 2 * shift + 1, (n * cameras, 2))
            moved = torch.stack([p[:, y : y + h, x : x + w] for p, (y, x) in zip(padded, corners, strict=True)])
            images = moved.permute(0, 2, 3, 1).unflatten(0, (n, cameras))
        rest = (torch.from_numpy(a[pick]) for a in (self.state, self.words, self.labels, self.hints))
        return (images, *rest)


def quantiles(values: np.ndarray, floor: float = 1e-3) -> tuple[Tensor, Tensor]:
    """The 1 % and 99 % quantiles of each column of [n, c], which are normalised to -1 and 1; at least `floor` apart."""
    low, high = np.quantile(values, 0.01, axis=0), np.quantile(values, 0.99, axis=0)
    return torch.tensor(low).float(), torch.tensor(np.maximum(high, low + floor)).float()


def rate(step: int, recipe: Recipe) -> float:
    """The factor of the learning rate at a step: warm-up, then a cosine."""
    warm = max(1, round(0.03 * recipe.steps))
    if step < warm:
        return (step + 1) / warm
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, recipe.steps - warm)))


class Trainer:
    """One training run in a folder. It continues from the last checkpoint there; on a CPU the result is bit-identical.

    Frozen parameters are neither trained nor averaged, and no checkpoint contains them.
    """

    def __init__(
        self,
        model: nn.Module,
        frames: Frames,
        recipe: Recipe,
        folder: Path,
        loss: Callable[..., Tensor] | None = None,
        origin: str = "",
    ) -> None:
        """`loss` maps a step and a batch to the loss; without it the model's `train_loss` maps the batch.

        origin  identity of the training; a checkpoint with another one is refused
        """
        self.model, self.frames, self.recipe, self.origin = model, frames, recipe, origin
        self.loss = loss or (lambda step, *batch: model.train_loss(*batch))  # type: ignore[operator]
        self.path = folder / "checkpoint.pt"
        wanted = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
        rest = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
        groups = [{"params": wanted, "weight_decay": recipe.decay}, {"params": rest, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.99), fused=True)
        self.average = {k: v.detach().clone() for k, v in trainable_state(model).items()}
        self.step, self.losses = 0, []  # type: tuple[int, list[float]]
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.is_file():
            self._resume()

    def _resume(self) -> None:
        try:
            saved = torch.load(self.path, weights_only=True, map_location="cpu")
            recipe = saved["recipe"]
        except Exception as error:
            raise UserError(
                f"checkpoint {self.path} cannot be read ({type(error).__name__}); delete it to start anew"
            ) from None
        if recipe != asdict(self.recipe):
            raise UserError(
                f"checkpoint {self.path} was made with {recipe}, now {asdict(self.recipe)}; "
                "use the same settings, or another output="
            )
        if saved.get("origin", self.origin) != self.origin:
            raise UserError(
                f"checkpoint {self.path} is of training that began with {saved['origin']}; now it is {self.origin}; "
                "use the same settings, or another output="
            )
        if saved["frames"] != len(self.frames.images):
            raise UserError(
                f"checkpoint {self.path} saw {saved['frames']} frames, now there are {len(self.frames.images)}; "
                "bring the demonstrations back, or use another output="
            )
        fill(self.model, saved["model"], f"of checkpoint {self.path}")
        self.optimiser.load_state_dict(saved["optimiser"])
        self.average = {name: saved["average"][name].to(own.device) for name, own in self.average.items()}
        self.step, self.losses = saved["step"], saved["losses"]

    def save(self) -> None:
        """Writes the checkpoint, whole or not at all."""
        saved = {
            "recipe": asdict(self.recipe),
            "origin": self.origin,
            "model": trainable_state(self.model),
            "average": self.average,
            "frames": len(self.frames.images),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "losses": self.losses,
        }
        with replacing(self.path) as part:
            torch.save(saved, part)

    def run(self, progress: Callable[[int, float], None] = lambda step, loss: None) -> Mapping[str, Tensor]:
        """Trains to the end; returns the averaged weights, which the model then also holds."""
        self.model.train()
        while self.step < self.recipe.steps:
            loss = self._once()
            self.step += 1
            self.losses.append(loss)
            progress(self.step, loss)
            if self.step % self.recipe.save_every == 0 or self.step == self.recipe.steps:
                self.save()
        fill(self.model, self.average, "of the average")
        self.model.eval()
        return self.average

    def _once(self) -> float:
        rng = np.random.default_rng((self.recipe.seed, self.step))  # so that resuming gives the same result
        device = next(self.model.parameters()).device
        batch = [t.to(device) for t in self.frames.batch(rng, self.recipe.batch, self.recipe.shift)]
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.lr * rate(self.step, self.recipe)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.bf16):
            loss = self.loss(self.step, *batch)
        if not torch.isfinite(loss):
            raise UserError(f"loss is {loss.item()} at step {self.step}; lower lr, or train with bf16=false")
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        with torch.no_grad():
            pull = 1 - min(self.recipe.ema_decay, (self.step + 1) / (self.step + 10))
            for key, value in trainable_state(self.model).items():
                self.average[key].lerp_(value, pull) if value.is_floating_point() else self.average[key].copy_(value)
        return float(loss.detach())


def frames(
    arrays: Mapping[str, np.ndarray],
    instructions: Mapping[str, str],
    words: Callable[[str], list[int]],
    weights: Mapping[str, float] | None = None,
) -> Frames:
    """Makes frames from loaded demonstrations.

    instructions  task name -> instruction
    words         turns an instruction into its word numbers
    weights       task name -> weight of its share of a batch; 1 for a task not named
    """
    if foreign := sorted(set(map(str, arrays["task"])) - set(instructions)):
        raise UserError(
            f"demonstrations of {foreign}, which are no tasks here ({sorted(instructions)}); use another data="
        )
    names = [name for name in instructions if (arrays["task"] == name).any()]
    task = np.array([names.index(str(n)) for n in arrays["task"]])
    rows = [words(instructions[n]) for n in names]
    table = np.array([row + [0] * (max(map(len, rows)) - len(row)) for row in rows])
    share = np.array([(weights or {}).get(name, 1.0) for name in names])
    labels, hints = arrays["labels"], arrays["hints"]
    return Frames(arrays["images"], arrays["state"], table[task], labels, hints, task, share)
