"""Classifiers, fitted on labelled rows."""

import numpy as np
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC


def linear_svm(x: np.ndarray, y: np.ndarray, query: np.ndarray, *, seed: int, C: float = 1.0) -> np.ndarray:
    """Linear SVM on standardised features, one class against the rest; the score is the signed distance to the hyperplane."""
    model = make_pipeline(StandardScaler(), LinearSVC(C=C, random_state=seed))
    scores = model.fit(x, y).decision_function(query)
    return np.asarray(scores, np.float32).reshape(len(query), -1)


ESTIMATORS = {"linear_svm": linear_svm}
