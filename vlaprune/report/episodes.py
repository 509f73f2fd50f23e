"""Every episode of a page as data for its browser: outcomes, films, and commands that make missing films."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlaprune.records import Run
from vlaprune.report.flips import Video, run_of, video
from vlaprune.report.runs import Comparison, Key

ABSENT = -1  # in place of steps and outcome


def keys(comparison: Comparison) -> list[Key]:
    """Every episode of every arm, by task in the table's order, number and seed."""
    tasks = {task: i for i, task in enumerate(comparison.tasks)}
    every = dict.fromkeys(key for arm in comparison.arms for key in arm.episodes)
    return sorted(every, key=lambda k: (tasks.get(k[0], len(tasks)), k[1], str(k[2])))


def films(comparison: Comparison) -> dict[tuple[int, Key], Path]:
    """(number of the arm, episode) -> its film, where there is one."""
    out = {}
    for i, arm in enumerate(comparison.arms):
        for key in arm.episodes:
            if (path := video(run_of(arm, key), *key[:2])) is not None:
                out[i, key] = path
    return out


def browser(comparison: Comparison, places: Mapping[Path, Video]) -> dict[str, Any]:
    """What the page's script shows.

    arms      name, number of the baseline (or -1), and per seed the command to which a film's TASK:NUMBER is added
    tasks     names
    rows      [task, episode, seed, outcomes]: for each arm 2 * steps + success, -1 where it has no such episode
    films     "row-arm" -> [key of the embedded film or "", link]
    """
    every, found = keys(comparison), films(comparison)
    at = {key: i for i, key in enumerate(every)}
    tasks = {task: i for i, task in enumerate(dict.fromkeys(key[0] for key in every))}
    rows = []
    for key in every:
        records = [arm.episodes.get(key) for arm in comparison.arms]
        outcomes = [ABSENT if r is None else 2 * r.steps + r.success for r in records]
        rows.append([tasks[key[0]], key[1], str(key[2]), outcomes])
    return {
        "arms": [arm.marked for arm in comparison.arms],
        "base": next((i for i, arm in enumerate(comparison.arms) if arm is comparison.baseline), ABSENT),
        "commands": [
            {str(seed): command(run) for seed, run in zip(a.seeds, a.runs, strict=True)} for a in comparison.arms
        ],
        "tasks": list(tasks),
        "rows": rows,
        "films": {
            f"{at[key]}-{i}": [places[path].key if places[path].embedded else "", places[path].link]
            for (i, key), path in found.items()
            if path in places
        },
    }


def command(run: Run) -> str:
    """What films episodes of a run again, but for the list of them; empty where the journal does not tell."""
    said = run.header.provenance.get("overrides")
    if said is None:
        return ""
    own = [part for part in said if part.partition("=")[0].lstrip("+") not in ("video", "only", "output")]
    return shlex.join(["vlaprune-eval", *own, f"output={run.folder}", "video=all"])
