"""Speed of what compares patches: pairs of images a second of local_match and mosaic, and of the same distances in numpy.

    python -m benchmarks.patches [--side=64] [--repeats=5]

A pair is two images, all patches of one with those near the same places of the other, by the defaults of the estimators. numpy
has the same products by its BLAS. The three take turns; shown are medians and ranges. The blocks are full: a pair costs the same
however many there are, so that the seconds of the official size are the pairs by the rate.
"""

import time
from collections.abc import Callable

import numpy as np
from absl import flags

from fingerprint_jax.estimators import Features, local_match, mosaic
from fingerprint_jax.estimators.patches import BLOCK, FLOOR
from fingerprint_jax.runtime import cli

PATCH, STRIDE, RADIUS = 16, 8, 1  # the defaults
REAL, GENERATED = 3500, 7700  # images of the official size


def in_numpy(query: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Squared distance of each patch to the nearest one near the same place of each image: [M,S,S], [N,S,S] -> [K,M,N]."""
    last, found = query.shape[1] - PATCH, []

    def patch(images: np.ndarray, y: int, x: int) -> np.ndarray:
        part = images[:, y : y + PATCH, x : x + PATCH].reshape(len(images), -1)
        part = part - part.mean(axis=1, keepdims=True)
        return part / (PATCH * np.maximum(np.sqrt(np.mean(part**2, axis=1, keepdims=True)), FLOOR))

    for y in range(0, last + 1, STRIDE):
        for x in range(0, last + 1, STRIDE):
            own, nearest = patch(query, y, x), np.full((len(query), len(others)), np.inf, np.float32)
            for dy in range(-RADIUS, RADIUS + 1):
                for dx in range(-RADIUS, RADIUS + 1):
                    theirs = patch(others, int(np.clip(y + dy, 0, last)), int(np.clip(x + dx, 0, last)))
                    np.minimum(nearest, np.sum(theirs**2, axis=1) - 2 * own @ theirs.T, out=nearest)
            found.append(nearest + np.sum(own**2, axis=1)[:, None])
    return np.stack(found)


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""
    flags.DEFINE_integer("side", 64, "Of the images, in pixels.", lower_bound=PATCH, flag_values=values)
    flags.DEFINE_integer("repeats", 5, "Turns of each.", lower_bound=1, flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Prints a row of a Markdown table for each."""
    rng = np.random.default_rng(0)

    def images(count: int, first: int) -> Features:
        return Features(rng.random((count, values.side, values.side), np.float32), np.full(count, -1), first + np.arange(count))

    query, near, far = images(BLOCK, 0), images(2 * BLOCK, 1000), images(2 * BLOCK, 2000)
    gallery = {"generated": near, "reference": far}
    # Both halves of the reference get votes of the synthetic images, and of the images of the other half, and the query of all.
    of_votes = len(near.index) * (BLOCK + 2 * BLOCK) + 2 * BLOCK * (BLOCK + BLOCK)
    measured: dict[str, tuple[int, Callable[[], object]]] = {
        "local_match": (4 * BLOCK**2, lambda: local_match.local_match(query, gallery, seed=0)),
        "mosaic": (of_votes, lambda: mosaic.mosaic(query, gallery, seed=0)),
        "numpy": (2 * BLOCK**2, lambda: in_numpy(query.values, near.values)),
    }
    rates: dict[str, list[float]] = {name: [] for name in measured}
    for turn in range(values.repeats + 1):
        for name, (pairs, act) in measured.items():
            begin = time.perf_counter()
            act()
            if turn:  # the first compiles
                rates[name].append(pairs / (time.perf_counter() - begin))
    total = REAL * GENERATED
    print(f"{values.side} px, patches of {PATCH} px every {STRIDE} px, shifts of up to {RADIUS} px")
    print(f"| what | pairs a second | by that of numpy | {GENERATED:,} x {REAL:,} images |\n|---|---|---|---|")
    for name, found in rates.items():
        ratio = np.array(found) / np.array(rates["numpy"])
        middle = np.median(found)
        spread = f"{middle:,.0f} ({min(found):,.0f} to {max(found):,.0f})"
        print(f"| {name} | {spread} | {np.median(ratio):.2f} ({ratio.min():.2f} to {ratio.max():.2f}) | {total / middle:,.0f} s |")


if __name__ == "__main__":
    cli.run("benchmarks.patches", define_flags, main)
