"""The published systems' training steps against PyTorch: golden.json comes from make_golden.py, never from our code."""

import functools
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fingerprint_jax import backbones, objectives
from fingerprint_jax.backbones import pretrained
from fingerprint_jax.methods import ensemble, pseudo_label
from fingerprint_jax.objectives import taozi_experts
from fingerprint_jax.objectives.parts import losses
from fingerprint_jax.runs.config import network_config
from fingerprint_jax.training.model import Model
from tests.conftest import load_config
from tests.objectives import drawn

GREY, COLOUR = (*drawn.SIZE, 1), (*drawn.SIZE, 3)
EXPERTS = ("resnet_tiny", "efficientnet_tiny", "vit_tiny")
SURE = {"dropout": 0.0, "stochastic_depth": 0.0}
CONTRASTED = {"queue": drawn.QUEUE, "momentum": drawn.MOMENTUM, "threshold": drawn.THRESHOLD}
# The config, fields of backbone and objective that differ from it, shrunk, and the shape of an image.
CASES = {
    "contrastive_sampled": ("subtask1/aimm_siamese", {}, {"num_pairs": 8}, (48, 50, 1)),
    "contrastive_all": ("subtask2/aimm_siamese", {}, {"pairs": "all"}, (48, 50, 1)),
    "cross_attention": ("subtask1/scope_siamese_cross_attention", {}, {"hidden": 24, "num_pairs": 8}, COLOUR),
    "canet": ("subtask1/zhouyijiang_canet", {}, {}, COLOUR),
    "reidentification": ("subtask1/reidentification", {}, {"width": 12, "contrastive_weight": 0.5}, COLOUR),
    "autoencoder_vit": ("subtask1/neural_nexus_vit_autoencoder", {}, {"latent": 12}, GREY),
    "autoencoder_resnet": ("subtask1/neural_nexus_texture", {}, {"widths": (8,) * 6}, GREY),
    "dclgan": ("subtask1/neural_nexus_dclgan", {}, {"features": 6}, (16, 24, 1)),
    "challengers": ("subtask1/challengers_resnet50v2", {}, {"hidden": 12, "dropout": 0.0}, COLOUR),
    "sdva": ("subtask2/sdva_efficientnet", SURE, {}, COLOUR),
    "moco": ("subtask1/taozi_moco", {"norm_groups": 1}, CONTRASTED, COLOUR),
    "taozi_experts": ("subtask1/taozi_experts", {}, CONTRASTED | {"gate": 12, "positives": "pool"}, COLOUR),
}
MOMENTUM = ("moco", "taozi_experts")
GOLDEN = json.loads(drawn.GOLDEN.read_text())


class _Experts(taozi_experts.Objective):
    """All three, without the dropout of one."""

    def encoder(self, rngs):
        fields = {"image_size": drawn.SIZE, "channels": 3, "rngs": rngs}
        experts = [backbones.build(name, **fields, **SURE if name == "efficientnet_tiny" else {}) for name in EXPERTS]
        options = self.config.objective
        return taozi_experts.Experts(experts, options.width, options.gate, options.heads, options.projection, rngs)


def _objective(name):
    path, backbone, options, shape = CASES[name]
    config = network_config(load_config(f"configs/{path}.py"))
    config.backbone.update(backbone)
    config.objective.update(options)
    kind = _Experts if name == "taozi_experts" else objectives.of(config.objective.name)
    return config, kind(config, 2 if path.startswith("subtask1") else 5, shape)


def _torch_name(path, backbone):
    """Of one of our arrays; within a backbone that timm has it is timm's."""
    prefix = re.match(r"backbone(/\d)?/", path) if path.startswith("backbone/") else None
    if prefix is None:
        return pretrained.rename(path, [])
    name = backbone.split("+")[int(prefix[1][1:])] if prefix[1] else backbone
    table = getattr(sys.modules[backbones.variants()[name][0].__module__], "TIMM", [])
    return prefix[0].replace("/", ".") + pretrained.rename(path.removeprefix(prefix[0]), table)


def _axes(path, ndim):
    """Of one of our arrays in PyTorch's order."""
    if not path.endswith("kernel"):
        return tuple(range(ndim))
    if re.search(r"decoder/steps/\d/conv/|/ups/", path):  # transposed convolutions
        return (2, 3, 0, 1)
    return (3, 2, 0, 1) if ndim == 4 else (1, 0)


def _digests(arrays, names):
    return {names(path): drawn.digest(names(path), np.transpose(x, _axes(path, x.ndim))) for path, x in arrays.items()}


