"""Every config runs, shrunk, through both binaries."""

import json

import pytest

from fingerprint_jax import evaluate, tables
from tests.conftest import CONFIGS, fit


@pytest.mark.parametrize("path", CONFIGS)
def test_config_fits_evaluates_and_submits(path, data_dir, tmp_path, phantoms):
    run = fit(path, data_dir, tmp_path / "run")
    config = run.config
    held = evaluate.evaluate(run, "heldout")
    assert held["metrics"]["n"] == held["n"] > 0
    unknown = "test_real" if config.task == "subtask1" else "test_generated"
    submission = tmp_path / "run.csv"
    result = evaluate.evaluate(run, unknown, {"path": submission, "header": True, "extension": ".png", "style": "int"})
    assert "metrics" not in result
    score = evaluate.score_files(config.task, submission, phantoms[config.task] / "truth.csv", tmp_path / "score")
    assert score["metrics"]["n"] == result["n"]
    document = json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(document["splits"]) == {"heldout", unknown}
    ids, _ = tables.read_labels(submission, evaluate.CLASSES[config.task], config.task)
    assert len(tables.align(run.rows(unknown).ids, ids)) == result["n"]
