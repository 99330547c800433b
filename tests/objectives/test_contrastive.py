"""The readouts of the Siamese network against slow loops."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from sklearn.metrics import pairwise_distances

from fingerprint_jax.objectives import contrastive


def _objective(task, readout, k=3):
    config = ConfigDict({"task": task, "objective": {"pairs": "all", "readout": readout, "k": k}})
    return contrastive.Objective(config, 5, (48, 48, 1))


def _outputs(n, first, seed):
    embedding = np.random.default_rng(seed).normal(size=(n, 4)).astype(np.float32)
    return {"embedding": embedding, "index": np.arange(first, first + n), "label": np.arange(n) % 5}


def test_attribution_is_the_mean_distance_or_the_distance_to_the_centroid():
    query, real = _outputs(7, 100, 0), _outputs(20, 0, 1)
    distance = pairwise_distances(query["embedding"].astype(float), real["embedding"].astype(float))
    mean = [[-distance[i, real["label"] == k].mean() for k in range(5)] for i in range(7)]
    np.testing.assert_allclose(_objective("subtask2", "mean").scores(None, query, {"real": real}), mean, rtol=1e-6)
    centroids = [real["embedding"][real["label"] == k].mean(axis=0) for k in range(5)]
    centroid = [[-np.linalg.norm(q - c) for c in centroids] for q in query["embedding"]]
    np.testing.assert_allclose(_objective("subtask2", "centroid").scores(None, query, {"real": real}), centroid, rtol=1e-5)


@pytest.mark.parametrize(("readout", "count"), [("mean", 9), ("min", 1), ("knn", 3)])
def test_membership_never_compares_an_image_with_itself(readout, count):
    generated = _outputs(10, 0, 2)  # the query is part of the gallery
    scores = _objective("subtask1", readout).scores(None, generated, {"generated": generated})
    distance = pairwise_distances(generated["embedding"].astype(float))
    expected = [[-np.sort(np.delete(row, i))[:count].mean()] for i, row in enumerate(distance)]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_an_unknown_readout_names_the_known_ones():
    with pytest.raises(ValueError, match="objective.readout='centroid' is unknown; known: mean, min, knn"):
        _objective("subtask1", "centroid")
