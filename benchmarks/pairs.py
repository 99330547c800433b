"""Seconds in which a network that looks at pairs compares 500 real images with 50 candidates each among 7,000 synthetic images.

    python -m benchmarks.pairs --names=scope_siamese_cross_attention,zhouyijiang_canet --size=64

That is the official size of subtask 1. The published networks, weights drawn, on noise; the time has the search for the candidates,
their encoding and compilation in it, not the encoding of all images for the search.
"""

import importlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from fingerprint_jax.objectives import cross_attention
from fingerprint_jax.objectives.parts import losses
from fingerprint_jax.runs.config import network_config
from fingerprint_jax.runtime import cli
from fingerprint_jax.runtime.progress import show_log
from fingerprint_jax.training.model import Model


def seconds(name: str, size: int, queries: int, gallery: int, candidates: int) -> float:
    """Of all pairs of one network, compilation included."""
    config = network_config(importlib.import_module(f"configs.subtask1.{name}").get_config())
    model, rng = Model(config, 2, (size, size, 1)), np.random.default_rng(0)
    net = model.merge(*model.weights(model.init(jax.random.key(0))))

    def stream(first: int, count: int) -> dict:
        noise = rng.standard_normal((count, size, size, 1), np.float32)
        embedding = np.asarray(losses.l2_normalize(jax.device_put(rng.standard_normal((count, 128), np.float32))))
        return {
            "embedding": embedding,
            "index": np.arange(first, first + count),
            "images": lambda index: jnp.asarray(noise[index - first]),
        }

    begin = time.perf_counter()
    found = cross_attention.compared(net, stream(0, queries), stream(queries, gallery), candidates)
    assert found.shape[:2] == (queries, candidates) and np.isfinite(found).all()
    return time.perf_counter() - begin


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""
    flags.DEFINE_list("names", ["scope_siamese_cross_attention", "zhouyijiang_canet"], "Configs.", flag_values=values)
    flags.DEFINE_integer("size", 64, "Side of the images in pixels.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("queries", 500, "Real images.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("gallery", 7000, "Synthetic images.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("candidates", 50, "Of each real image.", lower_bound=1, flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Prints a row of a Markdown table for each network."""
    show_log()
    print("| config | pixels | pairs | seconds |\n|---|---|---|---|")
    for name in values.names:
        taken = seconds(name, values.size, values.queries, values.gallery, values.candidates)
        print(f"| `{name}` | {values.size} | {values.queries} x {values.candidates} | {taken:.0f} |", flush=True)


if __name__ == "__main__":
    cli.run("pairs", define_flags, main, devices=True)
