"""What the policies that we train ourselves share: the OpenVLA-OFT shape with a small vision tower.

Sequence: begin | visual tokens of every camera | proprioception | instruction | padding | one slot per action of the
chunk | stop. Everything attends to everything, one pass gives the whole chunk, an L1-trained head reads the slots.
Differences from OpenVLA-OFT (arXiv:2502.19645): one slot per time step instead of one per number, a learned slot
embedding instead of zeros, one small vision transformer on a convolutional stem instead of DINOv2 and SigLIP.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vlaprune.benchmark import Interface, Observation
from vlaprune.call import Call, stage
from vlaprune.errors import UserError
from vlaprune.files import SHIPPED, shipped_file
from vlaprune.meter import linear_flops, vit_block_flops
from vlaprune.models.images import area
from vlaprune.nn.backend import EAGER, Backend
from vlaprune.nn.decoder import Decoder, Hooks, NullHooks, Tokens
from vlaprune.nn.towers import project_features
from vlaprune.nn.vision import ViT, received
from vlaprune.pruner import ModelInfo
from vlaprune.session import Session, prepares_pictures
from vlaprune.trace import Layout, View

ACTION, STATE, HINT = 7, 8, 4  # numbers of an action, of a state, of a hint


def check_shape(card: Mapping[str, object], shape: Mapping[str, object], path: str) -> None:
    """UserError where weights were trained with another value of what no tensor's shape tells, such as heads."""
    origin = card.get("from")
    trained = origin if isinstance(origin, dict) else {}  # the first shipped weights do not say it
    for key, value in shape.items():
        if trained.get(key, value) != value:
            raise UserError(f"weights {path} were trained with {key} {trained[key]}, now it is {value}; use the same")


def shipped(model: str, weights: str) -> Path:
    """The file of some weights: one shipped with the package under this name, or a path. UserError for neither."""
    path = shipped_file(model, weights, "safetensors")
    if not path.is_file():
        stems = (p.stem.removeprefix(f"{model}-") for p in SHIPPED.glob(f"{model}-*.safetensors"))
        names = sorted(stem for stem in stems if "." not in stem)  # the others are a method's
        raise UserError(f"weights {weights} do not exist: no file, nor shipped with {model} ({', '.join(names)})")
    return path


