"""Every objective of every config learns, its loss falls on one batch of the phantom data, and goes on to the same bytes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fingerprint_jax import methods
from fingerprint_jax.runs import checkpoint
from fingerprint_jax.runs.config import identity, network_config
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import sharding
from fingerprint_jax.training import inference, inputs, optim, pair_table
from fingerprint_jax.training.model import model_of
from tests.conftest import CONFIGS, load_config


def _trained() -> list[str]:
    """The configs that train a network, the first of those that train the same."""
    found = {}
    for path in CONFIGS:
        config = network_config(load_config(path))
        if config.method == "gradient" and config.num_steps:
            found.setdefault(json.dumps(identity(config), sort_keys=True), path)
    return list(found.values())


TRAINED = _trained()
BY_OBJECTIVE = {network_config(load_config(path)).objective.name: path for path in TRAINED}


def _begin(path, data_dir, tmp_path, dtype="float32", backbone=""):
    """The run of the network of a config, its beginning, and step(state) -> state, metrics on one batch.

    The step is the program that the config trains with, so that the suite compiles it once.
    """
    config = network_config(load_config(path))
    config.backbone.dtype = dtype
    if backbone and "+" in config.backbone.name:
        config.backbone.name = backbone
    config.data_dir = data_dir
    run = Run(config, tmp_path)
    if stage := pair_table.stage(run):
        methods.get("pairs").fit(stage)
    model = model_of(run)
    _, cache, batches = inputs.of_run(run, 0)
    batch, key = next(batches), sharding.key(1, model.mesh)
    rate = sharding.put(np.float32(3e-3), sharding.replicated(model.mesh))
    return run, model.init(sharding.key(0, model.mesh)), lambda state: model.step(state, batch, cache, rate, key)


@pytest.mark.parametrize("path", TRAINED)
def test_loss_falls(path, data_dir, tmp_path):
    run, state, step = _begin(path, data_dir, tmp_path)
    if "queue" in run.config.objective:
        pytest.skip("its loss rises while the queue fills: test_moco.py has how it falls then")
    # Always the step of the highest learning rate, else it would have decayed after four.
    rates = [float(optim.schedule(run.config.optimizer, run.config.num_steps)(k)) for k in range(run.config.num_steps)]
    number, losses = np.int32(np.argmax(rates)), []
    for _ in range(40):
        state, metrics = step(state | {"step": sharding.put(number, state["step"].sharding)})
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:2]), losses


@pytest.mark.parametrize("path", BY_OBJECTIVE.values(), ids=BY_OBJECTIVE)
def test_every_objective_trains_in_bfloat16_and_keeps_float32(path, data_dir, tmp_path):
    losses = {}
    for dtype in ("float32", "bfloat16"):
        _, state, step = _begin(path, data_dir, tmp_path / dtype, dtype, "resnet_tiny+vit_tiny")  # a third compiles for a minute
        for _ in range(2):  # at the first one a head of zeros hides all before it
            state, metrics = step(state)
            assert bool(metrics["finite"])
        losses[dtype] = float(metrics["loss"])
        assert jnp.bfloat16 not in {x.dtype for x in jax.tree.leaves(state)}
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05, abs=0.02)
    assert losses["bfloat16"] != losses["float32"]


@pytest.mark.parametrize("path", TRAINED)
def test_a_checkpoint_holds_all_that_the_next_step_depends_on(path, data_dir, tmp_path):
    run, state, step = _begin(path, data_dir, tmp_path)
    state, _ = step(state)
    saved = checkpoint.Checkpoints(run.workdir)
    saved.save(1, state, {})
    saved.close()
    number, restored = inference.restore(run, "latest")
    assert number == 1
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    (after, metrics), (expected, others) = step(restored), step(state)
    jax.tree.map(np.testing.assert_array_equal, (after, metrics), (expected, others))
