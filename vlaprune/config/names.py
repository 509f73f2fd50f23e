"""The names of a run's model, method and benchmark: those of their YAML files, or classes on the command line."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

GROUPS = ("model", "method", "bench")  # the parts of a run
CHOICES = (*GROUPS, "robots", "experiment", "logger")  # all groups whose options the command line names


def typed(words: Sequence[str]) -> dict[str, str]:
    """The settings on a command line: KEY -> VALUE, as written."""
    return {key: value for key, _, value in (word.lstrip("+").partition("=") for word in words)}


def typed_words(words: Sequence[str], groups: Sequence[str], without: Sequence[str] = ()) -> list[str]:
    """The words of a command line that choose an option of some groups or set something in it."""
    keys = [(word.lstrip("+~").partition("=")[0], word) for word in words]
    return [word for key, word in keys if key.split(".")[0] in groups and key not in without]


def named(hydra: Any) -> dict[str, str]:
    """The name of each part, from a composed `hydra` section: that of its YAML file, or `_target_` if it was typed.

    So a class that moves to another module keeps its name.
    """
    said: Any = OmegaConf.to_container(hydra.overrides.task, resolve=False)  # they may contain `${hydra:...}`
    given = typed(said)
    choices = hydra.runtime.choices
    return {group: given.get(f"{group}._target_", str(choices[group])) for group in GROUPS if group in choices}


def identified(name: str, node: DictConfig) -> dict[str, Any]:
    """The entry of a part in a journal: its name, the package of a third party, and its options.

    `package` distinguishes classes or files of the same name in two packages.
    """
    options: dict[str, Any] = OmegaConf.to_container(node, resolve=True)  # type: ignore[assignment]
    package = str(options.pop("_target_")).partition(".")[0]
    return {"name": name, **({} if package == "vlaprune" else {"package": package}), **options}


def files_read(options: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the files that options name, as KEY_sha256: the file at a path may change."""
    found = {key: Path(value) for key, value in options.items() if isinstance(value, str) and Path(value).suffix}
    return {f"{key}_sha256": digest(path.read_bytes()) for key, path in found.items() if path.is_file()}


def digest(data: bytes) -> str:
    """The first 16 hex digits of the SHA-256 of some bytes."""
    return hashlib.sha256(data).hexdigest()[:16]
