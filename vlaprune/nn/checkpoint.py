"""Published checkpoints on disk: names and shapes first, then one tensor at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlaprune.errors import UserError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
KINDS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz", ".gguf", ".msgpack")  # files of weights
HARMLESS = (  # files of training and of other libraries; they hold no further weights of the policy
    *("pytorch_model*.bin", "model*.safetensors", "optimizer*", "scheduler*", "rng_state*", "random_states*"),
    *("training_args.bin", "scaler.pt", "ema*.pt", "*_step_*.safetensors"),
)
CONVERTERS = (  # folders in another format: what they contain, whose format it is, and how to convert them
    (
        "params/*",
        "openpi's JAX weights",
        "convert them with examples/convert_jax_model_to_pytorch.py of openpi (--checkpoint_dir FOLDER --config_name "
        "NAME --output_path OUT) and copy assets/ into OUT",
    ),
    (
        "checkpoints/*.pt",
        "Prismatic's training weights",
        "convert them with vla-scripts/extern/convert_openvla_weights_to_hf.py of openvla",
    ),
    (
        "adapter_model.*",
        "a LoRA adapter that is not merged",
        "merge it into its base first (PeftModel.merge_and_unload and save_pretrained, or vla-scripts/"
        "merge_lora_weights_and_save.py of openvla-oft)",
    ),
    (
        "lora_adapter/adapter_model.*",
        "a LoRA adapter that is not merged",
        "merge it into its base first (vla-scripts/merge_lora_weights_and_save.py of openvla-oft)",
    ),
    ("pytorch_model*.bin", "pickled weights", "save them as safetensors: save_pretrained(safe_serialization=True)"),
)


class Checkpoint:
    """Tensors in files, known by name and shape, read one at a time; of a .pt file only tensors are unpickled.

    path    a .safetensors or .pt file, or a folder with model.safetensors or its shards and index
    within  name of the dictionary to read, where a .pt file nests several
    strip   prefix that names may carry, such as `module.` of distributed training
    shapes  name -> shape

    Errors: UserError, one line that names the file, if it is missing, truncated or no checkpoint.
    """

    def __init__(self, path: Path | str, within: str | None = None, strip: str = "") -> None:
        self.path, self._strip = Path(path), strip
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, tuple[Path, str]] = {}
        self._loaded: dict[str, Tensor] = {}
        self._open: tuple[Path, Any] | None = None
        if self.path.suffix in (".pt", ".pth", ".bin"):
            self._loaded = dict(_flat(_unpickled(self.path), within, self.path))
            self.files = [self.path]
        else:
            self.files = shards(self.path)
            for file in self.files:
                self._list(file)
        for key in [*self._loaded]:
            name, tensor = self._new(key), self._loaded.pop(key)
            self._loaded[name], self.shapes[name] = tensor, tuple(tensor.shape)

    def _new(self, key: str) -> str:
        """The name of a tensor without the prefix. UserError where another tensor has that name."""
        name = key.removeprefix(self._strip)
        if name in self.shapes:
            raise UserError(f"checkpoint {self.path} has two tensors {name}; keep one of them")
        return name

    def _list(self, file: Path) -> None:
        handle = self._handle(file)
        for key in handle.keys():  # noqa: SIM118 - not a dict
            name = self._new(key)
            self._files[name] = (file, key)
            self.shapes[name] = tuple(handle.get_slice(key).get_shape())

    def _handle(self, file: Path) -> Any:
        """The opened file; one at a time, so that the pages of one shard at most are mapped."""
        from safetensors import SafetensorError, safe_open

        if self._open is None or self._open[0] != file:
            self.close()
            try:
                self._open = (file, safe_open(file, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise UserError(
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
        """Closes the open file."""
        self._open = None

    def digest_with(self, companions: Iterable[Path]) -> str:
        """sha256 over `digest` and the files that say how the tensors are read and scaled: statistics, tokenizer, ...

        A policy with other statistics is another policy. Files that do not exist are left out.
        """
        digest = hashlib.sha256(self.digest.encode())
        for file in sorted({f for f in companions if f.is_file()}, key=lambda f: (f.name, str(f))):
            digest.update(f"{file.name} {file.stat().st_size}".encode() + file.read_bytes())
        return digest.hexdigest()

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


def shards(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint. A UserError says which are missing, or what is there instead."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"checkpoint {path} does not exist; give a folder, a .safetensors or a .pt file")
    if (path / SINGLE).is_file():
        return [path / SINGLE]
    if not (path / INDEX).is_file():
        raise UserError(_no_weights(path))
    names = read_json(path / INDEX).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise UserError(f"{path / INDEX} has no weight_map of tensor names to files; download it again")
    shards = [path / name for name in sorted(set(names.values()))]
    missing = [p.name for p in shards if not p.is_file()]
    if missing or not shards:
        raise UserError(
            f"checkpoint {path} lacks {missing or 'every shard'} of the {len(shards)} that {INDEX} names; "
            "download it again"
        )
    return shards


def _no_weights(folder: Path) -> str:
    """The error message for a folder without safetensors weights: what it holds instead, and what to do."""
    for pattern, what, mend in CONVERTERS:
        if any(folder.glob(pattern)):
            return f"checkpoint {folder} holds {what} and no {SINGLE}; {mend}"
    there = sorted(p.name for p in folder.iterdir())[:6]
    return f"checkpoint {folder} has neither {SINGLE} nor {INDEX}; it has {there}"


def check_companions(folder: Path, reads: Sequence[str], name: str) -> None:
    """Raises UserError for an extra file of weights that the model does not read: it may change the answers.

    reads  patterns of the files that the model `name` reads besides the checkpoint's own
    """
    beside = sorted(p.name for p in folder.iterdir() if p.suffix in KINDS)
    unread = [n for n in beside if not any(fnmatchcase(n, p) for p in (*HARMLESS, *reads))]
    if not unread:
        return
    known = [says for pattern, says in COMPANIONS.items() for n in unread if fnmatchcase(n, pattern)]
    mend = known[0] if known else "take them out of the folder if the policy does not need them"
    raise UserError(f"checkpoint {folder} has {', '.join(unread[:4])}, which {name} does not read; {mend}")


COMPANIONS = {
    "vision_backbone--*": "they are FiLM layers of OpenVLA-OFT+, which is not implemented: use weights without FiLM",
    "action_head--*": "they are OpenVLA-OFT's: use model=oft model.head=l1",
    "noisy_action_projector--*": "they are OpenVLA-OFT's diffusion head: use model=oft model.head=diffusion",
    "proprio_projector--*": "they read the robot's state: use model=oft model.state=eef_pos3_axisangle3_gripper2",
    "adapter_model*": "it is a LoRA adapter: merge it into the weights first, or take it away if it is merged",
}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. UserError that names the file where it is missing or damaged."""
    try:
        said = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); it belongs to the checkpoint: download it again") from None
    if not isinstance(said, dict):
        raise UserError(f"{path} holds no JSON object; it belongs to the checkpoint: download it again")
    return said


def _unpickled(path: Path) -> object:
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; give a folder, a .safetensors or a .pt file")
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # a pickle that is cut short can raise anything
        said = " ".join(str(error).split())[:160]
        raise UserError(
            f"checkpoint file {path} cannot be read ({type(error).__name__}: {said}); it is truncated, or holds more "
            "than tensors"
        ) from None


def _flat(tree: object, within: str | None, path: Path) -> Iterator[tuple[str, Tensor]]:
    """Tensors of nested dictionaries, names joined by points."""
    if within is not None:
        if not isinstance(tree, Mapping) or within not in tree:
            has = sorted(map(str, tree))[:6] if isinstance(tree, Mapping) else type(tree).__name__
            raise UserError(f"checkpoint file {path} has no entry {within!r}; it has {has}")
        tree = tree[within]
    if not isinstance(tree, Mapping):
        raise UserError(f"checkpoint file {path} holds a {type(tree).__name__} and no tensors by name")
    for key, value in tree.items():
        if isinstance(value, Tensor):
            yield str(key), value
        elif isinstance(value, Mapping):
            yield from ((f"{key}.{name}", tensor) for name, tensor in _flat(value, None, path))
