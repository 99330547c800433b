"""Membership attacks of the literature, which compare a query with the generator's images and read no labels."""

from collections.abc import Callable, Iterator

import numpy as np
from scipy.special import logsumexp
from scipy.stats import hypergeom
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fingerprint_jax.estimators import Features, Gallery, at_least, flat, search, stream

ROWS = 512  # queries compared at a time
FOLDS = 5  # of logan_d1
TAIL = 1e-6  # weight of neighbours that are too far to matter for gan_leaks


def gan_leaks(query: Features, gallery: Gallery, *, seed: int, k: int = 1, calibrated: bool = True) -> np.ndarray:
    """How near a query is to the generated images: minus the mean Euclidean distance to the k nearest; no seed is needed.

    Chen, Yu, Zhang & Fritz 2020 (CCS, "GAN-Leaks"), the attack on generators that only give samples. Calibrated: the same
    distance to the reference less that to the generated images, since some images are near to everything. They calibrate
    by samples of a generator that was trained on other data; here real images known not to be used take their place.

    Among more images the nearest is nearer. So the larger of the two sets counts as if it was sub-sampled to the size of the
    smaller: its distance is the expectation over all its subsets of that size, in closed form (`subset_weights`).

    Args:
        query: [M,D]; one that is in the reference is left out of it.
        gallery: `generated`, and `reference` where calibrated.
        seed: nothing is drawn.
        k: neighbours, 1 to the images of the smaller set.
        calibrated: whether the reference is compared with.
    """
    _check_gan_leaks(gallery, k, calibrated)
    generated = gallery["generated"]
    if not calibrated:
        at_least("k", k, 1, int(len(generated.index) - np.isin(query.index, generated.index).max()))
        distances, _ = _nearest(query, generated, k)
        return -distances.mean(axis=1)[:, None]
    reference = gallery["reference"]
    sizes = [len(s.index) - np.isin(query.index, s.index) for s in (generated, reference)]  # without the query itself
    common = np.minimum(*sizes)
    at_least("k", k, 1, int(common.min()))
    near, far = (_subset_distance(query, s, n, common, k) for s, n in zip((generated, reference), sizes, strict=True))
    return (far - near)[:, None]


def subset_weights(size: int, subset: int, k: int) -> np.ndarray:
    """Weights of distances in ascending order: their sum is the expected mean of the k least of a random subset.

    The j-th of `size` is among the k least of a subset where it is in it and at most k - 1 of the j - 1 before it are: (subset /
    size) times the distribution function of the hypergeometric distribution. Cut where less than `TAIL` is left; of sum 1.
    """
    if subset == size:
        return np.full(k, 1 / k)
    weights = subset / size * hypergeom.cdf(k - 1, size - 1, np.arange(size), subset - 1) / k
    count = int(np.searchsorted(np.cumsum(weights), 1 - TAIL)) + 1
    return weights[:count] / weights[:count].sum()


def monte_carlo(query: Features, gallery: Gallery, *, seed: int) -> np.ndarray:
    """Share of the generated images within epsilon of the query, by Euclidean distance; nothing is drawn from the seed.

    Hilprecht, Haerterich & Bernau 2019 (PoPETs), with epsilon the median of the images' distances to their nearest generated
    one. They take it over the images asked about; here a score must not depend on those, and it is the median over
    `reference` and `labelled`, whichever are listed, without the query itself and without reading labels.
    """
    generated = stream(gallery, "generated")
    known = [gallery[name] for name in ("reference", "labelled") if name in gallery] or [stream(gallery, "reference")]
    values, index = np.concatenate([flat(s) for s in known]), np.concatenate([s.index for s in known])
    index, first = np.unique(index, return_index=True)
    least, _ = _nearest(Features(values[first], index, index), generated, 1)
    epsilon = np.median(least)
    out = []
    for rows in _blocks(query):
        # The median without the query itself, where it is one of them.
        own = [np.median(least[index != i]) if i in index else epsilon for i in rows.index]
        within = euclidean_distances(flat(rows), flat(generated)) <= np.array(own)[:, None]
        within &= rows.index[:, None] != generated.index
        out.append(within.mean(axis=1))
    return np.asarray(np.concatenate(out), np.float32)[:, None]


def domias(query: Features, gallery: Gallery, *, seed: int, components: int = 16) -> np.ndarray:
    """Log of the density of the generated images at the query, less that of the reference.

    Van Breugel, Sun, Qian & van der Schaar 2023 (AISTATS, "DOMIAS"). Both are Gaussian kernel density estimates among the first
    principal components of the generated images, whitened. Both have one bandwidth, Scott's rule n^(-1/(D+4)) with the n of the
    smaller set: a wider kernel of the one would be a difference of itself. The query is left out of the reference.

    Args:
        query: [M,D].
        gallery: `generated` and `reference`.
        seed: of a randomised PCA, for many features and images.
        components: principal components, fewer where there are not so many.
    """
    _check_domias(gallery, components)
    streams = generated, _ = gallery["generated"], gallery["reference"]
    project, dimensions = projection(flat(generated), components, seed)
    points = [np.asarray(project(flat(s))) for s in streams]
    out = []
    for rows in _blocks(query):
        x = project(flat(rows))
        own = [rows.index[:, None] == s.index for s in streams]
        sizes = [len(s.index) - same.sum(axis=1) for s, same in zip(streams, own, strict=True)]
        logs = []
        for y, same, n in zip(points, own, sizes, strict=True):
            squared = np.where(same, np.inf, euclidean_distances(x, y, squared=True))
            logs.append(log_kernels(squared, np.minimum(*sizes), dimensions) - np.log(n))
        out.append(logs[0] - logs[1])
    return np.asarray(np.concatenate(out), np.float32)[:, None]


