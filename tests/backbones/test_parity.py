"""Backbones against timm: the golden files come from make_golden.py, never from our code."""

import functools
import gzip
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import save_file

from fingerprint_jax import backbones
from fingerprint_jax.backbones import pretrained
from tests.backbones.make_golden import GOLDEN, PUBLISHED, SIZE, draw, head, images

TINY = sorted(path.stem for path in GOLDEN.glob("*.npz"))
OPTIONS = {"resnetv2_tiny": {"widths": (8, 16)}}  # timm's smallest width is 8


def abstract(name, size, **options):
    return nnx.eval_shape(lambda: backbones.build(name, image_size=size, channels=3, rngs=nnx.Rngs(0), **options))


def flat(tree):
    return {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(tree)}


def theirs(name):
    """Our path -> timm's name, for a variant."""
    table = sys.modules[backbones.variants()[name][0].__module__].TIMM
    return functools.partial(pretrained.rename, table=table)


def torch_shape(path, shape):
    if not path.endswith("/kernel"):
        return shape
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]


def drawn(name, net, folder):
    """The net with the weights that make_golden.py drew, read from a file as a user's are."""
    names = theirs(name)
    shapes = {names(path): torch_shape(path, leaf.shape) for path, leaf in flat(nnx.state(net)).items()}
    save_file({key: draw(key, shape) for key, shape in shapes.items()}, folder / "weights.safetensors")
    pretrained.load(str(folder / "weights.safetensors"), name, net)
    return net


@functools.partial(jax.jit, static_argnames="graph")
def run(graph, params, rest, x, kernel, bias):
    """Evaluation features; loss, gradients and statistics of a training step."""

    def loss_fn(params):
        net = nnx.merge(graph, params, rest, copy=True)
        logits = net(x, train=True) @ kernel + bias[None]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(4)).mean()
        return loss, nnx.state(net, nnx.BatchStat)

    features = nnx.merge(graph, params, rest, copy=True)(x, train=False)
    (loss, after), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
    return features, loss, gradients, after


def no_dropout(name):
    _, fixed = backbones.variants()[name]
    return {option: 0.0 for option in ("dropout", "stochastic_depth") if option in fixed}


def test_every_published_family_has_a_golden_file():
    families = {backbone for name, (backbone, _) in backbones.variants().items() if name in PUBLISHED}
    assert {backbones.variants()[name][0] for name in TINY} == families


@pytest.mark.parametrize("name", TINY)
def test_features_gradients_and_statistics_are_timms(name, tmp_path):
    golden = np.load(GOLDEN / f"{name}.npz")
    net = drawn(name, abstract(name, SIZE, **OPTIONS.get(name, {}), **no_dropout(name)), tmp_path)
    kernel, bias = head(net.num_features)
    features, loss, gradients, after = run(*nnx.split(net, nnx.Param, ...), images(4, SIZE), kernel, bias)
    np.testing.assert_allclose(features, golden["features"], rtol=1e-4, atol=1e-4 * np.abs(golden["features"]).max())
    np.testing.assert_allclose(np.asarray(features) @ kernel + bias, golden["logits"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(loss, golden["loss"], rtol=1e-4)
    names = theirs(name)
    norms = {f"gradient/{names(path)}": np.linalg.norm(leaf) for path, leaf in flat(gradients).items()}
    statistics = {f"after/{names(path)}": np.asarray(leaf) for path, leaf in flat(after).items()}
    assert set(norms) | set(statistics) == {key for key in golden if key.startswith(("gradient", "after"))}
    largest = max(norms.values())
    for key, norm in norms.items():
        # A gradient that is zero but for rounding, as that of a shift that the next normalisation takes away, compares to the rest.
        np.testing.assert_allclose(norm, golden[key], rtol=1e-4, atol=1e-6 * largest, err_msg=key)
    for key, new in statistics.items():
        expected, tensor = golden[key], key.removeprefix("after/")
        if tensor.endswith("running_var"):  # PyTorch's is n/(n-1) times ours
            n, kept = golden[f"count/{tensor.removesuffix('.running_var')}"], 0.9 * draw(tensor, new.shape)
            expected = kept + (expected - kept) * (n - 1) / n
        np.testing.assert_allclose(new, expected, rtol=1e-5, atol=1e-6, err_msg=key)


@functools.cache
def published():
    return json.loads(gzip.decompress((GOLDEN / "published.json.gz").read_bytes()))


# Parameters without the classifier, as torchvision 0.29 counts them; the others are timm's, see make_golden.py.
COUNTS = {
    "resnet18": 11_176_512,
    "resnet50": 23_508_032,
    "densenet121": 6_953_856,
    "mobilenet_v2": 2_223_872,
    "convnext_tiny": 27_820_128,
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_sizes_have_timms_names_shapes_and_counts(name):
    side = PUBLISHED[name][1]
    names = theirs(name)
    net = abstract(name, (side, side))
    ours = {names(path): list(torch_shape(path, leaf.shape)) for path, leaf in flat(nnx.state(net)).items()}
    expected = {key: shape for key, shape in published()[name].items() if not pretrained.IGNORED.match(key)}
    assert ours == expected
    if name in COUNTS:
        assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(net, nnx.Param))) == COUNTS[name]


def test_every_published_variant_is_compared():
    tables = {name for name, (backbone, _) in backbones.variants().items() if hasattr(sys.modules[backbone.__module__], "TIMM")}
    assert set(PUBLISHED) == {name for name in tables if not backbones.for_tests(name)}
