"""Two denoisers: what they begin with, the loss and the score against plain numpy, zero where both are one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from fingerprint_jax import methods
from fingerprint_jax.evaluation import lineage
from fingerprint_jax.methods import ensemble
from fingerprint_jax.objectives import likelihood_ratio
from fingerprint_jax.objectives.likelihood_ratio import Denoiser, Net
from fingerprint_jax.runs.run import Run
from tests.conftest import fit, load_config

SIZE, DEVIATION = 8, 0.5


def _objective(task="subtask1", **options):
    config = load_config("configs/subtask1/likelihood_ratio.py").member
    config.task = task
    config.objective.update({"size": SIZE} | options)
    return likelihood_ratio.Objective(config, 2, (16, 16, 1))


def _images(count, seed):
    return np.random.default_rng(seed).uniform(-1, 1, (count, 16, 16, 1)).astype(np.float32)


def _shift(denoiser, value):
    """Gives the head of a denoiser another bias, so that it is another one."""
    denoiser.head.bias.set_value(denoiser.head.bias[...] + value)


@pytest.fixture(scope="module")
def net():
    return _objective().build(nnx.Rngs(params=0))


def test_both_networks_begin_alike_and_with_the_best_linear_denoiser(net):
    jax.tree.map(np.testing.assert_array_equal, nnx.state(net.synthetic), nnx.state(net.reference))
    noisy, sigma = _images(3, 0)[:, :SIZE, :SIZE], np.array([0.1, 0.5, 2.0], np.float32)
    found = net.synthetic(jnp.asarray(noisy), jnp.asarray(sigma), train=False)
    # Of pixels of variance s^2 with noise of variance t^2 the regression on the noisy pixel is s^2 / (s^2 + t^2).
    np.testing.assert_allclose(found, noisy * (DEVIATION**2 / (sigma**2 + DEVIATION**2))[:, None, None, None], rtol=1e-5)


def test_the_network_sees_variance_one_and_gives_the_rest():
    class Double(nnx.Module):
        num_features = SIZE * SIZE

        def __call__(self, images, *, train, rngs=None):
            return 2 * images.reshape(len(images), -1)

    denoiser = Denoiser(Double(), (SIZE, SIZE, 1), DEVIATION, nnx.Rngs(0))
    denoiser.head.kernel.set_value(jnp.eye(SIZE * SIZE))
    noisy, sigma, total = _images(1, 1)[:, :SIZE, :SIZE], 0.3, np.hypot(0.3, DEVIATION)
    expected = DEVIATION**2 / total**2 * noisy + 0.3 * DEVIATION / total * 2 * noisy / total  # Karras et al. 2022, table 1
    np.testing.assert_allclose(denoiser(jnp.asarray(noisy), jnp.array([sigma]), train=False), expected, rtol=1e-5)


def test_the_ratio_is_zero_where_both_networks_are_one(net):
    images = jnp.asarray(_images(5, 2))
    one = Net(net.synthetic, net.synthetic)
    np.testing.assert_array_equal(_objective().scores(one, _objective().outputs(one, images), {}), np.zeros((5, 1)))


def test_the_score_is_the_log_ratio_of_errors_under_the_same_noise_for_all():
    objective = _objective(scored=(0.1, 0.4), draws=2)
    net = objective.build(nnx.Rngs(params=0))
    _shift(net.synthetic, 0.5)
    images = _images(4, 3)
    found = objective.outputs(net, jnp.asarray(images))
    small = images.reshape(4, SIZE, 2, SIZE, 2, 1)
    noise = np.asarray(jax.random.normal(jax.random.key(0), (2, 2, SIZE, SIZE, 1)))
    half = np.asarray(jax.image.resize(jnp.asarray(images), (4, SIZE, SIZE, 1), "linear", antialias=True))
    assert np.abs(half - small.mean(axis=(2, 4))).max() < 0.6  # averaged, over a somewhat wider window than two pixels
    for level, sigma in enumerate((0.1, 0.4)):
        total = np.hypot(sigma, DEVIATION)
        kept = DEVIATION**2 / total**2 * (half[None] + sigma * noise[level][:, None])
        reference = np.square(kept - half).mean(axis=(0, 2, 3, 4))
        synthetic = np.square(kept + sigma * DEVIATION / total * 0.5 - half).mean(axis=(0, 2, 3, 4))
        np.testing.assert_allclose(found["reference"][:, level], reference, rtol=1e-4)
        np.testing.assert_allclose(found["synthetic"][:, level], synthetic, rtol=1e-4)
    scores = objective.scores(net, {name: np.asarray(value) for name, value in found.items()}, {})
    expected = np.log(np.asarray(found["reference"]) / np.asarray(found["synthetic"])).mean(axis=1)
    np.testing.assert_allclose(scores[:, 0], expected, rtol=1e-6)
    # An image's errors depend on that image alone.
    alone = objective.outputs(net, jnp.asarray(images[2:3]))
    np.testing.assert_allclose(alone["synthetic"][0], found["synthetic"][2], rtol=1e-6)


def test_each_network_learns_from_its_own_stream(net):
    objective = _objective()
    batch = {name: {"image": jnp.asarray(_images(4, seed))} for seed, name in enumerate(likelihood_ratio.STREAMS)}
    graph, params = nnx.split(net)

    def loss(params, batch):
        total, _ = objective.loss(nnx.merge(graph, params, copy=True), batch, jax.random.key(1))
        return total

    gradients = jax.grad(loss)(params, batch)
    other = jax.grad(loss)(params, batch | {"reference": {"image": jnp.asarray(_images(4, 9))}})
    jax.tree.map(np.testing.assert_array_equal, gradients["synthetic"], other["synthetic"])
    different = jax.tree.map(lambda a, b: bool(np.any(a != b)), gradients["reference"], other["reference"])
    assert any(jax.tree.leaves(different))
    # The same images with the same noise: the same loss in both.
    total, parts = objective.loss(net, {name: batch["generated"] for name in batch}, jax.random.key(1))
    np.testing.assert_allclose(parts["generated"], parts["reference"], rtol=1e-6)
    np.testing.assert_allclose(total, parts["generated"] + parts["reference"], rtol=1e-6)


def test_every_level_of_noise_counts_alike_at_the_start():
    # The best linear denoiser of independent pixels of variance s^2 errs by s^2 t^2 / (s^2 + t^2): weighted it is 1 at every level.
    images = DEVIATION * np.random.default_rng(0).normal(size=(64, 16, 16, 1)).astype(np.float32)
    batch = {name: {"image": jnp.asarray(images)} for name in likelihood_ratio.STREAMS}
    for sigmas in ((0.05, 0.06), (0.5, 0.51)):
        objective = _objective(size=16, sigmas=sigmas)
        _, parts = objective.loss(objective.build(nnx.Rngs(params=0)), batch, jax.random.key(2))
        np.testing.assert_allclose(parts["generated"], 1.0, rtol=0.02)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"size": 17}, "objective.size=17: use 1 to 16"),
        ({"sigmas": (0.5, 0.1)}, "use two, sorted, and at least one"),
        ({"scored": ()}, "use two, sorted, and at least one"),
        ({"task": "subtask2"}, "answers membership, not task='subtask2'"),
    ],
)
def test_options_out_of_range_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        _objective(**options)


def test_there_is_no_one_backbone(net):
    with pytest.raises(ValueError, match="has two networks"):
        _ = net.backbone


def test_one_network_does_for_all_folds_and_has_a_p(data_dir, tmp_path):
    run = fit("configs/subtask1/likelihood_ratio.py", data_dir, tmp_path / "run")
    assert [(fold, member.workdir.name) for fold, member in ensemble.members(run)] == [(-1, "seed0"), (-1, "seed1")]
    assert lineage.unavailable(run, run.rows("heldout")) is None


def test_ranks_of_whole_configs_are_averaged(data_dir, tmp_path):
    run: Run = fit("configs/subtask1/combined.py", data_dir, tmp_path / "run")
    parts = {member.workdir.name: member for _, member in ensemble.members(run)}
    assert set(parts) == {"likelihood_ratio-seed0", "local_match-seed0", "gan_leaks-seed0", "domias-seed0"}
    assert ConfigDict(parts["gan_leaks-seed0"].config).features.name == "pixels"
    ranked = []
    for part in parts.values():
        scores = methods.predict(part, "train_real").scores[:, 0]
        ranked.append((scores[:, None] > scores[None, :]).sum(axis=1) + ((scores[:, None] == scores[None, :]).sum(axis=1) + 1) / 2)
    np.testing.assert_allclose(methods.predict(run, "heldout").scores[:, 0], np.mean(ranked, axis=0) / len(ranked[0]), rtol=1e-6)
