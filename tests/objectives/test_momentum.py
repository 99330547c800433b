"""Momentum contrast: the queue against a deque, the momentum encoder in closed form, the order of the shuffled images."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fingerprint_jax.backbones.layers import BatchNorm
from fingerprint_jax.objectives.parts import momentum
from fingerprint_jax.objectives.parts.momentum import Projection, Queue


class _Encoder(nnx.Module):
    """Batch normalisation of the pixels in groups of four, and a linear layer."""

    def __init__(self, rngs):
        self.norm, self.linear = BatchNorm(1, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)
        self.norm.groups = 2

    def __call__(self, images, *, train, rngs=None):
        x = self.norm(images, train=train).reshape(len(images), -1)
        return self.linear(x), x.sum(axis=1)


def _images(n=8, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 2, 2, 1)).astype(np.float32)


def _net():
    return momentum.contrasted(_Encoder(nnx.Rngs(0)), 8, 3, nnx.Rngs(1))


def _arrays(module):
    return {path: np.asarray(value.get_value()) for path, value in nnx.to_flat_state(nnx.state(module))}


@pytest.mark.parametrize("batch", [1, 2, 3, 6])
def test_the_queue_is_a_deque(batch):
    queue, rng = Queue(6, 2, nnx.Rngs(0)), np.random.default_rng(0)
    start = np.asarray(queue.keys[...])
    np.testing.assert_allclose(np.linalg.norm(start, axis=1), 1, rtol=1e-6)
    expected, images = collections.deque(map(tuple, start), maxlen=6), collections.deque([-1] * 6, maxlen=6)
    for step in range(1, 9):  # wraps around
        keys, index = rng.normal(size=(batch, 2)).astype(np.float32), rng.integers(0, 99, batch).astype(np.int32)
        queue.push(jnp.asarray(keys), jnp.asarray(index))
        expected.extend(map(tuple, keys))
        images.extend(index)
        oldest = step * batch % 6
        np.testing.assert_array_equal(np.roll(queue.keys[...], -oldest, axis=0), list(expected))
        np.testing.assert_array_equal(np.roll(queue.index[...], -oldest), list(images))
        assert int(queue.count[...]) == step * batch


def test_a_batch_that_does_not_divide_the_queue_is_refused():
    with pytest.raises(ValueError, match="objective.queue=6 is not a multiple of the 4 images of a batch"):
        Queue(6, 2, nnx.Rngs(0)).push(jnp.zeros((4, 2)), jnp.arange(4))


def test_the_momentum_encoder_begins_as_the_online_one_and_follows_in_closed_form():
    net = _net()
    net.linear.kernel.set_value(net.linear.kernel[...] + 5)  # pretrained weights come after the net is built
    net.norm.mean.set_value(net.norm.mean[...] + 2)
    momentum.update(net, 0.9)
    start = _arrays(net.momentum_encoder)
    online = {path: value for path, value in _arrays(net).items() if path in start}
    assert len(start) == 6
    jax.tree.map(np.testing.assert_array_equal, start, online)

    net.queue.push(jnp.zeros((4, 3)), jnp.arange(4))
    for variable in (net.linear.kernel, net.linear.bias, net.norm.scale, net.norm.mean):
        variable.set_value(variable[...] + 1)
    for _ in range(3):
        momentum.update(net, 0.9)
    after, share = _arrays(net.momentum_encoder), 1 - 0.9**3
    for path, value in after.items():
        moved = share if path in {("linear", "kernel"), ("linear", "bias"), ("norm", "scale")} else 0  # statistics are its own
        np.testing.assert_allclose(value, start[path] + moved, rtol=1e-5, atol=1e-6)


def test_the_momentum_encoder_and_the_queue_are_not_trained():
    params, rest = nnx.state(_net(), momentum.TRAINED, ...)
    trained = {path[:-1] for path, _ in nnx.to_flat_state(params)}
    assert trained == {("linear",), ("norm",)}
    assert {path[0] for path, _ in nnx.to_flat_state(rest)} == {"momentum_encoder", "queue", "norm"}


def test_shuffled_images_are_normalised_with_their_company_and_come_back_in_order():
    encoder, images, key = _Encoder(nnx.Rngs(0)), _images(), jax.random.key(3)
    embedding, total = momentum.shuffled(encoder, jnp.asarray(images), key, nnx.Rngs(0))
    order = np.asarray(jax.random.permutation(key, 8))
    assert (order != np.arange(8)).any()
    expected, means = np.empty((8, 2, 2, 1)), []
    for group in (order[:4], order[4:]):
        mean, variance = images[group].mean(), images[group].var()
        expected[group] = (images[group] - mean) / np.sqrt(variance + 1e-5)
        means.append(mean)
    np.testing.assert_allclose(total, expected.sum(axis=(1, 2, 3)), rtol=1e-4, atol=1e-5)
    kernel, bias = np.asarray(encoder.linear.kernel[...]), np.asarray(encoder.linear.bias[...])
    np.testing.assert_allclose(embedding, expected.reshape(8, 4) @ kernel + bias, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(encoder.norm.mean[...], 0.1 * np.mean(means), rtol=1e-4, atol=1e-6)


def test_a_projection_is_of_unit_length_and_its_temperature_within_bounds():
    projection, x = Projection(4, (5, 3, 2), nnx.Rngs(0)), np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    embedding, temperature = projection(jnp.asarray(x))
    for layer in (projection.layers[0], projection.layers[1]):
        x = np.maximum(x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...]), 0)
    last, head = projection.layers[2], projection.temperature
    y = x @ np.asarray(last.kernel[...]) + np.asarray(last.bias[...])
    np.testing.assert_allclose(embedding, y / np.linalg.norm(y, axis=1, keepdims=True), rtol=1e-4, atol=1e-5)
    logit = x @ np.asarray(head.kernel[...])[:, 0] + np.asarray(head.bias[...])
    np.testing.assert_allclose(temperature, 0.05 + 0.15 / (1 + np.exp(-logit)), rtol=1e-5)
    for bias, bound in ((-100, 0.05), (100, 0.2)):
        head.bias.set_value(jnp.full(1, float(bias)))
        np.testing.assert_allclose(projection(jnp.zeros((1, 4)))[1], bound, rtol=1e-6)
