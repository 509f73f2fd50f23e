"""`vlaprune list`: the options to choose from, one line each."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from vlaprune.commands import options, usage

GROUPS = {
    "models": "model",
    "methods": "method",
    "benches": "bench",
    "robots": "robots",
    "experiments": "experiment",
}


def devices() -> dict[str, str]:
    """Devices whose roofline floor can be computed: name -> peak, bandwidth and their source."""
    from vlaprune.profile.roofline import DEVICES

    return {
        d.name: f"{d.flops / 1e12:.0f} TFLOP/s, {d.bandwidth / 1e12:.2f} TB/s ({d.source})" for d in DEVICES.values()
    }


def rows(what: str) -> dict[str, str]:
    """Name -> one line of description, for models, methods, benches, robots, experiments or devices."""
    if what == "devices":
        return devices()
    return {o.name: o.about for o in options.options(GROUPS[what]).values()}


def main(argv: Sequence[str]) -> int:
    """Prints one list, or all lists."""
    parser = argparse.ArgumentParser(
        prog="vlaprune list", description="What there is to choose from, a line each.", epilog=NOTE
    )
    names = [*GROUPS, "devices"]
    parser.add_argument("what", nargs="?", choices=names, help="which list (default: all of them)")
    parser.add_argument("--names", action="store_true", help="names only, for scripts")
    args = parser.parse_args(argv)
    shown: Callable[[str], Sequence[str]] = (
        (lambda what: list(rows(what))) if args.names else (lambda what: list(usage.table(rows(what))))
    )
    if args.what:
        print("\n".join(shown(args.what)))
        return 0
    for what in names:
        print(what, *(f"  {line}" for line in shown(what)), "", sep="\n")
    return 0


NOTE = "The lines come from the first comment of each configuration file, those of installed plug-ins included."
