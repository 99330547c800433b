"""Losses, penalty and adaptation against closed forms, and each player's loss falls while the other stands still."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
import scipy.special
from flax import nnx

from fingerprint_jax.backbones import stylegan2
from fingerprint_jax.data import augment
from fingerprint_jax.objectives import gan
from fingerprint_jax.objectives.gan import Objective, augmented
from fingerprint_jax.training.model import Model
from tests.conftest import load_config

CONFIG = "configs/generators/gan.py"
SHAPE = (6, 5, 1)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (8, *SHAPE)).astype(np.float32)
LABELS = np.arange(8) % 3
BATCH = {"train": {"image": jnp.asarray(IMAGES), "label": jnp.asarray(LABELS)}}


def _objective(task="images", normalize="symmetric", backbone="stylegan2_tiny", shape=SHAPE, **options):
    config = load_config(CONFIG)
    config.task, config.data.normalize, config.backbone.name = task, normalize, backbone
    config.objective.update(options)
    return Objective(config, 3, shape)


class Players(nnx.Module):
    """A discriminator a |x|^2 + b and a generator that makes grey images of the mean of the noise times g."""

    def __init__(self, a=0.1, b=-0.2, g=0.7, strength=0.0):
        self.a, self.b, self.g = (nnx.Param(jnp.float32(x)) for x in (a, b, g))
        self.strength = nnx.Variable(jnp.float32(strength))

    def judged(self, images, labels):
        return self.a[...] * jnp.square(images).sum(axis=(1, 2, 3)) + self.b[...]

    def made(self, noise, labels):
        return jnp.broadcast_to(self.g[...] * noise.mean(axis=1)[:, None, None, None], (len(noise), *SHAPE))


def test_the_losses_and_their_gradients_are_those_by_hand():
    objective, key = _objective(noise=4, r1=3.0, ada_target=0.0), jax.random.key(1)
    graph, params, rest = nnx.split(Players(), nnx.Param, ...)

    def loss(params):
        return objective.loss(nnx.merge(graph, params, rest, copy=True), BATCH, key)

    (total, found), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    grey = np.asarray(jax.random.normal(jax.random.split(key, 3)[0], (8, 4))).mean(axis=1)
    a, b, g, pixels = 0.1, -0.2, 0.7, 30
    real, fake = np.square(IMAGES).sum(axis=(1, 2, 3)), pixels * (g * grey) ** 2  # what a multiplies
    expected = {
        "generator": np.logaddexp(0, -(a * fake + b)).mean(),
        "discriminator": np.logaddexp(0, a * fake + b).mean() + np.logaddexp(0, -(a * real + b)).mean(),
        "penalty": 3 / 2 * np.mean(4 * a**2 * real),  # the slope at x is 2 a x
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5)
    np.testing.assert_allclose(total, sum(expected.values()), rtol=1e-5)
    of_fake, of_real = scipy.special.expit(a * fake + b), -scipy.special.expit(-(a * real + b))  # the slopes of softplus
    slopes = {
        "a": np.mean(of_fake * fake + of_real * real) + 3 / 2 * np.mean(8 * a * real),
        "b": np.mean(of_fake + of_real),
        "g": np.mean(-scipy.special.expit(-(a * fake + b)) * a * pixels * 2 * g * grey**2),  # of the generator's loss alone
    }
    for name, value in slopes.items():
        np.testing.assert_allclose(gradients[name][...], value, rtol=1e-4)


@pytest.mark.parametrize(("logit", "target", "expected"), [(5.0, 0.6, 0.58), (-5.0, 0.6, 0.42), (0.0, 0.0, 0.5)])
def test_the_strength_follows_the_signs_of_the_logits_of_real_images(logit, target, expected):
    """By 8 images of 100, up while more of the logits than the target says are positive, and down while less are."""
    net = Players(a=0.0, b=logit, strength=0.5)
    _, found = _objective(noise=4, ada_target=target, ada_images=100).loss(net, BATCH, jax.random.key(0))
    assert found["strength"] == 0.5
    np.testing.assert_allclose(net.strength[...], expected, rtol=1e-6)


@pytest.mark.parametrize(("logit", "strength", "bound"), [(5.0, 0.99, 1.0), (-5.0, 0.01, 0.0)])
def test_the_strength_stays_a_probability(logit, strength, bound):
    net = Players(a=0.0, b=logit, strength=strength)
    _objective(noise=4, ada_images=10).loss(net, BATCH, jax.random.key(0))
    assert net.strength[...] == bound


def test_an_image_is_augmented_with_that_probability_and_else_as_it_is():
    images = np.random.default_rng(1).uniform(-1, 1, (2000, 4, 4, 1)).astype(np.float32)
    key, options = jax.random.key(2), {"brightness": 0.5, "flip": 0.5}
    np.testing.assert_array_equal(augmented(images, key, jnp.float32(0), options), images)
    whole = augmented(images, key, jnp.float32(1), options)
    np.testing.assert_array_equal(whole, augment.augment(jnp.asarray(images), jax.random.split(key)[1], **options))
    changed = (np.asarray(augmented(images, key, jnp.float32(0.3), options)) != images).any(axis=(1, 2, 3))
    np.testing.assert_allclose(changed.mean(), 0.3, atol=0.04)


def test_both_kinds_go_through_the_augmentation_and_both_players_see_the_same_fakes(monkeypatch):
    def brighter(images, key, strength, options):
        seen.append((images, key, strength, options))
        return images + 1

    seen = []
    monkeypatch.setattr(gan, "augmented", brighter)
    _, found = _objective(noise=4, augment={"shift": 2}).loss(Players(strength=0.25), BATCH, jax.random.key(0))
    (for_generator, key, *_), (of_fake, same, *_), (_, other, strength, options) = seen
    np.testing.assert_array_equal(for_generator, of_fake)
    assert key is same and key is not other and strength == 0.25 and options["shift"] == 2
    fake, real = (0.1 * np.square(np.asarray(x) + 1).sum(axis=(1, 2, 3)) - 0.2 for x in (of_fake, IMAGES))
    np.testing.assert_allclose(found["generator"], np.logaddexp(0, -fake).mean(), rtol=1e-5)
    np.testing.assert_allclose(found["discriminator"], (np.logaddexp(0, fake) + np.logaddexp(0, -real)).mean(), rtol=1e-5)
    np.testing.assert_allclose(found["penalty"], np.square(0.2 * (IMAGES + 1)).sum(axis=(1, 2, 3)).mean() / 2, rtol=1e-5)


def _styled(conv, images, styles):
    """Section 2.2 of the paper with the weights of each image apart: w' = s w / sqrt(sum (s w)^2)."""
    kernel, out = np.asarray(conv.conv.kernel[...], np.float64), np.zeros((*images.shape[:3], len(conv.bias[...])))
    for n, style in enumerate(styles):
        weight = kernel * np.asarray(1 + conv.style(style[None])[0])[:, None]
        if conv.demodulate:
            weight = weight / np.sqrt(np.square(weight).sum(axis=(0, 1, 2)) + 1e-8)
        for c, d in np.ndindex(weight.shape[2:]):
            out[n, ..., d] += scipy.signal.correlate2d(images[n, ..., c], weight[..., c, d], mode="same")
    return out + np.asarray(conv.bias[...])


