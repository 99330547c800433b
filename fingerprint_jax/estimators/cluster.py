"""Clusterings that do not see the labels; then each cluster is given to a class. Features are standardised.

Two classes, membership: the clusters are those of the labelled and, where that stream is there, the generated images. A query
goes to the cluster of the nearest centroid, and its score is (used + 1) / (n + 2) among the n labelled images of that cluster
(Laplace's rule: a cluster without any says 1/2).

More classes, attribution: the clusters are those of the labelled images, and each belongs to a class (`match`). The score of a
class is minus the Euclidean distance of the query to the nearest centroid of its clusters.
"""

import functools
from collections.abc import Callable

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.cluster import DBSCAN, AgglomerativeClustering, KMeans, SpectralClustering
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from fingerprint_jax.estimators import Features, Gallery, at_least, classes, columns, flat, stream

NEIGHBOURS = 10  # of the graph of spectral clustering, scikit-learn's own

MEMBERSHIP = 8  # clusters where nothing else is said


def kmeans(query: Features, gallery: Gallery, *, seed: int, clusters: int = 0) -> np.ndarray:
    """k-means, the best of ten starts; 0 clusters: see `default`."""
    build = functools.partial(KMeans, n_init=10, random_state=seed)  # pyright: ignore[reportArgumentType]
    return _scores(query, gallery, clusters, build)


def gmm(query: Features, gallery: Gallery, *, seed: int, clusters: int = 0) -> np.ndarray:
    """Mixture of Gaussians with diagonal covariances, each row in its likeliest; 0 clusters: see `default`."""
    return _scores(query, gallery, clusters, functools.partial(GaussianMixture, covariance_type="diag", random_state=seed))


def hierarchical(query: Features, gallery: Gallery, *, seed: int, clusters: int = 0) -> np.ndarray:
    """Ward's agglomerative clustering, which draws nothing from the seed; memory grows with N^2; 0 clusters: see `default`."""
    return _scores(query, gallery, clusters, functools.partial(AgglomerativeClustering, linkage="ward"))


def spectral(query: Features, gallery: Gallery, *, seed: int, clusters: int = 0) -> np.ndarray:
    """Spectral clustering of the graph of ten nearest neighbours (Shi & Malik 2000), k-means last; 0 clusters: see `default`."""

    def build(count: int) -> SpectralClustering:
        return SpectralClustering(count, affinity="nearest_neighbors", n_neighbors=NEIGHBOURS, random_state=seed)

    return _scores(query, gallery, clusters, build)


def dbscan(query: Features, gallery: Gallery, *, seed: int, min_samples: int = 5) -> np.ndarray:
    """Dense regions of any shape (Ester et al. 1996), of two classes only; nothing is drawn from the seed.

    A query is of the cluster of its nearest core sample where that is within eps, else noise, which is a cluster of its own.
    eps is the knee of the sorted distances of all rows to their `min_samples`-th neighbour, themselves the first: the
    distance that lies farthest below the line from the least to the largest (the rule of Satopaa et al. 2011). So the
    share of rows up to the knee are core samples.
    """
    _check_dbscan(gallery, min_samples)
    x, labels, q = _standard(query, gallery)
    sorted_distances = np.sort(NearestNeighbors(n_neighbors=min_samples).fit(x).kneighbors(x)[0][:, -1])
    span = max(sorted_distances[-1] - sorted_distances[0], 1e-12)
    below = np.linspace(0, 1, len(x)) - (sorted_distances - sorted_distances[0]) / span
    eps = float(sorted_distances[below.argmax()]) * (1 + 1e-6) + 1e-12  # its own row is a core sample, whatever the rounding
    model = DBSCAN(eps=eps, min_samples=min_samples).fit(x)
    distance, near = NearestNeighbors(n_neighbors=1).fit(model.components_).kneighbors(q)
    core = model.labels_[model.core_sample_indices_]
    return _share(model.labels_, labels, np.where(distance[:, 0] <= eps, core[near[:, 0]], -1))


def nearest_centroid_of_generated(query: Features, gallery: Gallery, *, seed: int, clusters: int = MEMBERSHIP) -> np.ndarray:
    """Minus the Euclidean distance to the nearest centroid of a k-means of the generated images; no labels."""
    _check_centroids(gallery, clusters)
    generated = flat(stream(gallery, "generated"))
    scaler = StandardScaler().fit(generated)
    model = KMeans(clusters, n_init=10, random_state=seed).fit(scaler.transform(generated))  # pyright: ignore[reportArgumentType]
    distances = model.transform(scaler.transform(flat(query)))
    return -np.asarray(distances.min(axis=1, keepdims=True), np.float32)


