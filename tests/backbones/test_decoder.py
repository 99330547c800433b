"""The decoder: sizes, the transposed convolution against that of JAX, and a residual block against numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fingerprint_jax.backbones.decoder import Decoder, Step, TransposedConv
from tests.backbones.test_backbones import numpy_conv, numpy_norm


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4)])
def test_the_transposed_convolution_and_its_gradients_are_those_of_jax(size):
    layer = TransposedConv(3, 2, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    graph, state = nnx.split(layer)

    def ours(state, x):
        return nnx.merge(graph, state, copy=True)(x)

    def reference(state, x):  # JAX's kernel is not turned, PyTorch's is
        kernel = state["kernel"][...]
        options = {"padding": ((2, 2), (2, 2)), "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        return jax.lax.conv_transpose(x, kernel[::-1, ::-1], (2, 2), **options)

    @functools.partial(jax.jit, static_argnums=0)
    def run(f, state, x):
        return f(state, x), jax.grad(lambda *args: jnp.sum(jnp.sin(f(*args))), (0, 1))(state, x)

    found, expected = run(ours, state, x), run(reference, state, x)
    assert found[0].shape == (2, 2 * size[0], 2 * size[1], 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


def test_the_transposed_convolution_spreads_every_place_over_four_by_four():
    layer = TransposedConv(2, 3, rngs=nnx.Rngs(0))
    x, kernel = np.random.default_rng(1).normal(size=(3, 4, 2)), np.asarray(layer.kernel[...])
    expected = np.zeros((8, 10, 3))
    for i in range(3):
        for j in range(4):
            expected[2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += np.einsum("c,klcd->kld", x[i, j], kernel)
    np.testing.assert_allclose(layer(jnp.float32(x[None]))[0], expected[1:-1, 1:-1], rtol=1e-4, atol=1e-5)


def test_the_initialisation_keeps_the_variance_before_relu():
    kernel = np.asarray(TransposedConv(64, 64, rngs=nnx.Rngs(0)).kernel[...])
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (4 * 64)), rtol=0.02)


def test_a_step_is_a_convolution_and_a_residual_block():
    step = Step(3, 4, "float32", nnx.Rngs(0))
    x = np.random.default_rng(2).normal(size=(1, 3, 2, 3)).astype(np.float32)
    leaky = lambda x: np.where(x > 0, x, 0.1 * x)  # noqa: E731
    y = leaky(numpy_norm(np.asarray(step.conv(x), np.float64)[0], step.norm))
    z = leaky(numpy_norm(numpy_conv(y, np.asarray(step.block.conv1.kernel[...]), 1), step.block.norm1))
    z = numpy_norm(numpy_conv(z, np.asarray(step.block.conv2.kernel[...]), 1), step.block.norm2)
    found = jax.jit(lambda x: step(x, train=False))(x)
    np.testing.assert_allclose(found[0], leaky(y + z), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "widths", "first"),
    [
        ((256, 256), (256, 128, 64, 32, 16, 8), (8, 8)),  # the published decoder of the ViT ...
        ((128, 128), (256, 128, 64, 32, 16), (8, 8)),  # ... and of the ResNet
        ((48, 50), (4, 4, 4, 2, 2, 2), (2, 2)),
        ((17, 1), (4, 3), (9, 1)),
        ((5, 6), (4,), (5, 6)),
    ],
)
def test_images_have_the_size_asked_for(size, widths, first):
    def decode(features):
        options = {"widths": widths, "channels": 1, "image_size": size, "squash": True, "rngs": nnx.Rngs(0)}
        decoder = Decoder(16, **options)
        assert decoder.map_size == first and len(decoder.steps) == len(widths) - 1
        return decoder(features, train=True)

    images = jax.eval_shape(decode, jnp.zeros((3, 16)))
    assert images.shape == (3, *size, 1) and images.dtype == jnp.float32


def test_images_are_squashed_where_asked():
    features = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    options = {"widths": (4, 2), "channels": 1, "image_size": (5, 5)}

    @jax.jit
    def decode(features):
        return [Decoder(4, squash=squash, rngs=nnx.Rngs(0), **options)(features, train=False) for squash in (False, True)]

    plain, squashed = decode(features)
    np.testing.assert_allclose(squashed, np.tanh(plain), rtol=1e-5, atol=1e-6)
