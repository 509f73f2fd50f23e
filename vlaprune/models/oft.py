"""OpenVLA-OFT: several cameras, the robot's state, and a whole chunk of actions in one pass.

Prompt: begin | visual tokens of every camera | state | text, ending in the lone space | one slot for each number of the
chunk, all zeros | stop. Everything attends to everything. A row speaks for the slot behind it, as in decoding, so the
head reads from the lone space to the last slot but one. QueryGroup.ACTION are the slots themselves: the authors of
VLA-Pruner and SAFE-Pruner read the attention of these rows. Kim et al., arXiv:2502.19645; source:
moojink/openvla-oft@213c5ff:prismatic/extern/hf/modeling_prismatic.py (predict_action). FiLM (OFT+) is not
implemented: its weights are refused.
Deliberate differences: the noise of the diffusion variant comes from the episode's seed and the number of the call, and
its later passes repeat what the method selected in the first. Training sees the pictures that acting sees on a CPU,
without random crops and colours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vlaprune.benchmark import Interface, Observation, state_size
from vlaprune.call import Call, call_noise, stage
from vlaprune.errors import UserError
from vlaprune.meter import linear_flops
from vlaprune.models.pictures import preparation, prepared
from vlaprune.models.prismatic import (
    STOP,
    Sizes,
    closed,
    decode_bins,
    format_prompt,
    restore,
)
from vlaprune.models.shared import precision, resolve_device
from vlaprune.models.source import Source, published
from vlaprune.nn.backend import EAGER, Backend
from vlaprune.nn.checkpoint import Checkpoint
from vlaprune.nn.decoder import Decoder, NullHooks, Tokens, numbered
from vlaprune.nn.load import weights_id
from vlaprune.nn.lora import load_adapter
from vlaprune.nn.oft import MLPProjector, ResNet, Schedule, action_numbers, best_tokens, plain_weight_map, time_row
from vlaprune.nn.weights import load_weights, randomise
from vlaprune.session import Session, prepares_pictures
from vlaprune.trace import Layout

HEADS = ("l1", "tokens", "diffusion")
PUBLISHED = {
    f"libero_{name}": f"moojink/openvla-7b-oft-finetuned-libero-{name}" for name in ("spatial", "object", "goal", "10")
}
EPS = 1e-8  # added to a range before anything is divided by it or multiplied with it


class OFT(nn.Module):
    """OpenVLA-OFT: images, state and instruction in, one chunk of actions [chunk, action] out in one pass.

    weights  a checkpoint's folder, owner/name of the hub, or `random`; None for the published one of `suite`
    suite    of the benchmark; names the statistics that numbers are scaled by, unless `unnorm` does
    unnorm   dataset of the checkpoint's statistics; None for `suite`
    images   how images are prepared, see models/images.py; None for `rlds_crop`, which the checkpoints were trained on
    cameras  in the order of their tokens; the third-person one first
    state    layout of the state, such as eef_pos3_axisangle3_gripper2; its digits add up to the size. None for no state
    head     l1 (regression), tokens (the best of the vocabulary for each slot) or diffusion
    chunk    actions per call
    action   size of an action
    steps    DDIM steps of the diffusion head, 1..50
    sizes    sizes other than the 7B model's, for tests with random weights
    seed     of random weights
    adapter  file of vlaprune-train with LoRA, trained on these weights and merged into them; None for none
    device   `auto`, `cpu`, `cuda`, `meta`, ...
    dtype    of weights and computation
    """

    action_head: ResNet
    proprio_projector: MLPProjector
    noisy_action_projector: MLPProjector

    def __init__(
        self,
        weights: str | None = None,
        suite: str | None = None,
        unnorm: str | None = None,
        images: str | None = None,
        cameras: Sequence[str] = ("primary", "wrist"),
        state: str | None = "eef_pos3_axisangle3_gripper2",
        head: str = "l1",
        chunk: int = 8,
        action: int = 7,
        steps: int = 50,
        sizes: Mapping[str, int] | None = None,
        seed: int = 0,
        adapter: str | None = None,
        device: str = "auto",
        dtype: str = "bfloat16",
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise UserError(f"head={head}; use one of {', '.join(HEADS)}")
        if chunk < 1 or action < 1:
            raise UserError(f"chunk={chunk} action={action}; use at least 1 of each")
        if state is not None and not state_size(state):
            raise UserError(f"state={state} names no sizes; use a name such as eef_pos3_axisangle3_gripper2, or null")
        if not cameras or len(set(cameras)) != len(cameras):
            raise UserError(f"cameras={list(cameras)}; name one to three different ones")
        trunk_sizes = Sizes.of(sizes or {})
        kind = precision(dtype)
        self.chunk = chunk
        self._action = action
        self._head = head
        self._pictures = preparation(images or "rlds_crop")
        self._image = trunk_sizes.image
        self.device = resolve_device(device)
        self._schedule = Schedule(steps)
        numbers = state_size(state)
        with torch.device("meta"):
            extras = self._extras(trunk_sizes.width, numbers)
        reads = [f"{name}--*_checkpoint.pt" for name in extras]
        source = Source.of(published(weights, suite, PUBLISHED, "oft"), "oft", reads)
        if source.folder is not None and action != 7:
            raise UserError(
                f"action={action}: such checkpoints (ALOHA's) scale actions by min and max, not computed here"
            )
        self._tokenize = source.tokenize
        self._range = source.range("action", action, unnorm or suite, EPS)
        self._proprio = source.range("proprio", numbers, unnorm or suite, EPS) if numbers else None
        files = {} if source.folder is None else {name: beside(source.folder, name) for name in extras}
        self.trunk, self.card = source.trunk(trunk_sizes, False, seed, self.device, kind)
        for name, (module, prefix) in extras.items():
            if name in files:
                self._load_weights(module, files[name], prefix, kind)
            else:
                randomise(module, seed, self.device, kind)
            setattr(self, name, module.eval())
        if adapter is not None:
            load_adapter(self, self.trunk, adapter, self.card)
        self.info = replace(trunk_sizes.info("oft"), weights=weights_id(self.card))
        self.backend: Backend = EAGER
        self.interface = Interface("as_trained", "zero_one", "delta", tuple(cameras), state)

    def _extras(self, width: int, numbers: int) -> dict[str, tuple[nn.Module, str]]:
        """The modules beside the trunk, by the names of their files, and the prefix of their tensors."""
        out: dict[str, tuple[nn.Module, str]] = {}
        if numbers:
            out["proprio_projector"] = MLPProjector(numbers, width), ""
        if self._head != "tokens":
            prefix = "model." if self._head == "l1" else "noise_predictor.mlp_resnet."
            out["action_head"] = ResNet(self._action * width, width, self._action), prefix
        if self._head == "diffusion":
            out["noisy_action_projector"] = MLPProjector(1, width), ""
        return out

    def _load_weights(self, module: nn.Module, file: Path, prefix: str, dtype: torch.dtype) -> None:
        """Fills a module from its file, which becomes part of what tells these weights from others."""
        checkpoint = Checkpoint(file, strip="module.")
        load_weights(module, checkpoint, plain_weight_map(module, prefix), (), self.device, dtype)
        both = f"{self.card['sha256']} {checkpoint.digest}"
        self.card["sha256"] = hashlib.sha256(both.encode()).hexdigest()

    @property
    def decoder(self) -> Decoder:
        """The decoder that pruning shortens."""
        return self.trunk.decoder

    def layout(self, words: int) -> Layout:
        """Positions of everything for a prompt of `words` token ids, the first and the last one included."""
        views = self.trunk.views(self.interface.cameras)
        total = len(views) * self.trunk.vision.side**2
        text = 1 + total + (self._proprio is not None) + (self._head == "diffusion")
        slots = text + words - 1
        end = slots + self.chunk * self._action
        return Layout(
            length=end + 1,
            visual=range(1, 1 + total),
            text=range(text, slots),
            action=range(slots, end),
            last=end,
            views=views,
        )

    def predict(self, observations: Sequence[Observation], sessions: Sequence[Session]) -> Sequence[Tensor]:
        """One [chunk, action] per observation, in the units of the dataset, the gripper from 0 (closes) to 1."""
        return list(restore(self.units(observations, sessions), self._range))

    def units(self, observations: Sequence[Observation], sessions: Sequence[Session]) -> Tensor:
        """[B, chunk, action] normalised actions, before they get the units of the dataset."""
        with prepares_pictures(sessions):
            cameras = self.interface.cameras
            size = self._image
            seen = prepared(observations, cameras, self._pictures, size, "oft", self.device, self.backend)
        ids = [self.words(o.instruction) for o in observations]
        return self._answer(seen, self._states(observations), ids, sessions)

    def words(self, instruction: str) -> list[int]:
        """Token ids of the prompt for an instruction."""
        return closed(self._tokenize(format_prompt(instruction)))

    def train_loss(
        self,
        images: Tensor,
        state: Tensor,
        words: Tensor,
        labels: Tensor,
        hints: Tensor,
        sessions: Sequence[Session] = (),
    ) -> Tensor:
        """Mean absolute error of the normalised actions, as `Trainable.train_loss` defines it; hints are not used.

        UserError for a head other than `l1`.
        """
        if self._head != "l1":
            raise UserError(f"oft with head={self._head} is not trained here; use model.head=l1")
        shown = np.stack([[self._pictures.whole(i, self._image) for i in views] for views in images.cpu().numpy()])
        ids = [[n for n in row if n] for row in words.tolist()]
        scaled = None if self._proprio is None else self._proprio.scale(state.cpu().numpy())
        unit = torch.from_numpy(self._range.scale(labels.cpu().numpy())).to(self.device, torch.float32)
        out = self._answer(torch.from_numpy(shown).to(self.device), self._numbers(scaled), ids, sessions)
        return (out.float() - unit).abs().mean()

    def _answer(
        self, seen: Tensor, state: Tensor | None, ids: Sequence[Sequence[int]], sessions: Sequence[Session]
    ) -> Tensor:
        """Normalised chunks from prepared images [B, cameras, h, w, 3], normalised state [B, s] and token ids."""
        calls = [
            session.begin(self.layout(len(words)), tuple(views), self.trunk.embedding.weight)
            for session, views, words in zip(sessions, seen, ids, strict=bool(sessions))
        ]
        passes = len(self._schedule.steps) if self._head == "diffusion" else 1  # each makes the prompt anew
        for call in calls:
            call.charge("projector", 0.0 if state is None else passes * linear_flops(1, *self.proprio_projector.widths))
        visual = self.trunk.encode_images(seen, calls, self.backend)
        if self._head == "diffusion":
            return self._denoise(visual, state, ids, calls)
        rows = self._rows(self._prompts(visual, state, ids), calls)
        if self._head == "tokens":
            with stage(calls, "head", linear_flops(rows.shape[1], *self.trunk.head.weight.T.shape)):
                best = partial(self.backend.unit(best_tokens), self.trunk.head)
                tokens = self.backend.run(("head",), best, rows)
                return decode_bins(tokens).unflatten(1, (self.chunk, self._action))
        return self._read(rows, calls)

    def _prompts(
        self,
        visual: Tensor,
        state: Tensor | None,
        ids: Sequence[Sequence[int]],
        time: Tensor | None = None,
        slots: Tensor | None = None,
    ) -> list[Tokens]:
        """Whole prompts from visual tokens [B, V, d] and normalised state [B, s].

        time   [d] row of a diffusion step
        slots  [B, n, d] the slots' rows; None for zeros
        """
        with_stop = [self.trunk.ids([*words, STOP]) for words in ids]
        prompts = self.backend.run(("prompt",), self.prompt_rows, visual, state, with_stop, time, slots)
        return [Tokens(*prompt) for prompt in prompts]

    def prompt_rows(
        self, visual: Tensor, state: Tensor | None, ids: Sequence[Tensor], time: Tensor | None, slots: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        """Segment: rows [n, d] and positions [n] of each prompt.

        Takes what `_prompts` takes, but its `ids` are on the device and end in the stop token.
        """
        between = [] if state is None else [self.proprio_projector(state)[:, None].to(visual.dtype)]
        between += [] if time is None else [time.expand(len(ids), 1, -1)]
        seen = torch.cat((visual, *between), 1)
        if slots is None:
            slots = visual.new_zeros(len(ids), self.chunk * self._action, visual.shape[2])
        texts = [self.trunk.embedding(tokens) for tokens in ids]
        prompts = zip(seen, texts, slots, strict=True)
        return [numbered(text[:1], rows, text[1:-1], empty, text[-1:]) for rows, text, empty in prompts]

    def _rows(self, prompts: Sequence[Tokens], calls: Sequence[Call]) -> Tensor:
        """Final hidden states [B, n, d] of the rows that speak for the slots; none of them is ever pruned."""
        with stage(calls, "prompt"):
            rows = self.decoder(prompts, calls or [NullHooks()] * len(prompts), self.backend)
        return torch.stack([r[-2 - self.chunk * self._action : -2] for r in rows])

    def _read(self, rows: Tensor, calls: Sequence[Call]) -> Tensor:
        """The head's output [B, chunk, action] for rows [B, chunk * action, d]."""
        with stage(calls, "head", linear_flops(self.chunk, *self.action_head.widths)):
            rows = rows.to(self.action_head.fc1.weight.dtype)  # in fp32 while it is trained
            head = partial(self.backend.unit(action_numbers), self.action_head)
            return self.backend.run(("head",), head, rows.reshape(len(rows), self.chunk, -1))

    def _denoise(
        self, visual: Tensor, state: Tensor | None, ids: Sequence[Sequence[int]], calls: Sequence[Call]
    ) -> Tensor:
        """Normalised chunks [B, chunk, action] from noise, by a whole pass of the decoder for every step."""
        x = self._noise(calls).to(self.trunk.embedding.weight)
        for step in self._schedule.steps:
            if step != self._schedule.steps[0]:
                for call in calls:
                    call.repeat_pass()
            time = time_row(step, self.decoder.config.hidden_size).to(x)
            project = self.noisy_action_projector
            with stage(calls, "projector", linear_flops(x[0].numel(), *project.widths)):
                slots = project(x.flatten(1)[..., None])
            prompts = self._prompts(visual, state, ids, time, slots)
            x = self._schedule.back(self._read(self._rows(prompts, calls), calls), step, x)
        return x

    def _noise(self, calls: Sequence[Call]) -> Tensor:
        """Normal noise [B, chunk, action], see `call_noise`."""
        return call_noise(calls, self.chunk, self._action)

    def _states(self, observations: Sequence[Observation]) -> Tensor | None:
        """Normalised states [B, s] in [-1, 1]. UserError where one is missing, of another length or not finite."""
        if self._proprio is None:
            return None
        rows = []
        for observation in observations:
            state = observation.state
            if state is None or state.shape != self._proprio.low.shape or not np.isfinite(state).all():
                raise UserError(f"observation has state {state}; oft reads {len(self._proprio.low)} finite numbers")
            rows.append(self._proprio.scale(state))
        return self._numbers(np.stack(rows))

    def _numbers(self, state: np.ndarray | None) -> Tensor | None:
        """A normalised state [B, s] on the device and in the dtype of the module that reads it."""
        if state is None:
            return None
        return torch.from_numpy(state).to(self.device, self.proprio_projector.fc1.weight.dtype)


def beside(folder: Path, name: str) -> Path:
    """The one `name`--*_checkpoint.pt of a folder. UserError where there is none or more than one."""
    files = sorted(folder.glob(f"{name}--*_checkpoint.pt"))
    if len(files) != 1:
        raise UserError(
            f"checkpoint {folder} has {[p.name for p in files] or 'no'} {name}--*_checkpoint.pt; oft needs exactly one"
        )
    return files[0]
