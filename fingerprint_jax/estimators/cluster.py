"""Clusterings of the training rows that do not see the labels; then each cluster is given to a class.

Features are standardised. The score of a class is minus the Euclidean distance of the query to the nearest centroid of the class's
clusters, so that it depends on that row alone.
"""

import functools
from collections.abc import Callable

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.preprocessing import StandardScaler

from fingerprint_jax.estimators import Features, Gallery, columns, stream


def kmeans(query: Features, gallery: Gallery, *, seed: int, clusters: int = 0) -> np.ndarray:
    """k-means, the best of ten starts; 0 clusters: one a class."""
    build = functools.partial(KMeans, n_init=10, random_state=seed)  # pyright: ignore[reportArgumentType]
    return _scores(query, gallery, clusters, build)


def hierarchical(query: Features, gallery: Gallery, *, seed: int, clusters: int = 0) -> np.ndarray:
    """Ward's agglomerative clustering, which draws nothing from the seed; memory grows with N^2; 0 clusters: one a class."""
    return _scores(query, gallery, clusters, functools.partial(AgglomerativeClustering, linkage="ward"))


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
    known = stream(gallery, "labelled")
    classes, labels = np.unique(known.labels, return_inverse=True)
    count = clusters or len(classes)
    if count < len(classes):
        raise ValueError(f"estimator.clusters={clusters} is less than the {len(classes)} classes: use more, or 0 for one a class")
    scaler = StandardScaler().fit(known.values)
    x, q = np.asarray(scaler.transform(known.values)), np.asarray(scaler.transform(query.values))
    found = build(count).fit_predict(x)
    different = len(np.unique(found))
    if different < count:
        raise ValueError(f"estimator.clusters={clusters}: the {len(x)} training rows form {different} clusters, not {count}")
    centroids = np.stack([x[found == k].mean(axis=0) for k in range(count)])
    owner = match(found, labels, count, len(classes))
    distances = cdist(q, centroids)
    return columns(-np.stack([distances[:, owner == k].min(axis=1) for k in range(len(classes))], axis=1))


ESTIMATORS = {"kmeans": kmeans, "hierarchical": hierarchical}
