"""Data for the list of episodes on a page: outcomes, films, and commands that make missing films."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlaprune.records import Run
from vlaprune.report.flips import Video, run_of, video
from vlaprune.report.runs import Comparison, Key

ABSENT = -1  # in place of an outcome, or of the baseline's number


def keys(comparison: Comparison) -> list[Key]:
    """Every episode of every arm, by task in the table's order, number and seed."""
    tasks = {task: i for i, task in enumerate(comparison.tasks)}
    every = dict.fromkeys(key for arm in comparison.arms for key in arm.episodes)
    return sorted(every, key=lambda k: (tasks.get(k[0], len(tasks)), k[1], str(k[2])))


def films(comparison: Comparison) -> dict[tuple[int, Key], Path]:
    """(number of the arm, episode) -> path of its film, for episodes that have one."""
    out = {}
    for i, arm in enumerate(comparison.arms):
        for key in arm.episodes:
            if (path := video(run_of(arm, key), *key[:2])) is not None:
                out[i, key] = path
    return out


def browser(comparison: Comparison, places: Mapping[Path, Video]) -> dict[str, Any]:
    """The data that the page's script shows, ready for JSON.

    arms      names of the arms, with marks
    base      number of the baseline among the arms, or -1
    commands  per arm: seed -> the command that films episodes; TASK:NUMBER of the film is added to it
    tasks     names of the tasks
    rows      [number of the task, episode, seed, outcomes]; an outcome is 2 * steps + success, or -1 for no episode
    films     "ROW-ARM", by numbers -> [key of the embedded film or "", link]
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
    """The command that films episodes of a run again, without the list of episodes; empty if it is not recorded."""
    said = run.header.provenance.get("overrides")
    if said is None:
        return ""
    own = [part for part in said if part.partition("=")[0].lstrip("+") not in ("video", "only", "output")]
    return shlex.join(["vlaprune-eval", *own, f"output={run.folder}", "video=all"])
