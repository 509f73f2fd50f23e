"""The calibration of TIES: the values that tau usually takes for a model in its world, measured before a run.

A calibration is a JSON file of numbers. It names the estimator, the model, its weights, layers and visual tokens, and
is refused for any other. `vlaprune-eval` measures one first where the method has none; `vlaprune-profile
mode=calibrate method=ties` writes one from recorded frames. Those of the shipped policies are in vlaprune/weights.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import isnan
from pathlib import Path
from typing import Any

import torch

from vlaprune.errors import UserError
from vlaprune.files import replacing, shipped_file
from vlaprune.methods.ties.agreement import Estimator
from vlaprune.pruner import ModelInfo, Plan, Probe, PruneContext, Selection
from vlaprune.trace import Trace

FRAMES = 100  # most values in a calibration, as in the paper
LEAST = 20  # values; the 5 % quantile of fewer is the lowest value or beyond it


@dataclass
class Calibrate(Probe):
    """Keeps every token and notes the tau of every call in `taus`."""

    estimator: Estimator = field(default_factory=Estimator)
    taus: list[float] = field(default_factory=list)

    @property
    def calls(self) -> int:
        """The number of values of tau noted so far, NaN left out."""
        return len(self.taus)

    def plan(self, info: ModelInfo) -> Plan:
        """Acts before layer 0, where `select` names the rows to read; nothing is pruned."""
        self._span, self._info = self.estimator.span(info), info
        return Plan((0,))

    def select(self, context: PruneContext) -> Selection:
        """Keeps every token and reads the rows of every layer compared."""
        self._tokens = context.total
        return Selection.all(context, dict.fromkeys(self._span, self.estimator.group(context.layout)))

    def observe(self, trace: Trace) -> None:
        """Notes one more tau, unless attention is the same everywhere."""
        tau = self.estimator.tau(trace, self._span)
        self.taus += [] if isnan(tau) else [tau]

    def save(self, path: Path) -> None:
        """Writes 100 values, evenly spaced over the calls, or all if fewer. UserError if `check` refuses them."""
        n = min(FRAMES, len(self.taus))
        picked = [self.taus[(2 * i + 1) * len(self.taus) // (2 * n)] for i in range(n)]
        check(picked, f"a calibration from {len(self.taus)} calls")
        made = fingerprint(self.estimator, self._info) | {"visual_tokens": self._tokens, "tau": picked}
        with replacing(path) as part:
            part.write_text(json.dumps(made, indent=1) + "\n")


def fingerprint(estimator: Estimator, info: ModelInfo) -> dict[str, Any]:
    """What a calibration belongs to, except the token count, which only a call tells."""
    own = {"estimator": asdict(estimator), "model": info.name, "weights": info.weights, "num_layers": info.num_layers}
    plain: dict[str, Any] = json.loads(json.dumps(own))
    return plain


def check(taus: Sequence[float], what: str) -> None:
    """Raises UserError if values of tau are no numbers, too few, or all equal: every weight would be 0 or 1."""
    if not all(abs(t) < 1 + 1e-6 for t in taus):  # False for NaN
        raise UserError(f"{what} holds values outside -1 .. 1; write it anew")
    if len(taus) < LEAST or len(set(taus)) == 1:
        raise UserError(
            f"{what} has {len(set(taus))} different values of {len(taus)}; TIES needs at least {LEAST} values that "
            "differ; measure over more episodes"
        )


@dataclass(frozen=True)
class Calibration:
    """The values of tau in a file, and the number of visual tokens they were measured with."""

    path: str
    tokens: int
    taus: Sequence[float]

    @classmethod
    def read(cls, path: str, estimator: Estimator, info: ModelInfo) -> "Calibration":
        """The calibration in a file, or shipped under a name. UserError where it is damaged or of something else."""
        file = shipped_file(info.name, path, "ties.json")
        try:
            data = json.loads(file.read_text())
            tokens, taus = int(data["visual_tokens"]), [float(t) for t in data["tau"]]
            made = {**data["estimator"], **{key: data[key] for key in ("model", "weights", "num_layers")}}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"calibration {file} cannot be read ({type(error).__name__}: {error})") from error
        here = fingerprint(estimator, info)
        here |= here.pop("estimator")
        differ = [f"{k}={made.get(k)}, here {here.get(k)}" for k in {**here, **made} if made.get(k) != here.get(k)]
        if differ:
            raise UserError(f"calibration {file} was made with {'; '.join(differ)}; calibrate with the run's settings")
        check(taus, f"calibration {file}")
        return cls(str(file), tokens, taus)


def weight(tau: float, known: Sequence[float], how: str, threshold: float | None = None) -> float:
    """The weight of a tau: 1 if unusually low, 0 if high, 1/2 at the median of the `known` taus and for NaN.

    quantiles  straight lines through (5 %, 1), (50 %, 1/2), (95 %, 0)
    linear     one line through the median, as steep as from 5 % to 95 %
    ecdf       the share of known taus above it, ties half
    hard       1 up to `threshold` (None: the median), else 0
    """
    if isnan(tau):
        return 0.5
    taus = torch.tensor(known, dtype=torch.float64)
    low, median, high = map(float, taus.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)))
    if how == "hard":
        return float(tau <= (median if threshold is None else threshold))
    if how == "ecdf":
        return float((taus > tau).double().mean() + 0.5 * (taus == tau).double().mean())
    span = high - low if how == "linear" else 2 * (median - low if tau < median else high - median)
    return min(1.0, max(0.0, 0.5 + (median - tau) / max(span, 1e-12)))
