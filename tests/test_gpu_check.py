"""`make gpu-check` on a machine that has torch and four small packages besides."""

import os
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

GIVEN = (
    "torch",
    "numpy",
    "hydra-core",
    "omegaconf",
    "antlr4-python3-runtime",
    "simplejpeg",
    "pillow",
)  # docs/profiling.md
RUN = """
import sys
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions

given = set(sys.argv.pop(1).split(","))
packages = packages_distributions()


class Only(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        owners = {owner.lower().replace("_", "-") for owner in packages.get(name, [])}
        return None if owners and not owners & given else super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Only
from vlaprune.cli import profile
profile()
"""


def closure(names):
    """Distributions and what they require on this machine, extras left out."""
    found, todo = set(), [n.lower().replace("_", "-") for n in names]
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found.add(name)
        try:
            lines = requires(name) or []
        except ModuleNotFoundError:
            continue
        todo += [re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for line in lines if "extra ==" not in line]
    return found


def test_the_check_needs_torch_and_four_packages(tmp_path):
    given = closure(GIVEN) | {"vlaprune"}
    assert "pandas" not in given and "transformers" not in given
    said = ["mode=check", "bench=toy", "minutes=0.05", "methods=[fastv]", "keeps=[0.5]", f"output={tmp_path}"]
    run = [sys.executable, "-c", RUN, ",".join(sorted(given)), *said]
    path = str(Path(__file__).parents[1])
    done = subprocess.run(run, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (page,) = tmp_path.glob("check-cpu.md")
    text = page.read_text()
    assert "No module named" not in text
    assert all(f"# {model}_tiny" in text for model in ("openvla", "oft", "cogact", "pi0")) and "## Summary" in text
