"""Tiny: a real vision-language-action policy of the OpenVLA-OFT shape, small enough to train and run on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from vlaprune.errors import UserError
from vlaprune.models.shared import check_sizes, resolve_device
from vlaprune.models.small import SmallPolicy, check_shape, shipped
from vlaprune.nn.block import DecoderConfig
from vlaprune.nn.decoder import Decoder
from vlaprune.nn.load import fill, read, weights_id
from vlaprune.nn.vision import ViT
from vlaprune.pruner import ModelInfo

VOCABULARY = """<pad> <unknown> the a in its on and put place pick up lift stack push open close to of red green
blue yellow black white cube block can milk bread cereal box carton bin bowl plate drawer basket
soup sauce cheese butter juice salad dressing cream tomato orange chocolate pudding ketchup bbq
alphabet ramekin cookie next from between center table top wooden cabinet stove it both left right"""
WORDS = tuple(VOCABULARY.split())
TEXT = 12  # usual word slots


def tokenize(instruction: str, most: int = TEXT) -> list[int]:
    """Word numbers of an instruction; 1 for an unknown word and for an empty one. UserError if it is too long."""
    words = instruction.lower().replace(",", " ").replace(".", " ").split()
    if len(words) > most:
        raise UserError(f"instruction {instruction!r} has {len(words)} words; model=tiny reads at most {most}")
    return [WORDS.index(w) if w in WORDS else 1 for w in words] or [1]


class Tiny(SmallPolicy):
    """The tiny policy. Its sizes are constructor arguments, so that tests and studies can scale it.

    weights  a safetensors file of vlaprune-train, the name of one shipped with the package, or `random`; None for
             robosuite's
    text     word slots of the prompt; None for 12
    device   `auto`, `cpu`, `cuda`, ...
    """

    def __init__(
        self,
        weights: str | None = None,
        cameras: Sequence[str] = ("primary", "wrist"),
        width: int = 128,
        layers: int = 6,
        heads: int = 4,
        vision_width: int = 128,
        vision_layers: int = 2,
        image: int = 128,
        chunk: int = 8,
        text: int | None = None,
        device: str = "auto",
    ) -> None:
        text = TEXT if text is None else text
        check_sizes(
            {
                "width": width,
                "layers": layers,
                "heads": heads,
                "vision_width": vision_width,
                "vision_layers": vision_layers,
                "image": image,
                "chunk": chunk,
                "text": text,
            },
            {"width": 2 * max(heads, 1), "vision_width": 32, "image": 16},
        )
        vision = ViT(image, vision_width, vision_layers, vision_width // 32)
        super().__init__(cameras, chunk, text, vision, width)
        self.info = ModelInfo("tiny", layers, heads, width, width // heads)
        self.word = nn.Embedding(len(WORDS), width)
        self.special = nn.Parameter(torch.randn(2, width) * 0.02)  # begin, stop
        self.decoder = Decoder(DecoderConfig(width, layers, heads, heads, width // heads, width * 2, causal=False))
        weights = weights or "robosuite"
        shape = {"heads": heads, "text": self.text, "cameras": list(self.interface.cameras)}  # what no tensor tells
        if weights == "random":
            self.card |= shape
        else:
            path = shipped("tiny", weights)
            state, self.card = read(path)
            fill(self, state, str(path))
            check_shape(self.card, shape, str(path))
        self.info = replace(self.info, weights=weights_id(self.card))
        self.to(resolve_device(device)).eval()

    def tokenize(self, instruction: str) -> list[int]:
        """Word numbers of an instruction; 1 for an unknown word. UserError if it has more words than word slots."""
        return tokenize(instruction, self.text)
