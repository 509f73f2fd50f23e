"""pi0 and pi0.5: what their texts and states are; the rest is in flow.py.

Source: openpi@15a9616 (src/openpi/models/tokenizer.py, policies/libero_policy.py, training/config.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vlaprune.models.flow import Flow
from vlaprune.models.tokenizer import Text


class Pi0(Flow):
    """pi0: the state is a row of the expert.

    weights    folder, file, or owner/name of the hub, in openpi's, lerobot's or transformers' names; or `random`
    tokenizer  folder, or owner/name of the hub, that has PaliGemma's tokenizer.json
    cameras    one to three, in the model's order: base, left wrist, right wrist
    resize     `torch` (lerobot: bilinear, no antialias) or `pil` (openpi's client: bilinear, antialias, whole levels)
    delta      actions are relative to the state, six numbers (openpi's pi0_libero; lerobot's checkpoints are not)
    steps      Euler steps
    seed       of random weights
    sizes      of a smaller model, for tests
    """

    name, adaptive, room = "pi0", False, 48

    def __init__(
        self,
        weights: str = "lerobot/pi0_libero_finetuned",
        tokenizer: str = "google/paligemma-3b-pt-224",
        cameras: Sequence[str] = ("primary", "wrist"),
        resize: str = "torch",
        delta: bool = False,
        steps: int = 10,
        chunk: int = 50,
        seed: int = 0,
        sizes: Mapping[str, int] | None = None,
        device: str = "auto",
        dtype: str = "bfloat16",
    ) -> None:
        self.delta = delta
        super().__init__(weights, tokenizer, cameras, resize, steps, chunk, seed, sizes, device, dtype)

    def text(self, instruction: str, state: np.ndarray | None) -> Text:
        """Begin, instruction, line break."""
        return self.words.plain(instruction)

    def restore(self, actions: np.ndarray, state: np.ndarray | None) -> np.ndarray:
        """Un-scaled; with `delta`, the state is added to the six numbers of position and rotation."""
        raw = super().restore(actions, state)
        if self.delta and state is not None:
            raw[:, :6] += state[:6]
        return raw


class Pi05(Flow):
    """pi0.5: adaptive norms in the expert; the state, where it is read, is part of the text.

    discrete  the state is in the text, in 256 levels; if not (openpi's pi05_libero), no state is read at all
    (the other options are those of Pi0; openpi's pi05_libero has chunk=10)
    """

    name, adaptive, room = "pi05", True, 200

    def __init__(
        self,
        weights: str = "lerobot/pi05_libero_finetuned",
        tokenizer: str = "google/paligemma-3b-pt-224",
        cameras: Sequence[str] = ("primary", "wrist"),
        resize: str = "torch",
        discrete: bool = True,
        steps: int = 10,
        chunk: int = 50,
        seed: int = 0,
        sizes: Mapping[str, int] | None = None,
        device: str = "auto",
        dtype: str = "bfloat16",
    ) -> None:
        self.discrete = discrete
        super().__init__(weights, tokenizer, cameras, resize, steps, chunk, seed, sizes, device, dtype)

    @property
    def reads_state(self) -> bool:
        """Whether the text holds the state."""
        return self.discrete

    def text(self, instruction: str, state: np.ndarray | None) -> Text:
        """Instruction and state as a form to fill in, or the text of pi0."""
        if state is None:
            return self.words.plain(instruction)
        levels = np.digitize(state, np.linspace(-1, 1, 257)[:-1]) - 1
        return self.words.form("Task:", instruction, f", State: {' '.join(map(str, levels))};\nAction: ")
