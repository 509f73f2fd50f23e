"""Llama's tensors and settings from a GGUF file, by the `gguf` package, under the names of transformers.

GGUF orders the rows of Llama's query and key projections for rotation in pairs; here, as in transformers, halves are
rotated, so these rows are put back (ggml-org/llama.cpp:convert_hf_to_gguf.py, LlamaModel.permute).
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlaprune.errors import UserError
from vlaprune.nn.block import DecoderConfig

OUTSIDE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class GGUF:
    """A Llama in a GGUF file: settings, tokenizer fields, and tensors that are dequantised to fp32 one at a time.

    path    the file
    shapes  name in transformers -> shape

    Errors: UserError, one line, for a file that is missing, damaged, of another architecture or quantised in a way
    that `gguf` cannot undo; or if the package is not installed.
    """

    def __init__(self, path: Path | str) -> None:
        try:
            from gguf import GGUFReader
        except ImportError:
            raise UserError("the package gguf, which reads GGUF files, is not installed; pip install gguf") from None
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"GGUF file {self.path} does not exist")
        try:
            self._reader = GGUFReader(str(self.path))
        except Exception as error:  # raised by numpy and the reader for a truncated file or another format
            raise UserError(f"{self.path} cannot be read ({error}); it is damaged or no GGUF file") from None
        if self.field("general.architecture") != "llama":
            raise UserError(f"{self.path} holds a {self.field('general.architecture')}; a llama is needed")
        self._tensors = {renamed(t.name): t for t in self._reader.tensors}
        self.shapes = {name: tuple(int(n) for n in reversed(t.shape)) for name, t in self._tensors.items()}

    def field(self, key: str) -> Any:
        """A number, text or list of the file's header. UserError where it is not there."""
        found = self._reader.fields.get(key)
        if found is None:
            raise UserError(f"{self.path} lacks {key} in its header")
        return found.contents()

    def config(self, layers: int, causal: bool) -> DecoderConfig:
        """The configuration of a decoder with the first `layers` layers. UserError if the file has fewer."""
        own = self.field("llama.block_count")
        if not 1 <= layers <= own:
            raise UserError(f"layers={layers}, but {self.path.name} has {own}; use 1..{own}")
        width, heads = self.field("llama.embedding_length"), self.field("llama.attention.head_count")
        return DecoderConfig(
            hidden_size=width,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=self.field("llama.attention.head_count_kv"),
            head_dim=width // heads,
            intermediate_size=self.field("llama.feed_forward_length"),
            rope_theta=self.field("llama.rope.freq_base"),
            rms_norm_eps=self.field("llama.attention.layer_norm_rms_epsilon"),
            causal=causal,
        )

    def tensor(self, key: str) -> Tensor:
        """One tensor in fp32. KeyError for a name that is not there; UserError for an unknown quantisation."""
        from gguf.quants import dequantize

        stored = self._tensors[key]
        try:
            values = torch.tensor(dequantize(stored.data, stored.tensor_type))
        except NotImplementedError:
            raise UserError(
                f"{self.path} is quantised as {stored.tensor_type.name}, which the package gguf cannot undo; "
                "use a file in Q4_1 or Q8_0"
            ) from None
        if key.endswith(("q_proj.weight", "k_proj.weight")):
            size = self.field("llama.embedding_length") // self.field("llama.attention.head_count")
            values = values.unflatten(0, (-1, size // 2, 2)).transpose(1, 2).flatten(0, 2)
        return values

    def close(self) -> None:
        """Does nothing: the system owns the pages of the mapped file."""

    @cached_property
    def digest(self) -> str:
        """The sha256 of the file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def renamed(name: str) -> str:
    """The name in transformers of a GGUF tensor. A tensor that a Llama does not have keeps its name."""
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, layer, part, kind = [*name.split("."), "", "", ""][:4]
    return f"model.layers.{layer}.{INSIDE[part]}.{kind}" if part in INSIDE else name
