"""pi0 and pi0.5: what their texts are; the rest, and their options, are in flow.py.

Source: openpi@15a9616 (src/openpi/models/tokenizer.py, policies/libero_policy.py); lerobot v0.4.4 and v0.5.0
(policies/pi05/processor_pi05.py).
"""

from __future__ import annotations

import numpy as np

from vlaprune.models.family import NUMBERS
from vlaprune.models.flow import Flow
from vlaprune.models.tokenizer import Text


class Pi0(Flow):
    """pi0: the state is a row of the expert."""

    name = "pi0"
    adaptive = False
    room = 48
    published = "lerobot/pi0_libero_finetuned"

    def text(self, instruction: str, state: np.ndarray | None) -> Text:
        """The whole text in tokens: begin, instruction, line break. The state is not part of it."""
        return self.words.plain(instruction)


class Pi05(Flow):
    """pi0.5: adaptive norms in the expert; the state, where it is read, is part of the text."""

    name = "pi05"
    adaptive = True
    room = 200
    published = "lerobot/pi05_libero_finetuned"

    def text(self, instruction: str, state: np.ndarray | None) -> Text:
        """The whole text in tokens: a form with instruction and state, or without a state the text of pi0."""
        if state is None or self.state_as == "none":
            return self.words.plain(instruction)
        return self.words.form("Task:", instruction, f", State: {levels(state, self.state_as == 'padded')};\nAction: ")


def levels(state: np.ndarray, pad: bool) -> str:
    """A scaled state [s] in words: levels 0 to 255 of [-1, 1], -1 below; with `pad`, 32 numbers, zeros last."""
    if pad:
        state = np.pad(state, (0, NUMBERS - len(state)))
    return " ".join(map(str, np.digitize(state, np.linspace(-1, 1, 257)[:-1]) - 1))
