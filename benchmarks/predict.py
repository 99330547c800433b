"""How much of a backbone's inference rate the prediction of a whole split reaches, records read and decoded on the way.

    python -m benchmarks.predict --names=siamese_cnn,efficientnet_b0 --images=25000 --size=64

Both sides take turns, in one process: `gradient.encode` over the packed split, and the same compiled function as often on one
batch that lies on the device. A repeat gives one ratio, the second time by the first; 1 is all of it.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from configs import base
from fingerprint_jax import pack
from fingerprint_jax.methods import gradient
from fingerprint_jax.model import model_of
from fingerprint_jax.run import Run


def packed(folder: Path, count: int, size: int) -> Path:
    """A packed set of `count` images of noise, which no decoder finds easy, of one class each half."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / "images" / str(i % 2) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (size, size), np.uint8)).save(path)
    pack.pack("images", folder / "data", folder / "images")
    return folder / "data"


def measure(name: str, data: Path, batch: int, repeats: int) -> list[tuple[float, float]]:
    """Images a second: (of the split, of the bare network), a pair a repeat."""
    config = base.gradient("images")
    config.data_dir, config.backbone.name, config.eval_batch = str(data), name, batch
    run = Run(config, data.parent / name)
    model, rows = model_of(run), run.rows("train")
    state = jax.block_until_ready(model.init(jax.random.key(0)))
    weights, images = model.weights(state), jax.device_put(run.source.images(rows.index[:batch]))
    batches = -(-len(rows) // batch)
    jax.block_until_ready(model.outputs(*weights, images))
    found = []
    for _ in range(repeats):
        begin = time.perf_counter()
        gradient.encode(run, state, rows)
        middle = time.perf_counter()
        for _ in range(batches):
            out = model.outputs(*weights, images)
            jax.block_until_ready(out)
        end = time.perf_counter()
        found.append((len(rows) / (middle - begin), len(rows) / (end - middle)))
    return found


def main() -> None:
    """Prints a row of a Markdown table for each backbone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", default="siamese_cnn,efficientnet_b0")
    parser.add_argument("--images", type=int, default=25_000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = packed(Path(folder), args.images, args.size)
        print("| variant | images a second, split | images a second, network alone | share |\n|---|---|---|---|")
        for name in args.names.split(","):
            pairs = measure(name, data, args.batch, args.repeats)
            split, bare = (f"{statistics.median(side):,.0f}" for side in zip(*pairs, strict=True))
            shares = [a / b for a, b in pairs]
            share = f"{statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})"
            print(f"| `{name}` | {split} | {bare} | {share} |", flush=True)


if __name__ == "__main__":
    main()
