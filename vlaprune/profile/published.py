"""One call of each published model at full size, as matrix products by stage: what a call must cost, without weights.

Sizes from the models' public configurations; per model the prompt's length outside the visual tokens (`text`) is that
of a typical LIBERO or SIMPLER instruction. Towers stop at the block whose output is used. Attention is counted as the
whole rectangle, as everywhere in vlaprune.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from vlaprune.nn.block import DecoderConfig
from vlaprune.profile.roofline import Work, block, decoder, linear, vit

LLAMA = DecoderConfig(
    hidden_size=4096, num_layers=32, num_heads=32, num_kv_heads=32, head_dim=128, intermediate_size=11008
)
GEMMA = DecoderConfig(
    hidden_size=2048, num_layers=18, num_heads=8, num_kv_heads=1, head_dim=256, intermediate_size=16384, causal=False
)
EXPERT = DecoderConfig(
    hidden_size=1024, num_layers=18, num_heads=8, num_kv_heads=1, head_dim=256, intermediate_size=4096, causal=False
)
BIDIRECTIONAL = replace(LLAMA, causal=False)  # OFT's decoder
PATCHES, VOCABULARY = 256, 32064


def prismatic(images: int) -> tuple[list[Work], list[Work]]:
    """DINOv2-L to block 23 of 24 and SigLIP so400m to block 26 of 27, then the fused projector."""
    rows = images * PATCHES
    towers = [*linear(rows, 588, 1024), *vit(261, 1024, 16, 4096, 23, images)]
    towers += [*linear(rows, 588, 1152), *vit(256, 1152, 16, 4304, 26, images)]
    return towers, linear(rows, 2176, 8704, 4096, 4096)


def siglip(images: int) -> tuple[list[Work], list[Work]]:
    """PaliGemma's SigLIP so400m, all 27 blocks, and its linear projector."""
    rows = images * PATCHES
    return [*linear(rows, 588, 1152), *vit(256, 1152, 16, 4304, 27, images)], linear(rows, 1152, 2048)


@dataclass(frozen=True)
class Model:
    """A published model, described by the work of its calls.

    config   the decoder in which tokens are pruned
    images   number of cameras
    others   number of prompt positions that are no visual tokens: text, state, slots
    build    makes the stages of a call from the visual tokens that each layer computes and attends to
    """

    name: str
    config: DecoderConfig
    images: int
    others: int
    build: Callable[[Model, Sequence[int], Sequence[int]], dict[str, list[Work]]]

    @property
    def visual(self) -> int:
        """V, the visual tokens of a call."""
        return self.images * PATCHES

    def call(self, kept: int | None = None, layer: int = 0) -> dict[str, list[Work]]:
        """Stages of a call that computes `kept` visual tokens from `layer` on; None for a dense call."""
        kept = self.visual if kept is None else kept
        visual = [self.visual if i < layer else kept for i in range(self.config.num_layers)]
        return self.build(self, visual, visual)

    def counts(self, visual: Sequence[int], seen: Sequence[int]) -> list[tuple[int, int]]:
        """(rows, columns) of the prompt pass from the visual tokens computed and attended to at each layer."""
        return [(n + self.others, m + self.others) for n, m in zip(visual, seen, strict=True)]


def _openvla(model: Model, visual: Sequence[int], seen: Sequence[int]) -> dict[str, list[Work]]:
    towers, projector = prismatic(model.images)
    words = linear(1, LLAMA.hidden_size, VOCABULARY)
    passes = [block(LLAMA, 1, n + model.others + i + 1) for i in range(6) for n in seen]
    return {
        "vision": towers,
        "projector": projector,
        "prompt": [*decoder(LLAMA, model.counts(visual, seen)), *words],
        "decode": [*(w for one in passes for w in one), *(w.times(6) for w in words)],
    }


def _oft(model: Model, visual: Sequence[int], seen: Sequence[int]) -> dict[str, list[Work]]:
    towers, projector = prismatic(model.images)
    return {
        "vision": towers,
        "projector": projector,
        "prompt": decoder(LLAMA, model.counts(visual, seen)),
        "head": [*linear(1, 8, 4096, 4096), *linear(8, 28672, 4096, 4096, 4096, 7)],
    }


def _cogact(model: Model, visual: Sequence[int], seen: Sequence[int]) -> dict[str, list[Work]]:
    towers, projector = prismatic(model.images)
    step = vit(17, 768, 12, 3072, 12, batch=2)  # classifier-free guidance: two sequences of 17 rows
    return {
        "vision": towers,
        "projector": projector,
        "prompt": decoder(LLAMA, model.counts(visual, seen)),
        "head": [w.times(10) for w in step],
    }


def _flow(
    model: Model,
    visual: Sequence[int],
    seen: Sequence[int],
    chunk: int = 50,
    steps: int = 10,
    adaptive: bool = False,
) -> dict[str, list[Work]]:
    """Stages of pi0 or, with `adaptive`, of pi0.5: no state row, and norms that depend on the time, computed once."""
    tower, projector = siglip(model.images)
    rows = chunk if adaptive else chunk + 1
    step = [*linear(chunk, 32, 1024), *linear(chunk, 1024, 32)]
    step += [] if adaptive else linear(chunk, 2048, 1024, 1024)
    step += [w for n in seen for w in block(EXPERT, rows, n + model.others + rows)]
    state = [] if adaptive else linear(1, 32, 1024)
    return {
        "vision": tower,
        "projector": projector,
        "prompt": decoder(GEMMA, model.counts(visual, seen)),
        "head": [*state, *(w.times(steps) for w in step)],
    }


def flow(name: str, images: int, others: int, chunk: int = 50, steps: int = 10) -> Model:
    """The model pi0 or pi05 with these numbers of cameras, other prompt positions, actions a chunk and flow steps."""
    build = partial(_flow, chunk=chunk, steps=steps, adaptive=name == "pi05")
    return Model(name, GEMMA, images, others, build)


MODELS = {
    m.name: m
    for m in (
        Model("openvla", LLAMA, 1, 26, _openvla),
        Model("oft", BIDIRECTIONAL, 2, 84, _oft),
        Model("cogact", LLAMA, 1, 27, _cogact),
        flow("pi0", 2, 48),
        flow("pi05", 2, 56, chunk=10),
    )
}
