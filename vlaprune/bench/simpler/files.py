"""The files that SIMPLER needs: packages of the simulator's interpreter, and every asset file of the chosen tasks.

ManiSkill2 only logs a missing mesh and goes on without it, so all files are looked for before anything starts.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlaprune.bench.simpler.grid import Start
from vlaprune.errors import UserError

PACKAGE = {"ms2": "mani_skill2_real2sim", "ms3": "mani_skill"}
VARIABLE = {"ms2": "MS2_REAL2SIM_ASSET_DIR", "ms3": "MS_ASSET_DIR"}
STAGES = {"ms2": "hab2_bench_assets/stages", "ms3": "data/tasks/bridge_v2_real2sim_dataset/stages"}
SHARED = {"ms2": "", "ms3": "data/tasks/bridge_v2_real2sim_dataset/"}
GUIDE = "docs/simpler.md says how"
INSPECT = """
import json, sys
from importlib import metadata, util
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
def folder(name):
    spec = util.find_spec(name)
    return spec and list(spec.submodule_search_locations or [])[0]
print(json.dumps({
    "versions": {"python": sys.version.split()[0], **{n: version(n) for n in sys.argv[1].split()}},
    "folders": {n: folder(n) for n in sys.argv[2].split()},
}))
"""
DRAW = {  # prints the simulator's render device in its last line, or fails
    "ms2": """
import os, sapien.core
sapien.core.SapienRenderer()
print(os.environ.get("VK_DRIVER_FILES") or os.environ.get("VK_ICD_FILENAMES") or "the system's Vulkan driver")
""",
    "ms3": """
import sapien
sapien.Scene()
found = [line[5:] for line in sapien.render.get_device_summary().splitlines() if line.startswith("GPU: ")]
print(", ".join(found) or exit("no Vulkan device"))
""",
}
DEVICE = {"ms2": "a GPU, or lavapipe of Mesa 26 or later", "ms3": "a GPU, or lavapipe of Mesa 25 or later"}
SOFT = ["apple", "orange", "sponge"]
CANS = ["7up", "coke", "pepsi", "redbull"]
MOVED = ["blue_plastic_bottle", *SOFT, *(f"opened_{c}_can" for c in CANS)]
BAKED = [m if m in ("blue_plastic_bottle", "orange") else f"baked_{m}" for m in MOVED]
LESS = ["opened_pepsi_can", *SOFT]
MORE = [*(f"opened_{c}_can" for c in ("7up", "sprite", "fanta")), "sponge", "orange", "bridge_spoon_generated_modified"]
MODELS: dict[str, tuple[str, list[str]]] = {  # environment -> list of models, models loaded
    "GraspSingleOpenedCokeCanInScene-v0": ("info_pick_custom_v0", ["opened_coke_can"]),
    "GraspSingleOpenedCokeCanDistractorInScene-v0": ("info_pick_custom_v0", ["opened_coke_can"]),
    "MoveNearGoogleInScene-v0": ("info_pick_custom_v0", MOVED),
    "MoveNearGoogleBakedTexInScene-v0": ("info_pick_custom_baked_tex_v0", BAKED),
    "PlaceIntoClosedTopDrawerCustomInScene-v0": ("info_pick_custom_baked_tex_v1", []),
    "PutSpoonOnTableClothInScene-v0": (
        "info_bridge_custom_v0",
        ["bridge_spoon_generated_modified", "table_cloth_generated_shorter"],
    ),
    "PutCarrotOnPlateInScene-v0": (
        "info_bridge_custom_v0",
        ["bridge_carrot_generated_modified", "bridge_plate_objaverse_larger"],
    ),
    "StackGreenCubeOnYellowCubeBakedTexInScene-v0": (
        "info_bridge_custom_baked_tex_v0",
        ["baked_green_cube_3cm", "baked_yellow_cube_3cm"],
    ),
    "PutEggplantInBasketScene-v0": ("info_bridge_custom_v0", ["eggplant", "dummy_sink_target_plane", "sink"]),
}
DRAWER: tuple[str, list[str]] = ("info_pick_custom_v0", [])  # the drawer tasks load a list of models and no model


@dataclass(frozen=True)
class Interpreter:
    """The packages of an interpreter.

    versions  package -> version, or None
    folders   importable package -> its folder, or None
    """

    versions: dict[str, str | None]
    folders: dict[str, str | None]

    @classmethod
    def inspect(cls, python: str | None) -> Interpreter:
        """Asks `python` (None for this one) without importing anything. UserError if it is no Python."""
        packages = "numpy setuptools gymnasium sapien torch mani-skill mani_skill2_real2sim"
        try:
            found = json.loads(_ask(python, INSPECT, packages, "pkg_resources mani_skill mani_skill2_real2sim"))
        except ValueError as error:
            raise UserError(f"bench.python={python} does not answer as a Python ({error})") from None
        return cls(**found)

    def conflicts(self, backend: str) -> Iterator[str]:
        """Yields what is missing or too new for a backend, each with its remedy."""
        package = PACKAGE[backend]
        if self.folders[package] is None:
            yield f"it lacks {package}, the simulator; install it ({GUIDE}) and name its interpreter: bench.python=PATH"
            return
        if backend == "ms3":
            return
        if _major(self.versions["numpy"]) >= 2:
            yield f"its numpy {self.versions['numpy']} makes SAPIEN 2 crash at the first step; pip install 'numpy<2'"
        if self.folders["pkg_resources"] is None:
            yield "it has no pkg_resources, which SAPIEN 2 imports; pip install 'setuptools<81'"
        if _major(self.versions["gymnasium"]) >= 1:
            yield f"its gymnasium {self.versions['gymnasium']} hides what SIMPLER asks for; pip install 'gymnasium<1'"

    def assets(self, backend: str, given: str | None) -> Path:
        """The folder of a backend's assets: `given`, else the simulator's environment variable, else its default."""
        told = given or os.environ.get(VARIABLE[backend])
        if told:
            return Path(told)
        folder = self.folders[PACKAGE[backend]]
        return Path(folder or ".").parent / "data" if backend == "ms2" else Path.home() / ".maniskill"


def device(python: str | None, backend: str) -> str:
    """The device that the simulator renders with. UserError if it finds no Vulkan device."""
    try:
        return _ask(python, DRAW[backend])
    except UserError as error:
        raise UserError(f"SAPIEN cannot draw ({error}); it needs {DEVICE[backend]} (docs/simpler.md)") from None


def _ask(python: str | None, code: str, *arguments: str) -> str:
    """The last line that some code prints in a process of `python`; UserError with the last line of its error."""
    env = {k: v for k, v in os.environ.items() if python is None or k not in ("PYTHONPATH", "PYTHONHOME")}
    command = [python or sys.executable, "-c", code, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(str(error)) from None
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    if done.returncode or not lines:
        raise UserError(lines[-1].strip() if lines else f"exit code {done.returncode}")
    return lines[-1]


def needed(start: Start, backend: str) -> Iterator[tuple[str, ...]]:
    """Yields the files of one episode, relative to the assets' folder; one file of each tuple is enough."""
    shared = SHARED[backend]
    listed, models = MODELS.get(start.env, DRAWER)
    if "Distractor" in start.env:
        models = models + (MORE if start.build.get("distractor_config") == "more" else LESS)
    if chosen := start.build.get("model_ids"):
        models = [str(chosen)]
    yield (f"{shared}custom/{listed}.json",)
    for model in models:
        yield (f"{shared}custom/models/{model}/collision.obj",)
        yield tuple(f"{shared}custom/models/{model}/textured.{kind}" for kind in ("obj", "dae", "glb"))
    if not start.scene.startswith("dummy"):
        yield (f"{STAGES[backend]}/{start.scene}.glb",)
    if start.overlay is not None:
        yield (f"{shared}real_inpainting/{start.overlay}",)
    if "Drawer" in start.env:
        yield (f"custom/{start.build.get('station_name', 'mk_station')}.urdf",)
    if backend == "ms3":
        yield ("data/robots/widowx/wx250s.urdf",)


