import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.ndimage
from flax import nnx

from fingerprint_jax import backbones
from fingerprint_jax.backbones.layers import BatchNorm, Conv

SIZE = (48, 48)
NAMES = sorted(backbones.variants())
TINY = [name for name in NAMES if name.endswith("_tiny")]


def abstract(name, channels=1, size=SIZE, **options):
    return nnx.eval_shape(lambda: backbones.build(name, image_size=size, channels=channels, rngs=nnx.Rngs(0), **options))


@functools.cache
def parts(name, size=SIZE, **options):
    """Graph and state, drawn by numpy: to compile the initialiser takes longer than all else here."""
    graph, state = nnx.split(abstract(name, size=size, **options))
    rng = np.random.default_rng(0)
    fill = {"kernel": lambda s: rng.normal(0, np.sqrt(2 / np.prod(s[:-1])), s), "scale": np.ones, "var": np.ones}
    leaves = [
        (path, leaf.replace(jnp.float32(fill.get(path[-1], np.zeros)(leaf.shape)))) for path, leaf in nnx.to_flat_state(state)
    ]
    return graph, nnx.from_flat_state(leaves)


@functools.partial(jax.jit, static_argnames=("graph", "train"))
def forward(graph, state, images, train):
    """Features and the state after the call."""
    net = nnx.merge(graph, state, copy=True)
    features = net(images, train=train)
    return features, nnx.state(net)


def images(n, size=SIZE):
    return np.random.default_rng(7).uniform(size=(n, *size, 1)).astype(np.float32)


