"""Exact nearest neighbours against faiss-cpu, and pairs of images a second of the structural similarity.

    python -m benchmarks.similarity --peer_python=/path/to/faiss/bin/python

The peer, a Python that has faiss-cpu, runs benchmarks/faiss_peer.py in a process of its own. The two sides take turns on the same
cores; a repeat gives one ratio, the peer's time by ours (above 1 we are faster), and the share of the peer's neighbours
that are ours too. Rows are random, of unit length: the nearest by distance are those of the highest inner product.
`--queries=0` and `--ssim=0` leave a part out.
"""

import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags

from benchmarks.timing import Peer, shown, spread
from fingerprint_jax.estimators import search, similarity
from fingerprint_jax.runtime import cli, paths
from fingerprint_jax.runtime.progress import show_log


def neighbours(values: flags.FlagValues) -> None:
    """Prints a line a metric of the peer, and one without it."""
    rng = np.random.default_rng(0)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    query, gallery = (unit(rng.normal(size=(n, values.dimensions)).astype(np.float32)) for n in (values.queries, values.gallery))
    peer = Peer(values.peer_python, "faiss_peer.py") if values.peer_python else None
    print(f"{values.queries} x {values.gallery} x {values.dimensions}, the nearest {values.k}; peer {peer.about if peer else None}")
    search.nearest(query, gallery, values.k, block=values.block)  # compiles
    with tempfile.TemporaryDirectory() as folder:
        if peer:
            np.save(Path(folder) / "query.npy", query)
            np.save(Path(folder) / "gallery.npy", gallery)
        for metric in ("l2", "inner_product") if peer else ("",):
            times, ratios = [], []
            for _ in range(values.repeats):
                start = time.perf_counter()
                _, positions = search.nearest(query, gallery, values.k, block=values.block)
                times.append(time.perf_counter() - start)
                if peer:
                    ratios.append(peer.ask(folder=folder, metric=metric, k=values.k)["seconds"] / times[-1])
                    theirs = np.load(Path(folder) / "positions.npy")
                    same = np.mean([np.isin(a, b).mean() for a, b in zip(theirs, positions, strict=True)])
            text = f"{metric:14} {statistics.median(times):8.2f} s"
            if peer:
                text += f"   ratio {shown(spread(ratios))}, {same:.4%} of its neighbours"
            print(text, flush=True)


def structural(values: flags.FlagValues) -> None:
    """Prints pairs a second."""
    rng = np.random.default_rng(0)
    a, b = (rng.uniform(0, 1, (n, values.size, values.size)).astype(np.float32) for n in (values.ssim, 4 * values.ssim))
    times = []
    for _ in range(values.repeats + 1):  # the first compiles
        start = time.perf_counter()
        similarity.ssim(a, b)
        times.append(time.perf_counter() - start)
    rate = spread([len(a) * len(b) / seconds for seconds in times[1:]])
    print(f"ssim, {values.size} px: {shown(rate, ',.0f')} pairs a second")


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""
    flags.DEFINE_integer("queries", 5000, "Rows that ask.", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("gallery", 1_000_000, "Rows that are searched.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("dimensions", 512, "Numbers a row.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("k", 50, "Neighbours of a row.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("block", 16384, "Rows of the gallery at a time.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("ssim", 128, "Images on one side, four times as many on the other.", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("size", 256, "Of the images in pixels.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("repeats", 3, "Turns of each side.", lower_bound=1, flag_values=values)
    paths.define("peer_python", None, "A Python that has faiss-cpu.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Prints the device and the lines of both parts."""
    show_log()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    if values.queries:
        neighbours(values)
    if values.ssim:
        structural(values)


if __name__ == "__main__":
    cli.run("similarity", define_flags, main, devices=True)