def missing(root: Path, starts: Iterable[Start], backend: str) -> Sequence[str]:
    """The missing files of these episodes, including textures and meshes that their files refer to."""
    out: list[str] = []
    for choices, found in _chosen(root, starts, backend):
        if found is None:
            out.append(" or ".join([choices[0], *(Path(other).name for other in choices[1:])]))
        else:
            out += [os.path.relpath(path, root) for path in _references(found) if not path.is_file()]
    return out


def fingerprint(root: Path, starts: Iterable[Start], backend: str) -> str:
    """SHA-256 of the existing files of these episodes, so that replaced assets are noticed.

    Files that they refer to are included: another texture gives another picture.
    """
    digest = hashlib.sha256()
    for _, found in _chosen(root, starts, backend):
        for path in () if found is None else (found, *_references(found)):
            if path.is_file():
                name = Path(os.path.relpath(path, root)).as_posix()
                digest.update(name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _chosen(root: Path, starts: Iterable[Start], backend: str) -> Iterator[tuple[tuple[str, ...], Path | None]]:
    """Yields tuples of files of which one is enough, and the first of them that exists."""
    for choices in sorted({files for start in starts for files in needed(start, backend)}):
        yield choices, next((root / name for name in choices if (root / name).is_file()), None)


def _references(path: Path) -> Iterator[Path]:
    """Yields the files named in a URDF, a COLLADA or an OBJ file, and those that they name in turn.

    Yields none for collision meshes, of which the simulator reads only the geometry.
    """
    patterns = {
        ".urdf": r'filename="(?:package://)?([^"]+)"',
        ".dae": r"<init_from>([^<]+\.\w+)</init_from>",
        ".obj": r"(?m)^mtllib +(\S.*?)\s*$",
        ".mtl": r"(?m)^\s*map_\w+ +(?:.* )?(\S+)\s*$",
    }
    if path.suffix not in patterns or path.stem == "collision":
        return
    for name in sorted(set(re.findall(patterns[path.suffix], path.read_text(errors="replace")))):
        other = path.parent / name.strip().replace("%20", " ")
        yield other
        if other.is_file():
            yield from _references(other)


def _major(version: str | None) -> int:
    return int((version or "0").split(".")[0])
