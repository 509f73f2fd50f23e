#!/usr/bin/env python
"""Records what the authors' own code answers, for tests/golden: `record_golden.py SECTION [--source CHECKOUT]`.

Run it in an environment of the section's own; each function says what it needs. Inputs and weights are formulas
(tests/golden/__init__.py), so that only the answers are stored, at most 100 KB a section. The tests then hold this
package to them without any of these environments.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from golden import HERE, scene  # noqa: E402
from golden_cogact import cogact  # noqa: E402
from golden_lerobot import lerobot  # noqa: E402
from golden_libero_plus import libero_plus  # noqa: E402
from golden_pi import pi  # noqa: E402
from golden_prismatic import oft, openvla  # noqa: E402

Arrays = dict[str, np.ndarray]


def images(source: Path) -> Arrays:
    """OpenVLA's image pipeline. Needs tensorflow-cpu 2.21; no source."""
    import tensorflow as tf

    out: Arrays = {}
    for name, (height, width) in {"square": (64, 64), "wide": (60, 96)}.items():
        seen = tf.io.decode_image(tf.image.encode_jpeg(scene(1, height, width)), expand_animations=False)
        small = tf.image.resize(seen, (56, 56), method="lanczos3", antialias=True)
        small = tf.cast(tf.clip_by_value(tf.round(small), 0, 255), tf.uint8)
        side = tf.reshape(tf.sqrt(0.9), (1,))
        low = (1 - side) / 2
        box = tf.stack([low, low, low + side, low + side], axis=1)
        unit = tf.image.convert_image_dtype(small, tf.float32)[None]
        crop = tf.clip_by_value(tf.image.crop_and_resize(unit, box, tf.range(1), (56, 56))[0], 0, 1)
        crop = tf.image.convert_image_dtype(crop, tf.uint8, saturate=True)
        out |= {f"{name}_jpeg": seen.numpy(), f"{name}_lanczos": small.numpy(), f"{name}_crop": crop.numpy()}
    return out


SECTIONS: dict[str, Callable[[Path], Arrays]] = {
    **{"images": images, "openvla": openvla, "oft": oft},
    **{"cogact": cogact, "pi": pi, "lerobot": lerobot, "libero_plus": libero_plus},
}


def main() -> None:
    """Runs one section and writes tests/golden/SECTION.npz."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("--source", type=Path, default=Path(), help="checkout of the authors' repository")
    args = parser.parse_args()
    arrays = SECTIONS[args.section](args.source)
    path = HERE / f"{args.section}.npz"
    np.savez_compressed(path, **arrays)
    print(path, path.stat().st_size, "bytes", {k: (v.shape, str(v.dtype)) for k, v in arrays.items()})


if __name__ == "__main__":
    main()
