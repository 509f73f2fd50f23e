"""What pi0 and pi0.5 are made of: PaliGemma (SigLIP, a linear projector, Gemma-2B) and the 300M action expert.

Source: openpi@15a9616:src/openpi/models_pytorch/{pi0_pytorch,gemma_pytorch}.py. Image features enter the decoder as
they are, text embeddings times the square root of their width. With half-precision weights, norms of decoder and
expert, patch and position embeddings and all projections of states, times and actions stay in fp32, as there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlaprune.call import Call, stage
from vlaprune.meter import linear_flops
from vlaprune.models.family import NUMBERS
from vlaprune.models.shared import ModelSizes
from vlaprune.models.suffix import Read
from vlaprune.nn.backend import EAGER, Backend
from vlaprune.nn.block import DecoderConfig, RMSNorm
from vlaprune.nn.decoder import Decoder, Tokens, numbered
from vlaprune.nn.expert import AdaNorm, Expert, embed_time, flow_times
from vlaprune.nn.extend import PromptKV, Suffix
from vlaprune.nn.resident import TokenIds
from vlaprune.nn.towers import Tower, TowerShape, project_features
from vlaprune.nn.weights import WeightMap, llama_weight_map

EXPERT = ("expert", "state", "action_in", "action_out", "time_in", "time_out")


@dataclass(frozen=True)
class Sizes(ModelSizes):
    """Sizes of the published models; smaller ones are for tests. Decoder and expert share layers and heads."""

    image: int = 224
    patch: int = 14
    vision_width: int = 1152
    vision_layers: int = 27
    vision_heads: int = 16
    vision_ffn: int = 4304
    layers: int = 18
    heads: int = 8
    head_size: int = 256
    width: int = 2048
    ffn: int = 16384
    expert_width: int = 1024
    expert_ffn: int = 4096
    vocabulary: int = 257152

    def shape(self, width: int, ffn: int) -> DecoderConfig:
        """A Gemma of these layers and heads, one head for keys, attending both ways."""
        return DecoderConfig(
            width,
            self.layers,
            self.heads,
            1,
            self.head_size,
            ffn,
            causal=False,
            hidden_act="gelu_tanh",
            norm_plus_one=True,
        )

    @property
    def tower(self) -> TowerShape:
        """SigLIP as PaliGemma has it: every block, tanh-GELU, final norm."""
        depth = self.vision_layers
        return TowerShape(self.vision_width, depth, depth, self.vision_heads, self.vision_ffn, tanh=True, normed=True)


class PaliGemma(nn.Module):
    """The network. Build it under `torch.device("meta")` and give it weights with `load_weights` or `randomise`.

    adaptive  pi0.5: the expert's norms follow the time of the flow, and there is no state row
    """

    def __init__(self, sizes: Sizes, adaptive: bool) -> None:
        super().__init__()
        self.sizes = sizes
        self.adaptive = adaptive
        self.tower = Tower(sizes.tower, sizes.image, sizes.patch)
        self.projector = nn.Linear(sizes.vision_width, sizes.width)
        self.embedding = nn.Embedding(sizes.vocabulary, sizes.width)
        self.decoder = Decoder(sizes.shape(sizes.width, sizes.ffn))
        d = sizes.expert_width
        self.expert = Expert(sizes.shape(d, sizes.expert_ffn), adaptive)
        self.state = None if adaptive else nn.Linear(NUMBERS, d)
        self.action_in = nn.Linear(NUMBERS, d)
        self.action_out = nn.Linear(d, NUMBERS)
        self.time_in = nn.Linear(d if adaptive else 2 * d, d)
        self.time_out = nn.Linear(d, d)
        self._ids = TokenIds()

    def cast(self, dtype: torch.dtype) -> PaliGemma:
        """Casts everything to `dtype`, except what has to stay in fp32."""
        self.to(dtype)
        small = (self.state, self.action_in, self.action_out, self.time_in, self.time_out)
        norms = [m for part in (self.decoder, self.expert) for m in part.modules() if isinstance(m, RMSNorm | AdaNorm)]
        for module in (*small, *norms, self.tower.embed):
            if module is not None:
                module.float()
        self.tower.position.data = self.tower.position.data.float()
        return self

    # -- the prompt --------------------------------------------------------------------------------------------

    def encode_images(self, images: Tensor, calls: Sequence[Call], backend: Backend = EAGER) -> Tensor:
        """Visual tokens [B, V, d] of images [B, cameras, h, w, 3] from 0 to 255; calls that ask get the attention."""
        reads = any(c.wants_vision_attention for c in calls)
        cameras = images.shape[1]
        with stage(calls, "vision", cameras * self.tower.flops):
            run = partial(vision_segment, self, reads, backend)
            features, received = backend.run(("vision", reads), run, images.flatten(0, 1))
        if received is not None:
            self._record(calls, received)
        rows = cameras * features.shape[1]
        with stage(calls, "projector", linear_flops(rows, self.sizes.vision_width, self.sizes.width)):
            project = partial(backend.unit(project_features), self.projector)
            return backend.run(("projector",), project, features.reshape(len(images), -1, features.shape[2]))

    def _record(self, calls: Sequence[Call], received: Tensor) -> None:
        """Hands over the attention [B * cameras, t] that patches received in the last block."""
        tower = self.tower
        tokens = tower.side**2
        for call, views in zip(calls, received.unflatten(0, (len(calls), -1)), strict=True):
            if call.wants_vision_attention:
                call.charge("method", views.shape[0] * 2.0 * tokens * tokens * tower.shape.width)
                call.record_vision_attention(views.flatten())

    def prompts(self, visual: Tensor, ids: Sequence[Sequence[int]], backend: Backend = EAGER) -> list[Tokens]:
        """The prompt of each of B sequences: its visual tokens, of [B, V, d] | its token ids."""
        texts = [self._ids(text, self.embedding.weight.device) for text in ids]
        prompts = backend.run(("prompt",), self.prompt_rows, visual, texts)
        return [Tokens(*prompt) for prompt in prompts]

    def prompt_rows(self, visual: Tensor, ids: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Segment: rows [n, d] and positions [n] of each prompt; text embeddings are scaled."""
        scale = self.sizes.width**0.5
        return [numbered(rows, self.embedding(text) * scale) for rows, text in zip(visual, ids, strict=True)]

    # -- the suffix --------------------------------------------------------------------------------------------

    def condition(self, times: Tensor) -> Tensor:
        """pi0.5: the condition [T, d] fp32 that the expert's norms follow, from embedded times [T, d]."""
        return F.silu(self.time_out(F.silu(self.time_in(times))))

    def suffix(self, noisy: Tensor, time: Tensor, state: Tensor | None) -> Tensor:
        """Rows [B, n, d] fp32 of noisy actions [B, chunk, 32] at one embedded time [d], a state [B, 32] in front."""
        rows = self.action_in(noisy)
        if not self.adaptive:
            rows = torch.cat((rows, time.expand_as(rows)), -1)
            rows = self.time_out(F.silu(self.time_in(rows)))
        if state is not None and self.state is not None:
            rows = torch.cat((self.state(state)[:, None], rows), 1)
        return rows

    def head_flops(self, chunk: int, steps: int, guided: bool = False) -> float:
        """FLOPs of all projections of states, times and actions in one call; pi0.5's times are computed once, before.

        guided  each step also goes backward through those of its actions, and projects pi0's state anew
        """
        d = self.sizes.expert_width
        step = linear_flops(chunk, NUMBERS, d) + linear_flops(chunk, d, NUMBERS)
        step += 0.0 if self.adaptive else linear_flops(chunk, 2 * d, d, d)
        state = 0.0 if self.adaptive else linear_flops(1, NUMBERS, d)
        return 2 * steps * step + steps * state if guided else steps * step + state


