"""`--help` of the commands that take KEY=VALUE: each setting with the comment of its file. Needs no Hydra, no torch."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence

from vlaprune.commands import options
from vlaprune.commands.options import ConfigKey, Option

EXAMPLES = {
    "eval": (
        "model=toy bench=toy method=fastv method.keep=0.5 episodes=3",
        "-m method=dense,fastv,random hydra/launcher=joblib hydra.launcher.n_jobs=2",
    ),
    "profile": ("method=fastv,divprune method.keep=0.5,0.25",),
    "train": ("method=lightvla",),
    "serve": ("model=pi0_tiny method=fastv port=9000",),
}
HYDRA = {
    "-m, --multirun": "run every combination of values that commas separate",
    "--cfg job": "print the composed configuration and stop; with --resolve, references are replaced by values",
    "--config-dir FOLDER": "look for configuration files in this folder, too",
    "--hydra-help": "options of Hydra itself",
}
GROUPS = ("model", "robots", "method", "bench", "experiment")  # groups whose chosen option is explained


def usage(name: str, command: str, arguments: Sequence[str] = ()) -> str:
    """The help of a command, whose file is `name`.yaml, with the settings of the options chosen in `arguments`."""
    home = options.folders()[0] / f"{name}.yaml"
    given = dict(a.partition("=")[::2] for a in arguments)
    chosen = options.defaults(home)
    offered = {g: options.options(g) for g in (*GROUPS, "logger") if g in chosen or name == "eval"}
    lines = [f"{command}: {' '.join(options.comment(home)).partition(': ')[2]}", "", "Examples:"]
    lines += [f"  {command} {example}" for example in EXAMPLES[name]]
    lines += ["", "Choose one of each (`vlaprune list` explains them):"]
    for group, found in offered.items():
        if group == "robots":  # chosen by the model
            continue
        lines += _entry(f"  {group}=", ", ".join(found), 14)
    lines += ["", "Settings:", *_settings(options.settings(home))]
    names = chosen | {"robots": given.get("model", chosen["model"])}  # a model's robots are in a file of its name
    for group in GROUPS:
        option = offered.get(group, {}).get(given.get(group, names.get(group, "")))
        if option is not None:
            lines += ["", *_explained(group, option)]
    lines += ["", f"Settings of another option: {command} --help method=NAME", ""]
    return "\n".join([*lines, "Options of Hydra, which reads the settings:", *(f"  {line}" for line in table(HYDRA))])


def table(rows: Mapping[str, str]) -> Iterator[str]:
    """Lines with names and their explanations in two columns."""
    width = max(map(len, rows), default=0) + 2
    for name, about in rows.items():
        yield from _entry(name, about, width)


def _explained(group: str, option: Option) -> Iterator[str]:
    """Lines with the settings of one option of a group."""
    yield from textwrap.wrap(f"Settings of {group}={option.name}. {option.about}", _columns())
    prefix = "" if group == "experiment" else f"{group}."
    yield from _settings([ConfigKey(prefix + s.key, s.value, s.about) for s in options.settings(option.path)])


def _settings(found: Sequence[ConfigKey]) -> Iterator[str]:
    for s in found:
        yield from _entry(f"  {s.key}={s.value}", s.about, 30)


def _columns() -> int:
    """The width of the help in characters."""
    return max(60, min(120, shutil.get_terminal_size().columns))


def _entry(name: str, about: str, width: int) -> list[str]:
    """A name and its explanation in two columns, wrapped to the terminal."""
    if not about:
        return [name]
    first, *rest = textwrap.wrap(about, _columns() - width)
    own = [f"{name:<{width}}{first}"] if len(name) < width else [name, " " * width + first]
    return own + [" " * width + line for line in rest]
