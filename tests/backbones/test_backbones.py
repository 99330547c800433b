import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from flax import nnx

from fingerprint_jax import backbones
from fingerprint_jax.backbones import resnet, vit
from fingerprint_jax.backbones.layers import (
    BatchNorm,
    Conv,
    DepthwiseConv,
    Keys,
    drop_path,
    dropout,
    instance_norm,
    recomputed,
    record,
    stopped,
)

SIZE = (48, 48)
NAMES = sorted(backbones.variants())
TINY = [name for name in NAMES if backbones.for_tests(name)]


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
    features = net(images, train=train, rngs=nnx.Rngs(0))
    return features, nnx.state(net)


@functools.partial(jax.jit, static_argnames="graph")
def step(graph, state, images):
    """Features in training, the state after the call, and the gradients of the sum of their squares."""
    params, rest = nnx.split_state(state, nnx.Param, ...)

    def loss(params):
        net = nnx.merge(graph, params, rest, copy=True)
        features = net(images, train=True, rngs=nnx.Rngs(0))
        return jnp.sum(features**2), (features, nnx.state(net))

    gradients, (features, after) = jax.grad(loss, has_aux=True)(params)
    return features, after, gradients


@functools.cache
def trained(name):
    """`step` of four images."""
    return step(*parts(name), images(4))


def images(n, size=SIZE):
    return np.random.default_rng(7).uniform(size=(n, *size, 1)).astype(np.float32)


def count(state):
    return sum(leaf.size for leaf in jax.tree.leaves(state))


def test_every_family_has_a_tiny_variant():
    classes = {backbone for backbone, _ in backbones.variants().values()}
    assert {backbones.variants()[name][0] for name in TINY} == classes


@pytest.mark.parametrize("name", NAMES)
def test_shapes_of_features_parameters_and_statistics_of_the_smallest_size(name):
    side = backbones.variants()[name][0].min_size
    size = (side, 2 * side)
    net = abstract(name, size=size)
    graph, state = nnx.split(net)

    def run(state, images):
        net = nnx.merge(graph, state, copy=True)
        return net(images, train=True, rngs=nnx.Rngs(0)), nnx.state(net)

    features, after = jax.eval_shape(run, state, jax.ShapeDtypeStruct((2, *size, 1), jnp.float32))
    assert features.shape == (2, net.num_features) and features.dtype == jnp.float32
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(net, nnx.Param))} == {jnp.dtype("float32")}
    if side > 1:
        with pytest.raises(ValueError, match=rf"backbone.name='{name}' needs images of {side} pixels a side, not {side - 1}x200"):
            abstract(name, size=(side - 1, 200))


@pytest.mark.parametrize("name", TINY)
def test_every_parameter_has_a_finite_gradient(name):
    for path, leaf in nnx.to_flat_state(trained(name)[2]):
        assert np.isfinite(leaf[...]).all() and np.any(leaf[...]), path


@pytest.mark.parametrize("name", TINY)
def test_statistics_move_in_training_and_stay_in_evaluation(name):
    graph, state = parts(name)
    features, moved, _ = trained(name)
    assert features.shape == (4, abstract(name).num_features)
    before = dict(nnx.to_flat_state(state))
    for path, leaf in nnx.to_flat_state(moved):
        assert np.any(leaf[...] != before[path][...]) == isinstance(leaf, nnx.BatchStat), path
    whole, after = forward(graph, moved, images(4), train=False)
    jax.tree.map(np.testing.assert_array_equal, after, moved)
    # In evaluation an image's features depend on that image alone.
    for i in range(4):
        others = images(4) ** 2
        others[i] = images(4)[i]
        beside = forward(graph, moved, others, train=False)[0]
        np.testing.assert_allclose(whole[i], beside[i], rtol=1e-4, atol=1e-5)
        assert not np.allclose(np.delete(whole, i, 0), np.delete(beside, i, 0), rtol=1e-4, atol=1e-5)
    assert np.std(whole, axis=0).max() > 1e-3


@pytest.mark.parametrize("name", TINY)
def test_no_random_state(name):
    assert not jax.tree.leaves(nnx.state(abstract(name), nnx.RngState))


@pytest.mark.parametrize("name", TINY)
def test_bfloat16_keeps_float32_parameters_and_features(name):
    graph, state = parts(name)
    features, after = forward(parts(name, dtype="bfloat16")[0], state, images(4), train=True)
    exact = trained(name)[0]
    assert features.dtype == jnp.float32
    assert 0 < np.abs(features - exact).max() < 0.05 * np.abs(exact).max()
    assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {jnp.dtype("float32")}