def vision_segment(net: PaliGemma, reads: bool, backend: Backend, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Segment: features [N, t, dv] of images [N, h, w, 3] from 0 to 255, with `reads` the attention [N, t] received."""
    pixels = backend.unit(unit_pixels)(images, net.tower.embed.weight.dtype)
    features, (q, k) = net.tower(pixels, backend)
    return features, backend.unit(Tower.received)(net.tower, q, k) if reads else None


def unit_pixels(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Unit: pixels [N, 3, h, w] in [-1, 1] of images [N, h, w, 3] from 0 to 255."""
    return (images.float() / 255 * 2 - 1).permute(0, 3, 1, 2).to(dtype)


@dataclass(frozen=True, eq=False)
class FlowConstants:
    """The values that depend on the number of Euler steps T alone.

    times        [T, d] embedded times, fp32
    modulations  pi0.5: per norm [T, 3d]; None for plain norms
    """

    times: Tensor
    modulations: list[Tensor] | None

    @classmethod
    def of(cls, net: PaliGemma, steps: int, added: bool = True) -> FlowConstants:
        """Computes the values on the device of the weights; `added` goes to `flow_times`."""
        device = net.projector.weight.device
        times = embed_time(flow_times(steps, added).to(device), net.sizes.expert_width).float()
        return cls(times, net.expert.modulations(net.condition(times)) if net.adaptive else None)


def denoise(
    net: PaliGemma,
    constants: FlowConstants,
    layers: Sequence[int],
    backend: Backend,
    actions: Tensor,
    state: Tensor | None,
    prompt: PromptKV,
    lengths: Sequence[int],
) -> tuple[Tensor, list[list[Read]]]:
    """Segment: actions [B, chunk, 32] from noise of that shape, by Euler steps from time 1 to time 0.

    state    [B, 32] for the state row in front (pi0); None without one
    prompt   what the prompts left
    lengths  of the prompts, as if no token had been pruned

    Returns also the action rows of `layers`, one read for each step.
    """
    chunk = actions.shape[1]
    steps = len(constants.times)
    dtype = net.projector.weight.dtype
    rows = backend.unit(suffix_rows)
    euler = backend.unit(euler_step)
    reads: list[list[Read]] = [[] for _ in layers]
    suffix = Suffix(net.expert.blocks, prompt, lengths, chunk + (state is not None), backend)
    for step in range(steps):
        x = rows(net, actions, constants.times[step], state if step == 0 else None, dtype)
        prefix = x.shape[0] // actions.shape[0] - chunk
        modulations = None if constants.modulations is None else [m[step] for m in constants.modulations]
        x, queries = suffix.extend(x, suffix.rows - chunk - prefix, prefix, modulations)
        actions = euler(net, x, None if modulations is None else modulations[-1], actions, steps)
        for read, layer in zip(reads, layers, strict=True):  # the next step overwrites the suffix of the keys
            read.append((queries[layer][:, :, -chunk:], [kv[0].clone() for kv in suffix.buffers[layer]]))
    return actions, reads


def suffix_rows(net: PaliGemma, actions: Tensor, time: Tensor, state: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Unit: rows [B * n, d] of noisy actions [B, chunk, 32] at one embedded time [d], a state [B, 32] in front."""
    return net.suffix(actions, time, state).to(dtype).flatten(0, 1)


def euler_step(net: PaliGemma, x: Tensor, modulation: Tensor | None, actions: Tensor, steps: int) -> Tensor:
    """Unit: actions [B, chunk, 32] one step further, from the expert's rows [B * n, d]."""
    rows = net.expert.normalise(x, modulation).unflatten(0, (actions.shape[0], -1))
    return actions - net.action_out(rows[:, -actions.shape[1] :].float()) / steps


VISION = {
    "layer_norm1": "norm_attention",
    "self_attn.out_proj": "out",
    "layer_norm2": "norm_mlp",
    "mlp.fc1": "up",
    "mlp.fc2": "down",
}


def _siglip(shape: TowerShape, old: str) -> dict[str, WeightMap]:
    """Where the tensors of transformers' SigLIP go."""
    out = {f"{old}embeddings.position_embedding.weight": WeightMap("tower.position")}
    for kind in ("weight", "bias"):
        out[f"{old}embeddings.patch_embedding.{kind}"] = WeightMap(f"tower.embed.{kind}")
        out[f"{old}post_layernorm.{kind}"] = WeightMap(f"tower.norm.{kind}")
        for i in range(shape.used):
            theirs = f"{old}encoder.layers.{i}."
            ours = f"tower.blocks.{i}."
            out |= {f"{theirs}{x}.{kind}": WeightMap(f"{ours}{y}.{kind}") for x, y in VISION.items()}
            for n, name in enumerate("qkv"):
                rows = (n * shape.width, (n + 1) * shape.width)
                out[f"{theirs}self_attn.{name}_proj.{kind}"] = WeightMap(f"{ours}qkv.{kind}", rows)
    return out


def _expert(net: PaliGemma, old: str) -> dict[str, WeightMap]:
    """Where the expert's tensors go; adaptive norms have a dense layer in place of a weight."""
    out = llama_weight_map(net.expert.config, old, "expert.")
    if not net.adaptive:
        return out
    dense = {k: p for k, p in out.items() if "norm" in k}
    for key, piece in dense.items():
        del out[key]
        for kind in ("weight", "bias"):
            out[key.removesuffix("weight") + f"dense.{kind}"] = WeightMap(
                piece.name.removesuffix("weight") + f"dense.{kind}"
            )
    return out


def weight_map(net: PaliGemma, names: Mapping[str, object]) -> tuple[dict[str, WeightMap], tuple[str, ...]]:
    """Where the tensors of a checkpoint go, and prefixes of those that nothing reads.

    names  those in the checkpoint, without a leading `model.`: transformers' own (`vlm.`, pi0 only), else those of
           openpi and lerobot
    """
    time = "time_mlp_" if net.adaptive else "action_time_mlp_"
    projections = {"action_in_proj": "action_in", "action_out_proj": "action_out"}
    projections |= {f"{time}in": "time_in", f"{time}out": "time_out"}
    projections |= {} if net.adaptive else {"state_proj": "state"}
    if any(n.startswith("vlm.") for n in names):
        vlm = "vlm."
        expert = "dit."
        first = "embed_action_time."
        unused: tuple[str, ...] = ("dit.embed_tokens.",)
        table = "vlm.language_model.embed_tokens.weight"
        tower = "vlm.vision_tower."
    else:
        both = "paligemma_with_expert."
        vlm = f"{both}paligemma.model."
        expert = f"{both}gemma_expert.model."
        first = ""
        unused = (f"{both}gemma_expert.lm_head.",)
        tied = f"{both}paligemma.lm_head.weight"
        table = f"{vlm}language_model.embed_tokens.weight"
        if table in names:
            unused = (*unused, tied)
        else:
            table = tied
        inner = "" if any(n.startswith(f"{vlm}vision_tower.encoder.") for n in names) else "vision_model."
        tower = f"{vlm}vision_tower.{inner}"  # transformers dropped the inner name between 5.5 and 5.17
    out = _siglip(net.tower.shape, tower) | llama_weight_map(net.decoder.config, f"{vlm}language_model.", "decoder.")
    out |= _expert(net, expert) | {table: WeightMap("embedding.weight")}
    for kind in ("weight", "bias"):
        out[f"{vlm}multi_modal_projector.linear.{kind}"] = WeightMap(f"projector.{kind}")
        for a, b in projections.items():
            out[f"{'' if a == 'action_out_proj' else first}{a}.{kind}"] = WeightMap(f"{b}.{kind}")
    return out, unused
