"""Momentum contrast: loss and gradient with the keys as constants, positives, scores against loops, devices, resume, refusals."""

import json
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import logsumexp

from fingerprint_jax import losses, methods, momentum, train
from fingerprint_jax.data import loader
from fingerprint_jax.model import model_of
from fingerprint_jax.objectives import moco
from fingerprint_jax.run import Run
from tests.conftest import ROOT, fit_until, last_state, load_config, same_bytes

SMALL = {"queue": 16, "width": 8, "projection": (8, 4), "momentum": 0.5}


def _member(name="taozi_moco", **options):
    config = load_config(f"configs/subtask1/{name}.py").member
    config.objective.update(options)
    return config


class _Backbone(nnx.Module):
    """A linear layer of the pixels."""

    num_features = 6

    def __init__(self, rngs):
        self.linear = nnx.Linear(16, 6, rngs=rngs)

    def __call__(self, images, *, train, rngs=None):
        return self.linear(images.reshape(len(images), -1))


class _Objective(moco.Objective):
    def encoder(self, rngs):
        return moco.Encoder(_Backbone(rngs), self.config.objective.width, self.config.objective.projection, rngs)


def _parts(**options):
    """Objective, a net that has taken a step, a batch."""
    objective = _Objective(_member(**SMALL | options), 2, (4, 4, 1))
    net, rng = objective.build(nnx.Rngs(params=0)), np.random.default_rng(0)
    streams = {
        name: {view: rng.normal(size=(size, 4, 4, 1)).astype(np.float32) for view in ("image", "second")}
        for name, size in (("generated", 5), ("real", 3))
    }
    net.queue.push(losses.l2_normalize(jnp.asarray(rng.normal(size=(8, 4)).astype(np.float32))))
    net.backbone.linear.kernel.set_value(net.backbone.linear.kernel[...] + 0.1)  # no longer the momentum encoder
    return objective, net, streams


def _term(anchor, positive, others, temperature, same):
    found = []
    for a, p, t, wanted in zip(anchor, positive, temperature, same, strict=True):
        logits = np.array([a @ p, *(a @ other for other in others)], np.float64) / t
        chosen = np.array([True, *wanted])
        found.append(-(logits - logsumexp(logits))[chosen].mean())
    return np.mean(found)


@pytest.mark.parametrize("positives", ["none", "pool"])
def test_the_loss_against_loops(positives):
    objective, net, batch = _parts(positives=positives, threshold=0.3)
    before = nnx.clone(net)
    momentum.update(before, 0.5)
    loss, metrics = objective.loss(net, batch, jax.random.key(1))
    images, second = (np.concatenate([batch[name][view] for name in ("generated", "real")]) for view in ("image", "second"))
    query, own = (np.asarray(x) for x in before(images, train=True))
    keys, other = (np.asarray(x) for x in before.momentum_encoder(second, train=True))
    queue = np.asarray(before.queue.keys[...])
    same = keys @ queue.T >= 0.3 if positives == "pool" else np.zeros((8, 16), bool)
    assert same.any() == (positives == "pool") and not same.all()
    expected = {"online": _term(query, keys, queue, own, same), "momentum": _term(keys, query, queue, other, same)}
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4)
    np.testing.assert_allclose(loss, 0.7 * expected["online"] + 0.3 * expected["momentum"], rtol=1e-4)
    np.testing.assert_allclose(net.queue.keys[...], np.concatenate([queue[:8], keys]), rtol=1e-4, atol=1e-6)
    for (path, a), (_, b) in zip(*(nnx.to_flat_state(nnx.state(n.momentum_encoder)) for n in (net, before)), strict=True):
        np.testing.assert_allclose(a.get_value(), b.get_value(), rtol=1e-6, err_msg=str(path))


