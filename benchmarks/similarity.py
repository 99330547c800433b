"""Exact nearest neighbours against faiss-cpu, and pairs of images a second of the structural similarity.

    python -m benchmarks.similarity --peer_python=/path/to/faiss/bin/python

The peer, a Python that has faiss-cpu, runs benchmarks/faiss_peer.py in a process of its own. The two sides take turns on the same
cores; a repeat gives one ratio, the peer's time by ours (above 1 we are faster), and the share of the peer's neighbours
that are ours too. Rows are random, of unit length: the nearest by distance are those of the highest inner product.
`--queries=0` and `--ssim=0` leave a part out.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks.backbones import Peer, spread
from fingerprint_jax.estimators import search, similarity


def neighbours(args) -> None:
    """Prints a line a metric of the peer, and one without it."""
    rng = np.random.default_rng(0)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    query, gallery = (unit(rng.normal(size=(n, args.dimensions)).astype(np.float32)) for n in (args.queries, args.gallery))
    peer = Peer(args.peer_python, "faiss_peer.py") if args.peer_python else None
    print(f"{args.queries} x {args.gallery} x {args.dimensions}, the nearest {args.k}; peer {peer.about if peer else None}")
    search.nearest(query, gallery, args.k, block=args.block)  # compiles
    with tempfile.TemporaryDirectory() as folder:
        if peer:
            np.save(Path(folder) / "query.npy", query)
            np.save(Path(folder) / "gallery.npy", gallery)
        for metric in ("l2", "inner_product") if peer else ("",):
            times, ratios = [], []
            for _ in range(args.repeats):
                start = time.perf_counter()
                _, positions = search.nearest(query, gallery, args.k, block=args.block)
                times.append(time.perf_counter() - start)
                if peer:
                    ratios.append(peer.ask(folder=folder, metric=metric, k=args.k)["seconds"] / times[-1])
                    theirs = np.load(Path(folder) / "positions.npy")
                    same = np.mean([np.isin(a, b).mean() for a, b in zip(theirs, positions, strict=True)])
            text = f"{metric:14} {statistics.median(times):8.2f} s"
            if peer:
                text += (
                    "   ratio {median:5.2f} ({min:.2f} to {max:.2f})".format(**spread(ratios)) + f", {same:.4%} of its neighbours"
                )
            print(text, flush=True)


def structural(args) -> None:
    """Prints pairs a second."""
    rng = np.random.default_rng(0)
    a, b = (rng.uniform(0, 1, (n, args.size, args.size)).astype(np.float32) for n in (args.ssim, 4 * args.ssim))
    times = []
    for _ in range(args.repeats + 1):  # the first compiles
        start = time.perf_counter()
        similarity.ssim(a, b)
        times.append(time.perf_counter() - start)
    rate = spread([len(a) * len(b) / seconds for seconds in times[1:]])
    print("ssim, {} px: {median:,.0f} pairs a second ({min:,.0f} to {max:,.0f})".format(args.size, **rate))


def main() -> None:
    """Prints the device and the lines of both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=5000)
    parser.add_argument("--gallery", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--block", type=int, default=16384)
    parser.add_argument("--ssim", type=int, default=128, help="images on one side, four times as many on the other")
    parser.add_argument("--size", type=int, default=256, help="of the images in pixels")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer_python", help="a Python that has faiss-cpu")
    args = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    if args.queries:
        neighbours(args)
    if args.ssim:
        structural(args)


if __name__ == "__main__":
    main()
