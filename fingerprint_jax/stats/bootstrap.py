"""Resampling with replacement of whole groups (without groups: rows), stratified by the set of true classes that a group holds.

A stratum of a few groups has next to no variance, one of a single group has none: sets of classes that few groups hold are one
stratum together. Where a class occurs in too few groups for any resampling to tell its spread there is no resample. Rows that are
no groups keep their classes as strata, however small. Pure functions on the host.
"""

from collections.abc import Iterator

import numpy as np

RESAMPLES = 2000
LEAST = 5  # groups that hold a class, and groups of a stratum
BLOCK = 2**20  # weights held at a time, which bounds the memory

Interval = list[float] | list[None]  # [low, high]


def weights(
    labels: np.ndarray, groups: np.ndarray | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> Iterator[np.ndarray]:
    """How often each row is drawn: blocks of resamples, int [block, N]. Equal arguments give equal draws; none where `too_few`."""
    labels = np.asarray(labels)
    if too_few(labels, groups):
        return
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


def sums(
    labels: np.ndarray, cells: np.ndarray, groups: np.ndarray | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The cells int [C] that occur among those of rows [N], ascending, and rows per cell in each resample, [resamples,C].

    [0,C] where `too_few`. There may be far more cells than rows.
    """
    labels = np.asarray(labels)
    found, column = np.unique(cells, return_inverse=True)
    if too_few(labels, groups):
        return found, np.zeros((0, len(found)))
    group, stratum = _strata(labels, groups)
    counts = np.zeros((len(stratum), len(found)), np.int64)
    np.add.at(counts, (group, column), 1)
    rng = np.random.default_rng(seed)
    draws = np.zeros((resamples, len(found)))
    for s in range(stratum.max() + 1):
        # Groups with equal counts are interchangeable: drawing kinds of counts is the same, and kinds are far fewer.
        kinds, many = np.unique(counts[stratum == s], axis=0, return_counts=True)
        draws += rng.multinomial(many.sum(), many / many.sum(), size=resamples) @ kinds.astype(np.float64)
    return found, draws


def blocks(resamples: int, numbers: int) -> Iterator[slice]:
    """Resamples of which each has so many numbers, a few at a time."""
    size = max(1, BLOCK // numbers)
    yield from (slice(first, min(first + size, resamples)) for first in range(0, resamples, size))


def percentiles(values: np.ndarray, confidence: float = 0.95) -> Interval:
    """[low, high] of resampled values [R]; those that are not finite are left out, [None, None] where none is left."""
    finite = values[np.isfinite(values)]
    tail = 100 * (1 - confidence) / 2
    return np.percentile(finite, [tail, 100 - tail]).tolist() if len(finite) else [None, None]


def as_they_come(names: np.ndarray) -> np.ndarray:
    """Numbers int [N] of names [N], from 0, in the order of their first appearance: what is drawn by number knows no name."""
    _, first, found = np.unique(names, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[found]


def holding(labels: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    """How many groups (without groups: rows) hold each class that occurs in labels [N]: [C]."""
    return _holds(np.asarray(labels), groups)[1].sum(axis=0)


def outside(labels: np.ndarray, groups: np.ndarray | None = None) -> int:
    """How many groups (without groups: rows) are left without those of one class alone, of the class that has most of these."""
    holds = _holds(np.asarray(labels), groups)[1]
    return int(len(holds) - holds[holds.sum(axis=1) == 1].sum(axis=0).max())


def too_few(labels: np.ndarray, groups: np.ndarray | None) -> bool:
    """Whether groups of more than one row are so few that no interval can be had: a class occurs in fewer than LEAST of them."""
    return groups is not None and len(np.unique(groups)) < len(labels) and bool(holding(labels, groups).min() < LEAST)


def _holds(labels: np.ndarray, groups: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The group [N] of each row, and whether a group holds a class that occurs: bool [G,C]."""
    group = np.arange(len(labels)) if groups is None else as_they_come(groups)
    classes, column = np.unique(labels, return_inverse=True)
    holds = np.zeros((group.max() + 1, len(classes)), bool)
    holds[group, column] = True
    return group, holds


def _strata(labels: np.ndarray, groups: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The group [N] of each row, and the stratum [G] of each group."""
    group, holds = _holds(labels, groups)
    stratum = np.unique(holds, axis=0, return_inverse=True)[1]
    if len(stratum) == len(labels):
        return group, stratum
    sizes = np.bincount(stratum)
    order = np.argsort(sizes, kind="stable")
    if sizes[order[0]] < LEAST:
        # The smallest of the others joins in where the small ones are too few together.
        many = max(np.sum(sizes < LEAST), 1 + np.searchsorted(np.cumsum(sizes[order]), LEAST))
        stratum[np.isin(stratum, order[:many])] = order[0]
        stratum = np.unique(stratum, return_inverse=True)[1]
    return group, stratum