class SmallPolicy(nn.Module, ABC):
    """Everything of a small policy except the decoder, the word embeddings and the weights, which a subclass gives.

    info     of the decoder
    decoder  that pruning shortens; it attends in both directions
    word     [n, d] embeddings of word numbers; 0 pads
    special  [2, d] rows that begin and end a prompt
    """

    info: ModelInfo
    decoder: Decoder
    word: nn.Embedding
    special: Tensor
    state_low: Tensor
    state_high: Tensor
    action_low: Tensor
    action_high: Tensor

    def __init__(self, cameras: Sequence[str], chunk: int, text: int, vision: ViT, width: int) -> None:
        """`text` is the number of word slots of the prompt, `width` is the decoder's width."""
        super().__init__()
        self.interface = Interface(
            "axis_angle", "close_positive", "delta", tuple(cameras), "eef_pos3_axisangle3_gripper2"
        )
        self.chunk = chunk
        self.text = text
        self.image = 16 * vision.side
        self.vision = vision
        self.camera = nn.Parameter(torch.randn(len(self.interface.cameras), vision.width) * 0.02)
        self.projector = nn.Sequential(nn.Linear(vision.width, width), nn.GELU(), nn.Linear(width, width))
        self.proprio = nn.Sequential(nn.Linear(STATE, width), nn.GELU(), nn.Linear(width, width))
        self.slot = nn.Parameter(torch.randn(chunk, width) * 0.02)
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, ACTION))
        self.locate = nn.Linear(width, HINT)  # tells in training where the objects are; acting does not use it
        for name, size in (("state", STATE), ("action", ACTION)):
            self.register_buffer(f"{name}_low", -torch.ones(size))
            self.register_buffer(f"{name}_high", torch.ones(size))
        self.backend: Backend = EAGER
        self.card: dict[str, object] = {"weights": "random"}

    @abstractmethod
    def tokenize(self, instruction: str) -> list[int]:
        """Word numbers of an instruction, none of them 0. UserError where they do not fit the word slots."""

    def layout(self, words: int) -> Layout:
        """Positions of visual tokens, text and action slots for an instruction of `words` words."""
        side = self.vision.side
        views = tuple(View(c, i * side * side, side, side) for i, c in enumerate(self.interface.cameras))
        total = len(views) * side * side
        text = total + 2
        action = text + self.text
        return Layout(
            length=action + self.chunk + 1,
            visual=range(1, 1 + total),
            text=range(text, text + words),
            action=range(action, action + self.chunk),
            last=action + self.chunk,
            views=views,
        )

    def encode_images(self, images: Tensor, calls: Sequence[Call] = ()) -> Tensor:
        """Visual tokens [B, V, d] of images [B, cameras, h, w, 3] uint8; `calls` may read the tower's attention."""
        count = images.shape[1]
        with stage(calls, "vision", self._vision_flops()):
            see = partial(see_images, self, self.backend)
            tokens, q, k = self.backend.run(("vision",), see, images.flatten(0, 1))
        for i, call in enumerate(calls):
            if call.wants_vision_attention:
                views = slice(i * count, (i + 1) * count)
                self._record(call, q[views], k[views])
        d = self.decoder.config.hidden_size
        with stage(calls, "projector", linear_flops(count * tokens.shape[1], self.vision.width, d, d)):
            project = partial(self.backend.unit(project_features), self.projector)
            seen = tokens.unflatten(0, (-1, count)).flatten(1, 2)
            return self.backend.run(("projector",), project, seen)

    @staticmethod
    def _record(call: Call, queries: Tensor, keys: Tensor) -> None:
        """Hands over the attention that tokens received in the tower, from queries and keys [cameras, H, t, hd]."""
        call.charge("method", 2.0 * queries.numel() * queries.shape[-2])
        with call.clock.span("method"):
            call.record_vision_attention(received(queries, keys).flatten())

    def embed(self, visual: Tensor, state: Tensor, words: Tensor) -> list[Tokens]:
        """Prompts from visual tokens [B, V, d], raw state [B, 8] and padded word numbers [B, text]."""
        batch = visual.shape[0]
        unit = 2 * (state - self.state_low) / (self.state_high - self.state_low + 1e-8) - 1
        begin, stop = (s.expand(batch, 1, -1) for s in self.special[:, None])
        proprio = self.proprio(unit.clamp(-1.5, 1.5))[:, None]
        prompt = torch.cat((begin, visual, proprio, self.word(words), self.slot.expand(batch, -1, -1), stop), 1)
        index = torch.arange(prompt.shape[1], device=prompt.device)
        return [Tokens(p, index) for p in prompt]

    def act(self, rows: Sequence[Tensor]) -> Tensor:
        """Normalised chunks [B, chunk, 7] from final hidden states; the slots stand behind every visual token."""
        slots = torch.stack([r[-1 - self.chunk : -1] for r in rows])
        return self.backend.run(("head",), partial(self.backend.unit(emit_actions), self.head), slots)

    def words(self, instruction: str) -> list[int]:
        """Word numbers [text] of an instruction, padded."""
        numbers = self.tokenize(instruction)
        return numbers + [0] * (self.text - len(numbers))

    def normalise(self, state: tuple[Tensor, Tensor], action: tuple[Tensor, Tensor]) -> None:
        """Takes the (low, high) quantiles that state and action are scaled by."""
        for name, (low, high) in (("state", state), ("action", action)):
            getattr(self, f"{name}_low").copy_(low)
            getattr(self, f"{name}_high").copy_(high)

    def train_loss(
        self,
        images: Tensor,
        state: Tensor,
        words: Tensor,
        labels: Tensor,
        hints: Tensor,
        sessions: Sequence[Session] = (),
    ) -> Tensor:
        """Mean absolute error of the normalised actions, plus 0.7 times that of the hints [B, 4], in 1/8 metre.

        Hints that are NaN are left out. Without hints a policy of this size takes many times as long to find the
        objects in the picture.
        """
        calls = [
            session.begin(self.layout(count), tuple(views), self.special)
            for session, views, count in zip(sessions, images, (words > 0).sum(1).tolist(), strict=bool(sessions))
        ]
        hooks: Sequence[Hooks] = calls or [NullHooks()] * len(images)
        unit = 2 * (labels - self.action_low) / (self.action_high - self.action_low + 1e-8) - 1
        rows = self.decoder(self.embed(self.encode_images(images), state, words), hooks)
        loss = (self.act(rows).float() - unit).abs().mean()
        known = hints.isfinite()
        if known.any():
            slots = torch.stack([r[-1 - self.chunk : -1] for r in rows]).mean(1)
            loss = loss + 0.7 * (self.locate(slots).float() - 8 * hints.nan_to_num()).abs()[known].mean()
        return loss

    def predict(self, observations: Sequence[Observation], sessions: Sequence[Session]) -> Sequence[Tensor]:
        """One [chunk, 7] per observation. UserError for a missing camera, state or a wrong image size.

        Pictures whose sides are a multiple of the policy's are averaged to its size.
        """
        with prepares_pictures(sessions):
            pictures = np.stack([self._images(o) for o in observations])
        images = torch.from_numpy(pictures).to(self.device)
        state = torch.from_numpy(np.stack([self._state(o) for o in observations])).float().to(self.device)
        ids = [self.words(o.instruction) for o in observations]
        words = torch.tensor(ids, device=self.device)
        counts = [sum(n > 0 for n in numbers) for numbers in ids]
        calls = [
            session.begin(self.layout(count), tuple(views), self.special)
            for session, views, count in zip(sessions, images, counts, strict=True)
        ]
        visual = self.encode_images(images, calls)
        with stage(calls, "prompt"):
            rows = self.decoder(self.embed(visual, state, words), calls, self.backend)
        with stage(calls, "head", self._head_flops()):
            unit = self.act(rows)
        return list((unit + 1) / 2 * (self.action_high - self.action_low + 1e-8) + self.action_low)

    @property
    def device(self) -> torch.device:
        """The device on which the policy computes."""
        return self.slot.device

    def _images(self, observation: Observation) -> np.ndarray:
        missing = set(self.interface.cameras) - set(observation.images)
        if missing:
            raise UserError(f"observation lacks cameras {sorted(missing)}; it has {sorted(observation.images)}")
        images = np.stack([observation.images[c] for c in self.interface.cameras])
        side = images.shape[1]
        if images.shape[1:] != (side, side, 3) or not side or side % self.image or images.dtype != np.uint8:
            raise UserError(
                f"images are {images.shape[1:]} {images.dtype}; {self.info.name} reads {self.image} px uint8 or a "
                "multiple, set bench.image"
            )
        return images if side == self.image else np.stack([area(image, self.image) for image in images])

    def _state(self, observation: Observation) -> np.ndarray:
        if observation.state is None or observation.state.shape != (STATE,):
            raise UserError(f"observation has state {observation.state}; {self.info.name} reads {STATE} numbers")
        return observation.state

    def _vision_flops(self) -> float:
        v = self.vision
        cameras = len(self.interface.cameras)
        tokens = v.side**2
        cells = [tokens * 4 ** (len(v.stem) - 1 - i) for i in range(len(v.stem))]
        image = sum(linear_flops(n, 9 * a, b) for n, a, b in zip(cells, v.channels[:-1], v.channels[1:], strict=True))
        image += linear_flops(tokens, v.width, v.width) + len(v.blocks) * vit_block_flops(tokens, v.width, 2 * v.width)
        return cameras * image

    def _head_flops(self) -> float:
        d = self.decoder.config.hidden_size
        return linear_flops(1, STATE, d, d) + linear_flops(self.chunk, d, d, ACTION)


def see_images(model: SmallPolicy, backend: Backend, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Segment: tokens [B * cameras, t, d] of images [B * cameras, h, w, 3] uint8, and the last queries and keys."""
    scaled = backend.unit(unit_images)(images)
    offset = model.camera.repeat(images.shape[0] // model.camera.shape[0], 1)
    tokens, (q, k) = model.vision(scaled, offset, backend)
    return tokens, q, k


def unit_images(images: Tensor) -> Tensor:
    """Unit: uint8 images scaled to [-1, 1], fp32."""
    return images.float() / 127.5 - 1


def emit_actions(head: nn.Module, rows: Tensor) -> Tensor:
    """Unit: normalised actions [B, chunk, 7] of the slots' rows [B, chunk, d]."""
    return head(rows)
