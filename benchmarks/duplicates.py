"""Seconds in which `pack` searches for duplicates, and in which a product of all pairs would, one after the other.

    python -m benchmarks.duplicates --count=20000 --count=100000

The 64 px phantoms of subtask 2 in eleven cells, two slices a patient; one picture with so little noise that all correlate by 0.996;
noise alone, whose components tell nothing. The times are those of the process: CPU seconds of all its threads.
"""

import time

import numpy as np
from absl import flags

from fingerprint_jax.data import duplicates, phantom
from fingerprint_jax.runtime import cli

CELLS = 11


def thumbnails(kind: str, count: int) -> np.ndarray:
    """Of so many images."""
    rng = np.random.default_rng(0)
    if kind == "phantoms":
        z, _ = phantom.anatomies(rng, count, 2)
        parts = (phantom.acquire(rng, phantom.render(part, 64)) for part in np.array_split(z, count // 1000 + 1))
        return np.stack([duplicates.thumbnail(pixels) for part in parts for pixels in part])
    found = rng.standard_normal((count, 1024), np.float32) * (0.002 if kind == "all alike" else 1)
    if kind == "all alike":
        found += duplicates.thumbnail(rng.integers(0, 256, (64, 64), np.uint8))
    found -= found.mean(axis=1, keepdims=True)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def all_pairs(found: np.ndarray, cells: np.ndarray, groups: np.ndarray) -> int:
    """The images and cells with a duplicate there, by the product of all thumbnails."""
    count = 0
    for cell in range(CELLS):
        others = np.flatnonzero(cells == cell)
        for rows in np.array_split(np.arange(len(found)), len(found) // 1024 + 1):
            similarity = found[rows] @ found[others].T
            similarity[(cells[rows] == cell)[:, None] & (groups[rows, None] == groups[others])] = -1
            count += int(np.count_nonzero(similarity.max(axis=1) > duplicates.NEAR))
    return count


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""
    flags.DEFINE_multi_integer("count", [20_000, 100_000], "Images.", lower_bound=1, flag_values=values)
    flags.DEFINE_bool("all_pairs", True, "Compare with the product of all pairs.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Prints a row of a Markdown table for each kind and number of images."""
    print("| images | number | duplicates | seconds | all pairs |\n|---|---|---|---|---|")
    for kind in ("phantoms", "all alike", "noise"):
        for count in values.count:
            found, groups = thumbnails(kind, count), np.arange(count) // 2
            cells = np.random.default_rng(1).integers(0, CELLS, count)
            begin = time.process_time()
            twins = sum(1 for _ in duplicates.twins(found, [str(i) for i in range(count)], cells, groups))
            taken, line = time.process_time() - begin, ""
            if values.all_pairs:
                begin = time.process_time()
                assert twins == all_pairs(found, cells, groups)
                line = f"{time.process_time() - begin:.1f}"
            print(f"| {kind} | {count:,} | {twins:,} | {taken:.1f} | {line} |", flush=True)


if __name__ == "__main__":
    cli.run("benchmarks.duplicates", define_flags, main)
