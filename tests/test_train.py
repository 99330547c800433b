"""The loop: bit-exact resume, the same samples on any number of devices and processes, and what is not finite."""

import json
import os
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from fingerprint_jax import checkpoint, methods, train
from fingerprint_jax.data import loader
from fingerprint_jax.run import Run
from tests.conftest import ROOT, load_config


def _config(data_dir, backbone="resnet_tiny", **fields):
    config = load_config("configs/subtask2/medhastra_resnet18.py")
    config.data_dir = data_dir
    config.backbone = ConfigDict({"name": backbone, "stem": "native"} if backbone == "resnet_tiny" else {"name": backbone})
    config.update(fields)
    return config


def _state(run):
    checkpoints = checkpoint.Checkpoints(run.workdir, run.config.best)
    _, state = train.restore(run, checkpoints, "latest")
    checkpoints.close()
    return jax.tree.map(np.asarray, jax.device_get(state))


def _same(a, b):
    flat_a, flat_b = jax.tree.leaves_with_path(a), jax.tree.leaves_with_path(b)
    assert [path for path, _ in flat_a] == [path for path, _ in flat_b]
    for (path, x), (_, y) in zip(flat_a, flat_b, strict=True):
        assert x.tobytes() == y.tobytes(), path


@pytest.mark.parametrize("cache", ["none", "device"])
def test_an_interrupted_training_ends_byte_identical(cache, data_dir, tmp_path, monkeypatch):
    def config():
        c = _config(data_dir, num_steps=6)
        c.data.cache, c.augment.shift, c.augment.contrast = cache, 2, 0.2
        return c

    whole = Run(config(), tmp_path / "whole")
    methods.get("gradient").fit(whole)

    class Interrupted(Exception):
        pass

    real_read, reads = loader.to_devices, []

    def interrupted(*args, **kwargs):
        for batch in real_read(*args, **kwargs):
            reads.append(1)
            if len(reads) == 6:  # step 5 has been dispatched, step 4 saved
                raise Interrupted
            yield batch

    halves = Run(config(), tmp_path / "halves")
    monkeypatch.setattr(loader, "to_devices", interrupted)
    with pytest.raises(Interrupted):
        methods.get("gradient").fit(halves)
    monkeypatch.setattr(loader, "to_devices", real_read)
    assert max(checkpoint.Checkpoints(halves.workdir).manifests()) == 4
    methods.get("gradient").fit(halves)
    state = _state(whole)
    assert any(name.endswith("mean") for name in state["rest"]) and int(state["step"]) == 6
    _same(state, _state(halves))
    metrics = [
        [
            {k: v for k, v in json.loads(line).items() if k not in ("images_per_s", "input_wait")}
            for line in open(r.workdir / "metrics.jsonl")
        ]
        for r in (whole, halves)
    ]
    assert metrics[0] == metrics[1]


def test_processes_read_the_blocks_of_one_global_batch_after_any_restart(data_dir, tmp_path):
    run = Run(_config(data_dir), tmp_path)
    sampler, key = train.sampler_of(run), (data_dir, "subtask2")
    whole = list(loader.host_batches(sampler, key, 0, 7))
    for start in (0, 3, 6):
        halves = [loader.host_batches(sampler, key, start, 7, process_index=p, process_count=2) for p in (0, 1)]
        for batch, *parts in zip(whole[start:], *halves, strict=True):
            for stream, content in batch.items():
                for name, value in content.items():
                    np.testing.assert_array_equal(value, np.concatenate([part[stream][name] for part in parts]))


def test_reader_processes_change_nothing(data_dir, tmp_path):
    sampler = train.sampler_of(Run(_config(data_dir), tmp_path))
    plain = list(loader.host_batches(sampler, (data_dir, "subtask2"), 0, 3))
    workers = list(loader.host_batches(sampler, (data_dir, "subtask2"), 0, 3, workers=1))
    for a, b in zip(plain, workers, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_eight_devices_train_on_the_same_samples_to_the_same_loss(data_dir, tmp_path):
    config = _config(data_dir, "siamese_cnn_tiny", num_steps=3, log_every=1)
    run = Run(config, tmp_path / "one")
    methods.get("gradient").fit(run)
    script = textwrap.dedent(
        f"""
        import jax
        from fingerprint_jax import methods
        from fingerprint_jax.run import Run
        assert jax.device_count() == 8
        config = Run.load({str(tmp_path / "one")!r}).config
        methods.get("gradient").fit(Run(config, {str(tmp_path / "eight")!r}))
        """
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, env=os.environ | {"JAX_NUM_CPU_DEVICES": "8"})
    lines = [[json.loads(line) for line in open(tmp_path / name / "metrics.jsonl")] for name in ("one", "eight")]
    losses = [[line["loss"] for line in part if "loss" in line] for part in lines]
    assert len(losses[0]) == 3
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_a_batch_the_devices_do_not_divide_names_both(data_dir, tmp_path, monkeypatch):
    run = Run(_config(data_dir), tmp_path)

    class Three:
        size = 3

    monkeypatch.setattr(train.model_of(run), "mesh", Three())
    with pytest.raises(ValueError, match="data.streams.real=8 is not a multiple of the 3 devices"):
        methods.get("gradient").fit(run)


def test_what_is_not_finite_stops_and_changes_nothing(data_dir, tmp_path):
    config = _config(data_dir, num_steps=4)
    run = Run(config, tmp_path)
    model = train.model_of(run)
    state = model.init(jax.random.key(0))
    before = jax.tree.map(np.asarray, jax.device_get(state))
    batch = next(loader.host_batches(train.sampler_of(run), (data_dir, "subtask2"), 0, 1))
    state, metrics = model.step(state, batch, {}, np.float32(np.inf), jax.random.key(1))
    assert not bool(metrics["finite"])
    _same(before, jax.tree.map(np.asarray, jax.device_get(state)))
    config.optimizer.learning_rate = float("inf")
    with pytest.raises(FloatingPointError, match=r"step 1 is not finite .*t1/\d+"):
        methods.get("gradient").fit(Run(config, tmp_path / "run"))
    assert not checkpoint.Checkpoints(tmp_path / "run").manifests()


def test_seed_and_learning_rate_share_one_compilation(data_dir, tmp_path):
    first = Run(_config(data_dir, seed=1), tmp_path / "a")
    second = Run(_config(data_dir, seed=2), tmp_path / "b")
    second.config.optimizer.learning_rate = 0.25
    assert train.model_of(first) is train.model_of(second)
    third = Run(_config(data_dir), tmp_path / "c")
    third.config.optimizer.weight_decay = 0.5
    assert train.model_of(first) is not train.model_of(third)


def test_prediction_does_not_depend_on_the_batch(data_dir, tmp_path):
    run = Run(_config(data_dir), tmp_path)
    methods.get("gradient").fit(run)
    gradient = methods.get("gradient")
    rows = run.rows("test_generated")
    state = _state(run)
    whole = gradient.encode(run, state, rows)
    run.config.eval_batch = 7  # 20 rows: a padded tail
    part = gradient.encode(run, state, rows)
    assert len(part["logits"]) == len(rows) == 20
    np.testing.assert_allclose(whole["logits"], part["logits"], rtol=1e-4, atol=1e-5)
