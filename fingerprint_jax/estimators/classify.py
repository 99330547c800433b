"""Classifiers, fitted to labelled rows, and the distance to the generated ones; all on standardised features."""

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.covariance import LedoitWolf
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from fingerprint_jax.estimators import Features, Gallery, at_least, columns, flat, stream


def linear_svm(query: Features, gallery: Gallery, *, seed: int, C: float = 1.0) -> np.ndarray:
    """Linear SVM, one class against the rest; the score is the signed distance to the hyperplane."""
    return _decision(query, gallery, LinearSVC(C=C, random_state=seed))


def rbf_svm(query: Features, gallery: Gallery, *, seed: int, C: float = 3.0) -> np.ndarray:
    """SVM with a Gaussian kernel, which draws nothing from the seed.

    The width is scikit-learn's `scale`: rows of D independent features of unit variance lie at exp(-2). Of two classes the score is
    the distance to the boundary, of more the votes of all pairs of classes, ties ordered by their distances.
    """
    return _decision(query, gallery, SVC(C=C, gamma="scale", decision_function_shape="ovr"))


def logistic_regression(query: Features, gallery: Gallery, *, seed: int, C: float = 1.0) -> np.ndarray:
    """Multinomial logistic regression with an L2 penalty, which draws nothing from the seed; the scores are the logits."""
    return _decision(query, gallery, LogisticRegression(C=C, max_iter=1000))


def random_forest(query: Features, gallery: Gallery, *, seed: int, trees: int = 100) -> np.ndarray:
    """Random forest; the scores are the mean probabilities of its trees, of two classes their difference."""
    at_least("trees", trees, 1)
    labelled = stream(gallery, "labelled")
    model = make_pipeline(StandardScaler(), RandomForestClassifier(trees, random_state=seed))
    return columns(np.asarray(model.fit(flat(labelled), labelled.labels).predict_proba(flat(query))))


def mahalanobis(query: Features, gallery: Gallery, *, seed: int) -> np.ndarray:
    """Minus the Mahalanobis distance to the generated images, whose covariance is shrunk as Ledoit & Wolf (2004) do. No labels."""
    generated = flat(stream(gallery, "generated"))
    scaler = StandardScaler().fit(generated)
    square = LedoitWolf().fit(scaler.transform(generated)).mahalanobis(scaler.transform(flat(query)))
    return -np.sqrt(square).astype(np.float32)[:, None]


def _decision(query: Features, gallery: Gallery, classifier: BaseEstimator) -> np.ndarray:
    labelled = stream(gallery, "labelled")
    model = make_pipeline(StandardScaler(), classifier)
    scores = model.fit(flat(labelled), labelled.labels).decision_function(flat(query))
    return np.asarray(scores, np.float32).reshape(len(query.index), -1)


ESTIMATORS = {
    "linear_svm": linear_svm,
    "rbf_svm": rbf_svm,
    "logistic_regression": logistic_regression,
    "random_forest": random_forest,
    "mahalanobis": mahalanobis,
}
