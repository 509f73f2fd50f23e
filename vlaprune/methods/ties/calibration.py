"""The usual values of tau, measured beforehand and kept in a file: what TIES must know of a model and its world.

`Calibrate` keeps every token and notes tau at every call; `vlaprune-profile mode=calibrate method=ties` runs it over
recorded dense frames and writes the file. Files of our own models lie in vlaprune/weights.
"""

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import isnan
from pathlib import Path

import torch

from vlaprune.methods.ties.agreement import Estimator
from vlaprune.pruner import ModelInfo, Plan, PruneContext, Pruner, Selection
from vlaprune.trace import Trace

SHIPPED = Path(__file__).resolve().parents[2] / "weights"


@dataclass
class Calibrate(Pruner):
    """Dense; appends the tau of every call to `taus`, which outlives reset: a record that no choice depends on."""

    estimator: Estimator = field(default_factory=Estimator)
    taus: list[float] = field(default_factory=list)

    def plan(self, info: ModelInfo) -> Plan:
        """Asked once per call, to name the rows that this prompt has."""
        self._span, self._model = self.estimator.span(info), info.name
        return Plan((0,))

    def select(self, context: PruneContext) -> Selection:
        """Everything, and the rows of every layer compared."""
        return Selection.all(context, dict.fromkeys(self._span, self.estimator.group(context.layout)))

    def observe(self, trace: Trace) -> None:
        """One more tau."""
        self.taus.append(self.estimator.tau(trace, self._span))

    def save(self, path: str | Path, frames: int = 100) -> None:
        """Writes `frames` values, evenly spaced over the calls, or all if fewer. ValueError if there is none."""
        write(path, self.estimator, self._model, self.taus, frames)


def write(path: str | Path, estimator: Estimator, model: str, taus: Sequence[float], frames: int = 100) -> None:
    """A calibration file: the estimator, the model's name and at most `frames` of the values, NaN left out."""
    known = [t for t in taus if not isnan(t)]
    count = min(frames, len(known))
    if count < 1:
        raise ValueError(f"{len(known)} values of tau make no calibration of {frames} frames; run more calls first")
    picked = [known[(2 * i + 1) * len(known) // (2 * count)] for i in range(count)]
    Path(path).write_text(json.dumps({"estimator": asdict(estimator), "model": model, "tau": picked}, indent=1) + "\n")


def read(path: str | Path | None, estimator: Estimator, model: str) -> list[float]:
    """The values in a file, or in one shipped under a name; no file, none and a warning.

    ValueError where it is damaged or of another estimator or model.
    """
    if path is None:
        warnings.warn("ties runs without a calibration; the taus of each episode stand in", stacklevel=1)
        return []
    shipped = SHIPPED / f"{model}-{path}.ties.json"
    try:
        data = json.loads((shipped if shipped.is_file() else Path(path)).read_text())
        made = {**data["estimator"], "model": data["model"]}
        taus = [float(t) for t in data["tau"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"calibration {path} is damaged ({type(error).__name__}: {error}); write it anew") from error
    here = json.loads(json.dumps({**asdict(estimator), "model": model}))
    differ = [f"{k}={made.get(k)}, here {here.get(k)}" for k in {**here, **made} if made.get(k) != here.get(k)]
    if differ:
        raise ValueError(f"calibration {path} was made with {'; '.join(differ)}; calibrate with the run's settings")
    if not taus or not all(abs(t) < 1 + 1e-6 for t in taus):
        raise ValueError(f"calibration {path} is no list of numbers from -1 to 1; write it anew")
    return taus


def weight(tau: float, known: Sequence[float], how: str, threshold: float | None = None) -> float:
    """From 1 for an unusually low tau to 0 for a high one, 1/2 at the median of the `known` taus; NaN is the median.

    quantiles  straight lines through (5 %, 1), (50 %, 1/2), (95 %, 0)
    linear     one line through the median, as steep as from 5 % to 95 %
    ecdf       the share of known taus above it, ties half
    hard       1 up to `threshold` (None: the median), else 0
    """
    taus = torch.tensor(known or [0.0], dtype=torch.float64)
    low, median, high = map(float, taus.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)))
    tau = median if isnan(tau) else tau
    if how == "hard":
        return float(tau <= (median if threshold is None else threshold))
    if how == "ecdf":
        return float((taus > tau).double().mean() + 0.5 * (taus == tau).double().mean())
    span = high - low if how == "linear" else 2 * (median - low if tau < median else high - median)
    return min(1.0, max(0.0, 0.5 + (median - tau) / max(span, 1e-12)))
