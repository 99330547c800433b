"""Classifiers, fitted to labelled rows, and the distance to the generated ones; all on standardised features."""

import dataclasses
import itertools

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.base import BaseEstimator
from sklearn.covariance import LedoitWolf
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from fingerprint_jax.estimators import Features, Gallery, at_least, classes, columns, flat, stream

_BLOCK = 1024  # rows that are asked about at once


def linear_svm(query: Features, gallery: Gallery, *, seed: int, C: float = 1.0) -> np.ndarray:
    """Linear SVM, one class against the rest; the score is the signed distance to the hyperplane."""
    return _decision(query, gallery, LinearSVC(C=C, random_state=seed))


def rbf_svm(query: Features, gallery: Gallery, *, seed: int, C: float = 3.0) -> np.ndarray:
    """SVM with a Gaussian kernel, which draws nothing from the seed.

    The width is scikit-learn's `scale`: rows of D independent features of unit variance lie at exp(-2). Of two classes the score is
    the distance to the boundary, of more the votes of all pairs of classes, ties ordered by their distances. Scores are those of
    scikit-learn's SVC. Its libsvm compares rows one by one; here the kernel of a pair of classes is a matrix product, 8 bytes for
    each pair of their rows (docs/performance.md, "Kernel SVM").
    """
    labelled = stream(gallery, "labelled")
    scaler = StandardScaler().fit(flat(labelled))
    known, asked = (np.asarray(scaler.transform(flat(each))) for each in (labelled, query))
    width = 1 / (known.shape[1] * known.var())
    pairs = list(itertools.combinations(np.unique(labelled.labels), 2))
    weights, intercepts = np.zeros((len(known), len(pairs)), np.float32), np.zeros(len(pairs), np.float32)
    for k, pair in enumerate(pairs):
        rows = np.flatnonzero(np.isin(labelled.labels, pair))
        kernel = rbf_kernel(known[rows], gamma=width)
        model = SVC(C=C, kernel="precomputed").fit(kernel, labelled.labels[rows] == pair[0])
        weights[rows[model.support_], k], intercepts[k] = model.dual_coef_[0], model.intercept_[0]
    blocks = (rbf_kernel(asked[i : i + _BLOCK], known, gamma=width) @ weights for i in range(0, len(asked), _BLOCK))
    distances = np.concatenate(list(blocks)) + intercepts
    return -distances if len(pairs) == 1 else _votes(distances, len(np.unique(labelled.labels)))


def logistic_regression(query: Features, gallery: Gallery, *, seed: int, C: float = 1.0) -> np.ndarray:
    """Multinomial logistic regression with an L2 penalty, which draws nothing from the seed; the scores are the logits."""
    return _decision(query, gallery, LogisticRegression(C=C, max_iter=1000))


def random_forest(query: Features, gallery: Gallery, *, seed: int, trees: int = 100) -> np.ndarray:
    """Random forest; the scores are the mean probabilities of its trees, of two classes their difference."""
    _check_forest(gallery, trees)
    labelled = gallery["labelled"]
    model = make_pipeline(StandardScaler(), RandomForestClassifier(trees, random_state=seed))
    return columns(np.asarray(model.fit(flat(labelled), labelled.labels).predict_proba(flat(query))))


def mahalanobis(query: Features, gallery: Gallery, *, seed: int) -> np.ndarray:
    """Minus the Mahalanobis distance to the generated images, whose covariance is shrunk as Ledoit & Wolf (2004) do. No labels."""
    generated = flat(stream(gallery, "generated"))
    scaler = StandardScaler().fit(generated)
    square = LedoitWolf().fit(scaler.transform(generated)).mahalanobis(scaler.transform(flat(query)))
    return -np.sqrt(square).astype(np.float32)[:, None]


def texture_forest(
    query: Features, gallery: Gallery, *, seed: int, trees: int = 100, textures: int = 47, selected: int = 20
) -> np.ndarray:
    """Random forest on three numbers: an error, and two distances to the generated images (Neural Nexus, run 1881).

    The columns are the error, a latent, then the textures. Of these a forest of 200 trees picks the most important ones for the
    labels; the first distance is their `mahalanobis`, the second the least cosine distance of the latents. Scores as of
    `random_forest`.
    """
    _check_texture_forest(gallery, trees, textures, selected)
    labelled, generated = gallery["labelled"], gallery["generated"]
    width = flat(labelled).shape[1]
    standard = StandardScaler().fit_transform(flat(labelled)[:, -textures:])
    importance = RandomForestClassifier(200, random_state=seed).fit(standard, labelled.labels).feature_importances_
    best = width - textures + np.argsort(-importance, kind="stable")[:selected]

    def describe(features: Features) -> Features:
        x, known = flat(features), flat(generated)
        near = dataclasses.replace(features, values=x[:, best])
        distance = -mahalanobis(near, {"generated": dataclasses.replace(generated, values=known[:, best])}, seed=seed)
        cosine = cdist(x[:, 1:-textures], known[:, 1:-textures], "cosine")
        cosine[features.index[:, None] == generated.index[None, :]] = np.inf
        return dataclasses.replace(features, values=np.concatenate([x[:, :1], cosine.min(axis=1, keepdims=True), distance], axis=1))

    return random_forest(describe(query), {"labelled": describe(labelled)}, seed=seed, trees=trees)


def _decision(query: Features, gallery: Gallery, classifier: BaseEstimator) -> np.ndarray:
    labelled = stream(gallery, "labelled")
    model = make_pipeline(StandardScaler(), classifier)
    scores = model.fit(flat(labelled), labelled.labels).decision_function(flat(query))
    return np.asarray(scores, np.float32).reshape(len(query.index), -1)


def _votes(distances: np.ndarray, classes: int) -> np.ndarray:
    """Of distances [N,P], positive for the first of a pair of classes: how many pairs a class wins, ties by its distances."""
    votes, sums = np.zeros((2, len(distances), classes), np.float32)
    for distance, (a, b) in zip(distances.T, itertools.combinations(range(classes), 2), strict=True):
        votes[:, a] += distance >= 0
        votes[:, b] += distance < 0
        sums[:, a] += distance
        sums[:, b] -= distance
    return votes + sums / (3 * (np.abs(sums) + 1))  # less than a third of a vote


def _check_labelled(gallery: Gallery, C: float = 1.0) -> None:
    classes(gallery)


def _check_forest(gallery: Gallery, trees: int) -> None:
    classes(gallery)


def _check_texture_forest(gallery: Gallery, trees: int, textures: int, selected: int) -> None:
    _check_forest(gallery, trees)
    stream(gallery, "generated")
    at_least("textures", textures, 1, flat(gallery["labelled"]).shape[1] - 2)
    at_least("selected", selected, 1, textures)


CHECKS = {
    "linear_svm": _check_labelled,
    "rbf_svm": _check_labelled,
    "logistic_regression": _check_labelled,
    "random_forest": _check_forest,
    "mahalanobis": lambda gallery: stream(gallery, "generated"),
    "texture_forest": _check_texture_forest,
}
ESTIMATORS = {
    "linear_svm": linear_svm,
    "rbf_svm": rbf_svm,
    "logistic_regression": logistic_regression,
    "random_forest": random_forest,
    "mahalanobis": mahalanobis,
    "texture_forest": texture_forest,
}
