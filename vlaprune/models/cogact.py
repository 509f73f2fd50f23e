"""CogACT: the Prismatic trunk condenses image and instruction into one feature, a diffusion head draws a chunk from it.

Prompt: begin | 256 visual tokens | instruction | lone space | end token. One causal pass; the last row, that of the end
token, is the cognition feature. Source: microsoft/CogACT@b174a1b (vla/cogactvla.py, vla/load.py, action_model/);
arXiv:2411.19650. Deliberate differences: noise comes from the episode's seed and the number of the call; the language
head is never computed, so it is not loaded; the trunk computes in `dtype` and the action head in fp32, which upstream
does with --use_bf16.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vlaprune.benchmark import Interface, Observation
from vlaprune.call import Call, call_noise, stage
from vlaprune.errors import UserError
from vlaprune.models.pictures import preparation, prepared
from vlaprune.models.prismatic import (
    EMPTY,
    HALF,
    STOP,
    Prismatic,
    Sizes,
    Tokenize,
    format_prompt,
    read_tokenizer,
    restore,
    stand_in,
)
from vlaprune.models.shared import precision, resolve_device
from vlaprune.nn.backend import EAGER, Backend
from vlaprune.nn.checkpoint import Checkpoint, read_json
from vlaprune.nn.decoder import Decoder
from vlaprune.nn.dit import SIZES, Diffusion, DiTShape
from vlaprune.nn.hub import locate
from vlaprune.nn.load import weights_id
from vlaprune.nn.resident import to_host
from vlaprune.nn.statistics import Range, Statistics
from vlaprune.nn.towers import MEAN, STD, timm_unused, timm_weight_map
from vlaprune.nn.weights import WeightMap, llama_weight_map, load_weights, randomise
from vlaprune.session import Session, prepares_pictures
from vlaprune.trace import Layout

EXACT = ((MEAN["imagenet"], STD["imagenet"]), HALF)  # its native transform does not round ImageNet's numbers
BASE = "prism-dinosiglip-224px+7b"
TRUNK = ("vision_backbone.", "llm_backbone.", "projector.")
HEADS = ("action_model.", "ema_diffusion.")
PICTURES = preparation("plain")  # the whole frame, its aspect given up, by Pillow's bicubic filter
ACTION = 7  # numbers of an action
GRIPPER = 6  # index of the gripper, the last of them


class CogACT:
    """CogACT: one image and an instruction in, a chunk of actions [chunk, 7] out of a diffusion head.

    weights    run folder with config.json, dataset_statistics.json and checkpoints/*.pt; that .pt file; owner/name of
               the hub; or `random`
    unnorm     dataset whose statistics give actions their unit: fractal20220817_data (Google robot), bridge_orig
               (WidowX); not needed by random weights
    tokenizer  folder, or owner/name of the hub, that has Llama-2's tokenizer.json; CogACT's own repositories have none
    head       DiT-S, DiT-B or DiT-L, as the checkpoint has it; DiT-tiny for tests
    guidance   scale of classifier-free guidance; 1 switches it off
    steps      DDIM steps
    ema        take the averaged weights of the head, where the checkpoint has them; upstream does not
    seed       of random weights
    sizes      of a smaller trunk, for tests

    Errors: UserError for files that are missing, damaged or another model's, and for a missing camera.
    """

    def __init__(
        self,
        weights: str = "CogACT/CogACT-Base",
        unnorm: str | None = None,
        tokenizer: str = "openvla/openvla-7b",
        head: str = "DiT-B",
        cameras: Sequence[str] = ("primary",),
        guidance: float = 1.5,
        steps: int = 10,
        chunk: int = 16,
        ema: bool = False,
        seed: int = 0,
        sizes: Mapping[str, int] | None = None,
        device: str = "auto",
        dtype: str = "bfloat16",
    ) -> None:
        if head not in SIZES:
            raise UserError(f"head={head}; use one of {', '.join(SIZES)}")
        if len(cameras) != 1:
            raise UserError(f"cameras={list(cameras)}; CogACT reads one")
        if chunk < 1:
            raise UserError(f"chunk={chunk}; use at least 1")
        trunk_sizes = Sizes.of(sizes or {})
        with torch.device("meta"):
            self.trunk = Prismatic(trunk_sizes, causal=True, eps=1e-5, stats=EXACT).eval().requires_grad_(False)
            del self.trunk.head
            shape = DiTShape(*SIZES[head], condition=trunk_sizes.width, chunk=chunk, action=ACTION)
            self.action = Diffusion(shape, steps, guidance).eval().requires_grad_(False)
        self.device = resolve_device(device)
        self.chunk = chunk
        self.info = trunk_sizes.info("cogact")
        self.backend: Backend = EAGER
        self.interface = Interface("as_trained", "zero_one", "delta", tuple(cameras), None)
        self.card: dict[str, object] = {"weights": weights, "seed": seed}
        self.range = Range.identity(ACTION)
        self.tokenize: Tokenize = stand_in
        if weights == "random":
            randomise(self.trunk, seed, self.device, precision(dtype))
            randomise(self.action, seed, self.device, torch.float32)
        else:
            self._load(weights, unnorm, tokenizer, ema, precision(dtype))
        self.info = replace(self.info, weights=weights_id(self.card))

    def _load(self, weights: str, unnorm: str | None, tokenizer: str, ema: bool, dtype: torch.dtype) -> None:
        if unnorm is None:
            raise UserError(f"unnorm is not set; name the dataset of {weights} that actions are scaled by")
        words = locate(tokenizer, ("tokenizer.json",), "tokenizer")
        self.tokenize = read_tokenizer(words)
        file = checkpoint_of(locate(weights, ("*.json", "checkpoints/*.pt")))
        run = file.parent.parent
        vla = read_json(run / "config.json").get("vla")
        base = vla.get("base_vlm") if isinstance(vla, Mapping) else None
        if base != BASE:
            raise UserError(f"{run / 'config.json'} names vla.base_vlm {base}; CogACT here is built on {BASE}")
        self.range = Statistics.of(run).range(unnorm, "action", ACTION)
        checkpoint = Checkpoint(file, within="model")
        head = "ema_diffusion" if ema else "action_model"
        if ema and not any(key.startswith(HEADS[1]) for key in checkpoint.shapes):
            raise UserError(f"checkpoint {file} has no averaged weights ({HEADS[1]}*); set model.ema=false")
        head_map = {f"{head}.{name}": WeightMap(name) for name in self.action.state_dict()}
        others = tuple(part for part in (*TRUNK, *HEADS) if part != f"{head}.")
        load_weights(self.action, checkpoint, head_map, others, self.device, torch.float32)
        load_weights(self.trunk, checkpoint, weight_map(self.trunk), (*self.unused, *HEADS), self.device, dtype)
        read = (run / "config.json", run / "dataset_statistics.json", words / "tokenizer.json")
        self.card["sha256"] = checkpoint.digest_with(read)

    @property
    def unused(self) -> tuple[str, ...]:
        """Prefixes of the trunk's tensors that nothing reads."""
        vision = self.trunk.vision
        return (
            *timm_unused(vision.dino.shape, "vision_backbone.dino_featurizer."),
            *timm_unused(vision.siglip.shape, "vision_backbone.siglip_featurizer."),
            "llm_backbone.llm.lm_head.",
        )

    @property
    def decoder(self) -> Decoder:
        """The decoder that pruning shortens."""
        return self.trunk.decoder

    def layout(self, words: int) -> Layout:
        """Positions of everything in a prompt of `words` token ids, the two at its end included."""
        views = self.trunk.views(self.interface.cameras)
        total = self.trunk.vision.side**2
        length = total + words
        return Layout(
            length=length,
            visual=range(1, 1 + total),
            text=range(1 + total, length - 1),
            action=range(length - 1, length),
            last=length - 1,
            views=views,
        )

    @torch.inference_mode()
    def predict(self, observations: Sequence[Observation], sessions: Sequence[Session]) -> Sequence[Tensor]:
        """One [chunk, 7] per observation: hand displacement, rotation, gripper (0 closes, 1 opens)."""
        with prepares_pictures(sessions):
            cameras = self.interface.cameras
            size = self.trunk.sizes.image
            name = self.info.name
            pictures = prepared(observations, cameras, PICTURES, size, name, self.device, self.backend)
        texts = [[*self.tokenize(format_prompt(o.instruction)), EMPTY, STOP] for o in observations]
        calls = [
            session.begin(self.layout(len(text)), tuple(views), self.trunk.embedding.weight)
            for session, views, text in zip(sessions, pictures, texts, strict=True)
        ]
        visual = self.trunk.encode_images(pictures, calls, self.backend)
        prompts = self.trunk.prompts(visual, texts, self.backend)
        with stage(calls, "prompt"):
            rows = self.decoder(prompts, calls, self.backend)
        with stage(calls, "head", self.action.flops()):
            denoise = partial(self.action, backend=self.backend)
            unit = self.backend.run(("head",), denoise, torch.stack([r[-1] for r in rows]), self._noise(calls))
        return list(restore(self._with_binary_gripper(to_host(unit)), self.range))

    def _noise(self, calls: Sequence[Call]) -> Tensor:
        """Normal noise [B, chunk, 7], see `call_noise`."""
        return call_noise(calls, self.chunk, ACTION).to(self.device)

    def _with_binary_gripper(self, unit: Tensor) -> Tensor:
        """Normalised chunks [B, chunk, 7] clamped to [-1, 1], with the gripper 1 from 0.5 on, else 0."""
        unit = unit.clamp(-1, 1)
        grips = (unit[..., GRIPPER:] >= 0.5).to(unit.dtype)
        return torch.cat((unit[..., :GRIPPER], grips), -1)


def checkpoint_of(path: Path) -> Path:
    """The one .pt file of a run folder, or the file itself. UserError where there is none or more than one."""
    if path.is_file():
        if path.suffix != ".pt" or path.parent.name != "checkpoints":
            raise UserError(f"weights {path} is not RUN/checkpoints/NAME.pt; give the run folder, or such a file")
        return path
    files = sorted((path / "checkpoints").glob("*.pt"))
    if len(files) != 1:
        names = [p.name for p in files]
        raise UserError(
            f"{path / 'checkpoints'} has .pt files {names}; there must be one, or name one in model.weights"
        )
    return files[0]


def weight_map(trunk: Prismatic) -> dict[str, WeightMap]:
    """Where the trunk's tensors go, by the names of a native Prismatic checkpoint."""
    out = timm_weight_map(trunk.vision.dino.shape, "vision_backbone.dino_featurizer.", "vision.dino.", "gamma")
    out |= timm_weight_map(trunk.vision.siglip.shape, "vision_backbone.siglip_featurizer.", "vision.siglip.")
    for number, layer in ((0, "fc1"), (2, "fc2"), (4, "fc3")):
        for kind in ("weight", "bias"):
            out[f"projector.projector.{number}.{kind}"] = WeightMap(f"projector.{layer}.{kind}")
    out |= llama_weight_map(trunk.decoder.config, "llm_backbone.llm.model.", "decoder.")
    out["llm_backbone.llm.model.embed_tokens.weight"] = WeightMap("embedding.weight")
    return out
