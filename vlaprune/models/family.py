"""What the files of a pi0 or pi0.5 checkpoint say of it: who trained it, and all that must not be guessed.

Three families put the same tensors into a folder and mean different things by them:

- openpi, converted to PyTorch by its examples/convert_jax_model_to_pytorch.py: config.json has `action_horizon` and no
  type. It says nothing of states and deltas. openpi's LIBERO configurations do: pi0_libero was trained with actions
  relative to the state, pi05_libero (horizon 10) without a state in its text.
- lerobot: config.json has `type`. Up to v0.4.4 (commit f0d2b37 removed it) the scaled state was padded with zeros to 32
  numbers before it was put into words, so that pi0.5's text is another one. No file says which; the keys of config.json
  tell versions apart, but for those between v0.4.4 and v0.5.0.
- transformers (pi0 only): config.json has `model_type`.

Sources: openpi@15a9616 (training/config.py, examples/convert_jax_model_to_pytorch.py); lerobot v0.4.0, v0.4.4, v0.5.0,
v0.5.1 (policies/pi05/{configuration,processor}_pi05.py, configs/policies.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlaprune.errors import UserError
from vlaprune.nn.checkpoint import read_json

NUMBERS = 32  # of a state and of an action, padded with zeros
PADDED = ("lerobot/pi05_libero_finetuned", "lerobot/pi05_libero_finetuned_v044")  # trained with padded states
FIXED = {  # of lerobot's config.json: what is computed here, and nothing else
    "paligemma_variant": "gemma_2b",
    "action_expert_variant": "gemma_300m",
    "max_state_dim": NUMBERS,
    "max_action_dim": NUMBERS,
    "action_dim": NUMBERS,
    "min_period": 4e-3,
    "max_period": 4.0,
    "n_obs_steps": 1,
    "use_visual_memory": False,
    "use_proprioceptive_memory": False,
    "use_peft": False,
}


@dataclass(frozen=True)
class Family:
    """What the files of one checkpoint say of it; None for what they do not say.

    name      openpi, lerobot, transformers, or none for random weights
    chunk     actions per call
    states    how the robot's state may be read: `row` of the expert (pi0); for pi0.5 in the `text`, in the text and
              `padded` to 32 numbers, or `none` at all
    state_as  which of them it is
    delta     actions are relative to the state, six numbers
    resize    how pictures become square: a name of `letterbox.RESIZE`
    steps     Euler steps
    room      text tokens at most
    image     side of the pictures that the vision tower reads, pixels
    added     times of the flow are summed up in fp32 (openpi), not computed each for itself (lerobot)
    """

    name: str
    chunk: int
    states: tuple[str, ...]
    state_as: str | None
    delta: bool = False
    resize: str = "torch"
    steps: int = 10
    room: int | None = None
    image: int | None = None
    added: bool = True

    @classmethod
    def random(cls, adaptive: bool) -> Family:
        """The family of random weights, which can be read in any way."""
        return cls("none", 50, ("text", "padded", "none"), "text") if adaptive else cls("none", 50, ("row",), "row")

    @classmethod
    def of(cls, folder: Path, weights: str, adaptive: bool) -> Family:
        """Reads config.json, which must be there. UserError for another model, and for what is not computed here.

        weights   as the user named them; published names are known
        adaptive  the model is pi0.5
        """
        file = folder / "config.json"
        model = "pi05" if adaptive else "pi0"
        if not file.is_file():
            raise UserError(
                f"checkpoint {folder} has no config.json, which says whether openpi or lerobot trained it; put it "
                "beside the weights (openpi's has action_horizon, lerobot's has type and chunk_size)"
            )
        config = read_json(file)
        kind = config.get("type", config.get("model_type"))
        if kind is None and "action_horizon" in config:
            kind = "openpi"
        if kind not in ("openpi", model):
            raise UserError(f"{file} is of a {kind}; model={model} reads {model}'s")
        wrong = [f"{k}={config[k]} instead of {v}" for k, v in FIXED.items() if config.get(k) not in (v, None)]
        if wrong:
            raise UserError(f"{file} has {', '.join(wrong)}, which is not computed here; merge adapters (LoRA) first")
        if kind == "openpi":
            chunk = _whole(file, config, "action_horizon")
            if not adaptive:
                return cls("openpi", chunk, ("row",), "row", delta=True, resize="pil")
            # pi05_libero; pi05_base and others have the state in their text
            return cls("openpi", chunk, ("text", "none"), "none" if chunk == 10 else None, resize="pil")
        if config.get("use_relative_actions"):
            raise UserError(
                f"{file} has use_relative_actions: which numbers they are depends on names that it does not give for "
                "LIBERO; set it to false and model.delta=true if they are the first six"
            )
        states, state = (("text", "padded"), _padding(config, weights)) if adaptive else (("row",), "row")
        sides = config.get("image_resolution") or [None]
        if not isinstance(sides, list) or not all(type(side) in (int, type(None)) for side in sides):
            raise UserError(f"{file} has image_resolution={sides}; it must be a list of pixels, as [224, 224]")
        room = config.get("tokenizer_max_length")
        name = "lerobot" if "type" in config else "transformers"
        steps = _whole(file, config, "num_inference_steps", 10)
        chunk = _whole(file, config, "chunk_size", 50)
        return cls(name, chunk, states, state, steps=steps, room=room, image=sides[0], added=False)

    def settle(self, chunk: int | None, state_as: str | None) -> tuple[int, str]:
        """Chunk and state_as of the user, else of the files. UserError if the two differ, or neither says state_as.

        Random weights accept any chunk.
        """
        if chunk not in (None, self.chunk) and self.name != "none":
            raise UserError(
                f"model.chunk={chunk}, but the checkpoint's config.json ({self.name}) says {self.chunk}; leave it out"
            )
        if state_as is None and self.state_as is None:
            raise UserError(f"the checkpoint's config.json ({self.name}) does not say {ASK[self.name]}")
        stated = self.state_as if self.name in ("lerobot", "transformers") else None  # openpi's file has but the chunk
        if state_as in self.states and stated not in (None, state_as):
            raise UserError(
                f"model.state_as={state_as}, but the checkpoint's config.json ({self.name}) says {stated}; leave it out"
            )
        if state_as not in (None, *self.states):
            raise UserError(
                f"model.state_as={state_as}, but weights of this kind ({self.name}) read it as "
                + " or ".join(self.states)
            )
        return chunk or self.chunk, state_as or self.state_as or ""


def _whole(file: Path, config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """The whole number above 0 under `key` of a configuration, else `default`. UserError for anything else."""
    value = config.get(key) or default
    if type(value) is not int or value < 1:
        raise UserError(f"{file} has {key}={config.get(key)}; it must be a whole number above 0")
    return value


ASK = {
    "openpi": "whether the text holds the state: set model.state_as=none for weights trained as pi05_libero, "
    "text for those trained as pi05_base",
    "lerobot": "whether the state in the text was padded: set model.state_as=padded for weights of lerobot up to "
    "v0.4.4, text from v0.5.0 on (the wrong one succeeds in no episode)",
}


def _padding(config: Mapping[str, Any], weights: str) -> str | None:
    """How lerobot's pi0.5 reads the state: `padded` up to v0.4.4, `text` from v0.5.0 on; None if the file fits both."""
    if "use_peft" not in config or weights.partition("@")[0] in PADDED:
        return "padded"
    return "text" if "use_relative_actions" in config else None
