"""The figures before a training."""

import itertools
import re
import sys
import types

import jax
import pytest

from fingerprint_jax import main, methods
from fingerprint_jax.methods import classical
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import names
from fingerprint_jax.training import cost
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


def test_it_says_how_long_a_training_takes(data_dir, tmp_path, monkeypatch):
    config = load_config("configs/quickstart.py")
    config.num_steps = 10**6
    monkeypatch.setattr(cost, "time", types.SimpleNamespace(perf_counter=itertools.count(step=2).__next__))  # each step takes 2 s
    rows = _rows(config, data_dir, tmp_path)
    assert rows["time of a step"].startswith("2e+03 ms, the median of 4 ")  # after 10 s no other is measured
    assert rows["training"].startswith("about 23 days 3 h, ")
    monkeypatch.setattr(cost, "_free", lambda: 1000)
    rows = _rows(config, data_dir, tmp_path)
    assert rows["time of a step"].endswith("MiB, 1,000 B are free") and "training" not in rows
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert dict(cost.here(Run(config, tmp_path / "run")))["time of a step"] == "not measured by several processes"


def test_it_says_how_long_features_take(data_dir, tmp_path, monkeypatch):
    config = load_config("configs/subtask2/residual_svm.py")
    monkeypatch.setattr(classical, "time", types.SimpleNamespace(perf_counter=itertools.count(step=4).__next__))
    rows = _rows(config, data_dir, tmp_path)
    run = Run(config, tmp_path / "run")
    (known,) = run.gallery.values()
    begin = f"about {names.duration(0.25 * len(known))} for {len(known)} images, 250 ms an image in one process, measured on 16;"
    assert rows["features of the gallery"].startswith(begin)


def test_accumulation_costs_the_same_flops(data_dir, tmp_path):
    config = load_config("configs/quickstart.py")
    plain = _number(_rows(config, data_dir, tmp_path)["FLOPs a step"])
    config.optimizer.accumulate = 4
    assert _number(_rows(config, data_dir, tmp_path)["FLOPs a step"]) == pytest.approx(plain, rel=1e-3)
