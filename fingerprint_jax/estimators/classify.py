"""Classifiers, fitted on labelled rows."""

import numpy as np
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC


def linear_svm(x: np.ndarray, y: np.ndarray, query: np.ndarray, *, seed: int, C: float = 1.0) -> np.ndarray:
    """Linear SVM on standardised features, one class against the rest; the score is the signed distance to the hyperplane."""
    model = make_pipeline(StandardScaler(), LinearSVC(C=C, random_state=seed))
    scores = model.fit(x, y).decision_function(query)
    return np.asarray(scores, np.float32).reshape(len(query), -1)


def rbf_svm(x: np.ndarray, y: np.ndarray, query: np.ndarray, *, seed: int, C: float = 3.0) -> np.ndarray:
    """SVM with a Gaussian kernel on standardised features, which draws nothing from the seed.

    The width is scikit-learn's `scale`: rows of D independent features of unit variance lie at exp(-2). Of two classes the score is
    the distance to the boundary, of more the votes of all pairs of classes, ties ordered by their distances.
    """
    model = make_pipeline(StandardScaler(), SVC(C=C, gamma="scale", decision_function_shape="ovr"))
    scores = model.fit(x, y).decision_function(query)
    return np.asarray(scores, np.float32).reshape(len(query), -1)


ESTIMATORS = {"linear_svm": linear_svm, "rbf_svm": rbf_svm}
