"""Two generators and two discriminators: each loss against plain numpy, who learns from which, the overlap, and the pictures."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import logsumexp

from fingerprint_jax import methods
from fingerprint_jax.methods import ensemble
from fingerprint_jax.objectives.dclgan import Domain, Net, Objective, attention, overlap
from fingerprint_jax.runs.config import network_config
from fingerprint_jax.runs.run import Run
from fingerprint_jax.training import inputs
from fingerprint_jax.training.model import PICTURES
from tests.conftest import fit_until, last_state, load_config, same_bytes
from tests.training.test_writer import pictures

CONFIG = "configs/subtask1/neural_nexus_dclgan.py"
SIZE = (12, 8)
KEY = jax.random.key(5)


def _objective(task="subtask1", backbone="cyclegan_resnet_tiny", size=SIZE, **options):
    config = network_config(load_config(CONFIG))
    config.task, config.backbone.name = task, backbone
    config.objective.update({"widths": (4, 6), "features": 5, "num_patches": 7} | options)
    return Objective(config, 2, (*size, 1))


def _images(count, seed):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (count, *SIZE, 1)), jnp.float32)


GENERATED, REAL = _images(3, 0), _images(2, 1)
BATCH = {"generated": {"image": GENERATED}, "reference": {"image": REAL}}


@pytest.fixture(scope="module")
def net():
    return _objective().build(nnx.Rngs(params=0))


def _loss(net, batch, **options):
    return jax.jit(lambda: _objective(**options).loss(net, batch, KEY))()


def test_one_direction_against_plain_numpy(net):
    source, target = net.generated, net.real
    objective = _objective()

    @jax.jit
    def parts():
        translated, maps = source.generator(GENERATED)
        others = target.generator.backbone.layers(translated)
        scores = target.discriminator(translated), target.discriminator(REAL)
        return translated, maps, others, scores, source.generator(REAL)[0], objective.terms(source, target, GENERATED, REAL, KEY)

    _, maps, others, (fake, real), same, found = jax.device_get(parts())
    np.testing.assert_allclose(found["adversarial"], np.mean((fake - 1) ** 2), rtol=1e-4)
    np.testing.assert_allclose(found["discriminator"], (np.mean((real - 1) ** 2) + np.mean(fake**2)) / 2, rtol=1e-4)
    np.testing.assert_allclose(found["identity"], np.mean(np.abs(same - REAL)), rtol=1e-4)

    def project(domain, i, patch):
        fc1, fc2 = domain.projection.fc1[i], domain.projection.fc2[i]
        hidden = np.maximum(patch @ np.asarray(fc1.kernel[...]) + np.asarray(fc1.bias[...]), 0)
        x = hidden @ np.asarray(fc2.kernel[...]) + np.asarray(fc2.bias[...])
        return x / max(np.linalg.norm(x), 1e-6)

    expected = []
    for i, (key, ours, theirs) in enumerate(zip(jax.random.split(KEY, len(maps)), maps, others, strict=True)):
        height, width = ours.shape[1:3]
        places = [divmod(int(place), width) for place in jax.random.permutation(key, height * width)[:7]]
        losses = []
        for n in range(3):
            keys = np.stack([project(source, i, ours[n, y, x]) for y, x in places])
            for p, (y, x) in enumerate(places):
                similarity = keys @ project(target, i, theirs[n, y, x]) / 0.05
                losses.append(logsumexp(similarity) - similarity[p])
        expected.append(np.mean(losses))
    assert len(expected) == 2
    np.testing.assert_allclose(found["nce"], np.mean(expected), rtol=1e-3)


def test_the_domains_may_be_swapped(net):
    swapped = {"generated": {"image": REAL}, "real": {"image": GENERATED}}  # a stream of the target's images is the real domain too
    (loss, found), (other, terms) = _loss(net, BATCH), _loss(Net(net.real, net.generated), swapped)
    np.testing.assert_allclose(loss, other, rtol=1e-5)
    for name, value in found.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-5)
    assert abs(loss - _loss(net, swapped)[0]) > 0.01  # the networks are not the same


def test_the_loss_is_the_weighted_sum_of_the_mean_of_both_directions(net):
    loss, found = _loss(net, BATCH, adversarial_weight=3.0, nce_weight=0.5, identity_weight=0.25)

    @jax.jit
    def ways():
        terms = _objective().terms
        return terms(net.generated, net.real, GENERATED, REAL, KEY), terms(net.real, net.generated, REAL, GENERATED, KEY)

    one, two = ways()
    mean = {name: (one[name] + two[name]) / 2 for name in one}
    assert found.keys() == mean.keys() == {"adversarial", "nce", "identity", "discriminator"}
    expected = 3 * mean["adversarial"] + 0.5 * mean["nce"] + 0.25 * mean["identity"] + mean["discriminator"]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_each_player_learns_from_its_own_losses(net):
    graph, params = nnx.split(net)

    @jax.jit
    def gradients(params):
        def terms(params):
            net = nnx.merge(graph, params, copy=True)
            return _objective().terms(net.generated, net.real, GENERATED, REAL, KEY)

        return jax.jacrev(terms)(params)

    def learns(gradient):
        """Which networks have one: (domain, network)."""
        return {path[:2] for path, leaf in nnx.to_flat_state(gradient) if np.any(leaf[...])}

    found = {name: learns(gradient) for name, gradient in gradients(params).items()}
    ours, theirs = ("generated", "generator"), ("real", "generator")
    assert found["discriminator"] == {("real", "discriminator")}
    assert found["adversarial"] == found["identity"] == {ours}
    assert found["nce"] == {ours, theirs, ("real", "projection")}  # the query's; the key passes none


def test_the_generator_learns_from_the_discriminator_as_it_is(net):
    """The gradient with respect to the generator's last bias against finite differences, with the discriminator in between."""
    graph, params = nnx.split(net)

    @jax.jit
    @jax.value_and_grad
    def of_bias(bias):
        net = nnx.merge(graph, params, copy=True)
        net.generated.generator.last.bias.set_value(bias)
        return _objective().terms(net.generated, net.real, GENERATED, REAL, KEY)["adversarial"]

    step = 2e-3
    slope = (of_bias(jnp.full(1, step))[0] - of_bias(jnp.full(1, -step))[0]) / (2 * step)
    assert abs(slope) > 0.01
    np.testing.assert_allclose(of_bias(jnp.zeros(1))[1][0], slope, rtol=0.02)


