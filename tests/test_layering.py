"""Who may import whom: a method cannot reach the model, a table needs no GPU, a simulator loads no model code."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "vlaprune"
FILES = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in sorted(ROOT.rglob("*.py"))}
# module or package -> what of vlaprune it may import; the longest name that fits counts
LAYERS = {
    "benchmark": [],
    "control": ["benchmark"],
    "finding": [],
    "checks": ["finding", "checks"],
    "doctor": ["finding", "checks", "config"],
    "records": [],
    "stats": [],
    "trace": [],
    "nn": ["nn"],
    "pruner": ["trace"],
    "meter": ["nn.decoder"],
    "flops": ["nn.decoder", "records"],
    "roofline": ["meter", "nn.decoder"],
    "fullsize": ["roofline", "nn.decoder"],
    "loggers": ["records", "stats"],
    "power": [],
    "report": ["report", "anytime", "floor", "records", "loggers", "stats", "power"],
    "session": ["pruner", "trace", "nn.decoder", "meter", "records"],
    "policy": ["pruner", "session", "trace", "benchmark", "control", "nn.decoder", "meter", "records"],
    "kernels": ["nn", "policy"],
    "film": ["records", "trace"],
    "progress": ["records", "stats"],
    "replay": ["records"],
    "anytime": ["records", "stats"],
    "floor": ["records", "stats"],
    "ledger": ["records", "stats"],
    "rollout": ["policy", "benchmark", "records", "trace"],
    "evaluate": [
        *("policy", "pruner", "benchmark", "control", "records", "rollout"),
        *("film", "replay", "anytime", "progress", "power", "report", "kernels"),
    ],
    "demos": ["benchmark", "bench"],
    "datasets": ["datasets"],
    "serve": ["policy", "benchmark", "records"],
    "profile": [
        "profile",
        "policy",
        "pruner",
        "session",
        "benchmark",
        "records",
        "rollout",
        "trace",
        "meter",
        "flops",
        "roofline",
        "fullsize",
        "stats",
        "report",
        "nn",
        "methods.dense",
        "methods.calibration",
        "control",
        "kernels",
    ],
    "train": ["policy", "pruner", "session", "benchmark", "control", "records", "meter", "stats", "demos", "nn.load"],
    "tuning": ["train", "session", "meter", "datasets", "nn.load", "nn.lora"],
    "methods": ["pruner", "trace", "methods", "nn.load"],
    "images": [],
    "models": ["models", "benchmark", "policy", "session", "trace", "pruner", "meter", "nn", "images"],
    "bench": ["benchmark", "finding"],
    "bench.remote": ["benchmark"],
    "bench.simpler": [
        "benchmark",
        "finding",
        "bench.remote",
        *(f"bench.simpler_{n}" for n in ("grid", "files", "worlds")),
    ],
    "bench.simpler_files": ["bench.simpler_grid"],
    "bench.simpler_worlds": ["benchmark", "bench.simpler_grid"],
    "bench.robosuite": ["benchmark", "finding", "bench.experts", "bench.gl", "bench.remote"],
    "bench.libero": ["benchmark", "finding", "bench"],
    "bench.libero_env": ["benchmark", "bench.libero_experts"],
    "bench.libero_experts": ["bench.experts"],
    "testing": ["kernels", "benchmark", "policy", "pruner", "trace", "bench.toy", "models.toy"],
}
TORCHLESS = (
    "benchmark",
    "control",
    "finding",
    "checks",
    "doctor",
    "records",
    "loggers",
    "stats",
    "power",
    "report",
    "bench",
    "demos",
    "datasets",
    "cli",
    "config",
    "progress",
    "replay",
    "anytime",
    "floor",
    "ledger",
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
}  # heavy, optional or Hydra's: never at import
TRAINED = ("methods.lightvla_star",)  # methods with parameters in a file


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


@pytest.mark.parametrize("module", [m for m in FILES if m not in ("config", "cli") and "__init__" not in m])
def test_a_module_imports_its_layer_and_those_below(module):
    assert rule(module) is not None, f"{module} is in no layer; add it to LAYERS"
    ours = {n.removeprefix("vlaprune.") for n in imports(FILES[module]) if n.startswith("vlaprune.")}
    wrong = {n for n in ours if not within(n, rule(module))}
    assert not wrong, f"{module} must not import {sorted(wrong)}"


@pytest.mark.parametrize("module", [m for m in FILES if within(m, ["methods"])])
def test_only_methods_with_trained_parameters_load_files(module):
    assert "vlaprune.nn.load" not in imports(FILES[module]) or module in TRAINED


@pytest.mark.parametrize("module", FILES)
def test_nothing_heavy_or_optional_at_import(module):
    now = {n.split(".")[0] for n in imports(FILES[module], everywhere=False)}
    allowed = {"hydra", "omegaconf"} if module == "config" else set()
    assert not now & LATE - allowed
    if module not in ("config", "cli"):
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
    assert reachable("__init__") <= {"__future__"}


def test_the_walk_sees_what_it_should():
    assert "torch" in reachable("policy") and "torch" in reachable("methods.fastv")
    assert "vlaprune.nn.decoder" in imports(FILES["meter"]) - imports(FILES["meter"], everywhere=False)
    assert "wandb" in imports(FILES["loggers"]) - imports(FILES["loggers"], everywhere=False)
