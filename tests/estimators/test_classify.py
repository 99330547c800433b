"""The registry of estimators, and the linear SVM on planes that are known."""

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from fingerprint_jax import estimators
from tests.estimators import on_labelled

NAMES = ("linear_svm", "rbf_svm", "kmeans", "hierarchical", "cosine")


def clouds(classes, seed=0, spread=0.1, count=20):
    """Rows around the unit vectors of 6 dimensions: x [classes * count, 6], y."""
    y = np.repeat(np.arange(classes), count)
    return np.eye(6)[y] + np.random.default_rng(seed).normal(0, spread, (len(y), 6)), y


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", [2, 5])
def test_each_tells_clouds_apart_and_two_classes_give_the_column_of_class_1(name, classes):
    x, y = clouds(classes)
    query, truth = clouds(classes, seed=1)
    scores = on_labelled(name)(x, y, query, seed=0)
    assert scores.dtype == np.float32 and scores.shape == (len(query), 1 if classes == 2 else classes)
    labels = scores[:, 0] > 0 if classes == 2 else scores.argmax(axis=1)
    np.testing.assert_array_equal(labels, truth)


@pytest.mark.parametrize("name", NAMES)
def test_a_score_depends_on_its_own_row_alone(name):
    x, y = clouds(3, spread=1.0)
    query = np.random.default_rng(2).normal(size=(7, 6))
    estimate = on_labelled(name)
    whole = estimate(x, y, query, seed=0)
    np.testing.assert_allclose(np.concatenate([estimate(x, y, row[None], seed=0) for row in query]), whole, rtol=1e-5, atol=1e-6)


def test_the_svm_is_that_of_scikit_learn_on_standardised_features():
    x, y = clouds(3, spread=1.0)
    x *= [1, 10, 100, 1, 1, 1]
    standard = (x - x.mean(axis=0)) / x.std(axis=0)
    for C in (0.01, 1.0):
        expected = LinearSVC(C=C, random_state=0).fit(standard, y).decision_function(standard)
        np.testing.assert_allclose(on_labelled("linear_svm", C=C)(x, y, x, seed=0), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(on_labelled("linear_svm")(x, y, x, seed=0), expected, rtol=1e-4, atol=1e-4)


def test_unknown_names_and_options_are_named_with_those_that_are_known():
    with pytest.raises(ValueError, match="estimator.name='svm' is unknown: use one of .*hierarchical, kmeans, linear_svm"):
        estimators.get("svm")
    with pytest.raises(ValueError, match="^estimator.C is no option of kmeans: use clusters$"):
        estimators.get("kmeans", C=1.0)
    with pytest.raises(ValueError, match="^estimator.seed is no option of cosine: use none$"):
        estimators.get("cosine", seed=1)


def test_options_that_are_none_are_left_to_the_estimator():
    assert estimators.get("linear_svm", C=None, clusters=None).keywords == {}


def test_the_gaussian_kernel_parts_what_no_line_does():
    x = np.random.default_rng(0).uniform(-1, 1, (200, 2))
    y = (x[:, 0] * x[:, 1] > 0).astype(int)
    inside = np.abs(x).min(axis=1) > 0.2  # away from the axes, where the classes meet
    scores = on_labelled("rbf_svm", C=100.0)(x, y, x[inside], seed=0)
    assert scores.shape == (inside.sum(), 1)
    np.testing.assert_array_equal(scores[:, 0] > 0, y[inside] == 1)
    linear = on_labelled("linear_svm")(x, y, x[inside], seed=0)
    assert np.mean((linear[:, 0] > 0) == (y[inside] == 1)) < 0.8
