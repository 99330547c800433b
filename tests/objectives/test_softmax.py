"""The class of the real images: in the loss, not in the scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy.special import log_softmax, softmax

from fingerprint_jax.objectives.softmax import Objective

LOGITS = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)


def _objective(real_class, task="subtask2"):
    return Objective(ConfigDict({"task": task, "objective": {"name": "softmax", "real_class": real_class}}), 5, (48, 48, 1))


def _net(images, *, train, rngs=None):
    return images, jnp.asarray(LOGITS[: len(images)])


def test_real_images_are_the_sixth_class_whatever_their_subset():
    batch = {
        "generated": {"image": jnp.zeros((3, 1)), "label": jnp.array([0, 4, 2])},
        "real": {"image": jnp.zeros((2, 1)), "label": jnp.array([1, 3])},
    }
    for real_class, classes in ((True, [0, 4, 2, 5, 5]), (False, [0, 4, 2, 1, 3])):
        loss, metrics = _objective(real_class).loss(_net, batch, jax.random.key(0))
        np.testing.assert_allclose(loss, -log_softmax(LOGITS, axis=1)[range(5), classes].mean(), rtol=1e-6)
        assert metrics["train_accuracy"] == (LOGITS.argmax(axis=1) == classes).mean()


def test_scores_are_the_softmax_of_the_five_subsets():
    scores = _objective(True).scores(None, {"logits": LOGITS}, {})
    np.testing.assert_allclose(scores, softmax(LOGITS[:, :5], axis=1), rtol=1e-6)


def test_a_real_class_is_of_attribution():
    with pytest.raises(ValueError, match="objective.real_class is of subtask2"):
        _objective(True, "subtask1")
