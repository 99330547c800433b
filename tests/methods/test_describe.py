"""The figures before a training."""

import re
import sys

import jax
import pytest

from fingerprint_jax import main, methods
from fingerprint_jax.runs.run import Run
from fingerprint_jax.training.model import model_of
from tests.conftest import load_config
from tests.test_evaluate import run_binary


def _rows(config, data_dir, tmp_path):
    config.data_dir = data_dir
    return dict(methods.describe(Run(config, tmp_path / "run")))


def _number(text):
    return float(re.match(r"[\d,.e+]+", text)[0].replace(",", ""))


def test_the_figures_are_those_of_the_network(data_dir, tmp_path):
    config = load_config("configs/quickstart.py")
    rows = _rows(config, data_dir, tmp_path)
    # siamese_cnn_tiny at 48 px: convolutions 1-4-8-16-32 on maps 48 -> 23 -> 10 -> 4 -> 1, dense 32 x 16, head 16 x 5.
    kernels = [9 * a * b for a, b in ((1, 4), (4, 8), (8, 16), (16, 32))]
    assert _number(rows["parameters"]) == sum(kernels) + 4 + 8 + 16 + 32 + (32 * 16 + 16) + (16 * 5 + 5)
    forward = sum(2 * k * side**2 for k, side in zip(kernels, (46, 21, 8, 2), strict=True)) * 8
    # The gradient of a convolution costs twice its forward pass, the first one's by its images is not needed.
    assert 2 * forward < _number(rows["FLOPs a step"]) < 5 * forward
    state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(model_of(Run(config, tmp_path)).abstract))
    assert _number(rows["state"]) == pytest.approx(state / 2**20, abs=0.051)


def test_a_dry_run_refuses_the_decision_that_a_training_would(data_dir, tmp_path, monkeypatch):
    common = [f"--config.data_dir={data_dir}", "--config.decision.name=threshold", "--dry_run", f"--workdir={tmp_path / 'run'}"]
    for config, said in (
        ("subtask1/aimm_siamese", "^decision.params: threshold needs value$"),
        ("quickstart", "^decision.name='threshold' tells used images from others: use argmax for a task of classes$"),
    ):
        flags = [f"--config=configs/{config}.py:smoke", *common]
        monkeypatch.setattr(sys, "argv", ["main", *flags])  # where the flags of a config are looked for
        with pytest.raises(ValueError, match=said):
            run_binary(main, *flags)
    assert not (tmp_path / "run").exists()


def test_accumulation_costs_the_same_flops(data_dir, tmp_path):
    config = load_config("configs/quickstart.py")
    plain = _number(_rows(config, data_dir, tmp_path)["FLOPs a step"])
    config.optimizer.accumulate = 4
    assert _number(_rows(config, data_dir, tmp_path)["FLOPs a step"]) == pytest.approx(plain, rel=1e-3)
