"""Recorded observations of a dense policy, in order, with their episodes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from vlaprune.bench.episodes import Episodes, Outcome
from vlaprune.benchmark import Benchmark, Gripper, Interface, Observation, what_is_seen
from vlaprune.control import Control
from vlaprune.errors import UserError
from vlaprune.files import replacing
from vlaprune.policy import VLA, Policy, episode_seed
from vlaprune.pruner import Pruner

PHASES = ("approach", "switch", "carry", "after")
COARSE = 12  # side of the noise that is enlarged to a synthetic picture


@dataclass(frozen=True, eq=False)
class Frame:
    """One observation that a dense policy was asked about.

    step   model calls since the episode began
    phase  approach (gripper never closed yet), switch (the gripper opens or closes), carry (closed), after
    """

    observation: Observation
    task: str
    episode: int
    step: int
    phase: str = ""


@dataclass(frozen=True, eq=False)
class Recording:
    """Frames in the order in which they were seen, and a card of what made them.

    execute  actions of each chunk that the robot executes before the next call, for methods that read them; None for
             all
    """

    frames: Sequence[Frame]
    card: dict[str, Any]
    execute: int | None = None

    def policy(self, model: VLA, make_pruner: Callable[[], Pruner], slots: int = 1) -> Policy:
        """A policy to replay these frames; its methods see `execute` actions of each chunk as executed.

        Its answers are the actions of the model, before any control of a robot.
        """
        return Policy(model, make_pruner, slots, Control(execute=self.execute))

    def check(self, path: Path, bench: Benchmark, episodes: int, seed: int, origin: str) -> None:
        """Raises UserError if a file has other tasks, episodes or seed than asked for, or is of another `origin`."""
        remedy = "delete it to record anew, or name another file"
        there, asked = sorted({f.task for f in self.frames}), sorted(t.name for t in bench.tasks())
        if there != asked:
            raise UserError(f"{path} has tasks {there}, bench {bench.name} has {asked}; {remedy}")
        for key, wanted in (("episodes", episodes), ("seed", seed)):
            if self.card.get(key, wanted) != wanted:
                raise UserError(f"{path} was recorded with {key} {self.card[key]}, now it is {wanted}; {remedy}")
        if (made := self.card.get("origin", "another version")) != origin:
            raise UserError(f"{path} is of {made}, now it is {origin}; {remedy}")

    @property
    def episodes(self) -> list[list[Frame]]:
        """The frames by episode; replaying one begins with a reset."""
        return [list(g) for _, g in groupby(self.frames, lambda f: (f.task, f.episode))]

    def save(self, path: Path) -> None:
        """Writes one .npz, whole or not at all."""
        arrays: dict[str, np.ndarray] = {
            f"image/{camera}": np.stack([f.observation.images[camera] for f in self.frames])
            for camera in self.frames[0].observation.images
        }
        if self.frames[0].observation.state is not None:
            arrays["state"] = np.stack([np.asarray(f.observation.state) for f in self.frames])
        arrays["instruction"] = np.array([f.observation.instruction for f in self.frames])
        for name in ("task", "episode", "step", "phase"):
            arrays[name] = np.array([getattr(f, name) for f in self.frames])
        arrays["card"] = np.array(json.dumps(self.card))
        with replacing(path) as part, part.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Recording:
        """Reads what `save` wrote. UserError for anything else."""
        try:
            with np.load(path) as data:
                arrays = {key: data[key] for key in data.files}
            card = json.loads(str(arrays["card"]))
            cameras = [key for key in arrays if key.startswith("image/")]
            frames = [
                Frame(
                    Observation(
                        {c.removeprefix("image/"): arrays[c][i] for c in cameras},
                        arrays["state"][i] if "state" in arrays else None,
                        str(arrays["instruction"][i]),
                    ),
                    str(arrays["task"][i]),
                    int(arrays["episode"][i]),
                    int(arrays["step"][i]),
                    str(arrays["phase"][i]),
                )
                for i in range(len(arrays["step"]))
            ]
        except Exception as error:  # zipfile, zlib, numpy and the OS raise different errors for a broken file
            raise UserError(f"{path} is no whole recording ({error}); delete it and run again") from error
        return cls(frames, card)


def closes(actions: np.ndarray, gripper: Gripper) -> np.ndarray:
    """[..., n] bool, whether the gripper is closed by or during each of the actions [..., n, action_dim], in order.

    gripper  meaning of the last number of an action, see Interface; with `close_delta` the gripper is open at first
    """
    grip = actions[..., -1]
    if gripper == "close_delta":
        changed = np.maximum.accumulate(np.where(grip != 0, np.arange(grip.shape[-1]), 0), -1)
        return np.take_along_axis(grip, changed, -1) > 0
    return np.asarray({"close_positive": grip > 0, "open_positive": grip < 0, "zero_one": grip < 0.5}[gripper])


def phases(closed: Sequence[np.ndarray]) -> list[str]:
    """The phase of every call of an episode, from its executed gripper commands [execute] (closed or not)."""
    out, before, ever = [], False, False
    for now in closed:
        if now.any() != now.all() or bool(now[0]) != before:
            out.append("switch")
        elif before:
            out.append("carry")
        else:
            out.append("after" if ever else "approach")
        before, ever = bool(now[-1]), ever or bool(now.any())
    return out


def origin(world: Mapping[str, Any], model: VLA, control: Control) -> str:
    """What decides the observations of a rollout, as text: the benchmark's identity, the weights and the control."""
    made = {"bench": what_is_seen(world), "weights": model.info.weights, "control": asdict(control)}
    return json.dumps(made, sort_keys=True, default=str)


