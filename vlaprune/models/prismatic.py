"""Prismatic: what OpenVLA, OpenVLA-OFT and CogACT share. DINOv2 and SigLIP, a projector, a Llama-2 decoder.

Prompt: begin | visual tokens of every camera | whatever a model puts there | the rest of the text. Image embeddings are
spliced in after the first token; there are no placeholder ids. Source: openvla/openvla@c8f03f4:
prismatic/extern/hf/modeling_prismatic.py. Deliberate differences: the towers end at the block that is read, and the
checkpoint is opened by this package, without remote code.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from vlaprune.call import Call, stage
from vlaprune.errors import UserError
from vlaprune.meter import linear_flops
from vlaprune.models.shared import ModelSizes
from vlaprune.nn.backend import EAGER, Backend
from vlaprune.nn.block import DecoderConfig
from vlaprune.nn.decoder import Decoder, Tokens, numbered
from vlaprune.nn.resident import KEPT, TokenIds, to_host
from vlaprune.nn.statistics import Range
from vlaprune.nn.towers import FusedTower, Projector, dino, project_features, siglip, timm_unused, timm_weight_map
from vlaprune.nn.weights import WeightMap, llama_weight_map
from vlaprune.pruner import ModelInfo
from vlaprune.trace import View

BEGIN, STOP, EMPTY = 1, 2, 29871  # token ids of Llama-2: <s>, </s>, and the lone space that ends a prompt
TEXT = 32000  # text tokens; the embedding has 64 rows more
# As the published preprocessor_config.json has them: ImageNet's numbers, once rounded to bf16.
ROUNDED = ((0.484375, 0.455078125, 0.40625), (0.228515625, 0.2236328125, 0.224609375))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
Tokenize = Callable[[str], tuple[int, ...]]  # text to token ids
Stats = tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]


@dataclass(frozen=True)
class Sizes(ModelSizes):
    """Sizes of the 7B models; smaller ones are for tests. `depth` of a tower counts the block that is not computed."""

    image: int = 224
    patch: int = 14
    dino_width: int = 1024
    dino_depth: int = 24
    dino_heads: int = 16
    siglip_width: int = 1152
    siglip_depth: int = 27
    siglip_heads: int = 16
    siglip_ffn: int = 4304
    width: int = 4096
    layers: int = 32
    heads: int = 32
    ffn: int = 11008
    vocabulary: int = TEXT + 64

    def shape(self, causal: bool, eps: float = 1e-6) -> DecoderConfig:
        """The configuration of the decoder; `eps` is that of its norms."""
        return DecoderConfig(
            self.width,
            self.layers,
            self.heads,
            self.heads,
            self.width // self.heads,
            self.ffn,
            rms_norm_eps=eps,
            causal=causal,
        )

    def info(self, name: str) -> ModelInfo:
        """What methods may know of the model."""
        return ModelInfo(name, self.layers, self.heads, self.width, self.width // self.heads)


class Prismatic(nn.Module):
    """The trunk. Build it under `torch.device("meta")` and give it weights with `load_weights` or `randomise`.

    stats  (mean, std) that each tower's pixels are normalised by
    """

    def __init__(self, sizes: Sizes, causal: bool, eps: float = 1e-6, stats: Stats = (ROUNDED, HALF)) -> None:
        super().__init__()
        towers = (
            dino(sizes.dino_width, sizes.dino_depth, sizes.dino_heads),
            siglip(sizes.siglip_width, sizes.siglip_depth, sizes.siglip_heads, sizes.siglip_ffn),
        )
        self.sizes = sizes
        self.vision = FusedTower(*towers, sizes.image, sizes.patch, stats)
        self.projector = Projector(self.vision.width, sizes.width)
        self.embedding = nn.Embedding(sizes.vocabulary, sizes.width)
        self.decoder = Decoder(sizes.shape(causal, eps))
        self.head = nn.Linear(sizes.width, sizes.vocabulary, bias=False)
        self._ids = TokenIds()

    def views(self, cameras: Sequence[str]) -> tuple[View, ...]:
        """The cameras' places among the visual tokens."""
        side = self.vision.side
        return tuple(View(c, i * side**2, side, side) for i, c in enumerate(cameras))

    def encode_images(self, images: Tensor, calls: Sequence[Call], backend: Backend = EAGER) -> Tensor:
        """Visual tokens [B, V, d] of images [B, cameras, h, w, 3] uint8; calls that ask get the tower's attention."""
        reads = any(c.wants_vision_attention for c in calls)
        cameras = images.shape[1]
        with stage(calls, "vision", cameras * self.vision.flops):
            features, received = self.vision(images.flatten(0, 1), reads, backend)
        if received is not None:
            self._record(calls, received)
        with stage(calls, "projector", linear_flops(cameras * self.vision.side**2, *self.projector.widths)):
            project = partial(backend.unit(project_features), self.projector)
            return backend.run(("projector",), project, features.reshape(len(images), -1, features.shape[2]))

    def _record(self, calls: Sequence[Call], attention: Tensor) -> None:
        """Hands over the attention [B * cameras, t] that patches received in the tower."""
        for call, views in zip(calls, attention.unflatten(0, (len(calls), -1)), strict=True):
            if call.wants_vision_attention:
                call.charge("method", views.shape[0] * self.vision.watch_flops)
                call.record_vision_attention(views.flatten())

    def ids(self, ids: Sequence[int]) -> Tensor:
        """[n] token ids on the device. Do not write to it."""
        return self._ids(ids, self.embedding.weight.device)

    def embed(self, ids: Sequence[int]) -> Tensor:
        """[n, d] embeddings of token ids."""
        return self.embedding(self.ids(ids))

    def prompts(self, visual: Tensor, ids: Sequence[Sequence[int]], backend: Backend = EAGER) -> list[Tokens]:
        """The prompt of each of B sequences: its first id | its visual tokens, of [B, V, d] | its other ids."""
        prompts = backend.run(("prompt",), self.prompt_rows, visual, [self.ids(text) for text in ids])
        return [Tokens(*prompt) for prompt in prompts]

    def prompt_rows(self, visual: Tensor, ids: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Segment: rows [n, d] and positions [n] of each prompt."""
        texts = [self.embedding(tokens) for tokens in ids]
        return [numbered(text[:1], rows, text[1:]) for rows, text in zip(visual, texts, strict=True)]


def weight_map(trunk: Prismatic) -> dict[str, WeightMap]:
    """Where the tensors of an OpenVLA checkpoint go, by their names on the hub."""
    out = timm_weight_map(trunk.vision.dino.shape, "vision_backbone.featurizer.", "vision.dino.")
    out |= timm_weight_map(trunk.vision.siglip.shape, "vision_backbone.fused_featurizer.", "vision.siglip.")
    for layer in ("fc1", "fc2", "fc3"):
        for kind in ("weight", "bias"):
            out[f"projector.{layer}.{kind}"] = WeightMap(f"projector.{layer}.{kind}")
    out |= llama_weight_map(trunk.decoder.config, "language_model.model.", "decoder.")
    out["language_model.model.embed_tokens.weight"] = WeightMap("embedding.weight")
    out["language_model.lm_head.weight"] = WeightMap("head.weight")
    return out


def unused(trunk: Prismatic) -> tuple[str, ...]:
    """Prefixes of an OpenVLA checkpoint's tensors that nothing reads: those behind the blocks that are read."""
    return (
        *timm_unused(trunk.vision.dino.shape, "vision_backbone.featurizer."),
        *timm_unused(trunk.vision.siglip.shape, "vision_backbone.fused_featurizer."),
    )


def read_tokenizer(folder: Path) -> Tokenize:
    """A function from text to token ids, by the checkpoint's tokenizer.json. UserError where it is not Llama-2's."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust side raises bare Exceptions
        raise UserError(f"{file} cannot be read ({error}); it belongs to the checkpoint: download it again") from None
    tokenizer.no_padding()  # a file may keep these of its last use
    tokenizer.no_truncation()
    named = {"<s>": BEGIN, "</s>": STOP, "\u2581": EMPTY}
    numbers = {token: tokenizer.token_to_id(token) for token in named}
    first = tokenizer.encode("Out:").ids[:1]
    if numbers != named or first != [BEGIN]:
        raise UserError(f"{file} is not Llama-2's: it numbers {numbers}, not {named}, or starts a text with {first}")
    return lru_cache(KEPT)(lambda text: tuple(tokenizer.encode(text).ids))


@lru_cache(KEPT)
def stand_in(text: str) -> tuple[int, ...]:
    """Token ids for random weights, which have no tokenizer: one for each word, sign and line break.

    A word's id depends on its letters. The prompt of OpenVLA becomes as many ids as Llama-2's tokenizer makes of it,
    apart from rare words in the instruction.
    """
    parts = re.findall(r"\w+|[^\w\s]|\n", text)
    return (BEGIN, *(3 + zlib.crc32(p.encode()) % (EMPTY - 3) for p in parts))


def format_prompt(instruction: str) -> str:
    """The prompt of OpenVLA, OpenVLA-OFT and CogACT."""
    return f"In: What action should the robot take to {instruction.lower()}?\nOut:"


def closed(ids: Sequence[int]) -> list[int]:
    """The ids of a prompt, with the lone space put at their end if it is not there, as in training."""
    return [*ids] if ids[-1] == EMPTY else [*ids, EMPTY]


def restore(unit: Tensor, span: Range) -> Tensor:
    """Scales numbers [..., s] in [-1, 1] to the dataset's units, float64 on the CPU; what is not masked stays."""
    unit = to_host(unit).double()
    return unit if unit.device.type == "meta" else torch.from_numpy(span.restore(unit.numpy()))


def decode_bins(tokens: Tensor) -> Tensor:
    """Turns token ids into numbers in [-1, 1] on the CPU: middles of 255 equal bins, the highest id for the lowest."""
    tokens = to_host(tokens)
    return bins(tokens.device)[(TEXT - tokens - 1).clamp(0, 254)]


@cache
def bins(device: torch.device) -> Tensor:
    """The middles [255] of 255 equal bins between -1 and 1, float64. Do not write to it."""
    with torch.inference_mode(False):  # also for those who train
        edges = torch.linspace(-1, 1, 256, dtype=torch.float64, device=device)
        return (edges[:-1] + edges[1:]) / 2
