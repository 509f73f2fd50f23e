"""The page of `vlaprune-profile mode=pictures`: the time to prepare a benchmark's pictures for a call."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vlaprune.bench.episodes import Episodes
from vlaprune.benchmark import Benchmark, Observation
from vlaprune.errors import UserError
from vlaprune.models import images, letterbox
from vlaprune.profile.page import Page

SIZE = 224  # px that the full-size models read
Prepare = Callable[[np.ndarray, int], object]  # an image [h, w, 3] uint8 and the size in px

# The ways to prepare pictures that models name, and the JPEG round trip that is a part of the first two.
WAYS: Mapping[str, Prepare] = {
    "JPEG round trip alone": lambda image, size: images.jpeg(image),
    **images.PIPELINES,
    **{f"letterbox, {name}": way for name, way in letterbox.RESIZE.items()},
}


def seen(bench: Benchmark) -> dict[str, np.ndarray]:
    """The cameras' first pictures [h, w, 3] uint8 of the benchmark's first task."""
    task = next(iter(bench.tasks()))
    with bench.open(task) as env:
        now = Episodes(env, task, bench.interface).start(0)
    assert isinstance(now, Observation)
    return {camera: np.ascontiguousarray(image) for camera, image in now.images.items()}


def took(prepare: Prepare, pictures: Sequence[np.ndarray], rounds: int) -> np.ndarray:
    """[rounds, 2] milliseconds of wall and processor time for all pictures of a call, after three rounds of warm-up."""
    out = []
    for _ in range(rounds + 3):
        wall, busy = time.perf_counter(), time.process_time()
        for picture in pictures:
            prepare(picture, SIZE)
        out.append(((time.perf_counter() - wall) * 1e3, (time.process_time() - busy) * 1e3))
    return np.array(out[3:])


def fill(page: Page, bench: str, shown: Mapping[str, np.ndarray], rounds: int) -> list[dict[str, Any]]:
    """Adds the table; returns its numbers. A way that refuses pictures of this size has no row."""
    load, rows = os.getloadavg()[0], []
    for name, way in WAYS.items():
        try:
            ms = took(way, list(shown.values()), rounds)
        except UserError:
            continue
        low, middle, high = np.percentile(ms[:, 0], [5, 50, 95])
        row = {"way": name, "pictures": len(shown), "ms_p5": low, "ms_p50": middle, "ms_p95": high}
        rows.append(row | {"ms_busy": float(np.median(ms[:, 1]))})
    page.table(f"All cameras of a call, to {SIZE} px", [_shown(row) for row in rows])
    sizes = ", ".join(f"{camera} {image.shape[1]}x{image.shape[0]}" for camera, image in shown.items())
    page.text(f"Pictures of {bench}: {sizes}. One after the other, {rounds} times. Load of the machine: {load:.1f}.")
    return rows


def _shown(row: Mapping[str, Any]) -> dict[str, str]:
    columns = {"ms p5": "ms_p5", "p50": "ms_p50", "p95": "ms_p95", "by processor time": "ms_busy"}
    return {"way": row["way"], **{name: f"{row[key]:.2f}" for name, key in columns.items()}}
