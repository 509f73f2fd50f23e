"""Published times of whole calls, compared with our floors: a floor above one of them would be wrong."""

from __future__ import annotations

from dataclasses import dataclass

from vlaprune.profile.published import MODELS, Model, flow
from vlaprune.profile.roofline import device


@dataclass(frozen=True)
class Published:
    """One published time of a call at batch 1.

    views, chunk, prompt  numbers of cameras, actions a call and prompt positions besides the visual tokens, if
                          published; a smaller prompt makes a lower floor
    bits                  bits of a weight and of an activation: 16, or 8 (FP8, INT8), which halves the floor
    """

    model: str
    device: str
    ms: float
    source: str
    views: int = 2
    chunk: int = 50
    prompt: int = 0
    bits: int = 16

    @property
    def sized(self) -> Model | None:
        """The model with these sizes; None if `published` does not have the model."""
        if self.model not in MODELS:
            return None
        return flow(self.model, self.views, self.prompt, self.chunk)

    @property
    def floor(self) -> float | None:
        """Milliseconds below which this call cannot be done on this device; None for a model without a floor here."""
        model = self.sized
        if model is None:
            return None
        return sum(device(self.device).floors(model.call()).values()) * self.bits / 16

    @property
    def ratio(self) -> float | None:
        """The published time divided by the floor; None without a floor."""
        return None if self.floor is None else self.ms / self.floor


DEXMAL = "Dexmal realtime-vla, arXiv:2510.26742, no prompt"
APXINF = "infinigence/ApxInf release v0.1, CUDA graph, p50, 10 steps"
FLASH = "LiangSu8899/FlashRT, README"
GROOT = "NVIDIA/Isaac-GR00T, GR00T N1.6"
VLACPP = "VinRobotics/vla.cpp, benchmark of AGX Orin"
TIMES = (
    *(Published("pi0", "4090", ms, DEXMAL, n) for n, ms in enumerate((20.0, 27.3, 36.8), 1)),
    *(Published("pi05", "4090", ms, DEXMAL, n) for n, ms in enumerate((22.1, 29.2, 38.9), 1)),
    Published("pi05", "5090", 17.58, FLASH, chunk=10, bits=8),
    Published("pi05", "Thor", 41.16, APXINF, chunk=10, bits=8),
    Published("pi05", "Orin64", 165.67, APXINF, chunk=10),
    Published("pi05", "4090", 25.99, APXINF, chunk=10, bits=8),
    Published("gr00t-n1.6", "H100", 77.0, GROOT + ", eager"),
    Published("gr00t-n1.6", "H100", 38.0, GROOT + ", torch.compile"),
    Published("gr00t-n1.6", "H100", 36.0, GROOT + ", TensorRT"),
    Published("smolvla", "Orin64", 262.0, VLACPP),
    Published("gr00t-n1.7", "Orin64", 429.0, VLACPP),
    Published("pi0", "Orin64", 893.0, VLACPP),
)


def table() -> list[dict[str, str]]:
    """Every published time beside its floor."""
    return [
        {
            "model": t.model,
            "device": t.device,
            "views": str(t.views),
            "bits": str(t.bits),
            "published, ms": f"{t.ms:g}",
            "floor, ms": "no sizes here" if t.floor is None else f"{t.floor:.1f}",
            "published / floor": "" if t.ratio is None else f"{t.ratio:.2f}",
            "source": t.source,
        }
        for t in TIMES
    ]