def _value(path, shape, names):
    """What an array begins with: drawn, or where that is no parameter what a queue begins with."""
    if path.startswith("queue/"):
        return {"keys": drawn.queue(), "index": np.full(shape, -1, np.int32), "count": np.int32(0)}[path.removeprefix("queue/")]
    if path.startswith("momentum_encoder/"):
        return np.zeros(shape, np.float32)  # whatever: it becomes the online encoder
    axes = _axes(path, len(shape))
    return drawn.draw(names(path), tuple(shape[i] for i in axes)).transpose(np.argsort(axes))


def _close(found, expected, rounding, name):
    """Norm and projections of each gradient; one that is zero but for rounding compares to the largest."""
    assert found.keys() == expected.keys()
    largest = max(norm for norm, *_ in expected.values())
    for tensor, digest in expected.items():
        atol = 1e-4 * digest[0] + rounding * largest
        np.testing.assert_allclose(found[tensor], digest, rtol=0, atol=atol, err_msg=f"{name}: {tensor}")


def _trained(name, monkeypatch):
    """Of each step of a system in turn loss, metrics and digests of the gradients, at last the state after it."""
    config, objective = _objective(name)
    # The first pairs of a kind in place of drawn ones.
    monkeypatch.setattr(losses, "sample_pairs", lambda key, kind, count: jnp.nonzero(kind.T, size=count)[::-1])
    monkeypatch.setattr(objectives, "build", lambda *_: objective)
    names = functools.partial(_torch_name, backbone="+".join(EXPERTS) if name == "taozi_experts" else config.backbone.name)
    config.optimizer.weight_decay = drawn.DECAY
    model = Model(config, objective.num_classes, objective.image_shape)
    params, rest = ({k: _value(k, x.shape, names) for k, x in model.abstract[part].items()} for part in ("params", "rest"))
    opt = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), model.abstract["opt"])

    @jax.jit
    def gradients_of(params, rest, batch):
        def loss_of(params):
            net = model.merge(params, rest)
            loss, found = objective.loss(net, batch, jax.random.key(0))
            return loss, (found, model._split(net)[1])

        return jax.value_and_grad(loss_of, has_aux=True)(params)

    @jax.jit
    def moved(params, gradients, opt):
        direction, opt = model._optimizer.update(gradients, opt, params)
        return {k: p - drawn.RATE * model._rates[k] * direction[k] for k, p in params.items()}, opt

    momentum = name in MOMENTUM
    for number in range(len(GOLDEN[name])):
        batch = drawn.contrasted(number) if momentum else drawn.batch(name)
        (loss, (found, rest)), gradients = gradients_of(params, rest, batch)
        yield loss, found, _digests(jax.device_get(gradients), names)
        if momentum:
            params, opt = moved(params, gradients, opt)
    copies = {k.removeprefix("momentum_encoder/"): x for k, x in rest.items() if k.startswith("momentum_encoder/")}
    first = {k: _value(k, copies[k].shape, names) for k in params if momentum}
    yield rest, _digests({k: np.asarray(copies[k]) - value for k, value in first.items()}, names)


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_pytorchs(name, monkeypatch):
    *steps, (rest, moved) = _trained(name, monkeypatch)
    for number, ((loss, found, gradients), expected) in enumerate(zip(steps, GOLDEN[name], strict=True)):
        where = f"{name}, step {number}"
        np.testing.assert_allclose(loss, expected["loss"], rtol=1e-4, err_msg=where)
        for part, value in expected["parts"].items():
            np.testing.assert_allclose(found[part], value, rtol=1e-4, err_msg=f"{where}: {part}")
        _close(gradients, expected["gradients"], 1e-6 * 5**number, where)  # the rounding of the steps before adds up
    if name == "moco":
        _close(moved, expected["moved"], 1e-4, "momentum encoder")
        oldest = int(rest["queue/count"]) % drawn.QUEUE
        keys = np.roll(rest["queue/keys"], -oldest, axis=0)
        _close({"queue.keys": drawn.digest("queue.keys", keys)}, {"queue.keys": expected["queue"]}, 0, "queue")


def test_every_system_of_the_file_is_compared():
    assert GOLDEN.keys() == CASES.keys() | {"pseudo_labels"}


def test_a_round_is_given_the_labels_of_pytorch():
    """Those that nine tenths of the members vote for, the most votes first and then the highest mean."""
    logits = drawn.votes()
    members = np.exp(logits[..., :5]) / np.exp(logits[..., :5]).sum(axis=2, keepdims=True)
    scores = ensemble.vote(members).astype(np.float32)
    chosen = pseudo_label.select(np.array([f"{i:03}" for i in range(len(scores))]), scores, least=0.9, cap=5)
    assert [[i, scores[i].argmax()] for i in chosen.tolist()] == GOLDEN["pseudo_labels"]
