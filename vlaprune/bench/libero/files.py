"""What LIBERO has on disk: task names, problem files, initial states, assets. No simulator is started for any of it."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import pickle
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vlaprune.benchmark import Task

LIMITS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
TRIALS = 50
INSTALL = "pip install 'vlaprune[libero]' && pip install --no-deps hf-libero==0.1.4 bddl==1.0.1"
CACHE = Path("~/.cache/libero/assets")  # where hf-libero's own download puts them
FETCH = f"hf download lerobot/libero-assets --repo-type dataset --local-dir {CACHE}"
FOLDERS = ("articulated_objects", "scenes", "stable_hope_objects", "stable_scanned_objects", "textures")
ALLOWED = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}


def suite(name: str) -> tuple[Task, ...]:
    """The tasks of a suite in LIBERO's order. ValueError for a suite that does not exist."""
    if name not in LIMITS:
        raise ValueError(f"suite={name}; LIBERO has {', '.join(LIMITS)}")
    lines = (Path(__file__).with_name("libero_tasks.txt")).read_text().split()
    mine = [line.partition("/")[2] for line in lines if line.startswith(name + "/")]
    return tuple(Task(task, instruction(task), LIMITS[name], TRIALS) for task in mine)


def instruction(task: str) -> str:
    """A task's words are those of its name, without the scene that the long suites put first."""
    _, scene, rest = task.partition("SCENE")
    return (rest.partition("_")[2] if scene else task).replace("_", " ")


def package() -> Path:
    """Folder of the installed package `libero.libero`, which is not imported. RuntimeError where there is none."""
    spec = importlib.util.find_spec("libero")
    if spec is None or spec.origin is None:
        raise RuntimeError(f"LIBERO is not installed; {INSTALL}")
    return Path(spec.origin).parent / "libero"


def assets(given: str | None) -> Path:
    """Folder of meshes and textures: the given one, the package's own, or hf-libero's download.

    RuntimeError with the command that gets them.
    """
    places = [Path(given)] if given else [package() / "assets", CACHE]
    for place in (p.expanduser() for p in places):
        if all((place / folder).is_dir() for folder in FOLDERS):
            return place.resolve()  # robosuite takes a relative path for one of its own
    looked = " or ".join(map(str, places))
    raise RuntimeError(f"LIBERO's meshes and textures are not in {looked}; get them (0.4 GB): {FETCH}")


def fingerprint(given: str | None) -> str:
    """The assets in short: twelve digits of a hash of their names and sizes, how many files, how many megabytes."""
    folder = assets(given)
    files = sorted((p.relative_to(folder).as_posix(), p.stat().st_size) for p in folder.rglob("*") if p.is_file())
    digest = hashlib.sha256(repr(files).encode()).hexdigest()[:12]
    return f"{digest}, {len(files)} files, {sum(size for _, size in files) / 1e6:.0f} MB"


def initial_states(suite_name: str, task: str) -> np.ndarray:
    """The official initial states of a task, [50, n] float64: time, positions, velocities."""
    path = package() / "init_files" / suite_name / f"{task}.pruned_init"
    try:
        with zipfile.ZipFile(path) as archive:
            states = _Arrays(io.BytesIO(archive.read("archive/data.pkl"))).load()
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise RuntimeError(f"{path} cannot be read ({error}); install it again: {INSTALL}") from error
    if not isinstance(states, np.ndarray) or len(states) != TRIALS or states.dtype != np.float64:
        raise ValueError(f"{path} does not hold {TRIALS} initial states")
    return states


class _Arrays(pickle.Unpickler):
    """Reads a pickle of arrays, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Callable[..., object]:
        """The few names that an array's pickle calls; UnpicklingError for any other."""
        if name == "_reconstruct" and module.endswith("core.multiarray"):
            return np.ndarray((0,)).__reduce__()[0]  # type: ignore[return-value]
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} has no place among initial states")
        return super().find_class(module, name)  # type: ignore[no-any-return]


def import_libero(meshes: Path) -> None:
    """Imports LIBERO's environments without its questions at the keyboard; they read assets from `meshes`."""
    if "libero.libero" not in sys.modules:
        with tempfile.TemporaryDirectory() as folder:
            keys = ("benchmark_root", "bddl_files", "init_states", "datasets", "assets")
            Path(folder, "config.yaml").write_text("".join(f"{key}: {package()}\n" for key in keys))
            before = os.environ.get("LIBERO_CONFIG_PATH")
            os.environ["LIBERO_CONFIG_PATH"] = folder  # looked at during this import only
            try:
                import libero.libero
            finally:
                del os.environ["LIBERO_CONFIG_PATH"]
                if before is not None:
                    os.environ["LIBERO_CONFIG_PATH"] = before
    import libero.libero

    libero.libero._assets_path_cache = str(meshes)  # else a download starts; a config's `assets` is not read
    import libero.libero.envs
