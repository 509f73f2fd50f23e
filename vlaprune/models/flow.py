"""pi0 and pi0.5: PaliGemma reads images and instruction once, a small expert denoises a chunk of actions in ten steps.

Prompt: visual tokens of every camera | begin | text, everything attends to everything. Padded text and cameras that a
robot has not are not computed at all, which upstream computes and masks: positions count valid tokens only, so nothing
else changes. The expert goes on at the prompt's ORIGINAL length and reads, layer by layer, what pruning left.

Source: openpi@15a9616 (src/openpi/models_pytorch/pi0_pytorch.py, models/tokenizer.py, transforms.py); lerobot@7427f31
for the checkpoints on the hub. arXiv:2410.24164, arXiv:2504.16054. Deliberate differences: a prompt that is too long
raises and is not cut; noise comes from the episode's seed and the number of the call.

QueryGroup.ACTION are the expert's action rows in every step of the flow, one read for each step. VLA-Pruner averages
over the steps (arXiv:2511.16449).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vlaprune.benchmark import Interface, Observation
from vlaprune.call import Call, call_noise, stage
from vlaprune.delay import Guide
from vlaprune.errors import UserError
from vlaprune.meter import decoder_flops
from vlaprune.models.family import NUMBERS, Family
from vlaprune.models.guidance import backward_flops, denoise_guided
from vlaprune.models.letterbox import RESIZE
from vlaprune.models.paligemma import FlowConstants, PaliGemma, Sizes, denoise, weight_map
from vlaprune.models.pictures import prepared, squared
from vlaprune.models.scaling import Scaling, processor_files, read_files
from vlaprune.models.shared import precision, resolve_device
from vlaprune.models.suffix import columns_of, left_by_prompt, record_action, recorded_layers
from vlaprune.models.tokenizer import Text, Words, tokenizer_of
from vlaprune.nn.backend import EAGER, Backend
from vlaprune.nn.block import RMSNorm
from vlaprune.nn.checkpoint import Checkpoint, check_companions, shards
from vlaprune.nn.decoder import Decoder
from vlaprune.nn.hub import locate
from vlaprune.nn.load import weights_id
from vlaprune.nn.weights import load_weights, randomise
from vlaprune.pruner import ModelInfo
from vlaprune.session import Session, prepares_pictures
from vlaprune.trace import Layout, View

STATE, ACTION = 8, 7  # numbers of LIBERO's state and action
Targets = tuple[Tensor, Tensor, float]  # of guidance: previous actions and weights [B, chunk, 32], beta
FILES = ("*.json", "*.safetensors", "assets/**/norm_stats.json")


def parent(weights: Path) -> Path:
    """The folder of the weights: `weights` itself, or the folder that holds that file."""
    return weights.parent if weights.is_file() else weights


class Flow(ABC):
    """What pi0 and pi0.5 share: a prompt, then a flow that turns noise into actions. Subclasses build the text.

    weights    folder, file, or owner/name of the hub, in openpi's, lerobot's or transformers' names; or `random`. The
               checkpoint's own files say what an option below is if it is None (models/family.py)
    tokenizer  folder, or owner/name of the hub, that has PaliGemma's tokenizer.json
    cameras    one to three, in the model's order: base, left wrist, right wrist
    state_as   how the robot's state is read: as a `row` of the expert (pi0); in pi0.5 in the `text`, in 256 levels, in
               the text and `padded` with zeros to 32 numbers (lerobot up to v0.4.4), or `none` (openpi's pi05_libero)
    resize     `torch` (lerobot: bilinear, no antialias) or `pil` (openpi's client: bilinear, antialias, whole levels)
    delta      actions are relative to the state, six numbers (openpi's pi0_libero; lerobot's checkpoints are not)
    steps      Euler steps
    chunk      actions per call
    seed       of random weights
    sizes      of a smaller model, for tests
    device     `auto`, `cpu`, `cuda`, `meta`, ...
    dtype      of weights and computation

    Errors: UserError for a missing camera or state, a prompt that is too long, weights or statistics that do not fit,
    options that contradict the checkpoint, and options that are None if the checkpoint's files do not say them.
    """

    name: str
    adaptive: bool
    published: str  # weights where none are named
    room: int  # text tokens at most

    def __init__(
        self,
        weights: str | None = None,
        tokenizer: str = "google/paligemma-3b-pt-224",
        cameras: Sequence[str] = ("primary", "wrist"),
        state_as: str | None = None,
        resize: str | None = None,
        delta: bool | None = None,
        steps: int | None = None,
        chunk: int | None = None,
        seed: int = 0,
        sizes: Mapping[str, int] | None = None,
        device: str = "auto",
        dtype: str = "bfloat16",
    ) -> None:
        weights = weights or self.published
        self._check_options(cameras, resize, steps, chunk)
        self.device = resolve_device(device)
        kind = precision(dtype)
        with torch.device("meta"):
            self.net = PaliGemma(Sizes.of(sizes or {}), self.adaptive).cast(kind).eval().requires_grad_(False)
        net_sizes = self.net.sizes
        folder, family = self._find(weights)
        self.family = family
        self.chunk, self.state_as = family.settle(chunk, state_as)
        self.resize = resize or family.resize
        self.steps = steps or family.steps
        self.delta = family.delta if delta is None else delta
        self.room = family.room or self.room
        self._pictures = squared(self.resize)
        self.info = ModelInfo(self.name, net_sizes.layers, net_sizes.heads, net_sizes.width, net_sizes.head_size)
        state = "eef_pos3_axisangle3_gripper2" if self.reads_state else None
        self.interface = Interface("axis_angle", "close_positive", "delta", tuple(cameras), state)
        self.card: dict[str, object] = {"weights": weights, "seed": seed, **self.read_as()}
        self.scaling = Scaling.identity(STATE, ACTION)
        self.words: Words
        self.backend: Backend = EAGER
        self._constants: FlowConstants | None = None
        if folder is None:
            self._random(seed)
        else:
            self._load(folder, tokenizer)
        self.info = replace(self.info, weights=weights_id(self.card))

    def _check_options(self, cameras: Sequence[str], resize: str | None, steps: int | None, chunk: int | None) -> None:
        """Raises UserError for options that no checkpoint can have."""
        if not 1 <= len(cameras) <= 3 or len(set(cameras)) != len(cameras):
            raise UserError(f"cameras={list(cameras)}; {self.name} reads one to three different ones")
        if resize is not None and resize not in RESIZE:
            raise UserError(f"resize={resize}; use one of {', '.join(RESIZE)}")
        if min(n for n in (steps, chunk, 1) if n is not None) < 1:
            raise UserError(f"steps={steps}, chunk={chunk}; use at least 1 of each")

    def _find(self, weights: str) -> tuple[Path | None, Family]:
        """Where the weights are (None for random ones), and what their own files say of them.

        UserError for weights that are not there or read pictures of another size.
        """
        if weights == "random":
            return None, Family.random(self.adaptive)
        folder = locate(weights, FILES)
        image = self.net.sizes.image
        shards(folder)  # what is no checkpoint is named first
        if folder.is_dir():
            check_companions(folder, processor_files(folder), self.name)
        family = Family.of(parent(folder), weights, self.adaptive)
        if family.image not in (None, image):
            raise UserError(f"checkpoint {folder} reads pictures of {family.image} pixels, not {image}")
        return folder, family

    @property
    def decoder(self) -> Decoder:
        """The decoder that pruning shortens."""
        return self.net.decoder

    def read_as(self) -> dict[str, object]:
        """How the checkpoint is read: what its files and the options say together."""
        return {
            "family": self.family.name,
            "state_as": self.state_as,
            "resize": self.resize,
            "delta": self.delta,
            "steps": self.steps,
            "chunk": self.chunk,
        }

    @property
    def reads_state(self) -> bool:
        """Whether observations must have a state: in the text, in the expert's state row, or added to the actions."""
        return self.state_as != "none" or self.delta

    def _random(self, seed: int) -> None:
        randomise(self.net, seed, self.device, None)
        if self.device.type != "meta":
            for module in self.net.modules():
                if isinstance(module, RMSNorm) and module.plus_one:
                    module.weight.zero_()
        self.words = tokenizer_of(None, self.net.sizes.vocabulary)

    def _load(self, folder: Path, tokenizer: str) -> None:
        checkpoint = Checkpoint(folder, strip="model.")
        self.words = tokenizer_of(tokenizer, self.net.sizes.vocabulary)
        self.scaling = Scaling.of(parent(folder), self.adaptive, STATE, ACTION)
        load_weights(self.net, checkpoint, *weight_map(self.net, checkpoint.shapes), self.device, None)
        self.card["sha256"] = checkpoint.digest_with([*read_files(parent(folder)), *filter(None, [self.words.file])])

    # -- what a subclass says ------------------------------------------------------------------------------------

    @abstractmethod
    def text(self, instruction: str, state: np.ndarray | None) -> Text:
        """The whole text in tokens; `state` is scaled."""

    def restore(self, actions: np.ndarray, state: np.ndarray | None) -> np.ndarray:
        """Actions [chunk, 7] of the benchmark from the model's [chunk, 32]; `state` is raw.

        With `delta`, the state is added to the six numbers of position and rotation.
        """
        raw = self.scaling.action.restore(actions)
        if self.delta and state is not None:
            raw[:, :6] += state[:6]
        return raw

    # -- a call --------------------------------------------------------------------------------------------------

    def layout(self, text: Text) -> Layout:
        """Positions of visual tokens, text and actions; a state row, where there is one, stands before the actions."""
        side = self.net.tower.side
        views = tuple(View(c, i * side**2, side, side) for i, c in enumerate(self.interface.cameras))
        total = len(views) * side**2
        length = total + len(text.ids)
        start = length + self.num_prefix
        return Layout(
            length=length,
            visual=range(total),
            text=range(total + text.told.start, total + text.told.stop),
            action=range(start, start + self.chunk),
            last=length - 1,
            views=views,
        )

    @property
    def num_prefix(self) -> int:
        """Rows of the expert in front of its action rows: pi0's state."""
        return 0 if self.adaptive else 1

    def predict(self, observations: Sequence[Observation], sessions: Sequence[Session]) -> Sequence[Tensor]:
        """One [chunk, 7] per observation."""
        return self.predict_guided(observations, sessions, [None] * len(observations))

    @torch.inference_mode()
    def predict_guided(
        self, observations: Sequence[Observation], sessions: Sequence[Session], guides: Sequence[Guide | None]
    ) -> Sequence[Tensor]:
        """One [chunk, 7] per observation; with a guide, it goes on from the chunk before it (models/guidance.py)."""
        with prepares_pictures(sessions):
            cameras = self.interface.cameras
            size = self.net.sizes.image
            pictures = prepared(observations, cameras, self._pictures, size, self.name, self.device, self.backend)
        states = [self._state(o) for o in observations]
        scaled = [None if s is None else self.scaling.state.scale(s) for s in states]
        texts = [self._text(o.instruction, s) for o, s in zip(observations, scaled, strict=True)]
        calls = []
        for session, views, text in zip(sessions, pictures.round().to(torch.uint8), texts, strict=True):
            calls.append(session.begin(self.layout(text), tuple(views), self.net.projector.weight))
        visual = self.net.encode_images(pictures, calls, self.backend)
        with stage(calls, "prompt"):
            self.decoder(self.net.prompts(visual, [t.ids for t in texts], self.backend), calls, self.backend)
        with stage(calls, "decode"):
            flows = self._flow(calls, scaled, self._targets(guides, states))
        if self.device.type == "meta":
            return list(flows[..., :ACTION])
        raw = [self.restore(f, s) for f, s in zip(flows.cpu().double().numpy(), states, strict=True)]
        return [torch.from_numpy(r) for r in raw]

    def _flow(self, calls: Sequence[Call], states: Sequence[np.ndarray | None], targets: Targets | None) -> Tensor:
        """Actions [B, chunk, 32] in fp32, `steps` Euler steps from noise at time 1 to time 0."""
        layers = recorded_layers(calls, self.net.expert.config)
        inputs = (self._noise(calls), self._padded(states), *left_by_prompt(calls))
        if targets is None:
            run = partial(denoise, self.net, self.constants, layers, self.backend)
            actions, reads = self.backend.run(("flow", layers), run, *inputs)
        else:
            actions, reads = denoise_guided(self.net, self.constants, layers, *inputs, *targets)
        record_action(calls, layers, reads, causal=False)
        for call in calls:
            self._count(call, columns_of(call), targets is not None)
        return actions

    def _targets(self, guides: Sequence[Guide | None], states: Sequence[np.ndarray | None]) -> Targets | None:
        """Previous actions and weights [B, chunk, 32] as the model scales them, and beta; None without any guide.

        Where the model's actions are relative to the state, the previous ones are made relative to the present state.
        """
        if self.device.type == "meta" or not any(g is not None and g.weights.any() for g in guides):
            return None
        previous, weights = (np.zeros((len(guides), self.chunk, NUMBERS)) for _ in range(2))
        for i, (guide, state) in enumerate(zip(guides, states, strict=True)):
            if guide is None:
                continue
            raw = np.array(guide.previous)
            if self.delta and state is not None:
                raw[:, :6] -= state[:6]
            previous[i, :, :ACTION] = self.scaling.action.scale(raw)
            weights[i, :, :ACTION] = guide.weights[:, None]
        beta = next(g.beta for g in guides if g is not None)
        return *(torch.from_numpy(t).float().to(self.device) for t in (previous, weights)), beta  # type: ignore[return-value]

    @property
    def constants(self) -> FlowConstants:
        """The values that depend on the number of steps alone: computed in the first call, charged to no call."""
        if self._constants is None:
            self._constants = FlowConstants.of(self.net, self.steps, self.family.added)
        return self._constants

    def _count(self, call: Call, seen: Sequence[int], guided: bool) -> None:
        """Charges and notes the passes of the expert.

        seen    columns of the prompt at each layer
        guided  every step also goes backward, and computes pi0's state row anew
        """
        config = self.net.expert.config
        prefix = self.num_prefix
        columns = [n + prefix + self.chunk for n in seen]
        actions = [(self.chunk, n) for n in columns]
        state = [(prefix, n + prefix) for n in seen] if prefix else []
        flops = self.steps * decoder_flops(config, actions)
        flops += (self.steps if guided else 1) * decoder_flops(config, state)
        if guided:
            flops += self.steps * backward_flops(config, [*actions, *state])
        call.charge("decode", flops)
        call.charge("head", self.net.head_flops(self.chunk, self.steps, guided))
        call.record_passes([columns] * self.steps)

    def _noise(self, calls: Sequence[Call]) -> Tensor:
        """Normal noise [B, chunk, 32], see `call_noise`."""
        return call_noise(calls, self.chunk, NUMBERS).to(self.device)

    def _padded(self, states: Sequence[np.ndarray | None]) -> Tensor | None:
        """[B, 32] scaled states for the state row; None for a model without one."""
        if not self.num_prefix:
            return None
        rows = np.zeros((len(states), NUMBERS), np.float32)
        for row, state in zip(rows, states, strict=True):
            if state is not None:
                row[: len(state)] = state
        return torch.from_numpy(rows).to(self.device)

    def _state(self, observation: Observation) -> np.ndarray | None:
        if not self.reads_state:
            return None
        if observation.state is None or observation.state.shape != (STATE,):
            raise UserError(f"observation has state {observation.state}; {self.name} reads {STATE} numbers")
        return observation.state

    def _text(self, instruction: str, state: np.ndarray | None) -> Text:
        text = self.text(instruction.strip().replace("_", " ").replace("\n", " "), state)
        if len(text.ids) > self.room:
            raise UserError(f"instruction {instruction!r} makes {len(text.ids)} tokens; {self.name} reads {self.room}")
        return text