def step(name, size):
    """Loss, features, parameters, gradients and statistics of a training step: shapes only."""

    def run(key, batch, labels):
        net = backbones.build(name, image_size=size, rngs=nnx.Rngs(key))
        graph, params, rest = nnx.split(net, nnx.Param, ...)

        def loss_fn(params):
            net = nnx.merge(graph, params, rest, copy=True)
            features = net(batch, train=True, rngs=nnx.Rngs(0))
            loss = optax.softmax_cross_entropy_with_integer_labels(features, labels).mean()
            return loss, (features, nnx.state(net, nnx.Not(nnx.Param)))

        (loss, (features, rest)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
        return loss, features, params, gradients, rest

    return jax.eval_shape(run, jax.random.key(0), jnp.zeros((2, *size, 1)), jnp.zeros(2, jnp.int32))


def count(state):
    return sum(leaf.size for leaf in jax.tree.leaves(state))


def test_every_family_has_a_tiny_variant():
    classes = {backbone for backbone, _ in backbones.variants().values()}
    assert {backbones.variants()[name][0] for name in TINY} == classes


@pytest.mark.parametrize("name", NAMES)
def test_shapes_of_a_training_step(name):
    size = (64, 96)
    loss, features, params, gradients, _ = step(name, size)
    assert loss.shape == ()
    assert features.shape == (2, abstract(name, size=size).num_features) and features.dtype == jnp.float32
    assert jax.tree.map(jnp.shape, gradients) == jax.tree.map(jnp.shape, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", TINY)
def test_every_parameter_has_a_finite_gradient(name):
    graph, state = parts(name)
    params, rest = nnx.split_state(state, nnx.Param, ...)

    @jax.jit
    def gradient(params):
        return jax.grad(lambda p: jnp.sum(nnx.merge(graph, p, rest, copy=True)(images(4), train=True) ** 2))(params)

    for path, leaf in nnx.to_flat_state(gradient(params)):
        assert np.isfinite(leaf[...]).all() and np.any(leaf[...]), path


@pytest.mark.parametrize("name", TINY)
def test_statistics_move_in_training_and_stay_in_evaluation(name):
    graph, state = parts(name)
    features, moved = forward(graph, state, images(4), train=True)
    assert features.shape == (4, abstract(name).num_features)
    before = dict(nnx.to_flat_state(state))
    for path, leaf in nnx.to_flat_state(moved):
        assert np.any(leaf[...] != before[path][...]) == isinstance(leaf, nnx.BatchStat), path
    whole, after = forward(graph, moved, images(4), train=False)
    jax.tree.map(np.testing.assert_array_equal, after, moved)
    # In evaluation an image's features depend on that image alone.
    alone = np.concatenate([forward(graph, moved, images(4)[i : i + 1], train=False)[0] for i in range(4)])
    np.testing.assert_allclose(whole, alone, rtol=1e-4, atol=1e-5)
    assert np.std(whole, axis=0).max() > 1e-3


@pytest.mark.parametrize("name", TINY)
def test_no_random_state(name):
    assert not jax.tree.leaves(nnx.state(abstract(name), nnx.RngState))


@pytest.mark.parametrize("name", TINY)
def test_bfloat16_keeps_float32_parameters_and_features(name):
    graph, state = parts(name)
    features, after = forward(parts(name, dtype="bfloat16")[0], state, images(4), train=True)
    exact, _ = forward(graph, state, images(4), train=True)
    assert features.dtype == jnp.float32
    assert 0 < np.abs(features - exact).max() < 0.05 * np.abs(exact).max()
    assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", NAMES)
def test_smallest_size_fits_and_one_less_is_refused(name):
    side = backbones.variants()[name][0].min_size
    net = abstract(name, size=(side, side))
    features = jax.eval_shape(lambda net, x: net(x, train=False), net, jnp.zeros((2, side, side, 1)))
    assert features.shape == (2, net.num_features)
    if side > 1:
        with pytest.raises(ValueError, match=rf"backbone.name='{name}' needs images of {side} pixels a side, not {side - 1}x200"):
            abstract(name, size=(side - 1, 200))


def test_unknown_names_and_options_are_named():
    with pytest.raises(ValueError, match="backbone.name='resnet19' is unknown: use one of resnet18, resnet_tiny, siamese_cnn"):
        abstract("resnet19")
    with pytest.raises(ValueError, match="backbone.stem is no option of siamese_cnn: use dtype, num_features, widths"):
        abstract("siamese_cnn", stem="native")
    with pytest.raises(ValueError, match="backbone.stem='vgg' is unknown"):
        abstract("resnet_tiny", stem="vgg")
    with pytest.raises(ValueError, match="backbone.dtype='int8' is unknown"):
        abstract("resnet_tiny", dtype="int8")


def test_siamese_cnn_parameter_count():
    # 3x3 convolutions 1-16-32-64-128 with bias; 256 -> 127 -> 62 -> 30 -> 14 pixels; dense 256.
    convolutions = sum(9 * a * b + b for a, b in [(1, 16), (16, 32), (32, 64), (64, 128)])
    params = nnx.state(abstract("siamese_cnn", size=(256, 256)), nnx.Param)
    assert count(params) == convolutions + 14 * 14 * 128 * 256 + 256


def test_siamese_cnn_against_loops():
    net = nnx.merge(*parts("siamese_cnn_tiny"))
    x = np.asarray(images(1))[0]
    for conv in net.convs:
        kernel, bias = np.asarray(conv.kernel[...]), np.asarray(conv.bias[...])
        height, width = x.shape[0] - 2, x.shape[1] - 2
        y = np.maximum(sum(x[i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3)) + bias, 0)
        y = y[: height // 2 * 2, : width // 2 * 2]
        x = y.reshape(height // 2, 2, width // 2, 2, -1).max(axis=(1, 3))
    expected = x.reshape(-1) @ np.asarray(net.dense.kernel[...]) + np.asarray(net.dense.bias[...])
    features, _ = forward(*parts("siamese_cnn_tiny"), images(1), train=False)
    np.testing.assert_allclose(features[0], expected, rtol=1e-4, atol=1e-5)


def test_resnet18_is_torchvisions_in_number_and_shape():
    total = 11_176_512  # torchvision.models.resnet18 without `fc`, 3 input channels
    _, params, rest = nnx.split(abstract("resnet18", channels=3), nnx.Param, ...)
    assert count(params) == total
    assert count(rest) == 2 * (64 * 5 + 128 * 5 + 256 * 5 + 512 * 5)  # mean and variance of 20 normalisations
    params = nnx.state(abstract("resnet18"), nnx.Param)
    assert count(params) == total - 7 * 7 * 2 * 64
    kernels = {"/".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(params) if path[-1] == "kernel"}
    expected = {"stem/kernel": (7, 7, 1, 64)}
    widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
    for block, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
        expected |= {f"blocks/{block}/conv1/kernel": (3, 3, a, b), f"blocks/{block}/conv2/kernel": (3, 3, b, b)}
        if a != b:
            expected[f"blocks/{block}/shortcut/kernel"] = (1, 1, a, b)
    assert kernels == expected
    assert abstract("resnet18").num_features == 512


def numpy_conv(x, kernel, stride):
    """[H,W,C] with k//2 zeros around it, every `stride`-th position, as PyTorch."""
    out = 0
    for c in range(x.shape[-1]):
        for d in range(kernel.shape[-1]):
            plane = scipy.ndimage.correlate(x[..., c], kernel[..., c, d], mode="constant")[::stride, ::stride]
            out = out + plane[..., None] * np.eye(kernel.shape[-1])[d]
    return out


def numpy_norm(x, norm):
    mean, var, scale, bias = (np.asarray(v[...], np.float64) for v in (norm.mean, norm.var, norm.scale, norm.bias))
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


@pytest.mark.parametrize("stem,size", [("imagenet", (15, 18)), ("native", (6, 5))])
def test_resnet_tiny_against_scipy(stem, size):
    graph, state = parts("resnet_tiny", size=size, stem=stem)
    rng = np.random.default_rng(3)
    state = jax.tree.map(lambda v: v + rng.uniform(-0.3, 0.3, v.shape).astype(np.float32), state)  # variances stay positive
    net = nnx.merge(graph, state)
    x = np.asarray(images(1, size=size), np.float64)[0]

    def conv(x, layer, stride):
        return numpy_conv(x, np.asarray(layer.kernel[...], np.float64), stride)

    x = np.maximum(numpy_norm(conv(x, net.stem, 2 if stem == "imagenet" else 1), net.stem_norm), 0)
    if stem == "imagenet":
        x = scipy.ndimage.maximum_filter(x, (3, 3, 1), mode="constant", cval=-np.inf)[::2, ::2]
    for block, stride in zip(net.blocks, (1, 2), strict=True):
        y = np.maximum(numpy_norm(conv(x, block.conv1, stride), block.norm1), 0)
        y = numpy_norm(conv(y, block.conv2, 1), block.norm2)
        if block.shortcut is not None:
            x = numpy_norm(conv(x, block.shortcut, stride), block.shortcut_norm)
        x = np.maximum(x + y, 0)
    features, _ = forward(graph, state, images(1, size=size), train=False)
    np.testing.assert_allclose(features[0], x.mean(axis=(0, 1)), rtol=1e-4)


@pytest.mark.parametrize("kernel_size,stride", [(3, 1), (3, 2), (1, 2), (7, 2)])
def test_conv_of_small_maps(kernel_size, stride):
    layer = Conv(3, 4, kernel_size, stride, rngs=nnx.Rngs(0))
    sizes = [(1, 1), (2, 2), (1, 2), (3, 4), (5, 2)]
    maps = [np.random.default_rng(1).normal(size=(2, *size, 3)).astype(np.float32) for size in sizes]
    pad = ((kernel_size // 2,) * 2,) * 2

    def reference(x):
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, layer.kernel[...], (stride, stride), pad, dimension_numbers=dims)

    ours, expected = jax.jit(lambda maps: ([layer(x) for x in maps], [reference(x) for x in maps]))(maps)
    for a, b in zip(ours, expected, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_small_maps_become_matrix_products():
    layer = Conv(3, 4, 3, 2, rngs=nnx.Rngs(0))
    assert "conv_general_dilated" not in str(jax.make_jaxpr(layer)(jnp.zeros((1, 4, 4, 3))))
    assert "conv_general_dilated" in str(jax.make_jaxpr(layer)(jnp.zeros((1, 5, 5, 3))))


def test_conv_initialisation_is_he():
    kernel = np.asarray(Conv(64, 256, 3, rngs=nnx.Rngs(0)).kernel[...])
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 256)), rtol=0.01)


def test_batch_norm_statistics_follow_pytorchs_momentum():
    norm = BatchNorm(2, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(3, 2, (4, 5, 6, 2)).astype(np.float32)
    y = norm(jnp.asarray(x), train=True)
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(norm.mean[...], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * var, rtol=1e-5)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), rtol=1e-4, atol=1e-5)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from fingerprint_jax import backbones, losses, sharding
jax.config.update("jax_numpy_rank_promotion", "raise")
assert jax.device_count() == 4

def build(key):
    return backbones.build("resnet_tiny", widths=(8,), depths=(1,), image_size=(16, 16), rngs=nnx.Rngs(key))

graph = nnx.split(nnx.eval_shape(build, jax.random.key(0)))[0]
params, rest = jax.jit(lambda key: nnx.split(build(key), nnx.Param, ...)[1:])(jax.random.key(0))

@jax.jit
def step(params, batch, key):
    def loss(params):
        net = nnx.merge(graph, params, rest, copy=True)
        features = losses.l2_normalize(net(batch["image"], train=True))
        same = batch["label"][:8, None] == batch["label"][None, 8:]
        a, b = features[:8], features[8:]
        value = losses.sampled_pairs_contrastive(a, b, same, 1.0, key, 16) + losses.all_pairs_contrastive(a, b, same, 1.0)
        return value, nnx.state(net, nnx.BatchStat)
    return jax.value_and_grad(loss, has_aux=True)(params)

rng = np.random.default_rng(0)
batch = {"image": rng.uniform(size=(16, 16, 16, 1)).astype(np.float32), "label": np.arange(16) % 3}
mesh = sharding.make_mesh()
one = step(params, batch, jax.random.key(1))
many = step(
    jax.device_put(params, sharding.replicated(mesh)), jax.device_put(batch, sharding.split(mesh)), jax.random.key(1)
)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), one, many)
"""


def test_sharded_training_equals_unsharded():
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run([sys.executable, "-c", SHARDED], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
