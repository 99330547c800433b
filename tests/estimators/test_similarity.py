"""Measures against scikit-learn, scipy and scikit-image, readouts against their definitions."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from skimage.metrics import structural_similarity
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import cosine_similarity

from fingerprint_jax import estimators
from fingerprint_jax.estimators import similarity
from tests.estimators.streams import join, rows

RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(5, 8)).astype(np.float32), RNG.normal(size=(31, 8)).astype(np.float32)


def test_cosine_and_distance_are_those_of_scipy():
    a, b = VECTORS
    np.testing.assert_allclose(similarity.cosine(a, b), 1 - cdist(a, b, "cosine"), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(similarity.euclidean(a, b), -cdist(a, b), rtol=1e-5)
    assert similarity.cosine(np.zeros((1, 8)), b).tolist() == [[0.0] * 31]


def test_jaccard_is_that_of_scipy_on_features_above_their_median():
    a, b = VECTORS
    on = [x > np.median(b, axis=0) for x in (a, b)]
    np.testing.assert_allclose(similarity.jaccard(a, b), 1 - cdist(*on, "jaccard"), rtol=1e-6)
    # Medians 1 and 1: the gallery has the features 0 0, 0 0, 1 0, the queries none and both.
    assert similarity.jaccard(np.array([[1, 0], [2, 2]]), np.array([[0, 0], [1, 1], [2, 1]])).tolist() == [[1, 1, 0], [0, 0, 0.5]]


@pytest.mark.parametrize("stride", [1, 3, 8])
@pytest.mark.parametrize(
    ("window", "options", "border"),
    [("gaussian", {"gaussian_weights": True, "sigma": 1.5}, 5), ("uniform", {"win_size": 7}, 3)],
)
def test_ssim_is_that_of_scikit_image_at_its_windows(window, options, border, stride):
    a, b = RNG.uniform(0, 1, (3, 18, 25)).astype(np.float32), RNG.uniform(0, 1, (4, 18, 25)).astype(np.float32)
    b[0], b[1] = a[0], 0.5 * a[1] + 0.3
    b[2] = 0.25  # without any structure
    found = similarity.ssim(a, b, window=window, stride=stride)
    for i, j in np.ndindex(3, 4):
        whole = structural_similarity(a[i], b[j], data_range=1.0, use_sample_covariance=False, full=True, **options)[1]
        expected = whole[border:-border, border:-border][::stride, ::stride].mean()
        np.testing.assert_allclose(found[i, j], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[0, 0], 1, rtol=1e-6)


def test_ssim_is_the_same_in_blocks(monkeypatch):
    a, b = RNG.uniform(0, 1, (5, 16, 16)), RNG.uniform(0, 1, (7, 16, 16))
    whole = similarity.ssim(a, b)
    monkeypatch.setattr(similarity, "ELEMENTS", 3 * 16 * 16)
    np.testing.assert_allclose(similarity.ssim(a, b), whole, rtol=1e-5, atol=1e-6)


def test_ssim_wants_maps_and_a_window_it_knows():
    with pytest.raises(ValueError, match=r"estimator.measure='ssim' compares maps \[N,H,W\] of 11 px or more, not \[8\]"):
        similarity.ssim(*VECTORS)
    with pytest.raises(ValueError, match=r"11 px or more, not \[10, 12\]"):
        similarity.ssim(np.zeros((1, 10, 12)), np.zeros((1, 10, 12)))
    with pytest.raises(ValueError, match="window='box' is unknown"):
        similarity.ssim(np.zeros((1, 12, 12)), np.zeros((1, 12, 12)), window="box")


READOUTS = {
    "max": lambda s: s.max(axis=1),
    "mean": lambda s: s.mean(axis=1),
    "knn": lambda s: -np.sort(-s, axis=1)[:, :4].mean(axis=1),
}


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("measure", ["cosine", "euclidean"])
def test_similarity_to_the_generated_images(measure, readout, monkeypatch):
    a, b = VECTORS
    monkeypatch.setattr(similarity, "ROWS", 2)
    estimate = estimators.get("similarity", measure=measure, readout=readout, k=4 if readout == "knn" else None)
    pairs = cosine_similarity(a, b) if measure == "cosine" else -cdist(a, b)
    expected = READOUTS[readout](pairs)[:, None]
    query, generated = rows(a), rows(b, first=10)
    np.testing.assert_allclose(estimate(query, {"generated": generated}, seed=0), expected, rtol=1e-5)
    # Labels, or the query among the images, change nothing.
    for i in range(5):
        own = rows(a[i : i + 1])
        gallery = {"generated": join(generated, own), "labelled": rows(a, np.arange(5) % 2)}
        np.testing.assert_allclose(estimate(own, gallery, seed=0), expected[i : i + 1], rtol=1e-5)


def test_similarity_to_each_class_where_nothing_is_generated():
    a, b = VECTORS
    y = np.resize([0, 1, 2], 31)
    pairs = cosine_similarity(a, b)
    for readout, read in READOUTS.items():
        expected = np.stack([read(pairs[:, y == k]) for k in range(3)], axis=1)
        found = estimators.get("similarity", readout=readout, k=4)(rows(a), {"labelled": rows(b, y, first=10)}, seed=0)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_cosine_of_known_angles():
    # Class 0 at 0 and 90 degrees, class 1 at 180: a query at 60 has (cos 60 + cos 30) / 2 and cos 120; lengths are nothing.
    labelled = rows([[2.0, 0.0], [0.0, 5.0], [-3.0, 0.0]], [0, 0, 1])
    query = rows([[0.5, np.sqrt(0.75)], [0.0, 0.0]], first=9)
    found = estimators.get("similarity", readout="mean")(query, {"labelled": labelled}, seed=0)
    np.testing.assert_allclose(found[:, 0], [-0.5 - (0.5 + np.sqrt(0.75)) / 2, 0.0], rtol=1e-5)


def test_logistic_similarity_is_fitted_to_three_features_of_the_labelled_rows():
    a, b = VECTORS
    labelled, y = RNG.normal(size=(24, 8)).astype(np.float32), np.resize([0, 1, 1], 24)
    three = [np.stack([s.max(axis=1), s.mean(axis=1), s.std(axis=1)], 1) for s in map(cosine_similarity, (labelled, a), (b, b))]
    mean, deviation = three[0].mean(axis=0), three[0].std(axis=0)
    model = LogisticRegression(C=0.5).fit((three[0] - mean) / deviation, y)
    expected = model.decision_function((three[1] - mean) / deviation)
    gallery = {"labelled": rows(labelled, y, first=10), "generated": rows(b, first=50)}
    found = estimators.get("similarity_logistic", C=0.5)(rows(a), gallery, seed=0)
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-3, atol=1e-4)


def test_the_windows_of_ssim_are_options_of_the_estimator():
    rng = np.random.default_rng(0)
    maps = [rng.uniform(0, 1, (count, 20, 20)).astype(np.float32) for count in (3, 5)]
    query, generated = rows(maps[0]), rows(maps[1], first=3)
    found = estimators.get("similarity", measure="ssim", window="uniform", stride=3)(query, {"generated": generated}, seed=0)
    expected = similarity.ssim(*maps, window="uniform", stride=3).max(axis=1)
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-6)
    with pytest.raises(ValueError, match="estimator.stride is no option of the measure cosine, but of ssim"):
        estimators.get("similarity", stride=3)(query, {"generated": generated}, seed=0)
