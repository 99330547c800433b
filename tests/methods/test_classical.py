"""Features of a frozen network given to estimators that the command line chooses."""

import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from sklearn.metrics.pairwise import cosine_similarity

from fingerprint_jax import estimators, methods, train
from fingerprint_jax.methods import classical, gradient
from fingerprint_jax.run import Run
from tests.conftest import ROOT, fit, load_config

FEATURES = "configs/subtask2/aimm_features.py"


def _from_flags(path, *arguments):
    values = flags.FlagValues()
    line = ["main", f"--config={ROOT / path}:smoke", *arguments]
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=line)
    values(line)
    return values.config


@pytest.fixture(scope="module")
def frozen(data_dir, tmp_path_factory):
    return fit(FEATURES, data_dir, tmp_path_factory.mktemp("frozen") / "run")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("linear_svm", {"C": 0.01}),
        ("kmeans", {}),
        ("kmeans", {"clusters": 7}),
        ("hierarchical", {}),
        ("similarity", {"readout": "knn", "k": 3}),
    ],
)
def test_the_command_line_chooses_the_estimator_and_its_options(name, options, frozen, data_dir, tmp_path):
    arguments = [f"--config.estimator.{field}={value}" for field, value in {"name": name, **options}.items()]
    config = _from_flags(FEATURES, *arguments)
    config.data_dir = data_dir
    methods.get("classical").fit(Run(config, tmp_path))
    run = Run.load(tmp_path)
    source = classical.encoder(run)
    x, query = (gradient.outputs(source, run.rows(split))["embedding"] for split in ("train_generated", "heldout"))
    known = run.rows("train_generated")
    gallery = {"labelled": estimators.Features(x, known.labels, known.index)}
    unknown = np.full(len(query), -1)  # no estimator needs a query's label or number
    expected = estimators.get(name, **options)(estimators.Features(query, unknown, unknown), gallery, seed=0)
    np.testing.assert_allclose(run.predict("heldout").scores, expected, rtol=1e-6)


def test_an_option_of_another_estimator_is_refused_before_anything_is_trained(data_dir, tmp_path):
    config = _from_flags(FEATURES, "--config.estimator.name=kmeans", "--config.estimator.C=2")
    config.data_dir = data_dir
    with pytest.raises(ValueError, match="estimator.C is no option of kmeans: use clusters"):
        methods.get("classical").fit(Run(config, tmp_path))
    assert not (tmp_path / "config.json").exists() and not (tmp_path / "children").exists()


def test_a_frozen_encoder_is_the_network_as_it_begins(frozen):
    source = classical.encoder(frozen)
    assert gradient.state(source) == 0
    drawn, state = train.model_of(source).init(jax.random.key(source.config.seed)), gradient.restore(source)
    for part in ("params", "rest"):
        for name, value in drawn[part].items():
            assert np.asarray(value).tobytes() == np.asarray(state[part][name]).tobytes(), name


def test_the_encoder_is_fine_tuned_where_it_has_steps(data_dir, tmp_path):
    config = _from_flags(FEATURES, "--config.member.num_steps=2", "--config.member.backbone.name=siamese_cnn_tiny")
    config.data_dir = data_dir
    run = Run(config, tmp_path)
    methods.get("classical").fit(run)
    source = classical.encoder(run)
    assert gradient.state(source) == 2
    # What the features are judged on had no part in the training.
    assert set(source.rows("heldout").ids) == set(run.rows("heldout").ids)
    assert not set(source.rows("train_generated").ids) & set(run.rows("heldout").ids)


def test_similarity_is_to_the_real_images_of_a_network_trained_on_them(data_dir, tmp_path):
    run = fit("configs/subtask2/medhastra_similarity.py", data_dir, tmp_path / "run")
    source = classical.encoder(run)
    assert list(source.config.data.streams) == ["real"]
    real, query = run.rows("train_real"), run.rows("heldout")
    x, q = (gradient.outputs(source, rows)["embedding"] for rows in (real, query))
    pairs = cosine_similarity(q, x)
    expected = np.stack([pairs[:, real.labels == k].mean(axis=1) for k in range(5)], axis=1)
    np.testing.assert_allclose(run.predict("heldout").scores, expected, rtol=1e-4, atol=1e-5)
    assert load_config("configs/subtask2/medhastra_similarity.py", "").member.backbone.name == "resnet18"
