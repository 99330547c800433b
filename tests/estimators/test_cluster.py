"""Clusters are found without labels, matched by assignments that can be counted, and score by distances that can be measured."""

import itertools

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, ward

from fingerprint_jax.estimators import cluster
from tests.estimators import on_labelled


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


@pytest.mark.parametrize("name", ["kmeans", "hierarchical"])
def test_scores_are_minus_the_distances_to_centroids_in_deviations(name):
    # Three classes on a line, around 0, 10 and 20, and a column that is constant.
    offsets = np.array([-1, -1, 0, 1, 1])
    line = np.concatenate([offsets, offsets + 10, offsets + 20]).astype(float)
    x, y = np.stack([line, np.full(15, 7.0)], axis=1), np.repeat([2, 0, 1], 5)
    query = np.array([[0.0, 7.0], [13.0, 7.0]])
    expected = -np.abs(query[:, :1] - [[10, 20, 0]]) / line.std()
    np.testing.assert_allclose(on_labelled(name)(x, y, query, seed=0), expected, rtol=1e-5, atol=1e-6)
    two = on_labelled(name)(x[:10], y[:10], query, seed=0)  # class 2 is the higher, and lies around 0
    np.testing.assert_allclose(two[:, 0], (np.abs(query[:, 0] - 10) - np.abs(query[:, 0])) / line[:10].std(), rtol=1e-5)


@pytest.mark.parametrize("name", ["kmeans", "hierarchical"])
def test_a_class_of_two_clusters_scores_by_the_nearer(name):
    offsets = np.array([-1, -1, 0, 1, 1])
    x = np.concatenate([offsets, offsets + 10, offsets + 20]).astype(float)[:, None]
    y = np.repeat([0, 1, 0], 5)
    query = np.array([[1.0], [19.0], [12.0]])
    scores = on_labelled(name, clusters=3)(x, y, query, seed=0)
    to_0, to_1 = np.array([1, 1, 8]), np.array([9, 9, 2])
    np.testing.assert_allclose(scores[:, 0], (to_0 - to_1) / x.std(), rtol=1e-5)


def test_the_clustering_does_not_see_the_labels_and_the_scale_of_a_feature_is_nothing():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 1, (30, 2)), rng.normal(8, 1, (30, 2))])
    mixed = np.resize([0, 1], 60)
    for name in ("kmeans", "hierarchical"):
        estimate = on_labelled(name)
        clear = estimate(x, np.repeat([0, 1], 30), x, seed=0)
        # Labels that say nothing leave the same two clusters: the scores are the same but for which is which.
        np.testing.assert_allclose(np.abs(estimate(x, mixed, x, seed=0)), np.abs(clear), rtol=1e-5)
        scaled = estimate(x * [1000, 1], np.repeat([0, 1], 30), x * [1000, 1], seed=0)
        np.testing.assert_allclose(scaled, clear, rtol=1e-4, atol=1e-5)


def test_hierarchical_is_the_tree_of_ward_cut_where_it_has_as_many_branches():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(40, 4)), np.resize([0, 1, 2], 40)
    standard = (x - x.mean(axis=0)) / x.std(axis=0)
    found = fcluster(ward(standard), 3, "maxclust") - 1
    owner = cluster.match(found, y, 3, 3)
    centroids = [standard[found == np.flatnonzero(owner == k)[0]].mean(axis=0) for k in range(3)]
    expected = -np.linalg.norm(standard[:, None] - np.stack(centroids), axis=-1)
    np.testing.assert_allclose(on_labelled("hierarchical")(x, y, x, seed=0), expected, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@pytest.mark.parametrize(
    ("clusters", "text"),
    [(2, "estimator.clusters=2 is less than the 3 classes"), (4, "estimator.clusters=4: the 6 training rows form 3 clusters")],
)
def test_clusters_that_cannot_be_are_refused(clusters, text):
    x, y = np.repeat(np.eye(3), 2, axis=0), np.repeat([0, 1, 2], 2)
    with pytest.raises(ValueError, match=text):
        on_labelled("kmeans", clusters=clusters)(x, y, x, seed=0)
