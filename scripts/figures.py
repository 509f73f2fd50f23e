#!/usr/bin/env python
"""Pictures of the documentation: `figures.py` writes docs/pictures/film.webp and docs/pictures/methods.webp.

film     one episode of the small policy on robosuite, dense and with FastV at a quarter of the tokens, call by call
methods  what each method keeps of the same picture, at the same call of the same episode

Both use the shading of `video=all`: dropped patches are dark, reused ones are blue, computed ones have a yellow line.
Needs the extra `sim`; takes a few minutes on a CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from vlaprune import config
from vlaprune.bench.robosuite import Robosuite
from vlaprune.benchmark import Task
from vlaprune.control import Control
from vlaprune.evaluation.film import frame, shade, token_masks
from vlaprune.policy import Policy, episode_seed
from vlaprune.pruner import Pruner
from vlaprune.trace import Trace

OUT = Path(__file__).resolve().parents[1] / "docs" / "pictures"
TASK, EPISODE, SEED = "PickPlaceCan", 3, 7
CALL = 9  # whose picture `methods` shows: methods that remember have then seen some calls
LEFT_OUT = ("dense", "ties", "ties_hard")  # nothing to show, or a calibration is needed first


def part(role: str, *overrides: str) -> object:
    """A model or a method by its name in configs/."""
    cfg, _ = config.composed([*overrides, "bench=robosuite"])
    node = config.model_node(cfg, Robosuite.robot) if role == "model" else cfg[role]
    return config.make(role, node)


def calls(model: object, method: Callable[[], Pruner], task: Task, most: int) -> Iterator[tuple[Trace, bool]]:
    """The trace of each model call of the episode, two actions executed a call, and whether the task is achieved."""
    policy = Policy(model, method, control=Control(execute=2))
    policy.reset(0, episode_seed(SEED, task.name, EPISODE))
    with Robosuite(worker=False).open(task) as env:
        env.reset(EPISODE)
        for _ in range(most):
            actions = policy.act({0: env.observe()})[0]
            achieved = any([env.step(action) for action in actions])
            yield policy.trace(0), achieved
            if achieved:
                return


def film(model: object, task: Task) -> None:
    """Dense beside FastV, an animated WebP."""
    sides = []
    for title, overrides in (("dense", ["method=dense"]), ("FastV, a quarter of the tokens", ["method=fastv"])):
        shown = calls(model, lambda o=overrides: part("method", *o), task, task.max_steps // 2)
        sides.append([frame(trace, title, (60, 160, 90) if won else None) for trace, won in shown])
    longest = max(map(len, sides))
    frames = []
    for i in range(longest + 8):
        both = np.concatenate([side[min(i, len(side) - 1)] for side in sides], axis=1)
        picture = Image.fromarray(both)
        frames.append(picture.resize((880, round(880 * picture.height / picture.width)), Image.LANCZOS))
    path = OUT / "film.webp"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=120, loop=0, quality=55, method=6)
    print(path, path.stat().st_size, "bytes,", len(frames), "frames")


def methods(model: object, task: Task, names: list[str]) -> None:
    """A contact sheet: each method's name, its count of tokens, both cameras."""
    font, tiles = ImageFont.load_default(15), []
    for name in names:
        with torch.inference_mode():
            *_, (trace, _) = calls(model, lambda n=name: part("method", f"method={n}"), task, CALL)
        _, computed, reused = token_masks(trace)
        views = zip(trace.layout.views, trace.images, strict=True)
        pictures = [Image.fromarray(shade(i.cpu().numpy(), v, computed, reused)).resize((150, 150)) for v, i in views]
        tile = Image.new("RGB", (316, 180), "white")
        said = f"{name}: {computed.sum()} of {computed.size}" + (f", {reused.sum()} reused" if reused.any() else "")
        ImageDraw.Draw(tile).text((6, 4), said, fill="black", font=font)
        for i, picture in enumerate(pictures):
            tile.paste(picture, (4 + 156 * i, 26))
        tiles.append(tile)
    sheet = Image.new("RGB", (316 * 3, 180 * -(-len(tiles) // 3)), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (316 * (i % 3), 180 * (i // 3)))
    path = OUT / "methods.webp"
    sheet.save(path, quality=70, method=6)
    print(path, path.stat().st_size, "bytes,", len(tiles), "methods")


def main() -> None:
    """Writes both pictures, or the one that is named."""
    wanted = sys.argv[1:] or ["film", "methods"]
    task = next(t for t in Robosuite().tasks() if t.name == TASK)
    model = part("model", "model=tiny")
    if "film" in wanted:
        film(model, task)
    if "methods" in wanted:
        methods(model, task, [n for n in config.options("method") if n not in LEFT_OUT])


if __name__ == "__main__":
    main()