def test_strided_resnet_tiny_against_scipy():
    size = (6, 5)
    graph, state = parts("strided_resnet_tiny", size=size)
    rng = np.random.default_rng(3)
    state = jax.tree.map(lambda v: v + rng.uniform(-0.3, 0.3, v.shape).astype(np.float32), state)  # variances stay positive
    net = nnx.merge(graph, state)
    x = np.asarray(images(1, size), np.float64)[0]
    relu = lambda x: np.maximum(x, 0)  # noqa: E731
    for stage in net.stages:
        block = stage.block
        x = relu(numpy_norm(numpy_conv(x, np.asarray(stage.conv.kernel[...]), 2), stage.norm))
        y = relu(numpy_norm(numpy_conv(x, np.asarray(block.conv1.kernel[...]), 1), block.norm1))
        x = relu(x + numpy_norm(numpy_conv(y, np.asarray(block.conv2.kernel[...]), 1), block.norm2))
    expected = x.reshape(-1) @ np.asarray(net.dense.kernel[...]) + np.asarray(net.dense.bias[...])
    np.testing.assert_allclose(forward(graph, state, images(1, size), train=False)[0][0], expected, rtol=1e-3, atol=1e-4)


def test_vit_projects_each_pixel_before_it_cuts_patches():
    graph, state = parts("vit_tiny", project=3)
    net = nnx.merge(graph, state)
    kernel, bias = np.asarray(net.project.kernel[...]), np.float32([0.1, -0.2, 0.3])
    net.project.bias.set_value(jnp.asarray(bias))
    seen = net.patch_embed(images(2) * kernel[0, 0] + bias)
    plain = abstract("vit_tiny", channels=3)
    assert kernel.shape == (1, 1, 1, 3) and net.patch_embed.kernel.shape == plain.patch_embed.kernel.shape
    found = record(net, "patch_embed")
    net(images(2), train=False)
    np.testing.assert_allclose(found[0], seen, rtol=1e-4, atol=1e-5)
    names = {path for path, _ in nnx.to_flat_state(parts("vit_tiny")[1])}
    assert {path for path, _ in nnx.to_flat_state(state)} == names | {("project", "kernel"), ("project", "bias")}


def test_unknown_names_and_options_are_named():
    with pytest.raises(
        ValueError,
        match="backbone.name='resnet19' is unknown: did you mean 'resnet18'. known: convnext_tiny, .*densenet121",
    ):
        abstract("resnet19")
    with pytest.raises(ValueError, match="backbone.stem is no option of siamese_cnn; known: dtype, num_features, widths"):
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


def test_resnet_tiny_with_native_stem_against_scipy():
    size = (6, 5)
    graph, state = parts("resnet_tiny", size=size, stem="native")
    rng = np.random.default_rng(3)
    state = jax.tree.map(lambda v: v + rng.uniform(-0.3, 0.3, v.shape).astype(np.float32), state)  # variances stay positive
    net = nnx.merge(graph, state)
    x = np.asarray(images(1, size=size), np.float64)[0]

    def conv(x, layer, stride):
        return numpy_conv(x, np.asarray(layer.kernel[...], np.float64), stride)

    x = np.maximum(numpy_norm(conv(x, net.stem.conv, 1), net.stem.norm), 0)
    for (block,), stride in zip(net.stages, (1, 2), strict=True):
        y = np.maximum(numpy_norm(conv(x, block.conv1, stride), block.norm1), 0)
        y = numpy_norm(conv(y, block.conv2, 1), block.norm2)
        if block.shortcut is not None:
            x = numpy_norm(conv(x, block.shortcut, stride), block.shortcut_norm)
        x = np.maximum(x + y, 0)
    features, _ = forward(graph, state, images(1, size=size), train=False)
    np.testing.assert_allclose(features[0], x.mean(axis=(0, 1)), rtol=1e-4)