@pytest.mark.parametrize(("size", "demodulate"), [(3, True), (1, False)])
def test_a_style_scales_the_weights_as_in_the_paper(size, demodulate):
    conv = stylegan2.Styled(3, 4, size, 5, nnx.Rngs(params=0), "float32", demodulate=demodulate)
    conv.bias[...] = jnp.arange(4.0)
    rng = np.random.default_rng(0)
    images, styles = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 6, 5, 3), (2, 5)))
    np.testing.assert_allclose(conv(images, styles), _styled(conv, images, styles), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(6, 4), (5, 3), (1, 2)])
def test_halving_takes_means_and_an_odd_side_repeats_its_last(height, width):
    x = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    expected = [padded[:, i::2, k::2] for i in range(2) for k in range(2)]
    np.testing.assert_allclose(stylegan2.halved(x), np.mean(expected, axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 5, 1), (9, 16, 1), (4, 4, 3)])
def test_images_have_the_shape_asked_for_and_hang_on_noise_and_label(shape):
    graph, state = nnx.split(_objective(shape=shape, conditional=True, noise=4).build(nnx.Rngs(params=0)))

    @jax.jit
    def run(noise, labels):
        net = nnx.merge(graph, state, copy=True)
        images = net.made(noise, labels)
        return images, net.judged(images, labels)

    noise = jax.random.normal(jax.random.key(0), (4, 4))
    images, logits = run(noise, jnp.array([0, 1, -1, 0]))
    assert images.shape == (4, *shape) and logits.shape == (4,)
    same, same_logits = run(jnp.broadcast_to(noise[:1], noise.shape), jnp.array([0, 1, -1, 0]))
    np.testing.assert_allclose(same[0], same[3], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(same[0], images[0], rtol=1e-5, atol=1e-6)
    assert min(np.abs(same[i] - same[k]).max() for i in range(3) for k in range(i)) > 1e-3
    assert np.ptp(np.asarray(same_logits)[:3]) > 1e-4


@pytest.mark.parametrize(("still", "falls"), [("generator", "discriminator"), ("backbone|hidden|head", "generator")])
def test_the_loss_of_a_player_falls_while_the_other_stands_still(still, falls):
    config = load_config(CONFIG)
    config.backbone.name, config.objective.noise, config.objective.ada_target = "stylegan2_tiny", 4, 0.0
    config.optimizer.rates = ((still, 0.0),)
    shape = (8, 8, 1)
    model = Model(config, 2, shape)
    images = np.random.default_rng(0).integers(100, 140, (8, *shape)).astype(np.uint8)
    stream = {"image": images, "label": np.zeros(8, np.int32), "index": np.arange(8, dtype=np.int32)}
    state, losses = model.init(jax.random.key(0)), []
    for _ in range(40):
        state, metrics = model.step(state, {"train": stream}, {}, jnp.float32(2e-3), jax.random.key(1))
        losses.append(float(metrics[falls]))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:2]), losses


