"""Classifiers: fitted on x [N,D], y [N], they score a query [M,D] -> [M,K]; two classes give one column, that of class 1."""

import numpy as np
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC


def linear_svm(x: np.ndarray, y: np.ndarray, query: np.ndarray, *, seed: int, C: float = 1.0) -> np.ndarray:
    """Linear SVM, one class against the rest; the score is the signed distance to the hyperplane."""
    model = make_pipeline(StandardScaler(), LinearSVC(C=C, random_state=seed))
    scores = model.fit(x, y).decision_function(query)
    return np.asarray(scores, np.float32).reshape(len(query), -1)


ESTIMATORS = {"linear_svm": linear_svm}


def get(name: str):
    """An estimator by name; raises ValueError with the known names."""
    if name not in ESTIMATORS:
        raise ValueError(f"estimator.name={name!r} is unknown: use one of {', '.join(ESTIMATORS)}")
    return ESTIMATORS[name]
