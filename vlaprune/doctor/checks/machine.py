"""Checks of the machine and of the packages that every run needs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from vlaprune.benchmark import Finding
from vlaprune.doctor.checks.probe import ask
from vlaprune.errors import UserError

LOW = 2.0  # GB; an evaluation writes little, but a full disk ends it


def hub_cache() -> Path:
    """Where checkpoints from the Hugging Face hub are kept."""
    home = os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE", Path(home) / "hub"))


def python() -> Finding:
    """Whether the version of Python is supported."""
    said = sys.version.split()[0]
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Finding("python", f"{said}; use 3.11, 3.12 or 3.13", ok=False)
    return Finding("python", f"{said}, {sys.executable}")


def disk() -> Finding:
    """Whether there is free disk space for runs and checkpoints."""
    free = {str(path): shutil.disk_usage(_there(path)).free / 1e9 for path in (Path.cwd(), hub_cache())}
    said = ", ".join(f"{gb:.0f} GB free for {path}" for path, gb in free.items())
    if min(free.values()) < LOW:
        return Finding("disk", f"{said}; make room, or set HF_HUB_CACHE and output= to another disk", ok=False)
    return Finding("disk", said)


def memory() -> Finding:
    """The host's memory; a checkpoint of 7 billion parameters in bfloat16 takes 15 GB."""
    return Finding("memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB")


def torch() -> Finding:
    """Whether torch loads."""
    try:
        return Finding("torch", ask("import torch; print(torch.__version__)"))
    except UserError as error:
        return Finding("torch", f"{error}; pip install torch==2.13.0", ok=False)


def torchvision() -> Finding:
    """Whether an installed torchvision fails to load: it then breaks transformers too."""
    if find_spec("torchvision") is None:
        return Finding("torchvision", "absent; nothing here needs it")
    try:
        return Finding("torchvision", ask("import torchvision; print(torchvision.__version__)"))
    except UserError as error:
        return Finding("torchvision", f"cannot be loaded ({error}); pip uninstall torchvision", ok=False)


def transformers() -> Finding:
    """Whether transformers is of a known version, loads, and has no files of another project in it."""
    code = "from transformers import LlamaConfig; import transformers; print(transformers.__version__)"
    try:
        said = ask(code)
    except UserError as error:
        return Finding("transformers", f"{error}; pip install 'transformers>=5,<6'", ok=False)
    if said.split(".")[0] != "5":
        return Finding("transformers", f"{said}; pip install 'transformers>=5,<6'", ok=False)
    if find_spec("transformers.models.siglip.check") is not None:
        again = f"pip install --force-reinstall --no-deps transformers=={said}"
        return Finding("transformers", f"{said} with the files of another project over it; {again}", ok=False)
    return Finding("transformers", said)


def gpu() -> Finding:
    """Whether torch works with the GPUs, if there are any; their names and free memory in GB."""
    code = (
        "import torch; n = torch.cuda.device_count(); p = torch.cuda.get_device_properties\n"
        "print('; '.join(f'{p(i).name}, {torch.cuda.mem_get_info(i)[0] / 1e9:.0f} of {p(i).total_memory / 1e9:.0f} GB "
        "free' for i in range(n)) or 'none')"
    )
    try:
        said = ask(code)
    except UserError as error:
        return Finding("GPU", f"{error}; see whether nvidia-smi works and torch was built for this driver", ok=False)
    return Finding("GPU", "none; models compute on the CPU" if said == "none" else said)


def device(name: str) -> Finding:
    """Whether the torch device of this name is here, as a model would find it."""
    try:
        return Finding("device", ask(f"from vlaprune.models.shared import resolve_device as r; print(r({name!r}))"))
    except UserError as error:
        return Finding("device", str(error).rpartition("UserError: ")[2], ok=False)


def _there(path: Path) -> Path:
    """The path itself or its nearest parent that exists."""
    return next(p for p in (path, *path.absolute().parents) if p.is_dir())


CHECKS: Sequence[Callable[[], Finding]] = (python, disk, memory, torch, torchvision, transformers, gpu)
