"""Imports results of vla-eval as a recorded run: success and steps of each episode, and nothing else. No torch.

The file is the JSON that `vla-eval run` and `vla-eval export` write (NAME_aggregate.json, vla_eval/results/collector.py
of 0.8.0): tasks, and in each its episodes with a number and metrics.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlaprune.errors import UserError
from vlaprune.records import EpisodeRecord, Header, Run

FORM = "give the JSON that vla-eval writes, NAME_aggregate.json"


@dataclass(frozen=True)
class Results:
    """The content of a file of results.

    episodes  (task, number) -> success, steps, seconds
    failed    (task, number) of episodes that raised there and have no outcome
    """

    path: Path
    benchmark: str
    version: str
    server: str
    digest: str
    episodes: Mapping[tuple[str, int], tuple[bool, int, float]]
    failed: Sequence[tuple[str, int]]


def server_name(said: Mapping[str, Any]) -> str:
    """A short name from a server's greeting: model and method if it names them, else its class."""
    parts = [said[key] for key in ("model", "method") if said.get(key)] or [said.get("model_server") or "model-server"]
    return "-".join("-".join(str(part).split()) for part in parts)


def load(path: Path) -> Results:
    """Reads a file of results. UserError if it is no such file, or if its episodes cannot be distinguished."""
    try:
        data = path.read_bytes()
        said = json.loads(data)
        tasks = [(str(task["task"]), list(task["episodes"])) for task in said["tasks"]]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path} holds no results of vla-eval; {FORM}") from None
    if said.get("mode") not in (None, "sync"):
        raise UserError(f"{path} was made in mode {said['mode']}, where the world did not wait; import a sync run")
    episodes: dict[tuple[str, int], tuple[bool, int, float]] = {}
    failed = []
    for task, number, one in _each(path, tasks):
        if one.get("failure_reason"):
            failed.append((task, number))
        else:
            episodes[task, number] = _outcome(path, task, number, one)
    if not episodes:
        raise UserError(f"{path}: all of its {len(failed)} episodes raised there; nothing can be paired")
    return Results(
        path,
        str(said.get("benchmark", "unknown")),
        str(said.get("harness_version", "unknown")),
        server_name(said["server_info"]) if said.get("server_info") else "",
        hashlib.sha256(data).hexdigest(),
        episodes,
        failed,
    )


def _each(path: Path, tasks: Sequence[tuple[str, list[Any]]]) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """Yields task, number and content of every episode. The number is that of the initial state, if the file has it."""
    seen = set()
    for task, found in tasks:
        for one in found:
            number = one.get("episode_idx", one.get("episode_id")) if isinstance(one, Mapping) else None
            if type(number) is not int or number < 0:
                raise UserError(f"{path}: an episode of {task} has no number; {FORM}")
            if (task, number) in seen:
                raise UserError(f"{path}: {task} {number} comes twice, so its episodes cannot be paired")
            seen.add((task, number))
            yield task, number, one


def _outcome(path: Path, task: str, number: int, one: Mapping[str, Any]) -> tuple[bool, int, float]:
    metrics, steps, seconds = one.get("metrics"), one.get("steps"), one.get("elapsed_sec", 0.0)
    success = metrics.get("success") if isinstance(metrics, Mapping) else None
    if success not in (True, False) or type(steps) is not int or steps < 1 or type(seconds) not in (int, float):
        raise UserError(f"{path}: {task} {number} has no success (true or false) or no steps, so it cannot be paired")
    return bool(success), steps, float(seconds)


def recorded(found: Results, like: Run, called: str, tasks: Mapping[str, str]) -> tuple[Header, list[EpisodeRecord]]:
    """Makes a run's header and episodes from results, to pair them with another run by task and number.

    like    the run to pair with: its benchmark and seed are taken over
    called  name of the run in tables
    tasks   name there -> name here, for tasks that are not recognised

    Errors: UserError if nothing can be paired.
    """
    said, ours = like.header.identity, list(like.header.tasks)
    if said.get("delay") or said["bench"].get("stress"):
        raise UserError(
            f"the world of {like.folder} is delayed or perturbed, that of the results is not; name another run"
        )
    names = {theirs: _task(theirs, ours, tasks) for theirs, _ in [*found.episodes, *found.failed]}
    if twice := sorted({one for one in names.values() if [*names.values()].count(one) > 1}):
        raise UserError(f"{found.path}: several of its tasks are {twice[0]}; say which by --task THEIRS=OURS")
    records = [
        EpisodeRecord(names[task], number, success, steps, (), 0.0, seconds)
        for (task, number), (success, steps, seconds) in found.episodes.items()
    ]
    if not any((r.task, r.episode) in like.episodes for r in records):
        raise UserError(f"{found.path} and {like.folder} have no episode in common")
    asked: dict[str, int] = {}
    for task, number in [*found.episodes, *found.failed]:
        asked[names[task]] = max(asked.get(names[task], 0), number + 1)
    identity = {
        "model": {"name": found.server or "unknown"},
        "method": {"name": called},
        "bench": said["bench"],
        "seed": said.get("seed"),
        "execute": None,
        "weights": "unknown",
        "proof": "none",
        "results": found.digest,
    }
    source = f"results of vla-eval {found.version} ({found.benchmark}), imported from {found.path.name}"
    return Header(identity, {"source": source}, {task: asked[task] for task in ours if task in asked}), records


def _task(theirs: str, ours: Sequence[str], told: Mapping[str, str]) -> str:
    """Our name of a task: as given, or the one with the same words, perhaps after the name of a scene."""
    if told.get(theirs, theirs) in ours:
        return told.get(theirs, theirs)
    if theirs in told:
        raise UserError(f"--task {theirs}={told[theirs]}: the run has no such task; it has {_few(ours)}")
    words = _words(theirs)
    same = [one for one in ours if _words(one) == words] or [o for o in ours if _words(o).endswith(f" {words}")]
    if len(same) != 1:
        raise UserError(
            f"task {theirs!r} of the results is {'several' if same else 'none'} of the run's ({_few(same or ours)}); "
            f"say which it is, --task '{theirs}=OURS', or name the run of its benchmark"
        )
    return same[0]


def _words(task: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", task.lower()))


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
