"""Clusters are found without labels, matched by assignments that can be counted, and score by distances and shares that can too."""

import itertools

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, ward

from fingerprint_jax import estimators
from fingerprint_jax.estimators import cluster
from tests.estimators.streams import rows

CENTROIDS = ["kmeans", "gmm", "hierarchical", "spectral"]


def _estimate(name, query, x, y, **options):
    return estimators.get(name, **options)(rows(query), {"labelled": rows(x, y, first=1000)}, seed=0)


def _pairs(table):
    """Cluster and label of every row of a contingency table."""
    found, labels = np.nonzero(table)
    counts = np.asarray(table)[found, labels]
    return np.repeat(found, counts), np.repeat(labels, counts)


def test_the_assignment_is_the_best_of_all_permutations():
    for seed in range(20):
        table = np.random.default_rng(seed).integers(0, 9, (5, 5))
        owner = cluster.match(*_pairs(table), 5, 5)
        best = max(itertools.permutations(range(5)), key=lambda p: sum(table[k, p[k]] for k in range(5)))
        assert sorted(owner) == list(range(5))
        assert sum(table[k, owner[k]] for k in range(5)) == sum(table[k, best[k]] for k in range(5))


def test_no_class_goes_without_a_cluster():
    # Class 0 has the majority of both; 8 + 4 rows are right in place of 9 + 1.
    assert cluster.match(*_pairs([[9, 1], [8, 4]]), 2, 2).tolist() == [0, 1]
    assert cluster.match(*_pairs([[8, 4], [9, 1]]), 2, 2).tolist() == [1, 0]


def test_clusters_left_over_go_to_the_majority():
    # One to one: cluster 0 to class 0, 2 to class 1 (9 + 6 rows); of the rest 1 has more of class 0, 3 of class 1.
    table = [[9, 0], [5, 4], [1, 6], [2, 5]]
    assert cluster.match(*_pairs(table), 4, 2).tolist() == [0, 0, 1, 1]


LINE = np.concatenate([np.resize([-1, -1, 0, 1, 1], 5) + start for start in (0, 10, 20)]).astype(float)  # around 0, 10 and 20


