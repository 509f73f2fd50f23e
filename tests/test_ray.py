"""A sweep over a Ray cluster of two nodes gives the single process's episodes and one table.

`make ray` runs it in an environment of its own: Ray's launcher and joblib's want different versions of cloudpickle.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from doubles import outcomes

from vlaprune.records import read

ray_cluster = pytest.importorskip("ray.cluster_utils")
RUN = [sys.executable, "-c", "from vlaprune.cli import evaluate; evaluate()", "model=toy", "bench=toy", "logger=csv"]
ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def cluster(monkeypatch):
    """The address of two nodes of one core each on this machine."""
    monkeypatch.setenv("PYTHONPATH", ENV["PYTHONPATH"])
    nodes = ray_cluster.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    yield nodes.address
    nodes.shutdown()


def test_a_sweep_over_two_nodes_is_the_sweep(cluster, tmp_path):
    argv = [*RUN[:3], "-m", *RUN[3:], "method=dense,random", "episodes=4", "shard.count=2", "shard.index=0,1"]
    argv += ["hydra/launcher=ray_cluster", f"hydra.launcher.ray.init.address='{cluster}'"]
    argv += ["hydra.launcher.ray.remote.num_gpus=0", "hydra.launcher.ray.remote.num_cpus=1"]
    argv.append(f"output={tmp_path}/${{hydra:runtime.choices.method}}")
    done = subprocess.run(argv, env=ENV, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("random keep=0.25") == 1  # one table
    one = [*RUN, "method=random", "episodes=4", f"output={tmp_path}/one"]
    subprocess.run(one, env=ENV, cwd=tmp_path, capture_output=True, timeout=120, check=True)
    assert outcomes(read(tmp_path / "random")) == outcomes(read(tmp_path / "one"))


def test_a_job_that_fails_is_told_and_leads_to_exit_code_2(cluster, tmp_path):
    argv = [*RUN[:3], "-m", *RUN[3:], "method=random", "method.keep=0.5,-1", "episodes=1"]
    argv += ["hydra/launcher=ray_cluster", f"hydra.launcher.ray.init.address='{cluster}'"]
    argv += ["hydra.launcher.ray.remote.num_gpus=0", "hydra.launcher.ray.remote.num_cpus=1"]
    argv.append(f"output={tmp_path}/${{hydra:job.num}}")
    done = subprocess.run(argv, env=ENV, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2 and "keep=-1" in done.stderr and "Traceback" not in done.stderr
    assert len(read(tmp_path / "0").episodes) == 2
