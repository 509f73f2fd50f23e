"""From a checkpoint into a module, strictly and without a second copy; or seeded random weights in its place.

Memory: a tensor is read from the mapped file and copied straight into its place, so loading holds the module in its own
dtype and no second copy. Measured on 2 GiB of fp32 poured into bf16 on the host: private memory grew by 1.03 GiB, the
module and half a tensor; pages of the file, which the system may take back, were 0.6 GiB for four shards (one open at
a time) and 2.0 GiB for a single .pt file. tests/test_checkpoint.py holds a smaller file to the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from vlaprune.nn.block import DecoderConfig


class Tensors(Protocol):
    """A file of tensors, such as `Checkpoint` or `GGUF`.

    path    of the file or folder
    shapes  name -> shape
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]

    def tensor(self, key: str) -> Tensor:
        """One tensor."""

    def close(self) -> None:
        """Lets go of the file."""


@dataclass(frozen=True)
class WeightMap:
    """Where a tensor of a checkpoint goes.

    name  parameter of the module
    rows  first row and one past the last that it fills, where several tensors make one parameter; None for all
    fold  leading dimensions of size 1 that the checkpoint's tensor has and the parameter has not
    """

    name: str
    rows: tuple[int, int] | None = None
    fold: int = 0

    def shape(self, own: Tensor) -> tuple[int, ...]:
        """The shape that the checkpoint's tensor must have."""
        rows = own.shape[0] if self.rows is None else self.rows[1] - self.rows[0]
        return (*(1,) * self.fold, rows, *own.shape[1:])


def load_weights(
    module: nn.Module,
    checkpoint: Tensors,
    weights: Mapping[str, WeightMap],
    unused: Sequence[str] = (),
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.bfloat16,
) -> None:
    """Fills a module made on the meta device from a checkpoint, tensor by tensor; dtype None keeps its own dtypes.

    weights  name in the checkpoint -> where it goes; every one must be there, with its shape
    unused  prefixes of names that may be there and are passed over

    ValueError names tensors that are missing, foreign or of another shape; nothing is loaded then. On the meta device
    nothing else is done: names and shapes are compared, no tensor is read.
    """
    fits(module, checkpoint, weights, unused)
    (module if dtype is None else module.to(dtype)).to_empty(device=device)
    own = dict(module.named_parameters())
    with torch.no_grad():
        for key in () if torch.device(device).type == "meta" else checkpoint.shapes:
            if key in weights:
                target = weights[key]
                place = own[target.name] if target.rows is None else own[target.name][slice(*target.rows)]
                place.copy_(checkpoint.tensor(key).view(place.shape))
    checkpoint.close()


def fits(module: nn.Module, checkpoint: Tensors, weights: Mapping[str, WeightMap], unused: Sequence[str] = ()) -> None:
    """ValueError that says in one line why a checkpoint does not fit a module: what `load_weights` checks first."""
    own, name = dict(module.named_parameters()), type(module).__name__
    short = own.keys() - {p.name for p in weights.values()}
    assert not short, f"no tensor of a checkpoint goes to {sorted(short)[:3]}"
    shapes = {key: target.shape(own[target.name]) for key, target in weights.items()}
    there = shapes.keys() & checkpoint.shapes.keys()
    missing = sorted(shapes.keys() - there)
    surplus = sorted(k for k in checkpoint.shapes.keys() - there if not k.startswith(tuple(unused)))
    wrong = [
        f"{k} {checkpoint.shapes[k]} instead of {shapes[k]}" for k in sorted(there) if checkpoint.shapes[k] != shapes[k]
    ]
    if not there:
        raise ValueError(
            f"checkpoint {checkpoint.path} is another model's: it has none of the {len(shapes)} tensors of {name} such "
            f"as {missing[0]}, but {surplus[:2]}"
        )
    said = [
        f"{what} {len(names)} tensors: {names[:3]}{' ...' if len(names) > 3 else ''}"
        for what, names in (("lacks", missing), ("has in other shapes", wrong), ("has besides", surplus))
        if names
    ]
    if said:
        raise ValueError(f"checkpoint {checkpoint.path} does not fit {name}; it {'; '.join(said)}")


def randomise(module: nn.Module, seed: int, device: torch.device | str, dtype: torch.dtype | None) -> None:
    """Gives a module made on the meta device seeded random weights: matrices N(0, 1 / inputs), norms 1, biases 0.

    A parameter's numbers depend on the seed, its name and the kind of device, on nothing else. On the meta device
    there are no numbers and nothing is done but the change of dtype; dtype None keeps the module's own.
    """
    if dtype is not None:
        module.to(dtype)
    if torch.device(device).type == "meta":
        return
    module.to_empty(device=device)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.ndim > 1:
                lot = torch.Generator(p.device).manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
                p.normal_(0.0, p[0].numel() ** -0.5, generator=lot)
            else:
                p.fill_(0.0 if name.endswith("bias") else 1.0)


def llama_weight_map(config: DecoderConfig, old: str, new: str) -> dict[str, WeightMap]:
    """Where the tensors of a Llama under prefix `old` (that of `layers.0`) go in a `Decoder` under prefix `new`."""
    inner, kv, ffn = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim, config.intermediate_size
    out = {f"{old}norm.weight": WeightMap(f"{new}norm.weight")}
    for i in range(config.num_layers):
        a, b = f"{old}layers.{i}.", f"{new}blocks.{i}."
        out[f"{a}input_layernorm.weight"] = WeightMap(f"{b}norm_attention.weight")
        out[f"{a}post_attention_layernorm.weight"] = WeightMap(f"{b}norm_mlp.weight")
        for name, start, size in (("q", 0, inner), ("k", inner, kv), ("v", inner + kv, kv)):
            out[f"{a}self_attn.{name}_proj.weight"] = WeightMap(f"{b}qkv.weight", (start, start + size))
        out[f"{a}self_attn.o_proj.weight"] = WeightMap(f"{b}out.weight")
        out[f"{a}mlp.gate_proj.weight"] = WeightMap(f"{b}gate_up.weight", (0, ffn))
        out[f"{a}mlp.up_proj.weight"] = WeightMap(f"{b}gate_up.weight", (ffn, 2 * ffn))
        out[f"{a}mlp.down_proj.weight"] = WeightMap(f"{b}down.weight")
    return out
