"""Loads a checkpoint into a module, strictly and without a second copy; or fills it with seeded random weights.

Memory: a tensor is read from the mapped file and copied straight into its place, so loading holds the module in its own
dtype and no second copy. Measured on 2 GiB of fp32 copied into bf16 on the host: private memory grew by 1.03 GiB, the
module and half a tensor; pages of the file, which the system may take back, were 0.6 GiB for four shards (one open at
a time) and 2.0 GiB for a single .pt file. tests/test_checkpoint.py holds a smaller file to the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vlaprune.errors import UserError
from vlaprune.nn.block import DecoderConfig


class Tensors(Protocol):
    """A source of tensors, such as `Checkpoint`, `GGUF` or `StateDict`.

    shapes  name -> shape
    """

    shapes: dict[str, tuple[int, ...]]

    @property
    def path(self) -> Path | str:
        """The file or folder, or the source's name; for errors."""

    def tensor(self, key: str) -> Tensor:
        """One tensor by its name."""

    def close(self) -> None:
        """Closes the file."""


class StateDict:
    """The tensors of a module in memory, such as `transformers_model.state_dict()`; `path` is its name in errors."""

    def __init__(self, state: Mapping[str, Tensor], path: Path | str = "state dict") -> None:
        self.path, self._state = path, state
        self.shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}

    def tensor(self, key: str) -> Tensor:
        """One tensor. KeyError for a name that is not there."""
        return self._state[key]

    def close(self) -> None:
        """Does nothing: no file is open."""


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

    UserError names tensors that are missing, foreign or of another shape; nothing is loaded then. It also names those
    with numbers that are not finite in the module's dtype. On the meta device nothing else is done: names and shapes
    are compared, no tensor is read.
    """
    fits(module, checkpoint, weights, unused)
    (module if dtype is None else module.to(dtype)).to_empty(device=device)
    own, ends = dict(module.named_parameters()), {}
    with torch.no_grad():
        for key in () if torch.device(device).type == "meta" else checkpoint.shapes:
            if key in weights:
                target = weights[key]
                place = own[target.name] if target.rows is None else own[target.name][slice(*target.rows)]
                place.copy_(checkpoint.tensor(key).view(place.shape))
                ends[key] = torch.stack(torch.aminmax(place))  # NaN if there is one; read at the end: no GPU waits
    checkpoint.close()
    finite(ends, checkpoint.path)


def finite(tensors: Mapping[str, Tensor], source: Path | str) -> None:
    """Raises a UserError that names tensors with a NaN or an infinite number."""
    if wrong := sorted(key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()):
        more = " ..." if len(wrong) > 3 else ""
        raise UserError(
            f"weights {source} have numbers that are not finite in {len(wrong)} tensors: {wrong[:3]}{more}; they are "
            "damaged, or too large for this dtype: download them again, or use another dtype"
        )


def fits(module: nn.Module, checkpoint: Tensors, weights: Mapping[str, WeightMap], unused: Sequence[str] = ()) -> None:
    """Raises UserError if a checkpoint does not fit a module. `load_weights` calls it first."""
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
        raise UserError(
            f"checkpoint {checkpoint.path} is another model's: it has none of the {len(shapes)} tensors of {name} such "
            f"as {missing[0]}, but {surplus[:2]}"
        )
    said = [
        f"{what} {len(names)} tensors: {names[:3]}{' ...' if len(names) > 3 else ''}"
        for what, names in (("lacks", missing), ("has in other shapes", wrong), ("has besides", surplus))
        if names
    ]
    if said:
        raise UserError(f"checkpoint {checkpoint.path} does not fit {name}; it {'; '.join(said)}")


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
                generator = torch.Generator(p.device).manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
                p.normal_(0.0, p[0].numel() ** -0.5, generator=generator)
            else:
                p.fill_(0.0 if name.endswith("bias") else 1.0)


def llama_weight_map(config: DecoderConfig, old: str, new: str) -> dict[str, WeightMap]:
    """Where the tensors of a Llama, Gemma, Qwen or SmolLM go in a `Decoder`.

    old  prefix of their names in the source, that of `layers.0`: `model.` in transformers' ...ForCausalLM
    new  prefix of the decoder in the module that is filled; empty for a `Decoder` itself
    """
    inner, kv, ffn = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim, config.intermediate_size
    kinds = ("weight", "bias") if config.qkv_bias else ("weight",)
    out = {f"{old}norm.weight": WeightMap(f"{new}norm.weight")}
    for i in range(config.num_layers):
        a, b = f"{old}layers.{i}.", f"{new}blocks.{i}."
        out[f"{a}input_layernorm.weight"] = WeightMap(f"{b}norm_attention.weight")
        out[f"{a}post_attention_layernorm.weight"] = WeightMap(f"{b}norm_mlp.weight")
        for name, start, size in (("q", 0, inner), ("k", inner, kv), ("v", inner + kv, kv)):
            for kind in kinds:
                out[f"{a}self_attn.{name}_proj.{kind}"] = WeightMap(f"{b}qkv.{kind}", (start, start + size))
        for name in "qk" if config.qk_norm else "":
            out[f"{a}self_attn.{name}_norm.weight"] = WeightMap(f"{b}norm_{name}.weight")
        out[f"{a}self_attn.o_proj.weight"] = WeightMap(f"{b}out.weight")
        out[f"{a}mlp.gate_proj.weight"] = WeightMap(f"{b}gate_up.weight", (0, ffn))
        out[f"{a}mlp.up_proj.weight"] = WeightMap(f"{b}gate_up.weight", (ffn, 2 * ffn))
        out[f"{a}mlp.down_proj.weight"] = WeightMap(f"{b}down.weight")
    return out


FAMILIES: dict[str, dict[str, Any]] = {  # settings that transformers derives from model_type alone
    "llama": {},
    "mistral": {},
    "gemma": {"hidden_act": "gelu_tanh", "norm_plus_one": True},
    "qwen2": {"qkv_bias": True},
    "qwen2_vl_text": {"qkv_bias": True},
    "qwen2_5_vl_text": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
    "qwen3_vl_text": {"qk_norm": True, "mrope_interleaved": True},
    "smollm3": {},
}

ACTS = {"gemma": "gelu_pytorch_tanh"}  # all others: silu
NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "rms_norm_eps")


def decoder_config(given: Mapping[str, Any], causal: bool = True) -> DecoderConfig:
    """The decoder that a config.json of transformers describes: `config.to_dict()`, or its `text_config`.

    UserError for another family, and for what a `Decoder` does not compute: sliding windows, scaled RoPE, biases of
    the output projection and the feed-forward.
    """
    kind = given.get("model_type")
    if kind not in FAMILIES:
        raise UserError(f"model_type={kind} is no decoder that is known here; use one of {', '.join(FAMILIES)}")
    rope = {**given, **(given.get("rope_scaling") or {}), **(given.get("rope_parameters") or {})}
    needed = (*NEEDED, "rope_theta")
    if missing := [name for name in needed if (rope if name == "rope_theta" else given).get(name) is None]:
        raise UserError(f"this {kind} lacks {', '.join(missing)}; give the whole `config.to_dict()` of transformers")
    scaled = rope.get("rope_type", rope.get("type", "default"))
    windows = "sliding_attention" in (given.get("layer_types") or ()) or (
        given.get("sliding_window") and given.get("use_sliding_window", True)
    )
    wrong = {
        f"rope_type={scaled}": scaled not in ("default", "mrope"),
        "sliding_window": windows,
        "attention_bias": given.get("attention_bias") and not FAMILIES[kind].get("qkv_bias"),
        "mlp_bias": given.get("mlp_bias"),
        f"hidden_act={given.get('hidden_act')}": given.get("hidden_act", "silu") != ACTS.get(kind, "silu"),
    }
    if found := [name for name, is_there in wrong.items() if is_there]:
        raise UserError(f"this {kind} has {', '.join(found)}, which the decoder here does not compute")
    heads = given["num_attention_heads"]
    sections = rope.get("mrope_section")
    no_rope = given.get("no_rope_layers") or ()  # SmolLM3: 1 for a layer with RoPE, 0 for one without
    return DecoderConfig(
        hidden_size=given["hidden_size"],
        num_layers=given["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=given.get("num_key_value_heads") or heads,
        head_dim=given.get("head_dim") or given["hidden_size"] // heads,
        intermediate_size=given["intermediate_size"],
        rope_theta=float(rope["rope_theta"]),
        rms_norm_eps=given["rms_norm_eps"],
        causal=causal,
        partial_rotary_factor=float(rope.get("partial_rotary_factor") or 1.0),
        mrope_section=None if sections is None else tuple(sections),
        no_rope_layers=tuple(layer for layer, rotates in enumerate(no_rope) if not rotates),
        **FAMILIES[kind],
    )