def test_no_gradient_flows_through_the_momentum_encoder_or_the_queue():
    objective, net, batch = _parts()
    graph, params, rest = nnx.split(net, objective.trainable, ...)

    def loss(params):
        return objective.loss(nnx.merge(graph, params, rest, copy=True), batch, jax.random.key(1))[0]

    moved = nnx.merge(graph, params, rest, copy=True)
    momentum.update(moved, 0.5)
    images, second = (np.concatenate([batch[name][view] for name in ("generated", "real")]) for view in ("image", "second"))
    # The keys as plain numbers: they know of no parameter.
    keys, temperature = (np.asarray(x) for x in moved.momentum_encoder(second, train=True))
    queue = np.asarray(moved.queue.keys[...])

    def constant(params):
        query, own = nnx.merge(graph, params, rest, copy=True)(images, train=True)
        return 0.7 * losses.info_nce(query, keys, queue, own) + 0.3 * losses.info_nce(keys, query, queue, temperature)

    found, expected = jax.grad(loss)(params), jax.grad(constant)(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)
    assert all(np.abs(np.asarray(leaf)).max() > 1e-4 for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize(("name", "rate", "steps"), [("taozi_moco", 3e-3, 30), ("taozi_experts", 1e-3, 90)])
def test_queries_learn_to_find_their_keys_once_the_queue_is_full(name, rate, steps, data_dir, tmp_path):
    config = _member(name, momentum=0.9, queue=16)
    config.data_dir, config.num_steps = data_dir, 1000
    config.backbone.norm_groups = 1
    config.augment.update(crop=0.0, flip=0.0, brightness=0.0, contrast=0.0)  # tiny nets learn nothing else in so few steps
    if "+" in config.backbone.name:
        config.backbone.name = "resnet_tiny+vit_tiny"
    run = Run(config, tmp_path)
    model = model_of(run)
    batch = next(loader.host_batches(train.sampler_of(run), (data_dir, config.task), 0, 1))
    state, found = model.init(jax.random.key(0)), []
    for _ in range(steps):
        state, metrics = model.step(state, batch, {}, np.float32(rate), jax.random.key(1))
        found.append(float(metrics["loss"]))
    # At first the queue holds random keys, then, beside each image's own, that of the step before: ln 2 is the least.
    assert np.mean(found[-5:]) < 0.8 * np.mean(found[1:3]), found


def test_the_two_views_of_an_image_are_augmented_each_by_itself(data_dir, tmp_path):
    config = _member()
    config.data_dir = data_dir
    run = Run(config, tmp_path)
    model = model_of(run)
    batch = next(loader.host_batches(train.sampler_of(run), (data_dir, config.task), 0, 1))
    views = model._images(batch["generated"], None, jax.random.key(0))
    assert set(views) == {"image", "second"}
    assert all((np.asarray(a) != np.asarray(b)).any() for a, b in zip(*views.values(), strict=True))
    config.augment.update(crop=0.0, flip=0.0, brightness=0.0, contrast=0.0)
    views = model_of(run)._images(batch["generated"], None, jax.random.key(0))
    np.testing.assert_array_equal(views["image"], views["second"])


def _outputs(n, first, seed):
    rows = np.random.default_rng(seed).normal(size=(n, 5)).astype(np.float32)  # as the mean over views, not of unit length
    return {"embedding": rows, "index": np.arange(first, first + n)}


def test_the_score_is_the_highest_cosine_and_never_to_itself():
    objective = _Objective(_member(), 2, (4, 4, 1))
    query, generated = _outputs(6, 3, 0), _outputs(9, 6, 1)  # numbers 6 to 8 in both
    generated["embedding"][:3] = query["embedding"][3:]
    found = objective.scores(None, query, {"generated": generated})
    expected = []
    for row, index in zip(query["embedding"], query["index"], strict=True):
        cosines = [
            row @ other / np.linalg.norm(row) / np.linalg.norm(other)
            for other, number in zip(generated["embedding"], generated["index"], strict=True)
            if number != index
        ]
        expected.append([max(cosines)])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert found.max() < 0.999


def _run(data_dir, workdir, **fields):
    config = _member()
    config.data_dir = data_dir
    config.update(fields)
    return Run(config, workdir)


def test_an_interrupted_training_ends_byte_identical(data_dir, tmp_path):
    whole = _run(data_dir, tmp_path / "whole")
    methods.get("gradient").fit(whole)

    resumed = _run(data_dir, tmp_path / "resumed")
    fit_until(resumed, 4)  # step 2 is saved, the queue full
    methods.get("gradient").fit(_run(data_dir, tmp_path / "resumed"))
    state = last_state(whole)
    same_bytes(state, last_state(resumed))
    assert state["rest"]["queue/count"] == 64 and state["rest"]["queue/keys"].shape == (32, 16)


def test_four_devices_train_to_the_same_loss(data_dir, tmp_path):
    run = _run(data_dir, tmp_path / "one", num_steps=3)
    methods.get("gradient").fit(run)
    script = textwrap.dedent(
        f"""
        import jax
        from fingerprint_jax import methods
        from fingerprint_jax.run import Run
        assert jax.device_count() == 4
        config = Run.load({str(tmp_path / "one")!r}).config
        methods.get("gradient").fit(Run(config, {str(tmp_path / "four")!r}))
        """
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, env=os.environ | {"JAX_NUM_CPU_DEVICES": "4"})
    lines = [[json.loads(line) for line in open(tmp_path / name / "metrics.jsonl")] for name in ("one", "four")]
    found = [[line["loss"] for line in part if "loss" in line] for part in lines]
    assert len(found[0]) == 3
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


@pytest.mark.parametrize("queue", [24, 96])
def test_a_queue_that_the_data_do_not_allow_is_refused_before_anything_is_written(queue, data_dir, tmp_path):
    run = _run(data_dir, tmp_path / "run")
    run.config.objective.queue = queue
    text = f"objective.queue={queue}: use a multiple of the 16 images of a batch .data.streams., at most 80, since there are 80"
    with pytest.raises(ValueError, match=text):
        methods.get("gradient").fit(run)
    assert not (run.workdir / "config.json").exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"positives": "all"}, "objective.positives='all' is unknown: use none or pool"),
        ({"momentum": 1.5}, "objective.momentum=1.5 is out of range: use 0 to 1"),
        ({"online": -0.1}, "objective.online=-0.1 is out of range"),
        ({"threshold": 2.0}, "objective.threshold=2.0 is out of range: use -1 to 1"),
        ({"queue": 0}, "objective.queue=0, .* use 1 or more"),
        ({"projection": (4,)}, r"objective.projection=\(4,\): use 1 or more, and two layers or more"),
    ],
)
def test_options_that_cannot_be_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        moco.Objective(_member(**options), 2, (16, 16, 1))


def test_another_task_is_refused():
    config = _member()
    config.task = "subtask2"
    with pytest.raises(ValueError, match="objective.name='moco' answers membership, not task='subtask2'"):
        moco.Objective(config, 5, (16, 16, 1))


def test_the_published_threshold_is_a_variant():
    decision = load_config("configs/subtask1/taozi_moco.py", "published").decision
    assert (decision.name, decision.known, decision.params.to_dict()) == ("threshold", "", {"value": 0.6})