def test_overlap_is_intersection_over_union():
    a, b = np.float32([[0.5, 0.5, 0, 0], [1, 0, 0, 0]]), np.float32([[0.25, 0.25, 0.5, 0], [0, 0, 0, 1]])
    np.testing.assert_allclose(overlap(a, b), [0.5 / 1.5, 0])
    np.testing.assert_array_equal(overlap(a, a), 1)
    maps = np.random.default_rng(0).normal(size=(4, 3, 2, 5)).astype(np.float32)
    looks = attention(jnp.asarray(maps))
    expected = np.abs(maps).sum(axis=3).reshape(4, 6)
    np.testing.assert_allclose(looks, expected / expected.sum(axis=1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(attention(jnp.asarray(7 * maps)), looks, rtol=1e-5)  # not how strong, but where
    assert not np.any(overlap(attention(jnp.zeros((2, 3, 2, 5))), looks[:2]))  # finite where nothing is seen


def test_the_score_is_the_overlap_of_both_discriminators_and_of_an_image_alone(net):
    objective = _objective()
    outputs = jax.jit(objective.outputs)
    one = Domain(net.real.generator, net.real.projection, net.generated.discriminator)
    found, equal = outputs(net, GENERATED), outputs(Net(net.generated, one), GENERATED)
    scores = objective.scores(net, jax.device_get(found), {})
    assert scores.shape == (3, 1) and np.all((scores > 0) & (scores < 1)) and not objective.probabilities
    np.testing.assert_allclose(equal["overlap"], 1, rtol=1e-6)
    alone = outputs(net, GENERATED[1:2])
    np.testing.assert_allclose(alone["overlap"][0], found["overlap"][1], rtol=1e-4)
    np.testing.assert_allclose(alone["embedding"][0], found["embedding"][1], rtol=1e-4, atol=1e-5)
    maps = [domain.discriminator.maps(GENERATED) for domain in (net.generated, net.real)]
    np.testing.assert_allclose(found["embedding"], np.concatenate([x.mean(axis=(1, 2)) for x in maps], 1), rtol=1e-3, atol=1e-4)


def test_pictures_show_an_image_above_its_translation(net):
    shown = {"generated": GENERATED, "reference": REAL}
    found = jax.jit(_objective().pictures)(net, shown)
    assert found.keys() == {"generated_to_reference", "reference_to_generated"}
    for name, images, domain in zip(found, (GENERATED, REAL), (net.generated, net.real), strict=True):
        np.testing.assert_array_equal(found[name][:, : SIZE[0]], images)
        np.testing.assert_allclose(found[name][:, SIZE[0] :], domain.generator(images)[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"task": "subtask2"}, "answers membership, not task='subtask2'"),
        ({"widths": ()}, r"objective.widths=\(\): use at least one width"),
        ({"widths": (4, 4, 4, 4)}, "and images of 16 pixels or more"),
    ],
)
def test_options_out_of_range_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        _objective(**options)


