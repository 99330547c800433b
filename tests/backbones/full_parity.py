"""Published sizes with drawn weights against timm: the largest difference of evaluation features, relative to the largest.

Three columns: ours to PyTorch's, and both to PyTorch's in float64.

    python -m tests.backbones.make_golden --full=DIR    # where torch and timm are
    python -m tests.backbones.full_parity DIR [variant ...]
"""

import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from tests.backbones.make_golden import PUBLISHED, images
from tests.backbones.test_parity import abstract, drawn


def compare(name, folder):
    """Prints the line of one variant."""
    side = PUBLISHED[name][1]
    with tempfile.TemporaryDirectory() as temporary:
        graph, state = nnx.split(drawn(name, abstract(name, (side, side)), Path(temporary)))
    x = images(2, (side, side))
    features = np.asarray(jax.jit(lambda state, x: nnx.merge(graph, state, copy=True)(x, train=False))(state, x))
    golden = np.load(folder / f"{name}.npz")
    exact = golden["exact"]
    pairs = ((features, golden["features"]), (features, exact), (golden["features"], exact))
    differences = [f"{np.abs(a - b).max() / np.abs(exact).max():.1e}" for a, b in pairs]
    print(f"{name:24} {side:4} px ", *differences, flush=True)


if __name__ == "__main__":
    for variant in sys.argv[2:] or PUBLISHED:
        compare(variant, Path(sys.argv[1]))
