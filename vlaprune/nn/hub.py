"""Finds weights by name: a local path, or else a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from vlaprune.errors import UserError


def locate(weights: str, patterns: Sequence[str] = ("*.json", "*.safetensors"), option: str = "weights") -> Path:
    """The local path of weights; `owner/name[@revision]` is downloaded from the hub. UserError if neither works.

    patterns  files of the hub's repository that are wanted
    option    the option of the model that named the weights, for error messages
    """
    path = Path(weights).expanduser()
    if path.exists():
        return path
    found = re.fullmatch(r"([\w.-]+/[\w.-]+?)(?:@([\w.-]+))?", weights)
    if not found:
        raise UserError(f"{option} {weights} do not exist; give a folder, a file, owner/name of the hub, or `random`")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    name, revision = found.groups()
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except GatedRepoError:
        why = f"is gated: accept its terms at https://huggingface.co/{name} and run `hf auth login`"
    except RevisionNotFoundError:
        why = f"has no revision {revision}; leave it out for the newest"
    except RepositoryNotFoundError:
        why = "is neither a path here nor a repository that the hub shows you; check the name, or run `hf auth login`"
    except Exception as error:  # whatever the network stack raises: there is one thing to do
        said = " ".join(str(error).split())[:120]
        why = (
            f"is no path here and the hub cannot be reached ({type(error).__name__}: {said}); run `hf download {name} "
            f"--local-dir FOLDER` where there is a network, then set model.{option}=FOLDER"
        )
    raise UserError(f"{option} {weights}: {name} {why}") from None