def test_what_is_not_two_domains_or_no_generator_is_named(net):
    with pytest.raises(ValueError, match="backbone.name='mlp_tiny' is no encoder of a generator: use cyclegan_resnet"):
        _objective(backbone="mlp_tiny").build(nnx.Rngs(params=0))
    for streams in (("generated",), ("real", "reference"), ("generated", "real", "reference")):
        with pytest.raises(ValueError, match="dclgan has two domains, use generated, and reference or real"):
            _objective().loss(net, {name: BATCH["generated"] for name in streams}, KEY)
    with pytest.raises(ValueError, match="has two generators"):
        _ = net.backbone


def test_one_network_does_for_all_folds_unless_it_trains_on_the_images_asked_about(data_dir, tmp_path):
    config = load_config(CONFIG)
    config.data_dir = data_dir
    assert [fold for fold, _ in ensemble.members(Run(config, tmp_path))] == [-1]
    config.member.data.streams = load_config(CONFIG, "real").member.data.streams
    assert [fold for fold, _ in ensemble.members(Run(config, tmp_path))] == [0, 1]


def test_a_resumed_training_ends_byte_identical_and_shows_the_same_pictures(data_dir, tmp_path):
    def config():
        config = network_config(load_config(CONFIG))
        config.data_dir, config.data.cache, config.eval_every = data_dir, "none", 2
        config.augment.shift = 2  # pictures show the images as they are
        return config

    whole = Run(config(), tmp_path / "whole")
    methods.get("gradient").fit(whole)

    halves = Run(config(), tmp_path / "halves")
    fit_until(halves, 4)  # step 3 has been dispatched, step 2 saved
    (file,) = (tmp_path / "halves" / "tensorboard").iterdir()
    first = pictures(file.rename(tmp_path / "first"))  # its name tells seconds apart, no less
    methods.get("gradient").fit(halves)
    state = last_state(whole)
    assert int(state["step"]) == 4 and set(state) == {"step", "params", "rest", "opt"}
    same_bytes(state, last_state(halves))
    lines = [[json.loads(line)["loss"] for line in (run.workdir / "metrics.jsonl").open()] for run in (whole, halves)]
    assert lines[0] == lines[1] and len(lines[0]) == 4

    (file,), (rest,) = (tuple((run.workdir / "tensorboard").iterdir()) for run in (whole, halves))
    shown, found = pictures(file), first | pictures(rest)
    names = ("generated_to_reference", "reference_to_generated")
    assert shown.keys() == found.keys() == {(step, name) for step in (2, 4) for name in names}
    assert {step for step, _ in first} == {2}
    for key, picture in shown.items():
        np.testing.assert_array_equal(found[key], picture)
    # Above are images of the batch of that step, as they were packed.
    index = inputs.sampler_of(whole)(3)["reference"]["index"][:PICTURES]
    above = np.concatenate(list(whole.source.images(index)[..., 0]), axis=1)
    np.testing.assert_array_equal(shown[4, names[1]][: len(above), :, 0], above)
