"""Every objective of every config learns, its loss falls on one batch of the phantom data, and goes on to the same bytes."""

import json

import jax
import numpy as np
import pytest

from fingerprint_jax import checkpoint, methods, train
from fingerprint_jax.data import loader
from fingerprint_jax.model import model_of
from fingerprint_jax.run import Run, identity, network
from tests.conftest import CONFIGS, load_config


def _trained() -> list[str]:
    """The configs that train a network, the first of those that train the same."""
    found = {}
    for path in CONFIGS:
        config = network(load_config(path))
        if config.method == "gradient" and config.num_steps:
            found.setdefault(json.dumps(identity(config), sort_keys=True), path)
    return list(found.values())


TRAINED = _trained()


def _begin(path, data_dir, tmp_path):
    """The run of the network of a config, its beginning, and step(state) -> state, metrics on one batch."""
    config = network(load_config(path))
    config.data_dir, config.num_steps = data_dir, 1000  # no decay of the learning rate within these steps
    run = Run(config, tmp_path)
    if stage := methods.get("pairs").stage(run):
        methods.get("pairs").fit(stage)
    model = model_of(run)
    batch = next(loader.host_batches(train.sampler_of(run), (data_dir, config.task), 0, 1))
    return run, model.init(jax.random.key(0)), lambda state: model.step(state, batch, {}, np.float32(3e-3), jax.random.key(1))


@pytest.mark.parametrize("path", TRAINED)
def test_loss_falls(path, data_dir, tmp_path):
    run, state, step = _begin(path, data_dir, tmp_path)
    if "queue" in run.config.objective:
        pytest.skip("its loss rises while the queue fills: test_moco.py has how it falls then")
    losses = []
    for _ in range(25):
        state, metrics = step(state)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:2]), losses


@pytest.mark.parametrize("path", TRAINED)
def test_a_checkpoint_holds_all_that_the_next_step_depends_on(path, data_dir, tmp_path):
    run, state, step = _begin(path, data_dir, tmp_path)
    state, _ = step(state)
    saved = checkpoint.Checkpoints(run.workdir)
    saved.save(1, state, {})
    saved.close()
    number, restored = train.restore(run, saved, "latest")
    assert number == 1
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    (after, metrics), (expected, others) = step(restored), step(state)
    jax.tree.map(np.testing.assert_array_equal, (after, metrics), (expected, others))