def record(policy: Policy, bench: Benchmark, episodes: int, seed: int, origin: str) -> Recording:
    """Rolls out a dense policy, some episodes of every task, and keeps each observation it was asked about.

    origin  as `origin` says it; goes into the card
    """
    frames: list[Frame] = []
    gripper = policy.controllers[0].control.output_interface(policy.model.interface).gripper
    for task in bench.tasks():
        with bench.open(task) as env:
            course = Episodes(env, task, bench.interface)
            for episode in range(min(episodes, task.episodes)):
                policy.reset(0, episode_seed(seed, task.name, episode))
                seen: list[Observation] = []
                executed: list[np.ndarray] = []
                now: Observation | Outcome = course.start(episode)
                while isinstance(now, Observation):
                    seen.append(now)
                    executed.append(policy.act({0: now})[0])
                    now = course.advance(executed[-1])
                ends = np.cumsum([len(actions) for actions in executed])[:-1]
                closed = np.split(closes(np.concatenate(executed), gripper), ends)
                frames += [
                    Frame(o, task.name, episode, i, p)
                    for i, (o, p) in enumerate(zip(seen, phases(closed), strict=True))
                ]
    card = {"bench": bench.name, "episodes": episodes, "seed": seed, "origin": origin}
    return Recording(frames, card)


def synthetic(interface: Interface, image: int, episodes: int = 4, steps: int = 12, seed: int = 0) -> Recording:
    """Seeded smooth noise that hardly changes from step to step, for costs that do not depend on the scene.

    The pictures are as smooth as rendered ones: they compress equally well, so preparing them takes as long.
    """
    rng = np.random.default_rng(seed)
    frames = []
    for episode in range(episodes):
        ground = {c: _smooth(rng, image) for c in interface.cameras}
        width = max(1, image // 8)
        for step in range(steps):
            images = {c: still.copy() for c, still in ground.items()}
            for one in images.values():
                row, column = rng.integers(0, image - width, 2)
                one[row : row + width, column : column + width] = rng.integers(0, 255, 3)
            state = None if interface.state is None else 0.1 * rng.standard_normal(interface.state_size)
            frames.append(Frame(Observation(images, state, "pick up the red cube"), "noise", episode, step))
    return Recording(frames, {"bench": f"noise of seed {seed}", "episodes": episodes})


def _smooth(rng: np.random.Generator, size: int) -> np.ndarray:
    """[size, size, 3] uint8: coarse noise enlarged."""
    from PIL import Image

    coarse = rng.integers(0, 255, (COARSE, COARSE, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)).copy()


def actions(policy: Policy, episode: Iterable[Frame], seed: int) -> list[np.ndarray]:
    """The chunks [chunk, action_dim] that a policy answers to the frames of one episode, from a reset on."""
    out = []
    for i, frame in enumerate(episode):
        if i == 0:
            policy.reset(0, episode_seed(seed, frame.task, frame.episode))
        out.append(policy.act({0: frame.observation})[0])
    return out
