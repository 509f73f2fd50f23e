"""`devices=`: one policy process for each device of this machine; they share the episodes of one run as shards.

A process sees only its device, renders on it, and uses its part of the cores. Each writes its own journal into the
run's folder. This process only shows one line of progress, one table and one exit code. If a process is killed, its
finished episodes remain; the same command continues the run, with these devices or others.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlaprune import report
from vlaprune.errors import UserError, is_user_error
from vlaprune.evaluation.progress import SAID, SWEEP, Bar, RunStatus, SweepJob, once
from vlaprune.records import read

LOOK = 0.2  # seconds between two looks at the processes
GRACE = 20.0  # seconds that an interrupted process has to end


@dataclass(frozen=True)
class Device:
    """The device of one policy process: `cpu`, or a GPU by its number among the visible ones."""

    name: str

    def environment(self, count: int) -> dict[str, str]:
        """The environment variables of the device's process, if `count` processes run."""
        cores = os.cpu_count() or 1
        threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // count)))}
        if self.name == "cpu":
            return threads | {"CUDA_VISIBLE_DEVICES": ""}
        in_sight = [v for v in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if v]
        number = in_sight[int(self.name)] if in_sight else self.name
        return threads | {"CUDA_VISIBLE_DEVICES": number, "MUJOCO_EGL_DEVICE_ID": number}


def chosen(devices: str | int | Sequence[str | int], gpus: int) -> list[Device]:
    """The devices that `devices=` names. UserError for one that does not exist; `gpus` GPUs are visible."""
    if devices == "all":
        devices = list(range(gpus)) or ["cpu"]
    several = isinstance(devices, Sequence) and not isinstance(devices, str)
    names = [str(device) for device in devices] if several else [str(devices)]  # type: ignore[union-attr]
    known = {"cpu", *map(str, range(gpus))}
    there = f"0..{gpus - 1} and cpu" if gpus else "cpu"
    if lost := [name for name in names if name not in known]:
        raise UserError(f"devices: no {', '.join(lost)} here; there is {there}, name them as devices=[0,1], or say all")
    if not names:
        raise UserError(f"devices=[]; name at least one of {there}, or leave it out")
    return [Device(name) for name in names]


def run(cfg: Any, job: SweepJob | None) -> None:
    """Runs `cfg` on its devices. UserError for options that do not go together, and if a process failed."""
    import torch

    if cfg.shard.count > 1:
        raise UserError("devices= and shard.count > 1; devices shard a run themselves, leave out one of the two")
    if cfg.stop is not None or cfg.only is not None:
        key = "stop" if cfg.stop is not None else "only"
        raise UserError(
            f"devices= and {key}={cfg[key]}; that needs all episodes in one process, leave out one of the two"
        )
    devices = chosen(cfg.devices, torch.cuda.device_count())
    folder = Path(tempfile.mkdtemp(prefix="vlaprune-devices-"))
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for index, device in enumerate(devices):
            processes.append(_start(cfg, folder, index, device, len(devices)))
        statuses = _watch(processes, devices, folder, job)
    except BaseException:
        _end(processes)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    failed = [(i, _failure(p.returncode, statuses.get(i))) for i, p in enumerate(processes) if p.returncode]
    if failed:
        whys = {why for _, why in failed}
        said = whys.pop() if len(whys) == 1 else "; ".join(f"{i} ({devices[i].name}): {why}" for i, why in failed)
        many = f"{len(failed)} of {len(devices)} processes failed"
        text = f"{many}; what is finished is kept, the same command goes on: {said}"
        if any(p.returncode == 1 for p in processes):
            raise MemberError(text)
        raise UserError(text)
    if job is None:
        print(report.summary(read(cfg.output)))


class MemberError(Exception):
    """A process of a run failed because of a bug, which it has printed itself."""


def _start(cfg: Any, folder: Path, index: int, device: Device, count: int) -> subprocess.Popen[bytes]:
    from vlaprune import config

    task = folder / f"{index}.task"
    task.write_bytes(config.pack_job(cfg, {"devices": None, "shard": {"index": index, "count": count}}))
    path = os.pathsep.join(p for p in sys.path if p)
    return subprocess.Popen(
        [sys.executable, "-c", "from vlaprune.api.devices import member; member()", str(task), str(os.getpid())],
        env={**os.environ, **device.environment(count), SWEEP: str(folder), "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # this process handles an interrupt at the keyboard
    )


def _watch(
    processes: Sequence[subprocess.Popen[bytes]], devices: Sequence[Device], folder: Path, job: SweepJob | None
) -> Mapping[int, RunStatus]:
    """Shows progress until all processes have ended; returns their last statuses. Reports a failed one at once."""
    bar, heard = None, 0
    failed: set[int] = set()
    while True:
        over = all(p.poll() is not None for p in processes)
        heard = _relay(folder / SAID, heard)
        statuses = {int(p.stem): RunStatus(**json.loads(p.read_text())) for p in sorted(folder.glob("*.json"))}
        if len(statuses) == len(processes) or (over and statuses):
            now = _sum(list(statuses.values()))
            bar = bar or Bar(now, job)
            bar.show(now)
        if over:
            break
        for i, process in enumerate(processes):
            if process.poll() and i not in failed:
                failed.add(i)
                why = _failure(process.returncode, statuses.get(i))
                once(f"process {i} ({devices[i].name}) failed, the others go on: {why}")
        time.sleep(LOOK)
    if bar is not None:
        bar.close()
    return statuses


def _sum(statuses: Sequence[RunStatus]) -> RunStatus:
    """The progress of the whole run, summed over its processes."""
    totals = {key: sum(getattr(s, key) for s in statuses) for key in ("asked", "done", "won", "begun")}
    return replace(statuses[0], **totals, seconds=max(s.seconds for s in statuses), ended=False, error="")


def _relay(place: Path, heard: int) -> int:
    """Prints new whole lines of the processes' messages after position `heard`; returns the new position."""
    text = place.read_text()[heard:] if place.is_file() else ""
    whole = text.rfind("\n") + 1
    for line in text[:whole].splitlines():
        once(line)
    return heard + whole


def _failure(code: int, status: RunStatus | None) -> str:
    if status is not None and status.error:
        return status.error
    return f"died with signal {-code}" if code < 0 else f"exit code {code}"


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Interrupts the processes, which close their simulators, and kills what is left after a while."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    until = time.monotonic() + GRACE
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()


def member() -> None:
    """The main function of one policy process; `run` starts it."""
    from vlaprune import config
    from vlaprune.api.evaluation import run_composed
    from vlaprune.bench.worker import die_with

    die_with(int(sys.argv[2]))
    cfg = config.unpack_job(Path(sys.argv[1]).read_bytes())
    job = SweepJob(cfg.shard.index, "")
    try:
        run_composed(cfg, job=job)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        job.fail(f"{type(error).__name__}: {' '.join(str(error).split())}")
        if is_user_error(error):
            sys.exit(2)
        raise