def projection(generated: np.ndarray, components: int, seed: int) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
    """The projection of images [M,D] on whitened principal components of the generated ones [N,D], and how many these are."""
    pca = PCA(min(components, *generated.shape), whiten=True, random_state=seed)
    return make_pipeline(StandardScaler(), pca).fit(generated).transform, int(pca.n_components_)


def log_kernels(squared: np.ndarray, sizes: np.ndarray | int, dimensions: int) -> np.ndarray:
    """Log of the sum [M] of Gaussian kernels at squared distances [M,N], with Scott's bandwidth for `sizes` images (one or [M])."""
    bandwidth = np.reshape(np.float64(sizes) ** (-1 / (dimensions + 4)), (-1, 1))
    return np.asarray(logsumexp(-squared / (2 * bandwidth**2), axis=1))


def logan_d1(query: Features, gallery: Gallery, *, seed: int, C: float = 1.0) -> np.ndarray:
    """Logit of a classifier of generated against reference images.

    After Hayes, Melis, Danezis & De Cristofaro 2019 (PoPETs, "LOGAN"), whose classifier is a network; here a logistic regression on
    standardised features, both sides of equal weight. There is one for each of five folds of the reference, fitted
    without it: a query in the reference has the logit of the one that did not see it, any other their mean.

    Args:
        query: [M,D].
        gallery: `generated` and `reference`.
        seed: of the folds.
        C: inverse of the strength of the L2 penalty.
    """
    _check_logan(gallery, C)
    generated, reference = gallery["generated"], gallery["reference"]
    fold = np.random.default_rng(seed).permutation(len(reference.index)) % FOLDS
    logits = []
    for number in range(FOLDS):
        x = np.concatenate([flat(generated), flat(reference)[fold != number]])
        model = make_pipeline(StandardScaler(), LogisticRegression(C=C, class_weight="balanced", max_iter=1000))
        model.fit(x, np.arange(len(x)) < len(generated.index))
        logits.append(model.decision_function(flat(query)))
    logits = np.stack(logits, axis=1)
    scores = logits.mean(axis=1)
    asked, known = np.nonzero(query.index[:, None] == reference.index)
    scores[asked] = logits[asked, fold[known]]
    return np.asarray(scores, np.float32)[:, None]


def _nearest(query: Features, other: Features, k: int) -> tuple[np.ndarray, np.ndarray]:
    return search.nearest(flat(query), flat(other), k, query_index=query.index, gallery_index=other.index)


def _subset_distance(query: Features, other: Features, sizes: np.ndarray, subsets: np.ndarray, k: int) -> np.ndarray:
    """Expected mean distance [M] to the k nearest in a subset: a size of the whole and of the subset for each query."""
    cases = {case: subset_weights(*case, k) for case in sorted(set(zip(sizes.tolist(), subsets.tolist(), strict=True)))}
    distances, _ = _nearest(query, other, max(map(len, cases.values())))
    out = np.empty(len(distances), np.float32)
    for case, weights in cases.items():
        rows = (sizes == case[0]) & (subsets == case[1])
        out[rows] = distances[rows, : len(weights)] @ weights
    return out


def _blocks(query: Features) -> Iterator[Features]:
    for first in range(0, len(query.index), ROWS):
        rows = slice(first, first + ROWS)
        yield Features(query.values[rows], query.labels[rows], query.index[rows])


def _check_gan_leaks(gallery: Gallery, k: int, calibrated: bool) -> None:
    least = min(len(stream(gallery, name).index) for name in ("generated", "reference")[: 1 + calibrated])
    at_least("k", k, 1, least, "images to compare with")


def _check_monte_carlo(gallery: Gallery) -> None:
    stream(gallery, "generated")
    if "labelled" not in gallery:
        stream(gallery, "reference")


def _check_domias(gallery: Gallery, components: int) -> None:
    stream(gallery, "generated")
    stream(gallery, "reference")


def _check_logan(gallery: Gallery, C: float) -> None:
    stream(gallery, "generated")
    if len(stream(gallery, "reference").index) < FOLDS:
        raise ValueError(f"gallery.reference has {len(gallery['reference'].index)} images: logan_d1 has {FOLDS} folds of them")


CHECKS = {"gan_leaks": _check_gan_leaks, "monte_carlo": _check_monte_carlo, "domias": _check_domias, "logan_d1": _check_logan}
ESTIMATORS = {"gan_leaks": gan_leaks, "monte_carlo": monte_carlo, "domias": domias, "logan_d1": logan_d1}
