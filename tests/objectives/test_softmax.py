"""The class of the real images: in the loss, not in the scores. The contrastive loss beside the cross-entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from scipy.special import log_softmax, softmax

from fingerprint_jax.objectives.parts import losses
from fingerprint_jax.objectives.softmax import PROJECTION, Net, Objective

LOGITS = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)


def _objective(real_class, task="subtask2", **options):
    options = {"real_class": real_class, "contrast": 0.0, "temperature": 0.1, "hidden": 0, "dropout": 0.0} | options
    return Objective(ConfigDict({"task": task, "objective": options}), 5, (48, 48, 1))


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


class _Pixels(nnx.Module):
    num_features = 3

    def __call__(self, images, *, train, rngs=None):
        return images


def test_the_contrastive_loss_of_the_projection_joins_the_cross_entropy():
    images, labels = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32), jnp.array([0, 1, 0, 1, 2, 2])
    batch = {"generated": {"image": jnp.asarray(images), "label": labels}}
    net = Net(_Pixels(), 5, nnx.Rngs(0), contrast=True)
    plain, metrics = _objective(False).loss(net, batch, jax.random.key(0))
    assert "contrast" not in metrics
    both, metrics = _objective(False, contrast=0.5, temperature=0.2).loss(net, batch, jax.random.key(0))
    kernel, bias = (np.asarray(p.get_value()) for p in (net.projection.kernel, net.projection.bias))
    projected = images @ kernel + bias
    assert projected.shape == (6, PROJECTION)
    np.testing.assert_allclose(metrics["contrast"], losses.supervised_contrastive(projected, labels, 0.2), rtol=1e-5)
    np.testing.assert_allclose(both, plain + 0.5 * metrics["contrast"], rtol=1e-6)


def test_the_projection_is_there_for_the_contrastive_loss_alone():
    assert Net(_Pixels(), 5, nnx.Rngs(0)).projection is None


def test_a_real_class_is_of_attribution():
    with pytest.raises(ValueError, match="objective.real_class is of subtask2"):
        _objective(True, "subtask1")


def test_the_head_has_a_hidden_layer_where_asked_for():
    assert Net(_Pixels(), 5, nnx.Rngs(0)).hidden is None
    net = Net(_Pixels(), 5, nnx.Rngs(0), hidden=7, rate=0.5)
    images = np.random.default_rng(2).normal(size=(4, 3)).astype(np.float32)
    weights = (layer.kernel for layer in (net.hidden, net.head)), (layer.bias for layer in (net.hidden, net.head))
    (kernel, head), (bias, head_bias) = ([np.asarray(p.get_value()) for p in kind] for kind in weights)
    features, logits = net(images, train=False)
    assert kernel.shape == (3, 7) and features is images
    np.testing.assert_allclose(logits, np.maximum(images @ kernel + bias, 0) @ head + head_bias, rtol=1e-5)
    first, again, other = (net(images, train=True, rngs=nnx.Rngs(dropout=seed))[1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other) and not np.array_equal(first, logits)
