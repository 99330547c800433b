"""The error of a reconstruction and the score that follows from it, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from fingerprint_jax.objectives.autoencoder import Objective

SIZE = (10, 9)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (5, *SIZE, 1)).astype(np.float32)


def _objective(task="subtask1", normalize="symmetric", **options):
    options = {"name": "autoencoder", "error": "mse", "latent": 6, "widths": (4, 4, 2)} | options
    backbone = {"name": "strided_resnet_tiny", "weights": "", "dtype": "float32"}
    config = {"task": task, "objective": options, "backbone": backbone, "data": {"normalize": normalize}}
    return Objective(ConfigDict(config), 2, (*SIZE, 1))


@pytest.mark.parametrize("error", ["mse", "mae"])
def test_the_loss_is_the_mean_error_of_all_streams_and_the_score_minus_that_of_an_image(error):
    reconstruction = np.float32(0.5) * IMAGES + np.linspace(0, 0.4, 5, dtype=np.float32)[:, None, None, None]

    def net(images, *, train, rngs=None):  # it knows where an image stands
        return jnp.zeros((len(images), 3)), jnp.asarray(reconstruction)

    difference = (IMAGES - reconstruction).reshape(5, -1)
    expected = (difference**2 if error == "mse" else np.abs(difference)).mean(axis=1)
    objective = _objective(error=error)
    batch = {"generated": {"image": jnp.asarray(IMAGES[:3])}, "real": {"image": jnp.asarray(IMAGES[3:])}}
    loss, _ = objective.loss(net, batch, jax.random.key(0))
    np.testing.assert_allclose(loss, expected.mean(), rtol=1e-5)
    outputs = jax.device_get(objective.outputs(net, jnp.asarray(IMAGES)))
    np.testing.assert_allclose(outputs["error"], expected, rtol=1e-5)
    np.testing.assert_array_equal(objective.scores(None, outputs, {}), -outputs["error"][:, None])
    assert not objective.probabilities


@pytest.mark.parametrize(("latent", "normalize"), [(6, "symmetric"), (0, "unit")])
def test_images_pass_through_the_latent_and_the_decoder(latent, normalize):
    objective = _objective(latent=latent, normalize=normalize)

    @jax.jit
    def build():
        return nnx.split(objective.build(nnx.Rngs(params=jax.random.key(0))))[1]

    net = nnx.merge(nnx.split(nnx.eval_shape(lambda: objective.build(nnx.Rngs(0))))[0], build())
    latents, images = jax.jit(lambda x: net(x, train=False))(IMAGES)
    assert latents.shape == (5, latent or 16) and images.shape == IMAGES.shape and (net.latent is None) == (latent == 0)
    assert net.decoder.squash == (normalize == "symmetric")
    assert {path[0] for path, _ in nnx.to_flat_state(nnx.state(net))} == {"backbone", "decoder"} | ({"latent"} if latent else set())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"task": "subtask2"}, "objective.name='autoencoder' gives one score, membership"),
        ({"error": "ssim"}, "objective.error='ssim' is unknown; known: mse, mae"),
        ({"widths": ()}, r"objective.widths=\(\): use at least one width"),
    ],
)
def test_what_cannot_be_is_one_line(options, text):
    with pytest.raises(ValueError, match=text):
        _objective(**options)


MAP = {"latent": 0, "latent_map": 3, "kl": 0.25, "widths": (8, 4, 4)}


def _mapped(**options):
    objective = _objective(**(MAP | options))
    net = objective.build(nnx.Rngs(0))
    return objective, net


def test_a_latent_map_costs_its_divergence_from_the_normal_distribution():
    objective, net = _mapped()
    noise = [jax.random.normal(k, (n, 3, 3, 3)) for k, n in zip(jax.random.split(jax.random.key(4), 2), (3, 2), strict=True)]
    before = nnx.clone(net)
    batch = {"a": {"image": jnp.asarray(IMAGES[:3])}, "b": {"image": jnp.asarray(IMAGES[3:])}}
    loss, metrics = objective.loss(net, batch, jax.random.key(4))  # the running statistics move
    mean, log_variance = (np.asarray(x, np.float64) for x in before._moments(jnp.asarray(IMAGES), train=True))
    # Of two normal distributions (closed form): log of the ratio of deviations + (variance + difference^2) / 2 - 1/2.
    divergence = -log_variance / 2 + (np.exp(log_variance) + mean**2) / 2 - 0.5
    np.testing.assert_allclose(metrics["kl"], divergence.mean(), rtol=1e-4)
    latent = mean + np.exp(log_variance / 2) * np.concatenate(noise)
    images = before.decoder(jnp.asarray(latent, jnp.float32), train=True)
    np.testing.assert_allclose(metrics["error"], np.mean((IMAGES - images) ** 2), rtol=1e-4)
    np.testing.assert_allclose(loss, metrics["error"] + 0.25 * metrics["kl"], rtol=1e-6)
    np.testing.assert_allclose(net.mean[...], 0.1 * latent.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(net.variance[...], 0.9 + 0.1 * latent.var((0, 1, 2)), rtol=1e-4)


def test_latents_have_mean_0_and_deviation_1_and_come_back():
    objective, net = _mapped()
    mean = np.asarray(net._moments(jnp.asarray(IMAGES), train=False)[0])
    net.mean.set_value(jnp.asarray(mean.mean((0, 1, 2))))
    net.variance.set_value(jnp.asarray(mean.var((0, 1, 2))))
    latents = np.asarray(net.encode(jnp.asarray(IMAGES)))
    np.testing.assert_allclose(latents.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(latents.std((0, 1, 2)), 1, rtol=1e-2)
    np.testing.assert_allclose(net.decode(jnp.asarray(latents)), net.decoder(jnp.asarray(mean), train=False), atol=1e-4)
    outputs = jax.device_get(objective.outputs(net, jnp.asarray(IMAGES)))
    np.testing.assert_allclose(outputs["embedding"], latents.reshape(5, -1), rtol=1e-5)
    expected = np.mean((IMAGES - np.asarray(net.decode(jnp.asarray(latents)))) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(outputs["error"], expected, rtol=1e-4)


def test_a_decoder_that_does_not_begin_at_the_latent_map_is_refused():
    with pytest.raises(ValueError, match=r"1 steps of the decoder begin at 5 x 5, the backbone's last map is 3 x 3: use a width"):
        _mapped(widths=(8, 4))
