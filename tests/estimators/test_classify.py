"""Classifiers against those of scikit-learn on features standardised by hand, and distances that can be measured."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.covariance import ledoit_wolf
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC, LinearSVC

from fingerprint_jax import estimators
from fingerprint_jax.estimators import classify
from tests.estimators.streams import rows
from tests.estimators.test_estimators import clouds


def _uneven(classes):
    x = clouds(classes, spread=1.0)
    x = rows(x.values * [1, 10, 100, 1, 1, 1], x.labels)
    return x, (x.values - x.values.mean(axis=0)) / x.values.std(axis=0)


def test_the_svm_is_that_of_scikit_learn_on_standardised_features():
    x, standard = _uneven(3)
    for C in (0.01, 1.0):
        expected = LinearSVC(C=C, random_state=0).fit(standard, x.labels).decision_function(standard)
        np.testing.assert_allclose(estimators.get("linear_svm", C=C)(x, {"labelled": x}, seed=0), expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(estimators.get("linear_svm")(x, {"labelled": x}, seed=0), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("classes", (2, 3, 5))
def test_the_kernel_svm_is_that_of_scikit_learn_on_standardised_features(classes, monkeypatch):
    monkeypatch.setattr(classify, "_BLOCK", 7)
    x, standard = _uneven(classes)
    query = np.random.default_rng(5).normal(size=(30, 6)).astype(np.float32)
    asked = rows(query * x.values.std(axis=0) + x.values.mean(axis=0))
    for C in (0.1, 3.0):
        expected = SVC(C=C).fit(standard, x.labels).decision_function(query).reshape(len(query), -1)
        found = estimators.get("rbf_svm", C=C)(asked, {"labelled": x}, seed=0)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-3)
    named = rows(x.values, 10 * x.labels + 3)  # labels need not be 0, 1, ..
    np.testing.assert_array_equal(estimators.get("rbf_svm")(asked, {"labelled": named}, seed=0), found)


def test_the_logits_are_those_of_scikit_learn_on_standardised_features():
    for classes in (2, 3):
        x, standard = _uneven(classes)
        expected = LogisticRegression(C=0.1).fit(standard, x.labels).decision_function(standard).reshape(len(standard), -1)
        found = estimators.get("logistic_regression", C=0.1)(x, {"labelled": x}, seed=0)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
        assert not np.allclose(estimators.get("logistic_regression")(x, {"labelled": x}, seed=0), expected, atol=0.1)


def test_the_forest_scores_by_the_probabilities_of_scikit_learn():
    x, standard = _uneven(2)
    query = np.random.default_rng(5).normal(size=(30, 6)).astype(np.float32)
    asked = rows(query * x.values.std(axis=0) + x.values.mean(axis=0))
    for trees in (1, 20):
        expected = RandomForestClassifier(trees, random_state=4).fit(standard, x.labels).predict_proba(query)
        found = estimators.get("random_forest", trees=trees)(asked, {"labelled": x}, seed=4)
        # A value can lie on the other side of a threshold by the last bit.
        assert np.mean(np.isclose(found[:, 0], expected[:, 1] - expected[:, 0], atol=1e-6)) > 0.9
    x, _ = _uneven(3)
    found = estimators.get("random_forest")(asked, {"labelled": x}, seed=4)
    assert found.shape == (30, 3)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)


def test_mahalanobis_is_the_distance_of_the_shrunk_covariance():
    rng = np.random.default_rng(0)
    x, q = rng.normal(size=(40, 3)) * [1, 5, 0.1] @ rng.normal(size=(3, 3)) + 7, rng.normal(size=(9, 3)) + 7
    standard, query = (x - x.mean(axis=0)) / x.std(axis=0), (q - x.mean(axis=0)) / x.std(axis=0)
    covariance, _ = ledoit_wolf(standard)
    expected = -cdist(query, np.zeros((1, 3)), "mahalanobis", VI=np.linalg.inv(covariance))
    found = estimators.get("mahalanobis")(rows(q), {"generated": rows(x, first=20)}, seed=0)
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert estimators.get("mahalanobis")(rows(x.mean(axis=0)[None]), {"generated": rows(x)}, seed=0) > -1e-3


def test_the_texture_forest_against_scikit_learn_step_by_step():
    rng = np.random.default_rng(0)
    draw = lambda n: np.concatenate([rng.gamma(2, size=(n, 1)), rng.normal(size=(n, 4)), rng.normal(size=(n, 6))], axis=1)  # noqa: E731
    x, y, generated, q = draw(60), np.resize([0, 1], 60), draw(40), draw(30)
    x[:, 7] += y  # the textures that tell the classes apart
    x[:, 10] -= y
    standard = (x[:, 5:] - x[:, 5:].mean(axis=0)) / x[:, 5:].std(axis=0)
    importance = RandomForestClassifier(200, random_state=3).fit(standard, y).feature_importances_
    best = 5 + np.argsort(importance)[-2:]
    assert set(best) == {7, 10}
    mean, std = generated[:, best].mean(axis=0), generated[:, best].std(axis=0)
    covariance, _ = ledoit_wolf((generated[:, best] - mean) / std)

    def described(rows):
        found = []
        for row in rows:
            angles = [1 - row[1:5] @ g[1:5] / np.linalg.norm(row[1:5]) / np.linalg.norm(g[1:5]) for g in generated]
            z = (row[best] - mean) / std
            found.append([row[0], min(angles), np.sqrt(z @ np.linalg.inv(covariance) @ z)])
        return np.array(found)

    a, b = described(x), described(q)
    forest = RandomForestClassifier(50, random_state=3).fit((a - a.mean(axis=0)) / a.std(axis=0), y)
    expected = forest.predict_proba((b - a.mean(axis=0)) / a.std(axis=0))
    gallery = {"labelled": rows(x, y, 100), "generated": rows(generated, first=200)}
    found = estimators.get("texture_forest", trees=50, textures=6, selected=2)(rows(q), gallery, seed=3)
    # A value can lie on the other side of a threshold by the last bit.
    assert np.mean(np.isclose(found[:, 0], expected[:, 1] - expected[:, 0], atol=1e-6)) > 0.9


def test_the_gaussian_kernel_parts_what_no_line_does():
    x = np.random.default_rng(0).uniform(-1, 1, (200, 2))
    y = (x[:, 0] * x[:, 1] > 0).astype(int)
    inside = np.abs(x).min(axis=1) > 0.2  # away from the axes, where the classes meet
    query, gallery = rows(x[inside], first=500), {"labelled": rows(x, y)}
    scores = estimators.get("rbf_svm", C=100.0)(query, gallery, seed=0)
    assert scores.shape == (inside.sum(), 1)
    np.testing.assert_array_equal(scores[:, 0] > 0, y[inside] == 1)
    linear = estimators.get("linear_svm")(query, gallery, seed=0)
    assert np.mean((linear[:, 0] > 0) == (y[inside] == 1)) < 0.8
