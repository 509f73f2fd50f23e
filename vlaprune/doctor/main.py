"""vlaprune-doctor: one line for each thing that a run needs, and what to do if it is missing.

Checks are functions that answer a `Finding` and change nothing. A benchmark takes part by a method
`findings() -> Iterable[Finding]` of its own, for packages and assets of its configured tasks, and by a config key
`renderer` (egl or osmesa) where it draws by MuJoCo. If a simulator runs in another interpreter (`bench.python=PATH`),
the benchmark checks it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from vlaprune.benchmark import Finding, SupportsFindings

if TYPE_CHECKING:
    from vlaprune.doctor.checks.models import Loads

PARTS = ("model", "method", "bench")
ERRORS = (ValueError, TypeError, RuntimeError, OSError, ImportError)  # also those of a plug-in


def main(argv: Sequence[str] | None = None) -> int:
    """Prints findings by section. Returns 0 if nothing is in the way of the chosen configuration, else 2."""
    parser = argparse.ArgumentParser(
        prog="vlaprune-doctor",
        description="Says what is missing for a run, and what to do about it. Loads no weights.",
        epilog="example: vlaprune-doctor model=cogact bench=simpler",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for vlaprune-eval: what is to be run")
    parser.add_argument("--hub", action="store_true", help="ask the Hugging Face hub about models that are not here")
    args = parser.parse_args(argv)

    from vlaprune import config

    with config.with_objects(args.overrides, {}) as cfg:
        config.check(cfg)
    _, chosen = config.composed(args.overrides)
    problems = 0
    for section, needed, findings in sections(args.overrides, args.hub):
        print(section, flush=True)
        for finding in findings:
            counts = needed is None or finding.about in needed
            print(finding.line(counts), flush=True)
            problems += counts and not finding.ok
    run = " ".join(f"{part}={chosen[part]}" for part in PARTS)
    print(f"{problems or 'no'} problem{'' if problems == 1 else 's'} for {run}")
    return 2 if problems else 0


def sections(overrides: Sequence[str], hub: bool = False) -> Iterator[tuple[str, set[str] | None, Iterable[Finding]]]:
    """Yields title, names of the findings that the configuration needs (None: all), and findings, made on demand."""
    from vlaprune import config
    from vlaprune.doctor.checks import graphics, machine

    cfg, chosen = config.composed(overrides)
    device = str(cfg.model.get("device", "auto"))
    looked: list[Callable[[], Finding]] = [*machine.CHECKS]
    if device != "auto":
        looked.append(partial(machine.device, device))
    yield "machine", None, (check() for check in looked)
    asked = [o.lstrip("+~").partition("=")[0].partition(".")[0] for o in overrides]
    names = [chosen["model"]] if {"model", "experiment"} & set(asked) else config.options("model")
    loads: dict[str, Loads] = {}
    yield "models", {chosen["model"]}, _models(overrides, chosen["model"], names, hub, loads)
    renderer, python = cfg.bench.get("renderer"), str(cfg.bench.get("python") or sys.executable)
    alone = {"bench", "experiment"} & set(asked)
    checks = {name: look for name, look in graphics.CHECKS.items() if name == renderer or not alone}
    looks = (look(python if name == renderer else sys.executable) for name, look in checks.items())
    yield "graphics", {graphics.ABOUT.get(str(renderer), "")}, looks
    yield f"bench {chosen['bench']}", None, _bench(overrides, chosen["model"], loads)


def _models(
    overrides: Sequence[str], chosen: str, names: Sequence[str], hub: bool, loads: dict[str, Loads]
) -> Iterator[Finding]:
    """Findings on model configurations, built for the chosen benchmark, or else for a robot that they know.

    loads  receives what is known of the models that would load
    """
    from vlaprune import config
    from vlaprune.doctor.checks.models import models

    others = [o for o in overrides if not o.lstrip("+~").startswith(("model=", "model."))]
    nodes, own = {}, _robot(overrides)
    for name in names:
        cfg = config.composed(overrides if name == chosen else [*others, f"model={name}"])[0]
        known = [robot for robot, parts in config.robots(cfg).items() if "model" in parts]
        robot = own if own in known or name == chosen else next(iter(known), None)
        nodes[name] = config.plain(config.model_node(cfg, robot))
    yield from models(nodes, hub, loads)


def _robot(overrides: Sequence[str]) -> str | None:
    """The robot of the chosen benchmark; None if the benchmark cannot be built."""
    from vlaprune import config

    try:
        bench = config.make("bench", config.composed(overrides)[0].bench)
    except ERRORS:
        return None
    return config.robot_of(bench)


def _bench(overrides: Sequence[str], model: str, loads: Mapping[str, Loads]) -> Iterator[Finding]:
    """Findings of the benchmark, and whether the model can drive its robot; no simulator is started."""
    from vlaprune import config

    with config.with_objects(overrides, {}) as cfg:
        yield from _joined(cfg, loads.get(model))


def _joined(cfg: Any, model: Loads | None) -> Iterator[Finding]:
    """Findings of method and benchmark in a composed configuration. `model` is None if it would not load."""
    from vlaprune import config

    try:
        method = config.make("method", cfg.method)
        if model is not None and model.info is not None:
            method.plan(model.info).check(model.info, type(method).__name__)
    except ERRORS as error:
        yield Finding("method", " ".join(str(error).split()), ok=False)
    try:
        bench = config.make("bench", cfg.bench)
    except ERRORS as error:
        yield Finding("options", " ".join(str(error).split()), ok=False)
        return
    yield Finding("options", f"{len(bench.tasks())} tasks")
    try:
        driver = config.control(cfg, bench)
        if model is not None:
            driver.output_interface(model.interface).check(bench.interface)
        if config.is_black_box(cfg):
            config.black_box(cfg, bench)
    except ERRORS as error:
        yield Finding("robot", " ".join(str(error).split()), ok=False)
    else:
        yield Finding("robot", f"{bench.robot or 'none of its own'}; the model can drive it")
    if isinstance(bench, SupportsFindings):
        yield from bench.findings()
