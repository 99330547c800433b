"""Similarities of every query to every image of a gallery, and scores read from them.

A measure is `f(a [M, ...], b [N, ...]) -> float32 [M,N]`, higher is more alike; b is the whole gallery.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import cosine_similarity, euclidean_distances
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fingerprint_jax.estimators import Features, Gallery, at_least, classes, columns, stream
from fingerprint_jax.runtime import names

ROWS = 512  # queries compared at a time
ELEMENTS = 2**26  # pixels of a block of images on the device


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of the angle, -1 to 1; that of a zero vector is 0."""
    return np.asarray(cosine_similarity(_vectors(a), _vectors(b)), np.float32)


def euclidean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Minus the Euclidean distance."""
    return -np.asarray(euclidean_distances(_vectors(a), _vectors(b)), np.float32)


def jaccard(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Features that both images have, as a share of those that either has, 0 to 1; 1 where neither has any.

    An image has a feature where its value is above the median of that feature over all rows of b.
    """
    median = np.median(_vectors(b), axis=0)
    on, other = ((_vectors(x) > median).astype(np.float32) for x in (a, b))
    both = on @ other.T
    either = on.sum(axis=1)[:, None] + other.sum(axis=1)[None, :] - both
    return np.where(either > 0, both / np.maximum(either, 1), 1).astype(np.float32)


