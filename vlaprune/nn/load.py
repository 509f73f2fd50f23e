"""Saves and loads the weights that vlaprune-train makes: safetensors only, strict, with a card in the metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vlaprune.errors import UserError
from vlaprune.files import replacing
from vlaprune.nn.weights import finite

CARD, CHECKSUM = "vlaprune", "checksum"  # keys of a file's metadata


def trainable_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors by name, without frozen parameters: those stay with the weights they came from."""
    frozen = {name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {key: value for key, value in module.state_dict().items() if key not in frozen}


def save(path: Path | str, module: nn.Module, card: Mapping[str, object], dtype: torch.dtype = torch.float32) -> None:
    """Writes a module's trained tensors and a card (what made them) to a safetensors file, whole or not at all.

    Parameters are written in `dtype`, buffers as they are: rounded bounds would move every action. The metadata holds a
    checksum of tensors and card: safetensors itself would not notice a flipped bit.
    """
    from safetensors.torch import save_file

    path = Path(path)
    learnt = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    state = {
        name: tensor.detach().cpu().to(dtype if name in learnt else tensor.dtype).contiguous()
        for name, tensor in trainable_state(module).items()
    }
    told = json.dumps(dict(card))
    with replacing(path) as part:
        save_file(state, part, metadata={CARD: told, CHECKSUM: checksum(state, told)})


def checksum(state: Mapping[str, Tensor], card: str) -> str:
    """sha256 over the card's JSON text and each tensor's name, type, shape and bytes, in the order of the names."""
    digest = hashlib.sha256(card.encode())
    for name in sorted(state):
        tensor = state[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read(path: Path | str) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Tensors and card from a file of `save`; the card gets the file's sha256. Nothing is unpickled. Else UserError.

    A checksum must be right where the file has one; the first weights shipped with the package have none.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise UserError(f"weights {path} do not exist; give a .safetensors file, or `random`")
    try:
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            card = json.loads(said.get(CARD, "null"))
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, ValueError, OSError) as error:
        raise UserError(
            f"weights {path} cannot be read ({error}); the file is damaged or no safetensors file"
        ) from None
    if not isinstance(card, dict):
        raise UserError(f"weights {path} carry no vlaprune card; they were not written by vlaprune-train")
    if CHECKSUM in said and said[CHECKSUM] != checksum(state, said[CARD]):
        raise UserError(f"weights {path} are damaged: their checksum is another one; copy or train them again")
    return state, {**card, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def weights_id(card: Mapping[str, object]) -> str:
    """An identifier of the weights of a card: their digest, or their name and the seed of random weights."""
    return str(card.get("sha256") or f"{card.get('weights')}, seed {card.get('seed')}")


def fill(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Loads exactly the tensors that are not frozen, with their shapes. A UserError says what is wrong."""
    own = trainable_state(module)
    missing = sorted(own.keys() - state.keys())
    surplus = sorted(state.keys() - own.keys())
    shapes = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own.keys() & state.keys()
        if own[k].shape != state[k].shape
    ]
    wrong = [
        f"{what} {names[:3]}{' ...' if len(names) > 3 else ''}"
        for what, names in (("lacks", missing), ("has foreign", surplus), ("has wrong shapes", shapes))
        if names
    ]
    if wrong:
        raise UserError(f"weights {source} do not fit {type(module).__name__}: {'; '.join(wrong)}")
    finite({k: v for k, v in state.items() if v.is_floating_point()}, source)
    module.load_state_dict({k: v.to(own[k].dtype) for k, v in state.items()}, strict=False)
