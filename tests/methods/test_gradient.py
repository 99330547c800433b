"""Outputs of a network are computed once for each checkpoint and content."""

import numpy as np
import pytest

from fingerprint_jax.methods import gradient
from fingerprint_jax.runs.run import Run
from fingerprint_jax.training import inference
from tests.conftest import load_config


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    config = load_config("configs/subtask2/aimm_siamese.py")
    config.data_dir, config.checkpoint_every = data_dir, 2
    run = Run(config, tmp_path_factory.mktemp("gradient") / "run")
    gradient.fit(run)
    return run


def test_outputs_are_computed_once(run, monkeypatch):
    rows = run.rows("train_real")
    expected = inference.encode(run, inference.restore(run)[1], rows)
    np.testing.assert_array_equal(inference.outputs(run, rows)["embedding"], expected["embedding"])
    with monkeypatch.context() as patch:
        patch.setattr(inference, "encode", None)
        np.testing.assert_array_equal(inference.outputs(run, rows)["embedding"], expected["embedding"])
        with pytest.raises(TypeError):  # of other rows they are not
            inference.outputs(run, rows.take(np.arange(3)))
    (path,) = (run.workdir / "outputs").glob("*.npz")
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    np.testing.assert_array_equal(inference.outputs(run, rows)["embedding"], expected["embedding"])


def test_another_checkpoint_has_outputs_of_its_own_and_replaces_those_before(run):
    rows = run.rows("train_real")
    best = inference.outputs(run, rows)["embedding"]
    other = next(step for step in (2, 4) if step != gradient.state(run))
    early = Run.load(run.workdir, str(other))
    beside = run.workdir / "outputs" / "texture-0.npz"  # an image feature's
    beside.touch()
    assert not np.array_equal(inference.outputs(early, rows)["embedding"], best)
    assert len(list((run.workdir / "outputs").glob("*.npz"))) == 2 and beside.exists()
    np.testing.assert_array_equal(inference.outputs(run, rows)["embedding"], best)
