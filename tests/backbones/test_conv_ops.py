"""What is computed otherwise on a CPU stays there, and is the same convolution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from fingerprint_jax import backbones
from fingerprint_jax.backbones import conv_ops
from fingerprint_jax.backbones.decoder import TransposedConv
from fingerprint_jax.backbones.layers import Conv, DepthwiseConv

ONE, NONE = ((1, 1), (1, 1)), ((0, 0), (0, 0))
CASES = {  # (function, shape of the map, shape of the kernel, options)
    "product 1x1": (conv_ops.conv, (2, 5, 4, 3), (1, 1, 3, 4), (1, NONE)),
    "product 1x1 stride 2": (conv_ops.conv, (2, 5, 4, 3), (1, 1, 3, 4), (2, NONE)),
    "product 2x2": (conv_ops.conv, (2, 2, 2, 3), (3, 3, 3, 4), (1, ONE)),
    "product 3x4 stride 2": (conv_ops.conv, (2, 3, 4, 3), (3, 3, 3, 4), (2, ((0, 1), (1, 1)))),
    "wide": (conv_ops.conv, (1, 14, 15, 16), (3, 3, 16, 4), (1, ONE)),
    "wide stride 2": (conv_ops.conv, (1, 28, 27, 16), (3, 3, 16, 4), (2, ((0, 1), (1, 1)))),
    "depthwise": (conv_ops.depthwise, (2, 5, 6, 3), (3, 3, 1, 3), (1, ONE)),
    "depthwise stride 2": (conv_ops.depthwise, (2, 6, 5, 3), (5, 5, 1, 3), (2, ((1, 2), (2, 2)))),
    "patches": (conv_ops.patches, (2, 6, 4, 3), (2, 2, 3, 4), ()),
    "transposed": (conv_ops.transposed, (2, 3, 4, 3), (4, 4, 3, 2), ()),
}


def _operands(x, kernel, dtype="float32"):
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in (x, kernel))


def _both(function, options, x, kernel):
    """Result and gradients of map and kernel."""
    found, pullback = jax.vjp(lambda x, kernel: function(x, kernel, *options), x, kernel)
    return found, *pullback(jnp.sin(found))


def _lowered(function, platform, *operands):
    return jax.jit(function).trace(*operands).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("case", CASES)
def test_other_devices_get_plain_convolutions(case):
    function, *shapes, options = CASES[case]
    both, operands = functools.partial(_both, function, options), _operands(*shapes)
    text = {platform: _lowered(both, platform, *operands) for platform in ("cpu", "cuda", "rocm", "tpu")}
    for platform in ("cuda", "rocm", "tpu"):
        assert text[platform].count("stablehlo.convolution") == 3, platform
        assert not any(f"stablehlo.{name}" in text[platform] for name in ("dot_general", "slice", "concatenate", "pad"))
    # The gradient of the map of a wide convolution is one on a CPU, too; of the others nothing is.
    assert text["cpu"].count("stablehlo.convolution") == (2 if "wide" in case else 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_ways_agree(dtype):
    names = {case.split()[0] for case in CASES}
    ways = {name: getattr(conv_ops, name.upper()) for name in names}

    @jax.jit
    def run(operands):
        found = {}
        for case, (x, kernel) in operands.items():
            way, options = ways[case.split()[0]], CASES[case][-1]
            forward = way.cpu(x, kernel, *options), way.plain(x, kernel, *options)
            gradients = (f(x, kernel, jnp.sin(forward[0]), *options) for f in (way.cpu_gradients, way.plain_gradients))
            chosen = _both(CASES[case][0], options, x, kernel)
            found[case] = *zip(*((y, *g) for y, g in zip(forward, gradients, strict=True)), strict=True), chosen
        return found

    found = run({case: _operands(*shapes, dtype) for case, (_, *shapes, _) in CASES.items()})
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == "float32" else {"rtol": 0.05, "atol": 0.2}
    for case, (*pairs, chosen) in found.items():
        for (cpu, plain), by_default in zip(pairs, chosen, strict=True):
            assert cpu.dtype == plain.dtype == dtype
            np.testing.assert_allclose(np.float32(cpu), np.float32(plain), err_msg=case, **tolerance)
            np.testing.assert_array_equal(by_default, cpu, err_msg=case)  # this process runs on a CPU


@pytest.mark.parametrize("name", ["efficientnet_tiny", "resnet_tiny", "siamese_cnn_tiny"])
def test_a_network_for_another_device_has_a_convolution_a_layer(name):
    net = nnx.eval_shape(lambda: backbones.build(name, image_size=(48, 48), rngs=nnx.Rngs(0)))
    layers = sum(isinstance(layer, Conv | DepthwiseConv | TransposedConv) for _, layer in nnx.iter_modules(net))
    graph, state = nnx.split(net)

    def loss(state, images):
        net = nnx.merge(graph, state, copy=True)
        return net(images, train=True, rngs=nnx.Rngs(dropout=jax.random.key(0))).sum()

    text = _lowered(jax.grad(loss), "tpu", state, jax.ShapeDtypeStruct((2, 48, 48, 1), jnp.float32))
    assert text.count("stablehlo.convolution") == 3 * layers - 1  # the first map has no gradient


def test_the_choice_goes_through_loops_maps_and_shards():
    x, kernel = _operands((4, 5, 4, 3), (1, 1, 3, 3))

    def conv(x, kernel):
        return conv_ops.conv(x, kernel, 1, NONE)

    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    split = PartitionSpec("data")
    ways = {
        "scan": lambda x, kernel: jax.lax.scan(lambda x, _: (conv(x, kernel), None), x, None, 1)[0],
        "vmap": lambda x, kernel: jax.vmap(conv, (0, None))(x[:, None], kernel)[:, 0],
        "vmap of both": lambda x, kernel: jax.vmap(conv)(x[:, None], jnp.stack([kernel] * 4))[:, 0],
        "remat": jax.checkpoint(conv),
        "shard_map": jax.shard_map(conv, mesh=mesh, in_specs=(split, PartitionSpec()), out_specs=split),
    }
    assert jax.eval_shape(conv, x, kernel).shape == x.shape
    expected = jax.jit(functools.partial(_both, conv, ()))(x, kernel)
    for name, way in ways.items():
        both = functools.partial(_both, way, ())
        found = jax.jit(both)(x, kernel)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5, err_msg=name), found, expected)
        assert "stablehlo.convolution" not in _lowered(both, "cpu", x, kernel), name
        assert "stablehlo.dot_general" not in _lowered(both, "tpu", x, kernel), name
