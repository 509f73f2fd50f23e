"""A third party's package (tests/plugin) is found by its entry point, without any change here."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from vlaprune.records import read

PLUGIN = Path(__file__).parent / "plugin"
COMMANDS = """
import sys
from vlaprune.cli import evaluate
sys.argv = ["vlaprune-eval", "model=toy", "bench=toy", "logger=csv", "method=mine", "episodes=1", "output=run"]
evaluate()
sys.argv = ["vlaprune-eval", "-m", "model=toy", "bench=toy", "logger=csv", "method=mine,random", "method.keep=8",
            "episodes=1", "output=sweep/${hydra:runtime.choices.method}"]
evaluate()
sys.argv = ["vlaprune-eval", "method=nosuch"]
evaluate()
"""


def installed(folder):
    """What pip would leave in site-packages."""
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    info = folder / f"vlaprune_mine-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    (info / "entry_points.txt").write_text(
        "".join(f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups)
    )
    shutil.copytree(PLUGIN / "vlaprune_mine", folder / "vlaprune_mine")
    return folder


def test_a_third_partys_method_runs_sweeps_and_is_listed(tmp_path):
    path = os.pathsep.join(filter(None, (str(installed(tmp_path / "site")), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    said = subprocess.run(
        [sys.executable, "-c", COMMANDS], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert said.returncode == 2, said.stderr
    run = read(tmp_path / "run")
    assert (
        run.header.identity["method"] == {"name": "mine", "package": "vlaprune_mine", "keep": 0.5} and not run.missing
    )
    assert {c.visual for r in run.episodes.values() for c in r.calls} == {(32,) * 6}
    for name in ("mine", "random"):
        calls = [c for r in read(tmp_path / "sweep" / name).episodes.values() for c in r.calls]
        assert {c.visual for c in calls} == {(8,) * 6}
    assert "method=nosuch: use one of" in said.stderr and " mine, " in said.stderr and " fastv, " in said.stderr
