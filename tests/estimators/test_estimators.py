"""What every estimator of the registry keeps to, and the registry itself."""

import numpy as np
import pytest

from fingerprint_jax import estimators
from tests.estimators.streams import rows, take

NAMES = sorted(estimators.registry())
LEARNED = ("linear_svm", "rbf_svm", "logistic_regression", "random_forest")
CLUSTERED = ("kmeans", "gmm", "hierarchical", "agglomerative", "spectral")
LABEL_FREE = (
    *("mahalanobis", "nearest_centroid_of_generated", "similarity", "gan_leaks", "monte_carlo", "domias", "logan_d1"),
    *("local_match", "mosaic"),
)


def clouds(classes, seed=0, spread=0.1, count=20, first=0):
    """Rows around the unit vectors of 6 dimensions."""
    y = np.repeat(np.arange(classes), count)
    return rows(np.eye(6)[y] + np.random.default_rng(seed).normal(0, spread, (len(y), 6)), y, first)


def membership():
    """Images of 16 x 16 px: a query, and a gallery with every stream."""
    rng = np.random.default_rng(0)
    draw = lambda count, first, labels=None: rows(rng.uniform(0, 1, (count, 16, 16)), labels, first)  # noqa: E731
    gallery = {"labelled": draw(20, 100, np.resize([0, 1, 1], 20)), "generated": draw(30, 200), "reference": draw(24, 300)}
    return draw(6, 0), gallery


@pytest.mark.parametrize("name", NAMES)
def test_a_score_depends_on_its_own_row_alone_unless_it_is_said(name):
    query, gallery = membership()
    estimate = estimators.get(name)
    whole = estimate(query, gallery, seed=0)
    assert whole.dtype == np.float32 and whole.shape == (6, 1) and np.isfinite(whole).all()
    for selection in ([0], [3], [5, 1, 2]):
        alone = estimate(take(query, selection), gallery, seed=0)
        same = np.allclose(alone, whole[selection], rtol=1e-4, atol=1e-5)
        assert same == (name not in estimators.registry("TRANSDUCTIVE"))


@pytest.mark.parametrize("name", NAMES)
def test_no_label_of_a_query_is_read_and_the_label_free_read_none(name):
    query, gallery = membership()
    estimate = estimators.get(name)
    whole = estimate(query, gallery, seed=0)
    wrong = rows(query.values, np.arange(6) % 2)
    np.testing.assert_array_equal(estimate(wrong, gallery, seed=0), whole)
    swapped = gallery | {"labelled": rows(gallery["labelled"].values, 1 - gallery["labelled"].labels, 100)}
    assert np.array_equal(estimate(query, swapped, seed=0), whole) == (name in LABEL_FREE)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_scores(name):
    query, gallery = membership()
    estimate = estimators.get(name)
    np.testing.assert_array_equal(estimate(query, gallery, seed=3), estimate(query, gallery, seed=3))


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_stream_is_named(name):
    query, gallery = membership()
    needed = {"gan_leaks": 2, "domias": 2, "logan_d1": 2, "local_match": 2, "mosaic": 2, "monte_carlo": 1, "similarity_logistic": 2}
    needed["texture_forest"] = 2
    lacking = set()
    for stream in gallery:
        rest = {key: value for key, value in gallery.items() if key != stream}
        try:
            estimators.get(name)(query, rest, seed=0)
        except ValueError as error:
            assert str(error).startswith(f"gallery.{stream} is missing: the estimator")
            lacking.add(stream)
    assert len(lacking) == needed.get(name, 0 if name == "similarity" else 1)
    with pytest.raises(ValueError, match="is missing"):
        estimators.get(name)(query, {}, seed=0)


@pytest.mark.parametrize("name", [*LEARNED, *CLUSTERED])
@pytest.mark.filterwarnings("ignore:Graph is not fully connected")
@pytest.mark.parametrize("classes", [2, 5])
def test_each_tells_clouds_apart_and_two_classes_give_the_column_of_class_1(name, classes):
    query = clouds(classes, seed=1)
    options = {"clusters": classes} if name in CLUSTERED else {}
    scores = estimators.get(name, **options)(query, {"labelled": clouds(classes)}, seed=0)
    assert scores.dtype == np.float32 and scores.shape == (len(query.index), 1 if classes == 2 else classes)
    half = 0.5 if name in CLUSTERED else 0  # a share, or a difference
    labels = scores[:, 0] > half if classes == 2 else scores.argmax(axis=1)
    np.testing.assert_array_equal(labels, query.labels)


def test_unknown_names_and_options_are_named_with_those_that_are_known():
    with pytest.raises(
        ValueError, match="estimator.name='svm' is unknown: did you mean 'rbf_svm'. known: .*hierarchical, kmeans, linear_svm"
    ):
        estimators.get("svm")
    with pytest.raises(ValueError, match="^estimator.C is no option of kmeans; known: clusters$"):
        estimators.get("kmeans", C=1.0)
    with pytest.raises(ValueError, match="^estimator.seed is no option of monte_carlo; known: none$"):
        estimators.get("monte_carlo", seed=1)


def test_options_that_are_none_are_left_to_the_estimator():
    assert estimators.get("linear_svm", C=None, clusters=None).keywords == {}


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("nearest_centroid_of_generated", {"clusters": 31}, "estimator.clusters=31: use 1 to 30"),
        ("kmeans", {"clusters": 51}, "estimator.clusters=51: use 1 to 50, the number of images to cluster"),
        ("dbscan", {"min_samples": 0}, "estimator.min_samples=0: use 1 to 50"),
        ("gan_leaks", {"k": 25}, "estimator.k=25: use 1 to 24"),
        ("gan_leaks", {"k": 31, "calibrated": False}, "estimator.k=31: use 1 to 30"),
        ("texture_forest", {"textures": 255}, "estimator.textures=255: use 1 to 254"),
        ("texture_forest", {"selected": 48}, "estimator.selected=48: use 1 to 47"),
        ("similarity", {"measure": "angle"}, "estimator.measure='angle' is unknown; known: cosine, euclidean, jaccard, ssim"),
        ("similarity_logistic", {"measure": "angle"}, "estimator.measure='angle' is unknown; known: cosine, euclidean"),
        ("similarity", {"readout": "min"}, "estimator.readout='min' is unknown; known: max, mean, knn"),
        ("similarity", {"readout": "knn", "k": 31}, "estimator.k=31: use 1 to 30"),
    ],
)
def test_options_that_cannot_be_are_refused(name, options, text):
    query, gallery = membership()
    with pytest.raises(ValueError, match=f"^{text}"):
        estimators.get(name, **options)(query, gallery, seed=0)