@pytest.mark.parametrize("name", ["kmeans", "gmm", "hierarchical"])
def test_scores_are_minus_the_distances_to_centroids_in_deviations(name):
    x = np.stack([LINE, np.full(15, 7.0)], axis=1)  # and a column that is constant
    query = np.array([[0.0, 7.0], [13.0, 7.0]])
    expected = -np.abs(query[:, :1] - [[10, 20, 0]]) / LINE.std()
    np.testing.assert_allclose(_estimate(name, query, x, np.repeat([2, 0, 1], 5)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["kmeans", "gmm", "hierarchical"])
def test_a_class_of_two_clusters_scores_by_the_nearer(name):
    x, query = np.append(LINE, [28.5, 30, 31.5])[:, None], np.array([[1.0], [19.0], [12.0], [30.0]])
    scores = _estimate(name, query, x, np.repeat([0, 1, 0, 2], [5, 5, 5, 3]), clusters=4)
    expected = -np.array([[1, 9, 29], [1, 9, 11], [8, 2, 18], [10, 20, 0]]) / x.std()
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Graph is not fully connected")
@pytest.mark.parametrize("name", CENTROIDS)
def test_of_two_classes_the_score_is_the_smoothed_share_of_the_cluster(name):
    # Around 0 are 12 rows of which 9 are used, around 30 are 12 of which 2 are, around 60 only generated images.
    rng = np.random.default_rng(0)
    around = lambda centre, count: centre + rng.normal(0, 1, (count, 3))  # noqa: E731
    labels = np.repeat([1, 0, 1, 0], [9, 3, 2, 10])
    labelled = rows(np.concatenate([around(0, 12), around(30, 12)]), labels)
    generated = rows(np.concatenate([around(60, 12), around(0, 5)]), first=100)
    query = rows([[0, 1, 0], [30, 29, 30], [70, 60, 60], [14, 14, 14]], first=200)
    found = estimators.get(name, clusters=3)(query, {"labelled": labelled, "generated": generated}, seed=0)
    np.testing.assert_allclose(found[:, 0], [10 / 14, 3 / 14, 1 / 2, 10 / 14], rtol=1e-6)
    # Without the generated images there are two clusters, and the far query goes to the nearer.
    found = estimators.get(name, clusters=2)(query, {"labelled": labelled}, seed=0)
    np.testing.assert_allclose(found[:, 0], [10 / 14, 3 / 14, 3 / 14, 10 / 14], rtol=1e-6)


def test_clusters_are_one_a_class_and_eight_of_membership():
    assert [cluster.default(classes) for classes in (2, 3, 5)] == [8, 3, 5]


def test_dbscan_takes_the_nearest_core_sample_within_the_knee_or_noise():
    # Two rings a distance of 1 apart that k-means would not tell from each other, and rows far from everything and one another.
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    far = np.array([[30.0, 0], [-30, 0], [0, 30], [0, -30]])
    labels = np.concatenate([np.repeat([1, 0], [45, 15]), np.repeat([1, 0], [6, 54]), [1, 1, 1, 0]])
    labelled = rows(np.concatenate([ring, 4 * ring, far]), labels)
    query = rows([[1.05, 0], [0, -4.1], [0.1, 0.1], [20, 20], [29.5, 0]], first=500)
    found = estimators.get("dbscan", min_samples=3)(query, {"labelled": labelled}, seed=0)
    np.testing.assert_allclose(found[:, 0], [46 / 62, 7 / 62, 4 / 6, 4 / 6, 4 / 6], rtol=1e-6)
    with pytest.raises(ValueError, match="estimator.name='dbscan' tells two classes apart"):
        estimators.get("dbscan")(query, {"labelled": rows(labelled.values, np.arange(len(labels)) % 3)}, seed=0)


def test_dbscan_of_rows_that_are_all_one_has_one_cluster():
    labelled = rows(np.ones((6, 2)), [1, 1, 1, 1, 0, 0])
    found = estimators.get("dbscan", min_samples=3)(rows([[1.0, 1.0], [3.0, 1.0]], first=9), {"labelled": labelled}, seed=0)
    np.testing.assert_allclose(found[:, 0], [5 / 8, 1 / 2], rtol=1e-6)


def test_the_nearest_centroid_of_the_generated_images():
    offsets = np.array([-1.0, 0, 1])
    line = np.concatenate([offsets, offsets + 50, offsets + 100])
    gallery = {"generated": rows(np.stack([line, np.full(9, 7.0)], axis=1), first=10)}
    query = rows([[0.0, 7.0], [58.0, 7.0], [90.0, 7.0]])
    found = estimators.get("nearest_centroid_of_generated", clusters=3)(query, gallery, seed=0)
    np.testing.assert_allclose(found[:, 0], -np.array([0, 8, 10]) / line.std(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CENTROIDS)
@pytest.mark.filterwarnings("ignore:Graph is not fully connected")
def test_the_clustering_does_not_see_the_labels_and_the_scale_of_a_feature_is_nothing(name):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(8 * k, 1, (30, 2)) for k in range(3)])
    query, truth = x + rng.normal(0, 0.1, x.shape), np.repeat([0, 1, 2], 30)
    clear = _estimate(name, query, x, truth)
    # Labels that say nothing leave the same three clusters: the scores are the same but for which is which.
    mixed = _estimate(name, query, x, np.resize([0, 1, 2], 90))
    np.testing.assert_allclose(np.sort(mixed, axis=1), np.sort(clear, axis=1), rtol=1e-5)
    np.testing.assert_allclose(_estimate(name, query * [1000, 1], x * [1000, 1], truth), clear, rtol=1e-4, atol=1e-5)


def test_hierarchical_is_the_tree_of_ward_cut_where_it_has_as_many_branches():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(40, 4)), np.resize([0, 1, 2], 40)
    standard = (x - x.mean(axis=0)) / x.std(axis=0)
    found = fcluster(ward(standard), 3, "maxclust") - 1
    owner = cluster.match(found, y, 3, 3)
    centroids = [standard[found == np.flatnonzero(owner == k)[0]].mean(axis=0) for k in range(3)]
    expected = -np.linalg.norm(standard[:, None] - np.stack(centroids), axis=-1)
    np.testing.assert_allclose(_estimate("hierarchical", x, x, y), expected, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@pytest.mark.parametrize(
    ("clusters", "text"),
    [(2, "estimator.clusters=2 is less than the 3 classes"), (4, "estimator.clusters=4: the 6 training rows form 3 clusters")],
)
def test_clusters_that_cannot_be_are_refused(clusters, text):
    x, y = np.repeat(np.eye(3), 2, axis=0), np.repeat([0, 1, 2], 2)
    with pytest.raises(ValueError, match=text):
        _estimate("kmeans", x, x, y, clusters=clusters)
