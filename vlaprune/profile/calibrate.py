"""Calibrations from recorded dense frames, for methods that need one before they prune."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from vlaprune.evaluation.calibrate import CALLS, FILE, with_calibration
from vlaprune.policy import VLA
from vlaprune.profile.measured import Methods
from vlaprune.profile.recording import Recording, actions
from vlaprune.pruner import Calibrated, Probe, Pruner


def ready(methods: Methods, model: VLA, recording: Recording, seed: int, folder: Path) -> Methods:
    """The methods, where those that need a calibration and have none read one that is made here, in `folder`."""
    out, made = [], dict[str, Path]()
    for label, make in methods:
        method = make()
        if isinstance(method, Calibrated) and method.calibration is None:
            probe = method.probe()
            path = made.setdefault(repr(probe), folder / f"{model.info.name}-{len(made)}.json")
            if not path.is_file():
                probed(probe, model, recording, seed, CALLS).save(path)
            make = with_calibration(make, path)
        out.append((label, make))
    return out


def of_run(make: Callable[[], Pruner], folder: Path) -> Callable[[], Pruner]:
    """The constructor `make`, whose methods read the calibration in the folder of a recorded run, if there is one."""
    path = folder / FILE
    return with_calibration(make, path) if path.is_file() else make


def probed(probe: Probe, model: VLA, recording: Recording, seed: int, calls: int) -> Probe:
    """The probe, after it has seen whole recorded episodes until it has measured `calls` calls, or all episodes."""
    policy = recording.policy(model, partial(iter([probe]).__next__))
    for episode in recording.episodes:
        if probe.calls < calls:
            actions(policy, episode, seed)
    return probe
