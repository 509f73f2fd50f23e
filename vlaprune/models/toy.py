"""Toy: the test double. A hand-made decoder that finds a coloured light, in milliseconds and without weights.

Each visual token carries its patch's colour and place; text, slots and the last token carry the wanted colour as a
query. Head 0 of every layer attends from query to colour, and the last layer copies the place it finds into the action
slots. So a token's attention tells its worth, and a method that drops the light's patch fails for an honest reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from vlaprune.benchmark import Interface, Observation
from vlaprune.call import Call, stage
from vlaprune.errors import UserError
from vlaprune.models.shared import check_sizes
from vlaprune.models.suffix import Read, gather_reads, left_by_prompt, record_action, record_passes, recorded_layers
from vlaprune.nn.backend import EAGER, Backend
from vlaprune.nn.block import DecoderConfig, normalise
from vlaprune.nn.decoder import Decoder, Tokens
from vlaprune.nn.extend import PromptKV, Suffix
from vlaprune.pruner import ModelInfo
from vlaprune.session import Session
from vlaprune.trace import Layout, View

COLOURS = ("red", "blue")
STYLES = ("parallel", "autoregressive")
RED, X, QUERY, FILL, NOISE = 0, 2, 4, 6, 7  # feature numbers
NORM = 4.0  # of every token


class Toy:
    """A hand-made decoder without weights, for tests.

    style  `parallel` (bidirectional, action slots in the prompt) or `autoregressive` (causal, one pass per action)
    """

    def __init__(self, style: str = "parallel", side: int = 8, layers: int = 6, chunk: int = 4) -> None:
        if style not in STYLES:
            raise UserError(f"toy style={style}; use one of {', '.join(STYLES)}")
        check_sizes({"side": side, "layers": layers, "chunk": chunk}, {})
        self.parallel = style == "parallel"
        self.info = ModelInfo("toy", layers, 2, 32, 16)
        self.interface = Interface("axis_angle", "close_positive", "delta", ("main",), "eef_pos3_axisangle3_gripper2")
        self.chunk = chunk
        self.side = side
        self.device = torch.device("cpu")
        self.decoder = Decoder(DecoderConfig(32, layers, 2, 2, 16, 32, rope_theta=1e6, causal=not self.parallel)).eval()
        self.backend: Backend = EAGER
        self._wire()

    @torch.no_grad()
    def _wire(self) -> None:
        generator = torch.Generator().manual_seed(0)
        weights = dict(self.decoder.named_parameters())
        for name, weight in weights.items():
            if weight.ndim == 2:
                weight.zero_()
            if name.endswith("qkv.weight"):
                layer = int(name.split(".")[1])
                for c in range(2):  # the slowest rotary pairs, so that distance hardly matters
                    weight[6 + c, QUERY + c] = 16.0 - (layer % 3)
                    weight[32 + 6 + c, RED + c] = 1.0
                    weight[64 + c, X + c] = 1.0
                weight[16:32] = torch.randn(16, 32, generator=generator)
                weight[48:64] = torch.randn(16, 32, generator=generator)
        for c in range(2):
            weights[f"blocks.{self.info.num_layers - 1}.out.weight"][X + c, c] = NORM / 32**0.5

    def layout(self, words: int) -> Layout:
        """Positions of begin, visual tokens, words and, in the parallel style, slots and stop."""
        total = self.side**2
        text = 1 + total
        end = text + words
        view = (View("main", 0, self.side, self.side),)
        if not self.parallel:
            return Layout(end, range(1, text), range(text, end), range(end, end + self.chunk), end - 1, view)
        slots = range(end, end + self.chunk)
        return Layout(slots.stop + 1, range(1, total + 1), range(text, end), slots, slots.stop, view)

    def predict(self, observations: Sequence[Observation], sessions: Sequence[Session]) -> Sequence[Tensor]:
        """One [chunk, 7] per observation."""
        prompts = []
        calls = []
        for session, observation in zip(sessions, observations, strict=True):
            words = observation.instruction.split()
            image = torch.from_numpy(observation.images["main"])
            call = session.begin(self.layout(len(words)), (image,), self.decoder.norm.weight)
            with stage([call], "vision"):
                prompt = self._prompt(image, words)
            if call.wants_vision_attention:
                with call.clock.span("method"):
                    call.record_vision_attention(self._salience(prompt[1 : 1 + self.side**2]))
            prompts.append(Tokens(prompt, torch.arange(len(prompt))))
            calls.append(call)
        with stage(calls, "prompt"):
            rows = self.decoder(prompts, calls, self.backend)
        if self.parallel:
            slots = torch.stack([r[-1 - self.chunk : -1] for r in rows])
        else:
            with stage(calls, "decode"):
                slots = self._decode(torch.stack([p.hidden[-1] for p in prompts]), calls)
        with stage(calls, "head"):
            return [self._act(s, o.state) for s, o in zip(slots, observations, strict=True)]

    def _decode(self, query: Tensor, calls: Sequence[Call]) -> Tensor:
        """Final rows [B, chunk, d] of the same query [B, d] at the positions behind the prompts."""
        layers = recorded_layers(calls, self.decoder.config)
        rows, reads = self.backend.run(("decode", layers), partial(self.decoded, layers), query, *left_by_prompt(calls))
        record_passes(calls, self.chunk)
        record_action(calls, layers, reads)
        return rows

    def decoded(
        self, layers: tuple[int, ...], query: Tensor, prompt: PromptKV, lengths: Sequence[int]
    ) -> tuple[Tensor, list[list[Read]]]:
        """Segment: final rows [B, chunk, d] of `query` [B, d], a pass for each, and the attention reads of `layers`."""
        suffix = Suffix(self.decoder.blocks, prompt, lengths, self.chunk, self.backend)
        rows = []
        queries = []
        for i in range(self.chunk):
            x, each = suffix.extend(query, i)
            rows.append(self.backend.unit(normalise)(self.decoder.norm, x))
            queries.append(each)
        return torch.stack(rows, 1), gather_reads(queries, layers, suffix)

    def _prompt(self, image: Tensor, words: list[str]) -> Tensor:
        side = self.side
        patch = image.shape[0] // side
        if image.shape[0] % side:
            raise UserError(
                f"toy side={side} does not divide the picture's {image.shape[0]} px; use bench.image or side"
            )
        grid = image.float().div(255).reshape(side, patch, side, patch, 3).mean((1, 3)).reshape(-1, 3)
        visual = torch.zeros(side**2, 32)
        place = (torch.arange(side) + 0.5) / side * 2 - 1
        visual[:, RED] = 2 * grid[:, 0]
        visual[:, RED + 1] = 2 * grid[:, 2]
        visual[:, X] = place.repeat(side)
        visual[:, X + 1] = place.repeat_interleave(side)
        visual[:, NOISE] = grid[:, 1]
        ask = torch.zeros(len(words) + (self.chunk + 1 if self.parallel else 0), 32)
        for c, colour in enumerate(COLOURS):
            ask[:, QUERY + c] = 2.0 * (colour in words)
        for i, word in enumerate(words):
            ask[i, NOISE + 1 + sum(word.encode()) % 24] = 0.5
        tokens = torch.cat((torch.zeros(1, 32), visual, ask))
        tokens[:, FILL] = (NORM**2 - tokens.pow(2).sum(1)).sqrt()
        return tokens

    def _salience(self, visual: Tensor) -> Tensor:
        """[V] what a vision tower would attend to: patches unlike the mean patch."""
        colour = visual[:, RED : RED + 2]
        unlike: Tensor = (colour - colour.mean(0)).norm(dim=1)
        return unlike.softmax(0)

    def _act(self, slots: Tensor, state: np.ndarray | None) -> Tensor:
        if state is None:
            raise UserError("observation has no state; toy reads the position")
        scale = slots[:, QUERY : QUERY + 2].sum(1, keepdim=True) / 2  # undoes the final norm
        targets = slots[:, X : X + 2] / scale.clamp(min=1e-6)
        at = torch.tensor(state[:2], dtype=torch.float32)
        actions = torch.zeros(self.chunk, 7)
        for i, target in enumerate(targets):
            actions[i, :2] = ((target - at) / 0.2).clamp(-1, 1)
            at = at + 0.2 * actions[i, :2]
        return actions
