"""Low-rank adapters (LoRA, Hu et al., arXiv:2106.09685): W is frozen, the product B A beside it is learnt.

`peft` is not used, because it would treat our fused rows as one layer. Here query, key, value, gate and up each have
their own A and B, as in the authors' models, where they are separate layers.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlaprune.errors import UserError
from vlaprune.nn.block import Block
from vlaprune.nn.load import fill, read, weights_id


class LoRA(nn.Module):
    """A frozen linear layer with a learnt adapter: W x + alpha / rank * B A x, A and B in fp32.

    parts  how many rows of W each pair of A and B is for; they sum to all rows
    """

    def __init__(
        self, layer: nn.Linear, rank: int, alpha: float, parts: Sequence[int], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.layer, self.scale = layer.requires_grad_(False), alpha / rank
        device = layer.weight.device
        self.a = nn.Parameter(
            (torch.randn(len(parts) * rank, layer.in_features, generator=generator) / rank).to(device)
        )
        self.b = nn.ParameterList(nn.Parameter(torch.zeros(rows, rank, device=device)) for rows in parts)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., inputs] to [..., outputs]."""
        low = F.linear(x.to(self.a.dtype), self.scale * self.a).chunk(len(self.b), -1)
        beside = torch.cat([F.linear(part, b) for part, b in zip(low, self.b, strict=True)], -1)
        y: Tensor = self.layer(x)
        return y + beside.to(y.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The linear layer with the adapter added to its weight: changed in place, the sum rounded once."""
        beside = torch.cat([b @ a for a, b in zip(self.a.chunk(len(self.b)), self.b, strict=True)])
        self.layer.weight.copy_(self.layer.weight.float() + self.scale * beside)
        return self.layer


def add_adapters(trunk: nn.Module, rank: int, alpha: float, seed: int = 0, skip: Sequence[str] = ("head",)) -> None:
    """Freezes a module and puts adapters beside each of its linear layers, except those named in `skip`.

    Every part of a fused layer (`Block.parts`) has its own adapters. A is drawn from N(0, 1 / rank^2); the draw depends
    on the seed and the layer's name alone. B is zero, so nothing changes before training.
    """
    if rank < 1:
        raise UserError(f"LoRA rank={rank}; use at least 1")
    trunk.requires_grad_(False)
    layers = [(n, m) for n, m in trunk.named_modules() if isinstance(m, nn.Linear) and n not in skip]
    for name, layer in layers:
        holder, _, own = name.rpartition(".")
        owner = trunk.get_submodule(holder)
        parts = owner.parts.get(own) if isinstance(owner, Block) else None
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
        setattr(owner, own, LoRA(layer, rank, alpha, parts or (layer.out_features,), generator))


def merge(trunk: nn.Module) -> None:
    """Adds every adapter to the weight of its layer, then removes the adapter."""
    for name, adapter in [(n, m) for n, m in trunk.named_modules() if isinstance(m, LoRA)]:
        holder, _, own = name.rpartition(".")
        setattr(trunk.get_submodule(holder), own, adapter.merged())


def load_adapter(policy: nn.Module, trunk: nn.Module, path: str, card: dict[str, object]) -> None:
    """Loads a LoRA tuning of vlaprune-train into a policy and merges its adapters into `trunk`.

    `card` is the card of the policy's weights; it is updated to name the adapters. UserError if the file holds no
    adapters, is damaged, or belongs to other weights.
    """
    state, said = read(path)
    lora = said.get("lora")
    if not isinstance(lora, dict):
        raise UserError(f"weights {path} are no adapters; give them as model.weights")
    if lora.get("weights") != weights_id(card):
        raise UserError(
            f"adapters {path} were trained on weights {lora.get('weights')}, but these are {weights_id(card)}; "
            "set model.weights to those"
        )
    add_adapters(trunk, lora["rank"], lora["alpha"])
    fill(policy, state, path)
    merge(trunk)
    made = {key: said[key] for key in ("tuning", "method") if key in said} | {"from": dict(card)}
    card |= {"adapter": str(Path(path)), "sha256": said["sha256"], **made}
