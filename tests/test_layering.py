"""Who may import whom: a method cannot reach the model, a table needs no GPU, a simulator loads no model code."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "vlaprune"
FILES = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in sorted(ROOT.rglob("*.py"))}
FILES = {name.removesuffix("__init__").removesuffix("."): path for name, path in FILES.items()}  # a package by its name
# module or package -> what of vlaprune it may import; the longest name that fits counts
LAYERS = {
    "": ["api"],  # when one of its functions is used
    "errors": [],
    "benchmark": [],
    "records": [],
    "trace": [],
    "nn": ["nn"],
    "stats": ["stats", "records"],
    "delay": ["records"],
    "control": ["benchmark", "delay"],
    "pruner": ["trace"],
    "meter": ["nn.block"],
    "selection": ["pruner", "trace", "nn.decoder"],
    "call": ["selection", "pruner", "trace", "nn.backend", "nn.block", "nn.decoder", "meter", "records"],
    "session": ["call", "selection", "pruner", "trace", "nn.backend", "nn.block", "nn.decoder", "meter", "records"],
    "policy": [
        "pruner",
        "session",
        "trace",
        "benchmark",
        "control",
        "delay",
        "nn.decoder",
        "nn.backend",
        "meter",
        "records",
    ],
    "methods": ["pruner", "trace", "methods", "nn.load"],
    "models": ["models", "benchmark", "delay", "policy", "session", "call", "trace", "pruner", "meter", "nn"],
    "models.filters": [],
    "models.images": ["models.filters"],
    "bench": ["benchmark", "bench.remote", "bench.episodes", "bench.gate"],
    "bench.sleeping": ["benchmark", "bench.remote", "bench.toy"],
    "bench.mujoco": ["benchmark", "bench.mujoco"],
    "bench.libero": ["benchmark", "bench.libero", "bench.mujoco", "bench.remote"],
    "bench.robosuite": ["benchmark", "bench.robosuite", "bench.mujoco", "bench.remote"],
    "bench.simpler": ["benchmark", "bench.simpler", "bench.remote"],
    "evaluation": [
        *("methods.shared.selecting", "methods.dense", "session"),
        *("evaluation", "policy", "pruner", "benchmark", "records", "trace", "stats", "report", "models.backends"),
        "delay",
        "bench.episodes",
    ],
    "evaluation.rollout": [
        *("delay", "benchmark", "records", "trace", "evaluation.schedule", "evaluation.pool", "bench.episodes"),
        "evaluation.motion",
    ],
    "evaluation.motion": [],
    "evaluation.schedule": [],
    "evaluation.pool": ["benchmark", "bench.episodes", "bench.remote"],  # no model code: it only holds simulators
    "evaluation.loggers": ["records", "stats"],
    "evaluation.progress": ["records", "stats", "evaluation.lock"],
    "evaluation.replay": ["records"],
    "evaluation.film": ["records", "trace"],
    "report": ["report", "records", "stats"],
    "profile": [
        *(
            "profile",
            "policy",
            "pruner",
            "session",
            "benchmark",
            "control",
            "records",
            "trace",
            "meter",
            "stats",
            "nn",
        ),
        *("report", "bench.episodes", "models.backends", "evaluation.calibrate", "methods.dense"),
    ],
    "profile.conventions": ["nn.block", "records"],
    "profile.pictures": ["models.images", "models.letterbox", "bench.episodes", "benchmark", "profile.page"],
    "profile.roofline": ["meter", "nn.block"],
    "profile.published": ["profile.roofline", "nn.block"],
    "profile.latency": ["profile.published", "profile.roofline", "records"],
    "profile.times": ["profile.published", "profile.roofline"],
    "training": [
        *("training", "policy", "pruner", "session", "benchmark", "control", "meter", "stats", "nn.load", "nn.lora"),
    ],
    "training.demos": ["benchmark", "files", "bench.worker"],
    "files": [],
    "training.datasets": ["training.datasets"],
    "serve": ["policy", "benchmark", "records", "bench.gate"],  # clients pass the gate that simulators pass
    "testing": ["nn.backend", "methods.dense", "models.toy", "benchmark", "policy", "pruner", "trace", "bench.toy"],
    "interop": ["interop", "policy", "serve", "benchmark", "control", "delay", "records"],
    "interop.results": ["records"],
    "doctor": ["doctor", "benchmark", "config"],
    "api": [
        "api",
        "records",
        "errors",
        "report",
        "config",
        "evaluation",
        "policy",
        "pruner",
        "benchmark",
        "nn",
        "models.backends",
    ],
    "api.devices": ["api", "records", "errors", "report", "config", "evaluation.progress", "bench.worker"],
    "api.tables": ["records", "report"],
    "api.tune": [
        *("api", "records", "errors", "report", "config", "policy", "pruner", "stats", "profile"),
        *("models.backends", "methods.dense", "evaluation.progress"),
    ],
    "commands": ["commands", "cli", "errors", "api.tune", "records", "stats", "report", "profile.roofline"],
    "commands.importing": ["interop.results", "evaluation.recorder", "evaluation.loggers", "records"],
    "commands.options": [],
    "commands.usage": ["commands.options"],  # --help answers before Hydra or torch is imported
    "doctor.checks": ["doctor.checks", "benchmark"],
    "doctor.checks.models": ["doctor.checks", "benchmark", "policy", "pruner"],
}
TORCHLESS = (
    *("benchmark", "control", "delay", "records", "stats", "report", "bench", "config", "cli", "commands", "api"),
    *(
        "evaluation.loggers",
        "evaluation.motion",
        "evaluation.progress",
        "evaluation.recorder",
        "evaluation.lock",
        "evaluation.replay",
        "interop.results",
        "training.demos",
        "files",
        "training.datasets",
    ),
)
LATE = {
    "mujoco",
    "robosuite",
    "wandb",
    "imageio_ffmpeg",
    "PIL",
    "hydra",
    "omegaconf",
    "h5py",
    "google_crc32c",
    "gguf",
}  # heavy, optional or Hydra's: never at import
TRAINED = ("methods.lightvla_star", "methods.grids")  # methods with parameters in a file


@cache
def imports(path, everywhere=True):
    """Dotted names that a file imports; without `everywhere`, only what runs when it is imported."""
    found, todo = set(), list(ast.parse(path.read_text()).body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {n if n.removeprefix("vlaprune.") in FILES else node.module for n in names}
        typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if everywhere or not (typing or function):
            todo += ast.iter_child_nodes(node)
    return found


def within(name, layers):
    return any(name == layer or name.startswith(layer + ".") for layer in layers)


def rule(module):
    fits = [layer for layer in LAYERS if within(module, [layer])]
    return LAYERS[max(fits, key=len)] if fits else None


@pytest.mark.parametrize("module", [m for m in FILES if not within(m, ("config", "cli"))])
def test_a_module_imports_its_layer_and_those_below(module):
    assert rule(module) is not None, f"{module} is in no layer; add it to LAYERS"
    ours = {n.removeprefix("vlaprune.") for n in imports(FILES[module]) if n.startswith("vlaprune.")}
    wrong = {n for n in ours if not within(n, [*rule(module), "errors", "files"])}  # what all may import
    assert not wrong, f"{module} must not import {sorted(wrong)}"


@pytest.mark.parametrize("module", [m for m in FILES if within(m, ["methods"])])
def test_only_methods_with_trained_parameters_load_files(module):
    assert "vlaprune.nn.load" not in imports(FILES[module]) or module in TRAINED


@pytest.mark.parametrize("module", FILES)
def test_nothing_heavy_or_optional_at_import(module):
    now = {n.split(".")[0] for n in imports(FILES[module], everywhere=False)}
    allowed = {"hydra", "omegaconf"} if within(module, ["config"]) else set()
    assert not now & LATE - allowed
    if not within(module, ["config", "cli"]):
        assert not {n.split(".")[0] for n in imports(FILES[module])} & {"hydra", "omegaconf"}


def reachable(module, seen=None):
    """All that importing a module imports, of vlaprune, transitively, and of others."""
    seen = {module} if seen is None else seen
    out = set()
    for name in imports(FILES[module], everywhere=False):
        own = name.removeprefix("vlaprune.")
        target = own if own in FILES else own.rpartition(".")[0]
        if not name.startswith("vlaprune"):
            out.add(name.split(".")[0])
        elif target in FILES and target not in seen:
            seen.add(target)
            out |= reachable(target, seen)
    return out


@pytest.mark.parametrize("module", [m for m in FILES if within(m, TORCHLESS)])
def test_tables_worlds_and_the_command_line_need_no_torch(module):
    assert not reachable(module) & {"torch", "transformers", "safetensors"}


def test_importing_the_package_imports_nothing():
    assert reachable("") <= {"__future__", "typing"}


def test_the_walk_sees_what_it_should():
    assert "torch" in reachable("policy") and "torch" in reachable("methods.fastv")
    assert "vlaprune.nn.block" in imports(FILES["meter"]) - imports(FILES["meter"], everywhere=False)
    assert "wandb" in imports(FILES["evaluation.loggers"]) - imports(FILES["evaluation.loggers"], everywhere=False)
