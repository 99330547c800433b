"""Momentum contrast: loss and gradient with the keys as constants, positives, scores against loops, devices, resume, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import logsumexp

from fingerprint_jax import methods
from fingerprint_jax.backbones.layers import BatchNorm
from fingerprint_jax.data import loader
from fingerprint_jax.objectives import moco
from fingerprint_jax.objectives.parts import losses, momentum
from fingerprint_jax.runs.run import Run
from fingerprint_jax.training import inputs
from fingerprint_jax.training.model import model_of
from tests.conftest import fit_until, last_state, load_config, same_bytes

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
    """Objective, a net that has taken a step, a batch; the queue holds keys of images 0 and 20."""
    objective = _Objective(_member(**SMALL | options), 2, (4, 4, 1))
    net, rng = objective.build(nnx.Rngs(params=0)), np.random.default_rng(0)
    streams = {
        name: {view: rng.normal(size=(size, 4, 4, 1)).astype(np.float32) for view in ("image", "second")}
        | {"index": np.arange(first, first + size, dtype=np.int32)}
        for name, first, size in (("generated", 0, 5), ("real", 20, 3))
    }
    keys = losses.l2_normalize(jnp.asarray(rng.normal(size=(8, 4)).astype(np.float32)))
    net.queue.push(keys, jnp.array([0, 20, 0, 7, 8, 9, 10, 11], jnp.int32))
    net.backbone.linear.kernel.set_value(net.backbone.linear.kernel[...] + 0.1)  # no longer the momentum encoder
    return objective, net, streams


OWN = np.zeros((8, 16), bool)
OWN[0, [0, 2]] = OWN[5, 1] = True


def _term(anchor, positive, others, temperature, same):
    found = []
    for a, p, t, wanted, own in zip(anchor, positive, temperature, same, OWN, strict=True):
        logits = np.array([a @ p, *(a @ other for other in others[~own])], np.float64) / t
        chosen = np.array([True, *wanted[~own]])
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
    assert same[OWN].any() == same[~OWN].any() == (positives == "pool") and not same.all()
    expected = {"online": _term(query, keys, queue, own, same), "momentum": _term(keys, query, queue, other, same)}
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4)
    np.testing.assert_allclose(loss, 0.7 * expected["online"] + 0.3 * expected["momentum"], rtol=1e-4)
    np.testing.assert_allclose(net.queue.keys[...], np.concatenate([queue[:8], keys]), rtol=1e-4, atol=1e-6)
    assert net.queue.index[...].tolist() == [0, 20, 0, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 20, 21, 22]
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
        online = losses.info_nce(query, keys, queue, own, None, OWN)
        return 0.7 * online + 0.3 * losses.info_nce(keys, query, queue, temperature, None, OWN)

    found, expected = jax.grad(loss)(params), jax.grad(constant)(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)
    assert all(np.abs(np.asarray(leaf)).max() > 1e-4 for leaf in jax.tree.leaves(found))


class _Normed(nnx.Module):
    """The pixels, normalised in two groups of the batch."""

    def __init__(self):
        self.norm = BatchNorm(1, rngs=nnx.Rngs(0))
        self.norm.groups = 2

    def __call__(self, images, *, train, rngs=None):
        embedding = losses.l2_normalize(self.norm(images, train=train).reshape(len(images), -1))
        return embedding, jnp.full(len(images), 0.1)


def test_queries_and_keys_are_normalised_with_the_company_that_each_is_shuffled_into():
    objective, _, batch = _parts()
    net = momentum.contrasted(_Normed(), 8, 16, nnx.Rngs(1))
    queue, key = np.asarray(net.queue.keys[...]), jax.random.key(5)
    loss, _ = objective.loss(net, batch, key)
    orders, found = jax.random.split(key, 4)[:2], []
    for view, order in zip(("image", "second"), orders, strict=True):
        images, rows = np.concatenate([batch[name][view] for name in ("generated", "real")]), np.empty((8, 16))
        groups = np.asarray(jax.random.permutation(order, 8)).reshape(2, 4)
        assert len(set(map(tuple, np.sort(groups).tolist())) & {(0, 1, 2, 3), (4, 5, 6, 7)}) == 0
        for group in groups:
            rows[group] = ((images[group] - images[group].mean()) / np.sqrt(images[group].var() + 1e-5)).reshape(4, -1)
        found.append(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    expected = []
    for a, b in (found, found[::-1]):
        logits = np.concatenate([(a * b).sum(axis=1, keepdims=True), a @ queue.T], axis=1) / 0.1
        expected.append((logsumexp(logits, axis=1) - logits[:, 0]).mean())
    np.testing.assert_allclose(loss, 0.7 * expected[0] + 0.3 * expected[1], rtol=1e-4)


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
    batch = next(loader.host_batches(inputs.sampler_of(run), (data_dir, config.task), 0, 1))
    state, found = model.init(jax.random.key(0)), []
    for _ in range(steps):
        state, metrics = model.step(state, batch, {}, np.float32(rate), jax.random.key(1))
        found.append(float(metrics["loss"]))
    # At first the queue holds random keys, then those of the other images of this batch, of the step before.
    assert np.mean(found[-5:]) < 0.8 * np.mean(found[1:3]), found


def test_the_two_views_of_an_image_are_augmented_each_by_itself(data_dir, tmp_path):
    config = _member()
    config.data_dir = data_dir
    run = Run(config, tmp_path)
    model = model_of(run)
    batch = next(loader.host_batches(inputs.sampler_of(run), (data_dir, config.task), 0, 1))
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
        ({"positives": "all"}, "objective.positives='all' is unknown; known: none, pool"),
        ({"projection": (4,)}, r"objective.projection=\(4,\): use two layers or more"),
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


@pytest.mark.parametrize(("name", "value"), [("taozi_moco", 0.6), ("taozi_experts", 0.63)])
def test_the_published_threshold_is_a_variant(name, value):
    decision = load_config(f"configs/subtask1/{name}.py", "published").decision
    assert (decision.name, decision.known, decision.params.to_dict()) == ("threshold", "", {"value": value})
