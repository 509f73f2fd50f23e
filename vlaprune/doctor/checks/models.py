"""Checks whether the files of each model exist, are complete and would load, by names and shapes of tensors."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlaprune.benchmark import Finding, HasInterface, Interface
from vlaprune.doctor.checks.probe import ask
from vlaprune.errors import UserError

if TYPE_CHECKING:
    from vlaprune.pruner import ModelInfo

Node = Mapping[str, Any]
HUB_ID = re.compile(r"([\w.-]+/[\w.-]+?)(?:@([\w.-]+))?")


@dataclass(frozen=True)
class Loads:
    """What is known of a model that would load.

    interface  its conventions
    info       what methods are told of it; None for a black box
    """

    interface: Interface
    info: ModelInfo | None


def models(nodes: Mapping[str, Node], hub: bool, loads: dict[str, Loads] | None = None) -> Sequence[Finding]:
    """One finding for each model configuration, by its name. The hub is asked only with `hub`.

    loads  receives what is known of every model that would load, by name

    The check runs in a separate process, in which the hub's library is offline.
    """
    code = "import json; from vlaprune.doctor.checks.models import answer; "
    code += f"print(answer(json.loads({json.dumps(nodes)!r})))"
    try:
        said = json.loads(ask(code, env={"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}, seconds=600))
    except UserError as error:
        return [Finding(name, f"cannot be looked at: {error}", ok=False) for name in nodes]
    found = [Finding(name, text, ok) for name, (text, ok, _) in zip(nodes, said, strict=True)]
    if loads is not None:
        from vlaprune.pruner import ModelInfo

        for name, (_, _, own) in zip(nodes, said, strict=True):
            if own:
                loads[name] = Loads(Interface(**own["interface"]), ModelInfo(**own["info"]) if own["info"] else None)
    return [_asked(f) if hub and not f.ok else f for f in found]


def answer(nodes: Mapping[str, Node]) -> str:
    """A JSON list of (text, whether it is fine, the model's interface and info or null), one for each configuration."""
    return json.dumps([model(node) for node in nodes.values()])


def model(node: Node) -> tuple[str, bool, dict[str, Any] | None]:
    """Builds one model on torch's meta device, which checks everything and reads only names, shapes and JSON.

    Returns the text of the finding, whether it is fine, and if so the model's interface and info.
    """
    from vlaprune.policy import VLA

    weights = node.get("weights")
    if not local(weights):
        return _absent("weights", str(weights)), False, None
    module, _, name = str(node["_target_"]).rpartition(".")
    given = {key: value for key, value in node.items() if key != "_target_"}
    if "device" in given:
        given["device"] = "meta"
    try:
        built = getattr(import_module(module), name)(**given)
    except Exception as error:  # the error is the finding
        said = " ".join(str(error).split()) or type(error).__name__
        gone = re.match(r"(weights|tokenizer) (\S+): .* the hub cannot be reached", said)
        return _absent(gone[1], gone[2]) if gone else said, False, None
    own = None
    if isinstance(built, HasInterface):
        own = {"interface": asdict(built.interface), "info": asdict(built.info) if isinstance(built, VLA) else None}
    if "weights" not in node or weights == "random":
        return "random weights, no files needed" if weights == "random" else "needs no files", True, own
    return "complete, and would load" if weights is None else f"{weights} is complete and would load", True, own


def _absent(option: str, name: str) -> str:
    """The text on a repository that is not on this machine."""
    remedy = f"hf download {name.partition('@')[0]} --local-dir FOLDER, then model.{option}=FOLDER"
    return f"{name} is not on this machine; {remedy}"


def local(weights: object) -> bool:
    """Whether weights are on this machine: no repository of the hub, or one in the hub's cache."""
    found = HUB_ID.fullmatch(str(weights))
    if not found or Path(str(weights)).expanduser().exists():
        return True
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot_download(found[1], revision=found[2], local_files_only=True)
    except LocalEntryNotFoundError:
        return False
    return True


def _asked(finding: Finding) -> Finding:
    """The finding, with the hub's answer added for a repository that is not on this machine."""
    found = re.match(rf"{HUB_ID.pattern} is not on this machine", finding.said)
    return Finding(finding.about, f"{finding.said} ({on_hub(found[1])})", ok=False) if found else finding


def on_hub(name: str) -> str:
    """The hub's answer on a repository: open, gated or not available, with its size."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        HfApi().auth_check(name)
        info = HfApi().model_info(name, files_metadata=True)
    except GatedRepoError:
        return f"gated: accept its terms at https://huggingface.co/{name} and run `hf auth login`"
    except RepositoryNotFoundError:
        return "the hub shows no such repository; check the name, or run `hf auth login`"
    except Exception as error:  # any error of the network
        return f"the hub cannot be reached: {type(error).__name__}"
    sizes = [file.size or 0 for file in info.siblings or ()]
    return f"open on the hub, {sum(sizes) / 1e9:.1f} GB in {len(sizes)} files"
