"""How much of a backbone's inference rate the prediction of a whole split reaches, records read and decoded on the way.

    python -m benchmarks.predict --names=siamese_cnn,efficientnet_b0 --images=25000 --size=64

Both sides take turns, in one process: `inference.encode` over the packed split, and the same compiled function as often on one
batch that lies on the device. A repeat gives one ratio, the second time by the first; 1 is all of it.
"""

import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags
from PIL import Image

from benchmarks.timing import ratios, shown, turns
from configs import base
from fingerprint_jax.data import packing
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import cli
from fingerprint_jax.runtime.progress import show_log
from fingerprint_jax.training import inference
from fingerprint_jax.training.model import model_of


def packed(folder: Path, count: int, size: int) -> Path:
    """A packed set of `count` images of noise, which no decoder finds easy, of one class each half."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / "images" / str(i % 2) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (size, size), np.uint8)).save(path)
    packing.pack("images", folder / "data", folder / "images")
    return folder / "data"


def measure(name: str, data: Path, batch: int, repeats: int) -> dict[str, list[float]]:
    """Images a second of the `split` and of the bare `network`, one a repeat."""
    config = base.gradient("images")
    config.data_dir, config.backbone.name, config.eval_batch = str(data), name, batch
    run = Run(config, data.parent / name)
    model, rows = model_of(run), run.rows("train")
    state = jax.block_until_ready(model.init(jax.random.key(0)))
    weights, images = model.weights(state), jax.device_put(run.source.images(rows.index[:batch]))
    batches = -(-len(rows) // batch)
    jax.block_until_ready(model.outputs(*weights, images))

    def split() -> float:
        begin = time.perf_counter()
        inference.encode(run, state, rows)
        return len(rows) / (time.perf_counter() - begin)

    def bare() -> float:
        begin = time.perf_counter()
        for _ in range(batches):
            last = model.outputs(*weights, images)
        jax.block_until_ready(last)
        return len(rows) / (time.perf_counter() - begin)

    return turns({"split": split, "network": bare}, repeats)


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""
    flags.DEFINE_list("names", ["siamese_cnn", "efficientnet_b0"], "Variants.", flag_values=values)
    flags.DEFINE_integer("images", 25_000, "Images of the split.", lower_bound=2, flag_values=values)
    flags.DEFINE_integer("size", 64, "Their side in pixels.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("batch", 128, "Images a step.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("repeats", 3, "Turns of each side.", lower_bound=1, flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Prints a row of a Markdown table for each backbone."""
    show_log()
    with tempfile.TemporaryDirectory() as folder:
        data = packed(Path(folder), values.images, values.size)
        print("| variant | images a second, split | images a second, network alone | share |\n|---|---|---|---|")
        for name in values.names:
            found = measure(name, data, values.batch, values.repeats)
            split, bare = (f"{statistics.median(side):,.0f}" for side in found.values())
            print(f"| `{name}` | {split} | {bare} | {shown(ratios(found['split'], found['network']))} |", flush=True)


if __name__ == "__main__":
    cli.run("predict", define_flags, main, devices=True)