def default(classes: int) -> int:
    """Clusters where a config names no number: one a class, and eight of membership, where the score is a share in a cluster."""
    return classes if classes > 2 else MEMBERSHIP


def match(found: np.ndarray, labels: np.ndarray, clusters: int, classes: int) -> np.ndarray:
    """Class of each cluster [C], from cluster and label of N rows: [N], [N]; every class has a cluster where C >= classes.

    First the one-to-one assignment that puts most rows with their own label (Kuhn's Hungarian method), then by majority for
    the clusters left over, ties to the lower class.
    """
    table = np.zeros((clusters, classes), np.int64)
    np.add.at(table, (found, labels), 1)
    owner = table.argmax(axis=1)
    rows, assigned = linear_sum_assignment(table, maximize=True)
    owner[rows] = assigned
    return owner


def _scores(query: Features, gallery: Gallery, clusters: int, build: Callable) -> np.ndarray:
    _check(gallery, clusters)
    x, labels, q = _standard(query, gallery)
    known = len(np.unique(labels[labels >= 0]))
    count = clusters or default(known)
    found = build(count).fit_predict(x)
    different = len(np.unique(found))
    if different < count:
        raise ValueError(f"estimator.clusters={count}: the {len(x)} training rows form {different} clusters, not {count}")
    distances = cdist(q, np.stack([x[found == k].mean(axis=0) for k in range(count)]))
    if known == 2:
        return _share(found, labels, distances.argmin(axis=1))
    owner = match(found, labels, count, known)
    return columns(-np.stack([distances[:, owner == k].min(axis=1) for k in range(known)], axis=1))


def _check(gallery: Gallery, clusters: int) -> None:
    known = len(classes(gallery))
    count, rows = clusters or default(known), _rows(gallery)
    if known > 2 and count < known:
        raise ValueError(f"estimator.clusters={clusters} is less than the {known} classes: use more, or 0 for the default")
    if count > rows:
        raise ValueError(f"estimator.clusters={count}: use 1 to {rows}, the number of images to cluster")


def _check_spectral(gallery: Gallery, clusters: int) -> None:
    _check(gallery, clusters)
    if _rows(gallery) < NEIGHBOURS:
        raise ValueError(f"estimator.name='spectral' joins {NEIGHBOURS} neighbours: there are {_rows(gallery)} images to cluster")


def _check_dbscan(gallery: Gallery, min_samples: int) -> None:
    if len(classes(gallery)) != 2:
        raise ValueError("estimator.name='dbscan' tells two classes apart: use kmeans, gmm, hierarchical or spectral for more")
    at_least("min_samples", min_samples, 1, _rows(gallery), "images to cluster")


def _check_centroids(gallery: Gallery, clusters: int) -> None:
    at_least("clusters", clusters, 1, len(stream(gallery, "generated").index), "synthetic images")


def _rows(gallery: Gallery) -> int:
    """How many are clustered, see `_standard`."""
    with_generated = len(classes(gallery)) == 2 and "generated" in gallery
    return len(gallery["labelled"].index) + (len(gallery["generated"].index) if with_generated else 0)


def _standard(query: Features, gallery: Gallery) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Standardised rows to cluster [N,D], their class 0..K-1 or -1 for the generated [N], and the queries [M,D]."""
    labelled = stream(gallery, "labelled")
    known, labels = np.unique(labelled.labels, return_inverse=True)
    x = flat(labelled)
    if len(known) == 2 and "generated" in gallery:
        x = np.concatenate([x, flat(gallery["generated"])])
        labels = np.concatenate([labels, np.full(len(x) - len(labels), -1)])
    scaler = StandardScaler().fit(x)
    return np.asarray(scaler.transform(x)), labels, np.asarray(scaler.transform(flat(query)))


def _share(found: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Smoothed share of class 1 among the labelled rows of the clusters asked for: [N], [N], [M] -> [M,1]."""
    shares = {k: (np.sum(labels[found == k] == 1) + 1) / (np.sum(labels[found == k] >= 0) + 2) for k in {-1, *found.tolist()}}
    return np.array([[shares[k]] for k in asked.tolist()], np.float32)


CHECKS = {
    "kmeans": _check,
    "gmm": _check,
    "hierarchical": _check,
    "agglomerative": _check,
    "spectral": _check_spectral,
    "dbscan": _check_dbscan,
    "nearest_centroid_of_generated": _check_centroids,
}
ESTIMATORS = {
    "kmeans": kmeans,
    "gmm": gmm,
    "hierarchical": hierarchical,  # the word of AI Multimedia Lab ...
    "agglomerative": hierarchical,  # ... and that of Challengers
    "spectral": spectral,
    "dbscan": dbscan,
    "nearest_centroid_of_generated": nearest_centroid_of_generated,
}
