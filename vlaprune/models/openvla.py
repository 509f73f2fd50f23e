"""OpenVLA-7B: one image, an instruction, seven action tokens decoded one by one.

Prompt: begin | 256 visual tokens | text, ending in the lone space 29871. Causal. The last prompt row gives the first
token, six more passes the others, each the best of the whole vocabulary. Kim et al., arXiv:2406.09246; source:
openvla/openvla@c8f03f4:prismatic/extern/hf/modeling_prismatic.py (predict_action).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from vlaprune.benchmark import Interface, Observation
from vlaprune.call import Call, stage
from vlaprune.errors import UserError
from vlaprune.meter import linear_flops
from vlaprune.models.pictures import preparation, prepared
from vlaprune.models.prismatic import (
    Sizes,
    closed,
    decode_bins,
    format_prompt,
    restore,
)
from vlaprune.models.shared import precision, resolve_device
from vlaprune.models.source import Source, published
from vlaprune.models.suffix import Read, gather_reads, left_by_prompt, record_action, record_passes, recorded_layers
from vlaprune.nn.backend import EAGER, Backend
from vlaprune.nn.block import normalise
from vlaprune.nn.decoder import Decoder
from vlaprune.nn.extend import PromptKV, Suffix
from vlaprune.nn.load import weights_id
from vlaprune.session import Session, prepares_pictures
from vlaprune.trace import Layout

ACTION = 7
PROMPTS: dict[str, Callable[[str], str]] = {"question": format_prompt, "bare": str}
PUBLISHED = {
    f"libero_{name}": f"openvla/openvla-7b-finetuned-libero-{name}" for name in ("spatial", "object", "goal", "10")
}


class OpenVLA:
    """OpenVLA: one image and an instruction in, one action [1, 7] out, decoded as seven tokens.

    weights  a checkpoint's folder, owner/name of the hub, or `random`; None for the published one of `suite`
    suite    of the benchmark; names the statistics that actions are scaled by, unless `unnorm` does
    unnorm   dataset of the checkpoint's statistics, such as bridge_orig; None for `suite`
    images   how images are prepared, see models/images.py; None for `rlds_crop`, which the fine-tunes were trained on
    prompt   `question` as in training, or `bare`: the instruction alone, which SimplerEnv-OpenVLA sends; None for
             `question`
    cameras  the one camera that is read
    sizes    sizes other than the 7B model's, for tests with random weights
    seed     of random weights
    device   `auto`, `cpu`, `cuda`, `meta`, ...
    dtype    of weights and computation
    """

    chunk = 1

    def __init__(
        self,
        weights: str | None = None,
        suite: str | None = None,
        unnorm: str | None = None,
        images: str | None = None,
        prompt: str | None = None,
        cameras: Sequence[str] = ("primary",),
        sizes: Mapping[str, int] | None = None,
        seed: int = 0,
        device: str = "auto",
        dtype: str = "bfloat16",
    ) -> None:
        if len(cameras) != 1:
            raise UserError(f"cameras={list(cameras)}; openvla reads one camera, model=oft reads several")
        prompt = prompt or "question"
        if prompt not in PROMPTS:
            raise UserError(f"prompt={prompt}; use one of {', '.join(PROMPTS)}")
        trunk_sizes = Sizes.of(sizes or {})
        self._prompt = PROMPTS[prompt]
        self._pictures = preparation(images or "rlds_crop")
        self._image = trunk_sizes.image
        self.device = resolve_device(device)
        source = Source.of(published(weights, suite, PUBLISHED, "openvla"), "openvla")
        self._tokenize = source.tokenize
        self._range = source.range("action", ACTION, unnorm or suite)
        self.trunk, self.card = source.trunk(trunk_sizes, True, seed, self.device, precision(dtype))
        self.info = replace(trunk_sizes.info("openvla"), weights=weights_id(self.card))
        self.backend: Backend = EAGER
        self.interface = Interface("as_trained", "zero_one", "delta", tuple(cameras), None)

    @property
    def decoder(self) -> Decoder:
        """The decoder that pruning shortens."""
        return self.trunk.decoder

    def layout(self, words: int) -> Layout:
        """Positions of everything for a prompt of `words` token ids, the first and the last one included."""
        views = self.trunk.views(self.interface.cameras)
        total = len(views) * self.trunk.vision.side**2
        length = words + total
        return Layout(
            length=length,
            visual=range(1, 1 + total),
            text=range(1 + total, length),
            action=range(length - 1, length + ACTION - 1),
            last=length - 1,
            views=views,
        )

    def predict(self, observations: Sequence[Observation], sessions: Sequence[Session]) -> Sequence[Tensor]:
        """One [1, 7] per observation, the hand in the units of the dataset, the gripper from 0 (closes) to 1."""
        tokens = self.tokens(observations, sessions)
        return list(restore(decode_bins(tokens), self._range)[:, None])

    def tokens(self, observations: Sequence[Observation], sessions: Sequence[Session]) -> Tensor:
        """The [B, 7] token ids that are decoded."""
        with prepares_pictures(sessions):
            cameras = self.interface.cameras
            size = self._image
            seen = prepared(observations, cameras, self._pictures, size, "openvla", self.device, self.backend)
        ids = [closed(self._tokenize(self._prompt(o.instruction))) for o in observations]
        calls = [
            session.begin(self.layout(len(words)), tuple(views), self.trunk.embedding.weight)
            for session, views, words in zip(sessions, seen, ids, strict=True)
        ]
        visual = self.trunk.encode_images(seen, calls, self.backend)
        prompts = self.trunk.prompts(visual, ids, self.backend)
        with stage(calls, "prompt"):
            rows = self.decoder(prompts, calls, self.backend)
        with stage(calls, "decode"):
            return self._decode(torch.stack([r[-1] for r in rows]), calls)

    def _decode(self, rows: Tensor, calls: Sequence[Call]) -> Tensor:
        """Greedy tokens [B, 7] after last rows [B, d]; positions go on from the full prompt, whatever was pruned."""
        layers = recorded_layers(calls, self.decoder.config)
        run = partial(self.decoded, layers)
        tokens, reads = self.backend.run(("decode", layers), run, rows, *left_by_prompt(calls))
        record_passes(calls, ACTION - 1)
        record_action(calls, layers, reads)
        head = ACTION * linear_flops(1, *self.trunk.head.weight.T.shape)
        for call in calls:
            call.charge("head", head)
        return tokens

    def decoded(
        self, layers: tuple[int, ...], rows: Tensor, prompt: PromptKV, lengths: Sequence[int]
    ) -> tuple[Tensor, list[list[Read]]]:
        """Segment: greedy tokens [B, 7] after last prompt rows [B, d], and the attention reads of `layers`.

        prompt   what the prompts left
        lengths  of the prompts, as if no token had been pruned
        """
        backend = self.backend
        trunk = self.trunk
        suffix = Suffix(self.decoder.blocks, prompt, lengths, ACTION - 1, backend)
        best = backend.unit(best_token)
        token, x = best(trunk.head, trunk.embedding, rows)
        tokens = [token]
        queries = []
        for i in range(ACTION - 1):
            x, each = suffix.extend(x, i)
            queries.append(each)
            token, x = best(trunk.head, trunk.embedding, backend.unit(normalise)(self.decoder.norm, x))
            tokens.append(token)
        return torch.stack(tokens, 1), gather_reads(queries, layers, suffix)


def best_token(head: nn.Module, embedding: nn.Module, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Unit: the most likely token [B] after rows [B, d], and its embedding [B, d]."""
    token = head(rows).argmax(-1)
    return token, embedding(token)
