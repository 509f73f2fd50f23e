"""The interpreter that a simulator of another environment runs in."""

from __future__ import annotations

import json
from collections.abc import Iterator

from vlaprune.checks.probe import ask
from vlaprune.finding import Finding

PACKAGES = ("numpy", "setuptools", "gymnasium", "sapien", "mani_skill2_real2sim", "simpler_env", "mani-skill", "mujoco")
LOOK = f"""
import json, sys
from importlib import metadata
from importlib.util import find_spec
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
found = {{name: version(name) for name in {PACKAGES!r}}}
found["python"] = sys.version.split()[0]
found["pkg_resources"] = "there" if find_spec("pkg_resources") else None
print(json.dumps(found))
"""


def worker(python: str) -> Iterator[Finding]:
    """What is installed there, then each conflict known for SAPIEN 2.2.2, which the published SIMPLER runs on."""
    about = f"worker {python}"
    try:
        found: dict[str, str | None] = json.loads(ask(LOOK, python))
    except RuntimeError as error:
        yield Finding(about, f"{error}; give the path of a python program", ok=False)
        return
    yield Finding(about, ", ".join(f"{name} {said}" for name, said in found.items() if said))
    if not (found["sapien"] or "").startswith("2."):
        return
    if _major(found["numpy"]) >= 2:
        said = f"{found['numpy']} crashes SAPIEN 2 at its first step; pip install 'numpy<2'"
        yield Finding("worker numpy", said, ok=False)
    if not found["pkg_resources"]:
        yield Finding("worker setuptools", "it has no pkg_resources; pip install 'setuptools<81'", ok=False)
    if _major(found["gymnasium"]) >= 1:
        said = f"{found['gymnasium']} hides what SIMPLER asks its wrappers for; pip install 'gymnasium<1'"
        yield Finding("worker gymnasium", said, ok=False)


def _major(version: str | None) -> int:
    return int((version or "0").split(".")[0])
