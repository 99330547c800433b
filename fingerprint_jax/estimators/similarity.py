"""Similarities of a query to the labelled rows; a query that is among them is compared with itself, too."""

import numpy as np
from sklearn.preprocessing import normalize

from fingerprint_jax.estimators import Features, Gallery, columns, stream


def cosine(query: Features, gallery: Gallery, *, seed: int) -> np.ndarray:
    """Mean cosine similarity of the query to the rows of each class, in [-1, 1]; that of a zero vector is 0.

    The mean over rows of unit length is the product with their mean, so that no [M,N] matrix is made.
    """
    known = stream(gallery, "labelled")
    unit = normalize(known.values)
    means = np.stack([unit[known.labels == label].mean(axis=0) for label in np.unique(known.labels)])
    return columns(normalize(query.values) @ means.T)


ESTIMATORS = {"cosine": cosine}