@pytest.mark.parametrize("padding", ["torch", "same", "valid"])
@pytest.mark.parametrize(
    "depthwise,kernel_size,stride",
    [
        (False, 3, 1),
        (False, 3, 2),
        (False, 1, 2),
        (False, 7, 2),
        (True, 3, 1),
        (True, 3, 2),
        (True, 5, 1),
        (True, 5, 2),
        (True, 7, 1),
        (True, 7, 2),
    ],
)
def test_convolutions_and_their_gradients_are_laxs(depthwise, kernel_size, stride, padding):
    key = nnx.Rngs(0)
    options = {"padding": padding, "rngs": key}
    channels = 3 if depthwise else 16  # from 16 on XLA:CPU gets another gradient
    layer = DepthwiseConv(3, kernel_size, stride, **options) if depthwise else Conv(16, 4, kernel_size, stride, **options)
    smallest = kernel_size if padding == "valid" else 1
    sizes = [size for size in [(1, 1), (2, 1), (2, 2), (3, 4), (5, 2), (6, 7), (8, 9)] if min(size) >= smallest]
    maps = [np.random.default_rng(1).normal(size=(2, *size, channels)).astype(np.float32) for size in sizes]
    pad = {"torch": ((kernel_size // 2,) * 2,) * 2, "same": "SAME", "valid": "VALID"}[padding]
    graph, state = nnx.split(layer)

    def ours(state, x):
        return nnx.merge(graph, state, copy=True)(x)

    def reference(state, x):
        kernel, groups = state["kernel"][...], 3 if depthwise else 1
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, pad, dimension_numbers=dims, feature_group_count=groups)

    @jax.jit
    def run(state, maps):
        def both(f):
            gradients = jax.grad(lambda state, maps: sum(jnp.sum(jnp.sin(f(state, x))) for x in maps), (0, 1))(state, maps)
            return [f(state, x) for x in maps], gradients

        return both(ours), both(reference)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *run(state, maps))


def test_conv_initialisation_is_he():
    kernel = np.asarray(Conv(64, 256, 3, rngs=nnx.Rngs(0)).kernel[...])
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 256)), rtol=0.01)
    kernel = np.asarray(DepthwiseConv(4096, 3, rngs=nnx.Rngs(0)).kernel[...])
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / 9), rtol=0.02)


def test_batch_norm_statistics_follow_pytorchs_momentum():
    norm = BatchNorm(2, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(3, 2, (4, 5, 6, 2)).astype(np.float32)
    y = norm(jnp.asarray(x), train=True)
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(norm.mean[...], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * var, rtol=1e-5)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), rtol=1e-4, atol=1e-5)