def test_the_score_is_the_logit_of_each_image_alone():
    objective = _objective("subtask1", noise=4)
    net = Players()
    outputs = jax.device_get(objective.outputs(net, jnp.asarray(IMAGES)))
    np.testing.assert_allclose(outputs["logit"], 0.1 * (IMAGES**2).sum(axis=(1, 2, 3)) - 0.2, rtol=1e-5)
    np.testing.assert_array_equal(objective.scores(None, outputs, {})[:, 0], outputs["logit"])
    with pytest.raises(ValueError, match="'gan' answers membership, not task='images': use subtask1"):
        _objective().scores(None, outputs, {})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"normalize": "unit"}, "data.normalize='unit': the images of gan are -1..1, use symmetric"),
        ({"augment": {"blur": 1.0}}, "objective.augment.blur is unknown: use fields of augment, brightness, .*"),
        ({"backbone": "resnet_tiny"}, "backbone.name='resnet_tiny' is no discriminator: use stylegan2_small"),
    ],
)
def test_what_cannot_be_is_one_line(options, text):
    with pytest.raises(ValueError, match=text):
        _objective(**options).build(nnx.Rngs(params=0))


def test_a_second_stream_is_refused():
    with pytest.raises(ValueError, match=r"data.streams=\['a', 'b'\]: gan learns one set of images, name one stream"):
        _objective().loss(None, {"a": BATCH["train"], "b": BATCH["train"]}, jax.random.key(0))
