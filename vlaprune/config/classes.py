"""Makes objects from nodes of a configuration: only classes that fit their role are ever called.

A `_target_` names a class and its other keys are the constructor's arguments, plain values all of them. A function
(pandas.read_pickle, os.system) or a class of another kind is refused before anything of it is called.
"""

from __future__ import annotations

import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vlaprune.errors import UserError

ROLES: Mapping[str, tuple[str, ...]] = {  # role -> methods that its class must have
    "model": ("predict",),
    "method": ("plan", "select", "wants_second_pass", "reset", "observe"),
    "bench": ("tasks", "open"),
    "client": ("read",),
    "logger": ("open", "episode", "close"),
    "control": ("actions_per_call", "output_interface"),
    "black box": ("connect",),  # in place of a model: interop/black_box.py
}


def _whole(value: Any) -> bool:
    return type(value) is int


def _number(value: Any) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _word(value: Any) -> bool:
    return type(value) is str


def _all(value: Any, fits_it: Callable[[Any], bool]) -> bool:
    return type(value) is list and all(map(fits_it, value))


# annotation of an option, or type of a setting -> what it takes, in words and as a check
KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("a whole number", _whole),
    "float": ("a number", _number),
    "bool": ("true or false", lambda v: type(v) is bool),
    "str": ("a word", _word),
    "list": ("a list, as [A,B]", lambda v: type(v) is list),
    "Sequence[int]": ("a list of whole numbers, as [1,2]", lambda v: _all(v, _whole)),
    "Sequence[float]": ("a list of numbers, as [0.5,0.25]", lambda v: _all(v, _number)),
    "Sequence[str]": ("a list of words, as [a,b]", lambda v: _all(v, _word)),
    "Mapping[str, int]": (
        "names with whole numbers, as {a:1}",
        lambda v: type(v) is dict and all(map(_whole, v.values())),
    ),
}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question that ends a message, for the nearest of the known words; empty if none is near."""
    near = get_close_matches(word, list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


def fits(kind: type, role: str) -> bool:
    """Whether a class has the methods that its role needs."""
    return all(callable(getattr(kind, ability, None)) for ability in ROLES[role])


def find(target: str, role: str, *others: str) -> type:
    """The class that a dotted path names. UserError if there is none, or if it fits neither `role` nor one of `others`.

    Modules of the current folder are found, too.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    module, _, name = target.rpartition(".")
    try:
        found = getattr(import_module(module), name, None) if module else None
    except ModuleNotFoundError as error:
        if not (error.name and f"{module}.".startswith(f"{error.name}.")):
            raise  # another module, which this one imports
        raise UserError(
            f"{role}._target_={target}: there is no module {error.name} here; write package.module.Class of an "
            "installed package, or of a file below the current folder"
        ) from None
    except ValueError:
        found = None
    if not isinstance(found, type) or not any(fits(found, one) for one in (role, *others)):
        if role == "model" and isinstance(found, type) and fits(found, "black box"):
            raise UserError(f"{target} is a model server that runs elsewhere: only vlaprune eval takes it as a model")
        what = "nothing" if found is None else "a class" if isinstance(found, type) else type(found).__name__
        raise UserError(
            f"{role}._target_={target} is {what if found is None else f'{what} and'} no {role}; "
            f"name a class with {', '.join(ROLES[role])}"
        )
    return found


def make(role: str, node: Any, able: str | None = None) -> Any:
    """Makes the object that a node, or a mapping, describes. Errors of its constructor are passed on.

    able  another role that the class may fit, in place of `role`
    """
    node = OmegaConf.create(dict(node)) if isinstance(node, dict) else node
    if not isinstance(node, DictConfig) or not isinstance(node.get("_target_"), str):
        raise UserError(f"{role} is {node}; choose one by {role}=NAME, or give {role}._target_=package.module.Class")
    try:
        given: dict[str, Any] = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise UserError(f"{role}: {' '.join(str(error).split())}") from None
    kind = find(given.pop("_target_"), role, *([able] if able else []))
    accepts(role, kind, given)
    return kind(**given)


def takes(role: str, target: str, option: str) -> bool:
    """Whether the constructor of the class that a dotted path names has an option of this name."""
    return option in inspect.signature(find(target, role)).parameters


def accepts(role: str, kind: type, given: Mapping[str, Any]) -> None:
    """Raises UserError if a constructor does not take these options, or needs another one."""
    parameters = inspect.signature(kind).parameters.values()
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    loose = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for key in given:
        if not isinstance(key, str) or (key not in known and not loose) or key.startswith("_"):
            takes = f"has {', '.join(known)}" if known else "has no options"
            raise UserError(f"{role}.{key}={given[key]}: {kind.__name__} {takes}{did_you_mean(str(key), known)}")
    for p in parameters:
        if p.name in known and p.name in given:
            _check_kind(f"{role}.{p.name}", given[p.name], str(p.annotation))
    missing = [p.name for p in parameters if p.name in known and p.default is p.empty and p.name not in given]
    if missing:
        raise UserError(f"{role}: {kind.__name__} needs {role}.{missing[0]}=VALUE")


def _check_kind(what: str, value: Any, annotation: str) -> None:
    """Raises UserError for an option of another kind than its annotation says, if that is one of KINDS."""
    kind = re.sub(r"[\w.]+\.", "", annotation.removeprefix("<class '").removesuffix("'>"))  # without module names
    wanted, fits_it = KINDS.get(kind.removesuffix(" | None"), ("", lambda _: True))
    optional = kind.endswith(" | None")
    if not fits_it(value) and not (value is None and optional):
        raise UserError(f"{what}={value}; use {wanted}{', or null' if optional else ''}")
