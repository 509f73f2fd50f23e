"""The tensors of published checkpoints, name -> shape, written compactly.

A line of a .json file is `"name": [count, *shape]`; `#` in a name stands for 0 .. count - 1, and a name without it has
count 0. They were derived from the authors' module shapes and agree with the published parameter counts.
"""

import json
from pathlib import Path


def manifest(name: str) -> dict[str, tuple[int, ...]]:
    """All names and shapes of one file."""
    out = {}
    for key, (count, *shape) in json.loads((Path(__file__).parent / f"{name}.json").read_text()).items():
        for key_ in [key.replace("#", str(i)) for i in range(count)] or [key]:
            out[key_] = tuple(shape)
    return out
