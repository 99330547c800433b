"""Finished runs that the config of another one names are read, and never written to."""

import hashlib
import itertools
import json
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs import base
from fingerprint_jax import methods
from fingerprint_jax.data import packing, tables
from fingerprint_jax.evaluation import decide, score
from fingerprint_jax.runs.run import Run
from tests.conftest import tiny_config


def tree(folder):
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def ensemble(task, *runs):
    config = base.ensemble(base.featured(task, "pixels"))
    config.ensemble.runs = tuple(map(str, runs))
    return config


def test_nothing_is_written_to_a_run_that_another_one_names(data_dir, tmp_path):
    network = Run(tiny_config(data_dir, "mlp_tiny"), tmp_path / "network")
    methods.fit(network)
    score.evaluate(network, "train_generated")
    features = base.featured("subtask2", "network")
    features.features.run, features.data_dir = str(network.workdir), data_dir
    features.estimator = ConfigDict({"name": "linear_svm", "C": 1.0})
    features.gallery.labelled = ("train_real",)
    by_features = Run(features, tmp_path / "features")
    methods.fit(by_features)
    both = ensemble("subtask2", network.workdir, by_features.workdir)
    both.data_dir = data_dir
    run = Run(both, tmp_path / "run")
    before = tree(network.workdir), tree(by_features.workdir)
    methods.fit(run)
    score.evaluate(run, "test_generated")
    assert (tree(network.workdir), tree(by_features.workdir)) == before
    assert len(list(run.workdir.glob("named/*/predictions/test_generated.csv"))) == 2
    (run.workdir / "named").rename(tmp_path / "elsewhere")
    (run.workdir / "named").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="named is a link, and nothing is written through one"):
        score.evaluate(Run.load(run.workdir), "test_generated")


@pytest.fixture(scope="module")
def bright(tmp_path_factory):
    """Two classes that the mean grey level tells apart, 40 images each."""
    folder, rng = tmp_path_factory.mktemp("bright"), np.random.default_rng(0)
    for (level, name), (split, count) in itertools.product(((60, "dark"), (180, "light")), (("train", 40), ("test", 10))):
        (folder / split / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.normal(level, 20, (16, 16)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / split / name / f"{name}{i:02d}.png")
    packing.pack("images", folder / "data", folder / "train", folder / "test")
    return str(folder / "data")


def svm(data_dir, **data):
    config = base.featured("images", "pixels")
    config.features.size, config.data_dir = 4, data_dir
    config.estimator = ConfigDict({"name": "rbf_svm", "C": 1.0})
    config.gallery.labelled = ("train",)
    config.data.update(data)
    return config


def test_one_column_of_an_estimator_is_a_score_for_each_of_two_classes(bright, tmp_path):
    run = Run(svm(bright, folds=4, fold=0), tmp_path / "run")
    methods.fit(run)
    found = methods.predict(run, "heldout")
    labels = run.rows("heldout").labels
    np.testing.assert_array_equal(found.scores[:, 0], -found.scores[:, 1])
    np.testing.assert_array_equal(found.scores.argmax(axis=1), labels)
    np.testing.assert_array_equal(decide.decide(run, "heldout", found), labels)


@pytest.mark.parametrize("combine", ["mean", "rank", "vote"])
def test_members_of_two_classes_are_chosen_and_combined_by_both_scores(combine, bright, tmp_path):
    config = base.ensemble(svm(bright))
    config.data_dir, config.ensemble.combine, config.ensemble.best_variant = bright, combine, True
    config.data.update(folds=4, fold=0, valid=0.25)
    config.ensemble.variants = ConfigDict({"a_blind": {"estimator": {"C": 1e-9}}, "b_sees": {"estimator": {"C": 1.0}}})
    config.ensemble.admit = 0.9
    run = Run(config, tmp_path / "run")
    methods.fit(run)
    np.testing.assert_array_equal(decide.decide(run, "heldout", methods.predict(run, "heldout")), run.rows("heldout").labels)


def test_pseudo_labels_of_two_classes_are_of_both(bright, tmp_path):
    config = base.pseudo_label(svm(bright))
    config.data_dir, config.pseudo.source, config.pseudo.least, config.pseudo.rounds = bright, "test", 0.0, 1
    config.data.update(folds=4, fold=0, sequester=0.25)
    run = Run(config, tmp_path / "run")
    methods.fit(run)
    done = json.loads((run.workdir / "done").read_text())
    assert [each["sequestered"] for each in done["rounds"]] == [1.0, 1.0] and done["rounds"][1]["joined"] == [10, 10]
    joined = (run.workdir / "labels" / "round1.csv").read_text().splitlines()[1:]
    assert len(joined) == 20 and all(line.split(",")[2] == str(int("light" in line)) for line in joined)


def test_kept_features_of_other_images_are_not_taken(bright, tmp_path):
    run = Run(svm(bright, folds=4, fold=0), tmp_path / "run")
    methods.fit(run)
    scores = {split: methods.predict(run, split).scores for split in ("heldout", "test")}
    kept = sorted((run.workdir / "features").glob("*.npz"))
    (of_train,) = [path for path in kept if len(np.load(path)["x"]) == 80]
    with np.load(of_train) as arrays:
        wrong = dict(arrays) | {"x": arrays["x"][::-1]}
    other = of_train.with_name("pixels-0123456789abcdef.npz")  # as long as that, of something else
    tables.write_arrays(other, wrong | {"of": np.frombuffer(other.name.encode(), np.uint8)})
    other.replace(of_train)
    (run.workdir / "predictions" / "heldout.csv").unlink()
    np.testing.assert_array_equal(methods.predict(Run.load(run.workdir), "heldout").scores, scores["heldout"])


def test_the_config_of_another_fold_is_named(data_dir, tmp_path):
    runs = []
    for fold in (0, 1, -1):
        config = tiny_config(data_dir, "mlp_tiny")
        config.data.update({"fold": fold, "folds": 5 if fold >= 0 else 0})
        runs.append(Run(config, tmp_path / f"fold{fold}"))
        methods.fit(runs[-1])
    first, *others = runs
    for other in others:
        shutil.copy(first.workdir / "config.json", other.workdir)
        with pytest.raises(ValueError, match="config.json holds out other images than the run was started with"):
            score.evaluate(Run.load(other.workdir), "heldout")
