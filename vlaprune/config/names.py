"""What a run's model, method and benchmark are called: by their YAML files, or by the class on the command line."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

GROUPS = ("model", "method", "bench")  # what a run joins
CHOICES = (*GROUPS, "robots", "experiment", "logger")  # all groups of which the command line names an option


def typed(words: Sequence[str]) -> dict[str, str]:
    """What a command line sets: KEY -> VALUE, as written."""
    return {key: value for key, _, value in (word.lstrip("+").partition("=") for word in words)}


def typed_words(words: Sequence[str], groups: Sequence[str], without: Sequence[str] = ()) -> list[str]:
    """Those words of a command line that choose an option of some groups or set something in it."""
    keys = [(word.lstrip("+~").partition("=")[0], word) for word in words]
    return [word for key, word in keys if key.split(".")[0] in groups and key not in without]


def named(hydra: Any) -> dict[str, str]:
    """The name of each part, of a composed `hydra` section: that of its YAML file, or `_target_` where it was typed.

    A class that moves to another module keeps the name of its file.
    """
    said: Any = OmegaConf.to_container(hydra.overrides.task, resolve=False)  # `${hydra:...}` may stand in them
    typed = dict(override.lstrip("+").partition("=")[::2] for override in said)
    choices = hydra.runtime.choices
    return {group: typed.get(f"{group}._target_", str(choices[group])) for group in GROUPS if group in choices}


def identified(name: str, node: DictConfig) -> dict[str, Any]:
    """What a journal records of a part: its name, the package of a third party, and its options.

    Two packages that call their classes or files the same are told apart by `package`.
    """
    options: dict[str, Any] = OmegaConf.to_container(node, resolve=True)  # type: ignore[assignment]
    package = str(options.pop("_target_")).partition(".")[0]
    return {"name": name, **({} if package == "vlaprune" else {"package": package}), **options}


def files_read(options: Mapping[str, Any]) -> dict[str, str]:
    """Options that name a file, and the first half of its SHA-256: the same path may come to hold something else."""
    found = {key: Path(value) for key, value in options.items() if isinstance(value, str) and Path(value).suffix}
    return {f"{key}_sha256": digest(path) for key, path in found.items() if path.is_file()}


def digest(path: Path) -> str:
    """Of a file's bits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
