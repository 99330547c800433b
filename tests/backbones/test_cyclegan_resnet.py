"""Encoder, generator and PatchGAN: against numpy, sizes, and what a score sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fingerprint_jax import backbones
from fingerprint_jax.backbones.cyclegan_resnet import Discriminator, Generator
from tests.backbones.test_backbones import images, numpy_conv, parts


def _norm(x):
    return (x - x.mean(axis=(0, 1))) / np.sqrt(x.var(axis=(0, 1)) + 1e-5)


def _relu(x):
    return np.maximum(x, 0)


def _conv(x, layer, stride=1):
    return numpy_conv(x, np.asarray(layer.kernel[...], np.float64), stride)


def test_the_encoder_against_scipy():
    size = (9, 8)
    net = nnx.merge(*parts("cyclegan_resnet_tiny", size=size))
    x = _relu(_norm(_conv(np.asarray(images(1, size), np.float64)[0], net.stem)))
    halved = _conv(x, net.downs[0], 2)
    x, block = _relu(_norm(halved)), net.blocks[0]
    x = x + _norm(_conv(_relu(_norm(_conv(x, block.conv1))), block.conv2))

    @jax.jit
    def run(images):
        return net.layers(images), net.maps(images, train=False), net(images, train=False)

    layers, maps, features = run(images(1, size))
    for found, expected in zip(layers, (halved, x), strict=True):
        np.testing.assert_allclose(found[0], expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(maps[0], x, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(features[0], _relu(x).mean(axis=(0, 1)), rtol=1e-3, atol=1e-4)


def test_the_published_size_compares_four_maps():
    def run():
        net = backbones.build("cyclegan_resnet", image_size=(64, 64), rngs=nnx.Rngs(0))
        translated, layers = Generator(net, 1, True, nnx.Rngs(0))(jnp.zeros((2, 64, 64, 1)))
        return translated, layers, net.maps(jnp.zeros((2, 64, 64, 1)), train=False)

    translated, layers, maps = jax.eval_shape(run)
    assert [x.shape for x in layers] == [(2, 32, 32, 128), (2, 16, 16, 256), (2, 16, 16, 256), (2, 16, 16, 256)]
    assert maps.shape == (2, 16, 16, 256) and translated.shape == (2, 64, 64, 1)


def test_blocks_past_the_middle_are_run_once():
    net = backbones.build("cyclegan_resnet_tiny", image_size=(8, 8), rngs=nnx.Rngs(0), blocks=4)
    x = images(2, (8, 8))
    _, first, middle = net.layers(x)  # of one halving, of block 0 and of block 2
    again = net.blocks[2](net.blocks[1](first))
    np.testing.assert_allclose(middle, again, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(net.maps(x, train=False), net.blocks[3](again), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("squash", [True, False])
def test_translated_images_have_the_size_of_the_images(squash, dtype):
    size = (11, 9)

    @jax.jit
    def run(images):
        net = backbones.build("cyclegan_resnet_tiny", image_size=size, rngs=nnx.Rngs(0), widths=(4, 6, 8), dtype=dtype)
        generator = Generator(net, 1, squash, nnx.Rngs(1), dtype)
        generator.last.bias.set_value(jnp.full(1, 3.0))
        return generator(images)[0]

    found = np.asarray(run(images(3, size)))
    assert found.shape == (3, *size, 1) and found.dtype == np.float32 and (found.max() < 1) == squash


def test_a_score_of_four_widths_sees_seventy_pixels():
    net = nnx.eval_shape(lambda: Discriminator((64, 128, 256, 512), 1, nnx.Rngs(0)))
    seen = 1
    for conv in [net.head, *reversed(net.convs)]:
        seen = (seen - 1) * conv.stride + conv.size
    assert seen == 70
    scores, maps = jax.eval_shape(lambda net, x: (net(x), net.maps(x)), net, jnp.zeros((2, 64, 48, 1)))
    assert maps.shape == (2, 8, 6, 512) and scores.shape == (2, 8, 6)


def test_an_image_is_judged_alone():
    net, x = Discriminator((4, 6), 1, nnx.Rngs(0), "bfloat16"), images(3, (12, 10))
    scores = jax.jit(net)(x)
    assert scores.dtype == jnp.float32 and scores.shape == (3, 6, 5) and np.std(scores) > 0
    np.testing.assert_allclose(jax.jit(net)(x[1:2])[0], scores[1], rtol=0.02, atol=0.02)