def test_batch_norm_of_groups_is_batch_norm_of_each():
    x = np.random.default_rng(0).normal(3, 2, (6, 2, 3, 2)).astype(np.float32)
    x[2:4] += 1
    whole = BatchNorm(2, rngs=nnx.Rngs(0))
    whole.groups = 3
    parts = [BatchNorm(2, rngs=nnx.Rngs(0)) for _ in range(3)]
    expected = np.concatenate([norm(x[2 * i : 2 * i + 2], train=True) for i, norm in enumerate(parts)])
    np.testing.assert_allclose(whole(x, train=True), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(whole.mean[...], np.mean([norm.mean[...] for norm in parts], axis=0), rtol=1e-5)
    np.testing.assert_allclose(whole.var[...], np.mean([norm.var[...] for norm in parts], axis=0), rtol=1e-5)
    mean, var = np.asarray(whole.mean[...]), np.asarray(whole.var[...])
    np.testing.assert_allclose(whole(x, train=False), (x - mean) / np.sqrt(var + 1e-5), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="backbone.norm_groups=3 does not divide the batch of 4 images"):
        whole(x[:4], train=True)


def test_frozen_batch_norm_trains_with_the_running_statistics():
    graph, state = parts("resnet_tiny", norm="frozen")
    trained, after = forward(graph, state, images(4), train=True)
    jax.tree.map(np.testing.assert_array_equal, after, state)
    np.testing.assert_array_equal(trained, forward(graph, state, images(4), train=False)[0])


@pytest.mark.parametrize("name", TINY)
def test_norm_options_reach_every_batch_norm(name):
    norms = [module for _, module in nnx.iter_modules(abstract(name, norm="batch")) if isinstance(module, BatchNorm)]
    if not norms:
        with pytest.raises(ValueError, match=f"{name} has no batch normalisation"):
            abstract(name, norm="frozen")
        return
    set_ = [module for _, module in nnx.iter_modules(abstract(name, norm="frozen", norm_groups=2)) if isinstance(module, BatchNorm)]
    assert len(set_) == len(norms) and {(module.frozen, module.groups) for module in set_} == {(True, 2)}


def test_unknown_norms_are_refused():
    with pytest.raises(ValueError, match="backbone.norm='group' is unknown; known: batch, frozen"):
        abstract("resnet_tiny", norm="group")


def test_dropout_keeps_the_mean_and_drops_the_rate():
    x = jnp.ones((2000, 3, 2))
    rngs = nnx.Rngs(dropout=1)
    values = np.asarray(dropout(x, 0.25, train=True, rngs=rngs))
    assert set(np.unique(values)) == {0, np.float32(4 / 3)}
    np.testing.assert_allclose(values.mean(), 1, atol=0.02)
    paths = np.asarray(drop_path(x, 0.25, train=True, rngs=rngs)).reshape(2000, -1)
    assert (paths == paths[:, :1]).all() and set(np.unique(paths)) == {0, np.float32(4 / 3)}
    np.testing.assert_allclose(paths.mean(), 1, atol=0.05)
    for drop in (dropout, drop_path):
        assert drop(x, 0.25, train=False, rngs=None) is x and drop(x, 0.0, train=True, rngs=None) is x
        with pytest.raises(ValueError, match="pass rngs=nnx.Rngs"):
            drop(x, 0.25, train=True, rngs=None)


def test_keys_are_those_of_nnx():
    ours, theirs = nnx.Rngs(params=3), nnx.Rngs(params=3)
    theirs.params(), ours.params()
    keys = Keys(ours)
    expected = [theirs.params() for _ in range(3)]
    assert jnp.array_equal(jnp.stack([keys.params() for _ in range(3)]), jnp.stack(expected))
    keys.close()
    assert jnp.array_equal(ours.params(), theirs.params())


def test_instance_norm_is_that_of_each_channel_of_each_image():
    x = np.random.default_rng(0).normal(3, 2, (3, 4, 5, 2)).astype(np.float32)
    expected = (x - x.mean((1, 2), keepdims=True)) / np.sqrt(x.var((1, 2), keepdims=True) + 1e-5)
    np.testing.assert_allclose(instance_norm(x), expected, rtol=1e-4, atol=1e-5)
    assert instance_norm(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16
    np.testing.assert_array_equal(instance_norm(jnp.ones((1, 3, 3, 1))), 0)


def test_a_stopped_layer_passes_values_and_the_gradient_of_its_input_but_none_to_its_weights():
    layer, x = nnx.Linear(3, 2, rngs=nnx.Rngs(0)), np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    graph, state = nnx.split(layer)

    def gradients(through):
        def value(state, x):
            return jnp.sum(jnp.sin(through(nnx.merge(graph, state, copy=True))(x)))

        return jax.value_and_grad(value, (0, 1))(state, x)

    (value, (weights, of_input)), (plain, (moved, expected)) = gradients(stopped), gradients(lambda layer: layer)
    assert value == plain
    np.testing.assert_array_equal(of_input, expected)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(weights)) and all(np.any(leaf) for leaf in jax.tree.leaves(moved))
    # It is a copy.
    norm = BatchNorm(3, rngs=nnx.Rngs(0))
    stopped(norm)(x[:, None, None], train=True)
    np.testing.assert_array_equal(norm.mean[...], 0)


SHARDED = """
import sys
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from fingerprint_jax import backbones
from fingerprint_jax.backbones import resnet, vit
from fingerprint_jax.objectives.parts import losses
from fingerprint_jax.runtime import sharding
from tests.backbones.test_backbones import parts
jax.config.update("jax_numpy_rank_promotion", "raise")
assert jax.device_count() == 4

def compare(name, size, gradients=False, **options):
    graph, state = parts(name, size=size, **options)
    params, rest = nnx.split_state(state, nnx.Param, ...)

    def loss(params, batch, key):
        net = nnx.merge(graph, params, rest, copy=True)
        features = losses.l2_normalize(net(batch["image"], train=True, rngs=nnx.Rngs(dropout=key)))
        same = batch["label"][:8, None] == batch["label"][None, 8:]
        a, b = features[:8], features[8:]
        value = losses.sampled_pairs_contrastive(a, b, same, 1.0, key, 16) + losses.all_pairs_contrastive(a, b, same, 1.0)
        return value, nnx.state(net, nnx.BatchStat)

    step = jax.jit(jax.value_and_grad(loss, has_aux=True) if gradients else loss)
    rng = np.random.default_rng(0)
    batch = {"image": rng.uniform(size=(16, *size, 1)).astype(np.float32), "label": np.arange(16) % 3}
    mesh = sharding.make_mesh()
    one = step(params, batch, jax.random.key(1))
    many = step(
        jax.device_put(params, sharding.replicated(mesh)), jax.device_put(batch, sharding.split(mesh)), jax.random.key(1)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5, err_msg=name), one, many)

for name in sys.argv[1:]:
    side = max(16, backbones.variants()[name][0].min_size)
    compare(name, (side, side))
compare("resnet_tiny", (16, 16), gradients=True, norm_groups=2)
compare("resnet_tiny", (16, 16), gradients=True, widths=(8,), depths=(1,))
"""


def test_sharded_training_equals_unsharded():
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    of_each_class = {backbones.variants()[name][0]: name for name in TINY}
    done = subprocess.run([sys.executable, "-c", SHARDED, *of_each_class.values()], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", TINY)
def test_the_output_of_a_layer_is_recorded_and_nothing_else_changes(name):
    graph, state = parts(name)
    net, batch = nnx.merge(graph, state, copy=True), images(4)
    layers = [path for path, layer in nnx.iter_modules(net) if path and callable(layer)]
    outermost = ["/".join(map(str, path)) for path in layers if len(path) == min(map(len, layers))]
    found = {name: record(net, name) for name in outermost}
    before = forward(graph, state, batch, False)[0]
    after = jax.jit(lambda: (net(batch, train=False), dict(found)))()
    np.testing.assert_allclose(after[0], before, rtol=1e-4, atol=1e-5)
    recorded = {path: arrays for path, arrays in after[1].items() if arrays}
    assert recorded and all(array.shape[0] == 4 for arrays in recorded.values() for array in arrays)


def test_a_recorded_layer_is_what_the_layer_gives():
    net = backbones.build("siamese_cnn_tiny", image_size=SIZE, rngs=nnx.Rngs(0))
    layers = {"/".join(map(str, path)): layer for path, layer in nnx.iter_modules(net) if path and callable(layer)}
    name = next(path for path, layer in layers.items() if isinstance(layer, Conv))
    seen, plain = record(net, name), type(layers[name]).__mro__[1]
    net(images(2), train=False)
    assert len(seen) == 1 and plain is Conv
    np.testing.assert_array_equal(seen[0], Conv.__call__(layers[name], images(2)))
    with pytest.raises(ValueError, match=f"features.output='nothing' is unknown.*known: embedding, logits, .*{name}"):
        record(net, "nothing")


def test_attention_is_that_of_jax():
    q, k, v, g = (jax.random.normal(jax.random.key(i), (2, 5, 3, 8)) for i in range(4))
    found, pull = jax.vjp(vit._attention, q, k, v)
    expected, expected_pull = jax.vjp(jax.nn.dot_product_attention, q, k, v)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    for ours, theirs in zip(pull(g), expected_pull(g), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)
    halves = vit.attention(*(x.astype(jnp.bfloat16) for x in (q, k, v)))
    assert halves.dtype == jnp.bfloat16
    np.testing.assert_allclose(halves.astype(jnp.float32), expected, atol=0.03)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_computed_again_has_the_same_gradient(dtype):
    x, bias = jnp.linspace(-3, 3, 7, dtype=dtype)[None], jnp.full((1, 1), 0.5, dtype)

    def gradients(function):
        return jax.jit(jax.grad(lambda x, bias: function(x, bias).astype(jnp.float32).sum(), (0, 1)))(x, bias)

    def act(x, bias):
        return nnx.gelu(x + bias, approximate=False)

    for again, once in zip(gradients(functools.partial(recomputed, act)), gradients(act), strict=True):
        np.testing.assert_allclose(again.astype(jnp.float32), once.astype(jnp.float32), atol=0 if dtype == "float32" else 0.03)


def test_both_ways_to_pool_agree():
    x = jax.random.normal(jax.random.key(0), (2, 7, 6, 3))
    (here, pull), (there, pull_there) = (jax.vjp(way, x) for way in (resnet.max_pool3, resnet._window_maxima))
    np.testing.assert_array_equal(here, there)
    np.testing.assert_allclose(pull(jnp.cos(here))[0], pull_there(jnp.cos(here))[0], atol=1e-6)
