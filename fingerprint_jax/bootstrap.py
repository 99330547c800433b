"""Resampling with replacement of whole groups (without groups: rows), stratified by the set of true classes that a group holds.

Every class that occurs therefore occurs in each resample. Pure functions on the host.
"""

from collections.abc import Iterator

import numpy as np

RESAMPLES = 2000
BLOCK = 2**20  # weights held at a time, which bounds the memory


def weights(labels, groups=None, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each row is drawn: blocks of resamples, int [block, N]. Equal arguments give equal draws."""
    labels = np.asarray(labels)
    group, stratum = _strata(labels, groups)
    members = [np.flatnonzero(stratum == s) for s in range(stratum.max() + 1)]
    rng = np.random.default_rng(seed)
    size = max(1, BLOCK // len(labels))
    for first in range(0, resamples, size):
        count = min(size, resamples - first)
        drawn = np.zeros((count, len(stratum)), np.int32)
        for m in members:
            picks = rng.integers(len(m), size=(count, len(m)))
            picks += len(m) * np.arange(count)[:, None]
            drawn[:, m] = np.bincount(picks.ravel(), minlength=count * len(m)).reshape(count, len(m))
        yield drawn if groups is None else drawn[:, group]


def sums(labels, cells, num_cells: int, groups=None, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Rows per cell in each resample: cells int [N] in 0..num_cells-1 -> [resamples, num_cells]."""
    group, stratum = _strata(np.asarray(labels), groups)
    counts = np.zeros((len(stratum), num_cells), np.int64)
    np.add.at(counts, (group, cells), 1)
    rng = np.random.default_rng(seed)
    draws = np.zeros((resamples, num_cells))
    for s in range(stratum.max() + 1):
        # Groups with equal counts are interchangeable: drawing kinds of counts is the same, and kinds are far fewer.
        kinds, many = np.unique(counts[stratum == s], axis=0, return_counts=True)
        draws += rng.multinomial(many.sum(), many / many.sum(), size=resamples) @ kinds.astype(np.float64)
    return draws


def percentiles(values: np.ndarray, confidence: float = 0.95) -> list:
    """[low, high] of resampled values [R]; those that are not finite are left out, [None, None] where none is left."""
    finite = values[np.isfinite(values)]
    tail = 100 * (1 - confidence) / 2
    return np.percentile(finite, [tail, 100 - tail]).tolist() if len(finite) else [None, None]


def _strata(labels: np.ndarray, groups) -> tuple[np.ndarray, np.ndarray]:
    """The group [N] of each row, and the stratum [G] of each group."""
    group = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    classes, column = np.unique(labels, return_inverse=True)
    holds = np.zeros((group.max() + 1, len(classes)), bool)
    holds[group, column] = True
    return group, np.unique(holds, axis=0, return_inverse=True)[1]
