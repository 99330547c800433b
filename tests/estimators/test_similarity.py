"""The mean cosine similarity against that of scikit-learn, row by row."""

import numpy as np
from sklearn.metrics.pairwise import cosine_similarity

from tests.estimators import on_labelled


def test_cosine_is_the_mean_over_the_rows_of_a_class():
    rng = np.random.default_rng(0)
    x, query, y = rng.normal(size=(30, 8)) * rng.uniform(0.1, 10, (30, 1)), rng.normal(size=(5, 8)), np.resize([0, 1, 2], 30)
    pairs = cosine_similarity(query, x)
    expected = np.stack([pairs[:, y == k].mean(axis=1) for k in range(3)], axis=1)
    np.testing.assert_allclose(on_labelled("cosine")(x, y, query, seed=0), expected, rtol=1e-5)


def test_cosine_of_known_angles():
    # Class 0 at 0 and 90 degrees, class 1 at 180: a query at 60 has (cos 60 + cos 30) / 2 and cos 120; lengths are nothing.
    x, y = np.array([[2.0, 0.0], [0.0, 5.0], [-3.0, 0.0]]), np.array([0, 0, 1])
    query = np.array([[0.5, np.sqrt(0.75)], [0.0, 0.0]])
    found = on_labelled("cosine")(x, y, query, seed=0)
    np.testing.assert_allclose(found[:, 0], [-0.5 - (0.5 + np.sqrt(0.75)) / 2, 0.0], rtol=1e-6)
