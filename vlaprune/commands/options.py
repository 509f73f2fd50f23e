"""Reads the options of config groups, their settings and comments from YAML files as text, without Hydra."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

PLAIN = re.compile(  # one key of a YAML file; a `#` after a space outside of quotes begins a comment
    r"^(?P<indent> *)(?P<key>[\w/ ]+?):"
    r"""(?: +(?P<value>(?:"[^"]*"|'[^']*'|[^#"']|(?<=\S)#)*?))?"""
    r"(?: +# *(?P<about>.*))?$"
)


@dataclass(frozen=True)
class ConfigKey:
    """One key of a configuration file: dotted name, value as written, and the comment after it."""

    key: str
    value: str
    about: str


@dataclass(frozen=True)
class Option:
    """One option of a config group: the file's name, its first comment line, and its path."""

    name: str
    about: str
    path: Path

    @classmethod
    def of(cls, path: Path) -> Option:
        """The option in a file."""
        return cls(path.stem, (comment(path) or [""])[0], path)


def folders() -> list[Path]:
    """Folders of configuration files: ours first, then those of packages with an entry point `vlaprune.configs`."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    out = [installed if (installed / "eval.yaml").is_file() else package.parent / "configs"]
    for point in entry_points(group="vlaprune.configs"):
        top, *rest = point.value.split(".")
        spec = find_spec(top)
        out += [Path(place).joinpath(*rest) for place in (spec.submodule_search_locations or () if spec else ())]
    return out


def options(group: str) -> dict[str, Option]:
    """Name -> option of a config group, sorted by name; the first file of a name is used, as in Hydra."""
    found: dict[str, Option] = {}
    for folder in folders():
        for path in sorted((folder / group).glob("*.yaml")):
            found.setdefault(path.stem, Option.of(path))
    return dict(sorted(found.items()))


def comment(path: Path) -> list[str]:
    """The lines of the comment at the top of a file, without directives such as `# @package`."""
    out = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        text = line.lstrip("# ").rstrip()
        if not text.startswith("@"):
            out.append(text)
    return out


def defaults(path: Path) -> dict[str, str]:
    """Group -> option that a file's defaults list chooses; a file of the same group is under the key ""."""
    text = path.read_text()
    inline = re.search(r"(?m)^defaults: *\[(.*)\]", text)
    if inline:
        bases = [name for part in inline[1].split(",") if (name := part.strip()) != "_self_"]
        return {"": bases[0]} if bases else {}
    block = re.search(r"(?m)^defaults:\n((?: +-.*\n)*)", text)
    chosen: dict[str, str] = {}
    for line in block[1].splitlines() if block else ():
        entry = re.match(r" +- *(override +)?(optional +)?/?(\w+): *(\S.*)", line)
        if entry and not entry[2] and entry[4] != "null":
            chosen[entry[3]] = entry[4]
    return chosen


def settings(path: Path) -> list[ConfigKey]:
    """The settings of a file and of its base files. A missing comment is taken from the docstring of the class."""
    base = defaults(path).get("")
    found = {s.key: s for s in settings(path.with_name(f"{base}.yaml"))} if base else {}
    target = ""
    for setting in _own(path.read_text()):
        if setting.key.split(".")[-1] == "_target_":
            target = setting.value if setting.key == "_target_" else target
            continue
        found.pop(setting.key.rpartition(".")[0], None)  # a value of the base file that is a group of values here
        known = found.get(setting.key)
        found[setting.key] = setting if setting.about or known is None else replace(setting, about=known.about)
    told = documented(target) if target else {}
    return [s if s.about else replace(s, about=told.get(s.key, "")) for s in found.values()]


def _own(text: str) -> Iterator[ConfigKey]:
    """The keys that have values, in the order of the file, nested ones dotted; without `defaults` and `hydra`."""
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = PLAIN.match(line)
        if match is None:
            continue
        indent = len(match["indent"])
        above = [(i, key) for i, key in above if i < indent]
        parents = [key for _, key in above]
        above.append((indent, match["key"]))
        if {"defaults", "hydra"} & {*parents, match["key"]} or not match["value"]:
            continue
        yield ConfigKey(".".join([*parents, match["key"]]), match["value"].strip(), match["about"] or "")


def documented(target: str) -> dict[str, str]:
    """Parameter -> explanation from the docstring of a class, found by its dotted name without importing it."""
    module, _, name = target.rpartition(".")
    tree = _source(module)
    found = _class(tree, name) if tree is not None else None
    out: dict[str, str] = {}
    last: list[str] = []
    for line in (ast.get_docstring(found) or "").splitlines() if found is not None else ():
        entry = re.match(r"(\w+(?:, \w+)*) {2,}(\S.*)", line)
        if entry:
            last = entry[1].split(", ")
            out |= dict.fromkeys(last, entry[2])
        elif line.startswith("    ") and last:
            out |= {key: f"{out[key]} {line.strip()}" for key in last}
        else:
            last = []
    return out


def _source(module: str) -> ast.Module | None:
    """The syntax tree of a module, found without importing any package."""
    top, *rest = module.split(".")
    spec = find_spec(top)
    for folder in spec.submodule_search_locations or () if spec else ():
        base = Path(folder).joinpath(*rest)
        for path in (base / "__init__.py", base.with_suffix(".py")):
            if path.is_file():
                return ast.parse(path.read_text())
    return None


def _class(tree: ast.Module, name: str) -> ast.ClassDef | None:
    """A class of a module, or of the module that it is imported from."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom) and node.module and any(a.name == name for a in node.names):
            inner = _source(node.module)
            return _class(inner, name) if inner is not None else None
    return None
