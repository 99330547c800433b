"""Speed of the estimator local_match with its defaults: python -m benchmarks.local_match [side of the images in pixels].

The extrapolation is by the number of pairs, from blocks that are full: a pair costs the same however many there are.
"""

import inspect
import sys
import time

import numpy as np

from fingerprint_jax.estimators import Features
from fingerprint_jax.estimators.local_match import local_match
from fingerprint_jax.estimators.patches import BLOCK

QUERIES, GALLERY = 700, 7000  # the official size: 200 labelled and 500 unknown images, 5,000 and 2,000 synthetic ones


def main() -> None:
    """Prints the options, pairs a second, and what the official size would take; 256 px unless told otherwise."""
    side = int(sys.argv[1]) if len(sys.argv) > 1 else 256
    options = {key: p.default for key, p in inspect.signature(local_match).parameters.items() if p.default is not p.empty}
    rng = np.random.default_rng(0)

    def images(count: int, first: int) -> Features:
        return Features(rng.random((count, side, side), np.float32), np.full(count, -1), first + np.arange(count))

    query, streams = images(BLOCK, 0), {"generated": images(2 * BLOCK, 1000), "reference": images(2 * BLOCK, 2000)}
    first = {name: Features(s.values[:BLOCK], s.labels[:BLOCK], s.index[:BLOCK]) for name, s in streams.items()}
    local_match(query, first, seed=0)  # compiles
    start, processor = time.perf_counter(), time.process_time()
    local_match(query, streams, seed=0)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    pairs = 4 * BLOCK**2
    print(f"{side} px, {', '.join(f'{key} {value}' for key, value in options.items())}")
    print(f"{pairs / seconds:,.0f} pairs of images a second, {pairs / processor:,.0f} a second of processor time")
    total = QUERIES * GALLERY / pairs * seconds
    print(f"{QUERIES} x {GALLERY:,} images: {total:,.0f} s (extrapolated); the reference comes on top, by its size")


if __name__ == "__main__":
    main()