def ssim(a: np.ndarray, b: np.ndarray, *, window: str = "gaussian", stride: int = 8) -> np.ndarray:
    """Structural similarity: maps [M,H,W], [N,H,W] in 0..1 -> [M,N], mean over windows of at most 1 each.

    Wang, Bovik, Sheikh & Simoncelli 2004 (IEEE Transactions on Image Processing 13:600), eq. 13, with K1 = 0.01 and K2 = 0.03: the
    values of scikit-image without its sample covariance, at every stride-th window that lies inside the map. The means of a
    position's windows are taken off first, so that all their covariances are one matrix product.

    Args:
        a: [M,H,W].
        b: [N,H,W].
        window: gaussian (11x11, sigma 1.5) or uniform (7x7).
        stride: pixels from one window to the next, both ways.

    Raises:
        ValueError: an unknown window, or maps smaller than it.
    """
    _check_maps(a, window)
    size = max(1, min(1024, ELEMENTS // a[0].size))
    out = np.empty((len(a), len(b)), np.float32)
    for left in _parts(len(a), size):
        x = jax.device_put(np.float32(a[left]))
        for right in _parts(len(b), size):
            out[left, right] = jax.device_get(_ssim(x, jax.device_put(np.float32(b[right])), window, stride))
    return out


def _parts(count: int, size: int) -> list[slice]:
    """Slices of one length that cover 0..count-1: the last begins earlier, so that a function is compiled for one shape."""
    size = min(size, count)
    return [slice(min(i, count - size), min(i, count - size) + size) for i in range(0, count, size)]


@functools.partial(jax.jit, static_argnums=(2, 3))
def _ssim(a: jax.Array, b: jax.Array, window: str, stride: int) -> jax.Array:
    weights = _window(window)
    side = len(weights)
    root = jnp.sqrt(jnp.asarray(weights.reshape(1, -1), jnp.float32))
    c1, c2 = 0.01**2, 0.03**2

    def cut(maps: jax.Array, corner: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Weighted means [N] of a position's windows, and the deviations from them times the roots of the weights [N,w*w]."""
        x = jax.lax.dynamic_slice(maps, (0, *corner), (len(maps), side, side)).reshape(len(maps), -1)
        mean = jnp.sum(x * root**2, axis=1)
        return mean, (x - mean[:, None]) * root

    def step(total: jax.Array, corner: jax.Array) -> tuple[jax.Array, None]:
        (mean_a, x), (mean_b, y) = cut(a, corner), cut(b, corner)
        covariance = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
        variances = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)[None, :]
        means, squares = mean_a[:, None] * mean_b[None, :], (mean_a**2)[:, None] + (mean_b**2)[None, :]
        same = (2 * means + c1) * (2 * covariance + c2)
        return total + same / ((squares + c1) * (variances + c2)), None

    corners = np.stack(np.meshgrid(*(np.arange(0, size - side + 1, stride) for size in a.shape[1:]), indexing="ij"), -1)
    corners = jnp.asarray(corners.reshape(-1, 2), jnp.int32)
    total, _ = jax.lax.scan(step, jnp.zeros((len(a), len(b))), corners)
    return total / len(corners)


def _window(name: str) -> np.ndarray:
    """Weights [w,w] of a window, of sum 1."""
    names.check("estimator.window", name, ("gaussian", "uniform"))
    if name == "uniform":
        return np.full((7, 7), 1 / 49)
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    return np.outer(line, line) / line.sum() ** 2


MEASURES = {"cosine": cosine, "euclidean": euclidean, "jaccard": jaccard, "ssim": ssim}


def similarity(
    query: Features,
    gallery: Gallery,
    *,
    seed: int,
    measure: str = "cosine",
    readout: str = "max",
    k: int = 5,
    window: str | None = None,
    stride: int | None = None,
) -> np.ndarray:
    """Similarity to the generated images; where that stream is not there, to the labelled images of each class.

    Args:
        query: vectors, for ssim maps in 0..1.
        gallery: `generated`, of which no label is read, or `labelled`.
        seed: nothing is drawn.
        measure: cosine, euclidean, jaccard or ssim.
        readout: max, mean, or knn, the mean of the k largest.
        k: of knn.
        window, stride: of ssim.
    """
    _check(gallery, measure, readout, k, window, stride)
    compare = _measure(measure, window=window, stride=stride)
    other, same = _compared(gallery)
    known = np.unique(same)

    def read(pairs: np.ndarray) -> np.ndarray:
        if readout == "knn":  # NaN is sorted to the end
            return -np.partition(-pairs, k - 1, axis=1)[:, :k].mean(axis=1)
        return (np.nanmax if readout == "max" else np.nanmean)(pairs, axis=1)

    blocks = [np.stack([read(pairs[:, same == c]) for c in known], axis=1) for pairs in _pairs(query, other, compare)]
    return columns(np.concatenate(blocks))


def similarity_logistic(query: Features, gallery: Gallery, *, seed: int, measure: str = "cosine", C: float = 1.0) -> np.ndarray:
    """Logistic regression of largest, mean and standard deviation of the similarity to the generated images; the logit.

    Fitted to `labelled`, on the three features standardised; nothing is drawn from the seed.
    """
    labelled, generated, compare = stream(gallery, "labelled"), stream(gallery, "generated"), _measure(measure)

    def features(rows: Features) -> np.ndarray:
        blocks = [np.stack([f(p, axis=1) for f in (np.nanmax, np.nanmean, np.nanstd)], 1) for p in _pairs(rows, generated, compare)]
        return np.concatenate(blocks)

    model = make_pipeline(StandardScaler(), LogisticRegression(C=C)).fit(features(labelled), labelled.labels)
    return np.float32(model.decision_function(features(query))).reshape(len(query.index), -1)


def _measure(name: str, **options: Any) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A measure with its options set; those that are None keep its own default."""
    names.check("estimator.measure", name, MEASURES)
    options = {option: value for option, value in options.items() if value is not None}
    if options and name != "ssim":
        raise ValueError(f"estimator.{next(iter(options))} is no option of the measure {name}, but of ssim")
    return functools.partial(MEASURES[name], **options)


def _pairs(query: Features, other: Features, measure: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Iterator[np.ndarray]:
    """Similarities [B,N] of some queries at a time to all of the others, NaN to itself."""
    for first in range(0, len(query.index), ROWS):
        rows = slice(first, first + ROWS)
        pairs = measure(query.values[rows], other.values)
        pairs[query.index[rows, None] == other.index] = np.nan
        yield pairs


def _vectors(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1)


def _compared(gallery: Gallery) -> tuple[Features, np.ndarray]:
    """The images that queries are compared with, and what each of them is like: all alike, or their labels."""
    other = stream(gallery, "generated" if "generated" in gallery else "labelled")
    return other, np.zeros(len(other.index), int) if "generated" in gallery else other.labels


def _check(gallery: Gallery, measure: str, readout: str, k: int, window: str | None, stride: int | None) -> None:
    names.check("estimator.readout", readout, ("max", "mean", "knn"))
    other, same = _compared(gallery)
    if readout == "knn":
        at_least("k", k, 1, int(np.unique(same, return_counts=True)[1].min()), "images to compare with")
    if "generated" not in gallery:
        classes(gallery)
    _check_measure(other, measure, window=window, stride=stride)


def _check_logistic(gallery: Gallery, measure: str, C: float) -> None:
    classes(gallery)
    _check_measure(stream(gallery, "generated"), measure)


def _check_measure(other: Features, name: str, **options: Any) -> None:
    _measure(name, **options)
    if name == "ssim":
        _check_maps(other.values, options.get("window") or "gaussian")


def _check_maps(values: np.ndarray, window: str) -> None:
    side = len(_window(window))
    if values.ndim != 3 or min(values.shape[1:]) < side:
        raise ValueError(f"estimator.measure='ssim' compares maps [N,H,W] of {side} px or more, not {list(values.shape[1:])}")


CHECKS = {"similarity": _check, "similarity_logistic": _check_logistic}
ESTIMATORS = {"similarity": similarity, "similarity_logistic": similarity_logistic}
