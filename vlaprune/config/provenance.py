"""Makes the header of a journal: identity, provenance, and the episodes asked for."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from vlaprune.config.build import control, model_node, robot_of
from vlaprune.config.delay import delay_identity
from vlaprune.config.names import digest, files_read, identified, named
from vlaprune.errors import UserError

if TYPE_CHECKING:
    from vlaprune.benchmark import Benchmark
    from vlaprune.delay import Delay
    from vlaprune.policy import VLA
    from vlaprune.records import Header

PACKAGES = ("vlaprune", "torch", "transformers", "numpy", "mujoco", "robosuite", "hydra-core")
WHERE = ("assets", "worker", "python")  # of a benchmark: where it runs; not part of the identity


def tasks(bench: Benchmark, episodes: int | None) -> dict[str, int]:
    """Task name -> episodes asked for. UserError for no task, a task twice, or a number outside the protocol."""
    names = [task.name for task in bench.tasks()]
    if not names:
        raise UserError(f"bench {bench.name} is left with no tasks; leave the option that chooses them out for all")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"bench {bench.name} has {', '.join(twice)} more than once; name every task once")
    for task in bench.tasks():
        if episodes is not None and not 1 <= episodes <= task.episodes:
            raise UserError(f"episodes={episodes}; {bench.name} {task.name} has 1..{task.episodes}")
    return {t.name: episodes or t.episodes for t in bench.tasks()}


def header(cfg: DictConfig, model: VLA, bench: Benchmark, delay: Delay | None = None) -> Header:
    """The header of a run's journal; `delay` is the result of `config.delay`."""
    from vlaprune.policy import card_of
    from vlaprune.records import Header, as_recorded

    said, driver = identity(cfg, bench), control(cfg, bench)
    if delay is not None:
        said["delay"] = delay_identity(cfg)
    if cfg.kernel != "sdpa":
        said["kernel"] = cfg.kernel
    card = card_of(model)
    whole = said | {
        "seed": cfg.seed,
        "execute": driver.actions_per_call(model.chunk),
        "weights": card.get("sha256", "none"),
    }
    known = provenance(str(model.device)) | _made(cfg, bench)
    if delay is not None:
        known["delay"] = delay.latency.note
    if "tuning" in card:
        known["tuned_from"] = card["from"].get("sha256", "none")
    return Header(as_recorded(whole), known, tasks(bench, cfg.episodes))


def black_box_header(
    cfg: DictConfig, called: str, server: str, greeting: Mapping[str, Any], bench: Benchmark
) -> Header:
    """The header of a run whose policy is a black box: without proof of pruning.

    called    name in tables, in place of the method's name, since nobody knows what the server prunes
    server    address and description of the server, for readers
    greeting  the server's description of itself; another one, except for versions and slots, means another policy
    """
    from vlaprune.records import Header, as_recorded

    said, driver = identity(cfg, bench), control(cfg, bench)
    told = {key: value for key, value in greeting.items() if key != "slots" and not key.endswith("version")}
    bits = json.dumps(told, sort_keys=True, default=str).encode()
    said["method"] = {"name": called, "greeting_sha256": digest(bits)}
    for key in ("url", "called", "check", "patience"):  # they say only how it is reached
        said["model"].pop(key, None)
    whole = said | {"seed": cfg.seed, "execute": driver.execute, "weights": "unknown", "proof": "none"}
    known = provenance("cpu") | _made(cfg, bench) | {"source": f"a model server, {server}"}
    known["hardware"] |= {"device": "that of the model server"}
    return Header(as_recorded(whole), known, tasks(bench, cfg.episodes))


def identity(cfg: DictConfig, bench: Benchmark) -> dict[str, Any]:
    """The identity of model, method and bench, and of the control if it is not the default."""
    from vlaprune.benchmark import SupportsIdentity

    names = named(HydraConfig.get())
    said = {part: identified(names[part], node) for part, node in _nodes(cfg, bench).items()}
    said["method"] = method_identity(cfg)
    world = {key: value for key, value in said["bench"].items() if key not in WHERE}
    if isinstance(bench, SupportsIdentity):
        world = {key: world[key] for key in ("name", "package") if key in world} | dict(bench.identity())
    said["bench"] = world | {"margin": bench.margin, "protocol": bench.protocol}
    driver = control(cfg, bench)
    if replace(driver, execute=None) != type(driver)():
        said["control"] = asdict(driver)
    return said


def method_identity(cfg: DictConfig) -> dict[str, Any]:
    """The identity of the method: its name and options, and what the files hold that they name."""
    said = identified(named(HydraConfig.get())["method"], cfg.method)
    return said | files_read(said)


def _nodes(cfg: DictConfig, bench: Benchmark) -> dict[str, DictConfig]:
    return {"model": model_node(cfg, robot_of(bench)), "method": cfg.method, "bench": cfg.bench}


def _made(cfg: DictConfig, bench: Benchmark) -> dict[str, Any]:
    """Further provenance of a run: its simulator, slots, shard, films, overrides and classes."""
    from vlaprune.benchmark import SupportsProvenance
    from vlaprune.evaluation.rollout import Shard

    told = dict(bench.provenance()) if isinstance(bench, SupportsProvenance) else {}
    shard = Shard(cfg.shard.index, cfg.shard.count).suffix
    return told | {
        "slots": cfg.slots,
        "max_batch": cfg.max_batch,
        "shard": shard,
        "video": cfg.video,
        "baseline": str(cfg.baseline or ""),
        "overrides": list(HydraConfig.get().overrides.task),
        "classes": {part: str(node._target_) for part, node in _nodes(cfg, bench).items()},
    }


def provenance(device: str) -> dict[str, Any]:
    """Command, commit, versions, hardware and machine of this process, and what else ran there when it started."""
    import torch

    from vlaprune.profile.machine import Nvml

    cuda = torch.cuda.get_device_name() if device.startswith("cuda") else None
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": _commit(),
        "versions": {p: _version(p) for p in PACKAGES} | {"python": platform.python_version()},
        "hardware": {
            "device": cuda or device,
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "host": platform.node(),
        "boot": _text("/proc/sys/kernel/random/boot_id").strip(),
        "pid": os.getpid(),
        "started": time.time(),
        "load": os.getloadavg()[0],
        "device_users": Nvml(torch.device(device)).processes(),
    }


def _cpu() -> str:
    """The processor's name, from /proc/cpuinfo or else from Python."""
    names = (line.partition(":")[2] for line in _text("/proc/cpuinfo").splitlines() if line.startswith("model name"))
    return next(names, "").strip() or platform.processor() or platform.machine()


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The checkout's commit, with a plus sign if files differ from it. Without git: VLAPRUNE_COMMIT, or None."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():  # installed: a repository above it is not ours
        return os.environ.get("VLAPRUNE_COMMIT")
    try:
        said = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("VLAPRUNE_COMMIT")
    return said.stdout.strip() or None
