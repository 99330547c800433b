"""Every objective of every config learns: its loss falls on one batch of the phantom data."""

import jax
import numpy as np
import pytest

from fingerprint_jax import train
from fingerprint_jax.data import loader
from fingerprint_jax.run import Run, network
from tests.conftest import CONFIGS, load_config


@pytest.mark.parametrize("path", CONFIGS)
def test_loss_falls(path, data_dir, tmp_path):
    config = network(load_config(path))
    if config.method != "gradient":
        pytest.skip("nothing is trained by gradients")
    if "queue" in config.objective:
        pytest.skip("its loss rises while the queue fills: test_moco.py has how it falls then")
    config.data_dir, config.num_steps = data_dir, 1000  # no decay of the learning rate within these steps
    run = Run(config, tmp_path)
    model = train.model_of(run)
    batch = next(loader.host_batches(train.sampler_of(run), (data_dir, config.task), 0, 1))
    state = model.init(jax.random.key(0))
    losses = []
    for _ in range(25):
        state, metrics = model.step(state, batch, {}, np.float32(3e-3), jax.random.key(1))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:2]), losses
