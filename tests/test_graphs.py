"""One set of graphs for all methods, whatever they drop and however long the instruction is."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from doubles import Reuser, calibrated

from vlaprune import config
from vlaprune.models.backends import with_backend
from vlaprune.models.toy import STYLES, Toy
from vlaprune.policy import Policy
from vlaprune.testing import scenes

METHODS = sorted(p.stem for p in (Path(config.config_path()) / "method").glob("*.yaml"))
KINDS = ("dense", "flashvla", "tome")  # plain rows; attention outputs that are read; a bias on merged tokens
STEPS, SETTLED = 30, 6


@pytest.mark.parametrize("style", STYLES)
def test_units_are_compiled_for_kinds_of_rows_and_not_for_counts(composed, style):
    """`fullgraph` makes a break an error. Once every kind of rows was seen, no method needs a graph of its own."""
    torch._dynamo.reset()
    model = with_backend(Toy(style), "compile", "eager")
    made = {m: partial(config.make, "method", composed("model=toy", f"method={m}").method) for m in METHODS}
    known = [("old keys", Reuser), *((m, made[m]) for m in KINDS)]
    for method, make in (*known, *((m, made[m]) for m in METHODS if m not in KINDS)):
        policy, counts = Policy(model, calibrated(make, model.info, 64)), [model.backend.compiled]
        kind = method in dict(known)
        for step, frame in enumerate(scenes(0, 1, STEPS if kind else 3)):
            policy.act({0: replace(frame, instruction=frame.instruction + " gently" * (step % 5))})
            counts.append(model.backend.compiled)
        steady = counts[SETTLED:] if kind else counts
        assert len(set(steady)) == 1, f"graphs after each call of {method}: {counts}"
