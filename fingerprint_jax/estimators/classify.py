"""Classifiers, fitted on labelled rows."""

import numpy as np
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from fingerprint_jax.estimators import Features, Gallery, stream


def linear_svm(query: Features, gallery: Gallery, *, seed: int, C: float = 1.0) -> np.ndarray:
    """Linear SVM on standardised features, one class against the rest; the score is the signed distance to the hyperplane."""
    return _fitted(make_pipeline(StandardScaler(), LinearSVC(C=C, random_state=seed)), query, gallery)


def rbf_svm(query: Features, gallery: Gallery, *, seed: int, C: float = 3.0) -> np.ndarray:
    """SVM with a Gaussian kernel on standardised features, which draws nothing from the seed.

    The width is scikit-learn's `scale`: rows of D independent features of unit variance lie at exp(-2). Of two classes the score is
    the distance to the boundary, of more the votes of all pairs of classes, ties ordered by their distances.
    """
    return _fitted(make_pipeline(StandardScaler(), SVC(C=C, gamma="scale", decision_function_shape="ovr")), query, gallery)


def _fitted(model, query: Features, gallery: Gallery) -> np.ndarray:
    known = stream(gallery, "labelled")
    scores = model.fit(known.values, known.labels).decision_function(query.values)
    return np.asarray(scores, np.float32).reshape(len(query), -1)


ESTIMATORS = {"linear_svm": linear_svm, "rbf_svm": rbf_svm}
