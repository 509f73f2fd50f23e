"""Published checkpoints on disk: looked at by name and shape, read one tensor at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


class Checkpoint:
    """Tensors in files, known by name and shape, read one at a time; of a .pt file only tensors are unpickled.

    path    a .safetensors or .pt file, or a folder with model.safetensors or its shards and index
    within  of nested dictionaries in a .pt file, the one that is meant
    strip   prefix that names may carry, such as `module.` of distributed training
    shapes  name -> shape

    Errors: ValueError, one line that names the file, for what is missing, truncated or no checkpoint.
    """

    def __init__(self, path: Path | str, within: str | None = None, strip: str = "") -> None:
        self.path, self._strip = Path(path), strip
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, tuple[Path, str]] = {}
        self._loaded: dict[str, Tensor] = {}
        self._open: tuple[Path, object] | None = None
        if self.path.suffix in (".pt", ".pth", ".bin"):
            self._loaded = dict(_flat(_unpickled(self.path), within, self.path))
            self.files = [self.path]
        else:
            self.files = self._shards()
            for file in self.files:
                self._list(file)
        self.shapes |= {k.removeprefix(strip): tuple(t.shape) for k, t in self._loaded.items()}
        self._loaded = {k.removeprefix(strip): t for k, t in self._loaded.items()}

    def _shards(self) -> list[Path]:
        if self.path.is_file():
            return [self.path]
        if not self.path.is_dir():
            raise ValueError(f"checkpoint {self.path} does not exist; give a folder, a .safetensors or a .pt file")
        if (self.path / SINGLE).is_file():
            return [self.path / SINGLE]
        if not (self.path / INDEX).is_file():
            there = sorted(p.name for p in self.path.iterdir())[:6]
            raise ValueError(f"checkpoint {self.path} has neither {SINGLE} nor {INDEX}; it has {there}")
        names: dict[str, str] = read_json(self.path / INDEX).get("weight_map", {})
        shards = [self.path / name for name in sorted(set(names.values()))]
        missing = [p.name for p in shards if not p.is_file()]
        if missing or not shards:
            raise ValueError(
                f"checkpoint {self.path} lacks {missing or 'every shard'} of the {len(shards)} that {INDEX} names; "
                "download it again"
            )
        return shards

    def _list(self, file: Path) -> None:
        handle = self._handle(file)
        for key in handle.keys():  # type: ignore[attr-defined]  # noqa: SIM118 - not a dict
            name = key.removeprefix(self._strip)
            self._files[name] = (file, key)
            self.shapes[name] = tuple(handle.get_slice(key).get_shape())  # type: ignore[attr-defined]

    def _handle(self, file: Path) -> object:
        """The opened file; one at a time, so that the pages of one shard at most are mapped."""
        from safetensors import SafetensorError, safe_open

        if self._open is None or self._open[0] != file:
            self.close()
            try:
                self._open = (file, safe_open(file, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise ValueError(
                    f"checkpoint file {file} cannot be read ({error}); it is truncated or no safetensors file: "
                    "download it again"
                ) from None
        return self._open[1]

    def tensor(self, key: str) -> Tensor:
        """One tensor, still on the file's pages where that is possible. KeyError for a name that is not there."""
        if key in self._loaded:
            return self._loaded[key]
        file, name = self._files[key]
        return self._handle(file).get_tensor(name)

    def close(self) -> None:
        """Lets go of the file that is open."""
        self._open = None

    @property
    def digest(self) -> str:
        """sha256 over each file's name, size, first and last MiB: tells checkpoints apart without reading 15 GB."""
        digest = hashlib.sha256()
        for file in self.files:
            size = file.stat().st_size
            digest.update(f"{file.name} {size}".encode())
            with file.open("rb") as stream:
                digest.update(stream.read(1 << 20))
                stream.seek(max(0, size - (1 << 20)))
                digest.update(stream.read())
        return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. ValueError that names the file where it is missing or damaged."""
    try:
        said = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); it belongs to the checkpoint: download it again") from None
    if not isinstance(said, dict):
        raise ValueError(f"{path} holds no JSON object; it belongs to the checkpoint: download it again")
    return said


def _unpickled(path: Path) -> object:
    if not path.is_file():
        raise ValueError(f"checkpoint {path} does not exist; give a folder, a .safetensors or a .pt file")
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # a pickle that is cut short can raise anything
        said = " ".join(str(error).split())[:160]
        raise ValueError(
            f"checkpoint file {path} cannot be read ({type(error).__name__}: {said}); it is truncated, or holds more "
            "than tensors"
        ) from None


def _flat(tree: object, within: str | None, path: Path) -> Iterator[tuple[str, Tensor]]:
    """Tensors of nested dictionaries, names joined by points."""
    if within is not None:
        if not isinstance(tree, Mapping) or within not in tree:
            has = sorted(map(str, tree))[:6] if isinstance(tree, Mapping) else type(tree).__name__
            raise ValueError(f"checkpoint file {path} has no entry {within!r}; it has {has}")
        tree = tree[within]
    if not isinstance(tree, Mapping):
        raise ValueError(f"checkpoint file {path} holds a {type(tree).__name__} and no tensors by name")
    for key, value in tree.items():
        if isinstance(value, Tensor):
            yield str(key), value
        elif isinstance(value, Mapping):
            yield from ((f"{key}.{name}", tensor) for name, tensor in _flat(value, None, path))
