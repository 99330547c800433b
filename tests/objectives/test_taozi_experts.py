"""The mixture of experts: gate and attention against loops, one backbone each, weights joined by +."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file
from scipy.special import softmax

from fingerprint_jax import backbones
from fingerprint_jax.backbones import pretrained
from fingerprint_jax.backbones.layers import BatchNorm
from fingerprint_jax.objectives import taozi_experts
from fingerprint_jax.objectives.taozi_experts import Experts
from tests.backbones import test_pretrained
from tests.conftest import load_config


class _Pixels(nnx.Module):
    def __init__(self, count):
        self.num_features = count

    def __call__(self, images, *, train, rngs=None):
        return images.reshape(len(images), -1)[:, : self.num_features]


def _net(heads=2):
    net = Experts([_Pixels(5), _Pixels(7), _Pixels(4)], 8, 6, heads, (6, 4), nnx.Rngs(0))
    for i, layer in enumerate((net.attention.qkv, net.attention.proj)):  # their biases begin at zero
        layer.bias.set_value(jnp.asarray(np.random.default_rng(i).normal(size=layer.bias.shape), jnp.float32))
    return net


def _images(n=3):
    return np.random.default_rng(0).normal(size=(n, 3, 3, 1)).astype(np.float32)


def _linear(layer, x):
    return x @ np.asarray(layer.kernel[...], np.float64) + np.asarray(layer.bias[...])


def _features(net, image):
    found = [_linear(layer, image.reshape(-1)[: e.num_features]) for layer, e in zip(net.features, net.backbone, strict=True)]
    return np.stack([x / np.linalg.norm(x) for x in found])


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_gate_and_attention_against_loops(heads):
    net, images = _net(heads), _images()
    given = jnp.asarray(np.stack([_features(net, image) for image in images]), jnp.float32)
    weights, fused = np.asarray(net.weights(given)), net.fused(3 * given)  # of unit length, whatever their length was
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    embedding, temperature = net(jnp.asarray(images), train=False)
    for i, image in enumerate(images):
        features = _features(net, image)
        gate = softmax(_linear(net.gate2, np.maximum(_linear(net.gate1, features.reshape(-1)), 0)))
        np.testing.assert_allclose(weights[i], gate, rtol=1e-4)
        total = sum(g * f for g, f in zip(gate, features, strict=True))
        query = np.split(_linear(net.attention.qkv, total), 3)[0].reshape(heads, -1)
        attended = []
        for head in range(heads):
            parts = [np.split(_linear(net.attention.qkv, f), 3) for f in features]
            keys, values = (np.stack([p[k].reshape(heads, -1)[head] for p in parts]) for k in (1, 2))
            attended.append(softmax(keys @ query[head] / np.sqrt(len(query[head]))) @ values)
        x = total + _linear(net.attention.proj, np.concatenate(attended))
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-6)
        np.testing.assert_allclose(fused[i], x, rtol=1e-3, atol=1e-4)
        hidden = np.maximum(_linear(net.projection.layers[0], x), 0)
        last = _linear(net.projection.layers[1], hidden)
        np.testing.assert_allclose(embedding[i], last / np.linalg.norm(last), rtol=1e-3, atol=1e-4)
        expected = 0.05 + 0.15 / (1 + np.exp(-_linear(net.projection.temperature, hidden)[0]))
        np.testing.assert_allclose(temperature[i], expected, rtol=1e-4)


def test_heads_divide_the_features():
    with pytest.raises(ValueError, match="objective.heads=3 does not divide the 8 features"):
        _net(3)


def _config(name):
    config = load_config("configs/subtask1/taozi_experts.py").member
    config.backbone.name = name
    return config


def test_each_name_is_a_backbone_and_groups_are_of_batch_norms():
    config = _config("resnet_tiny+vit_tiny")
    objective = taozi_experts.Objective(config, 2, (32, 32, 1))
    net = objective.build(nnx.Rngs(params=0))
    kinds = [type(expert).__module__.rpartition(".")[2] for expert in net.backbone]
    assert kinds == ["resnet", "vit"]
    groups = {module.groups for _, module in nnx.iter_modules(net) if isinstance(module, BatchNorm)}
    assert groups == {config.backbone.norm_groups} == {4}
    with pytest.raises(ValueError, match="backbone.name='resnet' is unknown"):
        backbones.several(_config("vit_tiny+resnet").backbone, (32, 32, 1), nnx.Rngs(params=0))


def test_the_config_trains_the_backbones_at_a_tenth_and_shrinks_to_tiny_ones():
    config = load_config("configs/subtask1/taozi_experts.py").member
    assert tuple(map(tuple, config.optimizer.rates)) == (("^backbone/", 0.1),)
    assert all(name.endswith("_tiny") for name in config.backbone.name.split("+")) and config.backbone.name.count("+") == 1


def test_weights_joined_by_plus_go_to_their_backbones(tmp_path):
    config = _config("resnet_tiny+vit_tiny")
    net = taozi_experts.Objective(config, 2, test_pretrained.SIZE + (3,)).build(nnx.Rngs(params=0))
    before = np.asarray(net.backbone[1].cls_token[...])
    tensors, path = test_pretrained.tensors("resnet_tiny"), tmp_path / "resnet.safetensors"
    save_file(tensors, path)
    pretrained.load(f"{path}+", config.backbone.name, net.backbone)
    kernel = tensors["layer1.0.conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(net.backbone[0].stages[0][0].conv1.kernel[...], kernel)
    np.testing.assert_array_equal(net.backbone[1].cls_token[...], before)  # empty: as it was
    with pytest.raises(ValueError, match="backbone.weights=.* must be 2 joined by [+]"):
        pretrained.load(str(path), config.backbone.name, net.backbone)
