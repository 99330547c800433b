import dataclasses
import json
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from sklearn.decomposition import PCA
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from configs import base
from fingerprint_jax import estimators, methods
from fingerprint_jax.data import packing, tables
from fingerprint_jax.data.source import open_source
from fingerprint_jax.evaluation import lineage, score, terminal, watch
from fingerprint_jax.runs import start
from fingerprint_jax.runs.run import Run
from fingerprint_jax.stats import permutation, score_metrics
from tests.conftest import load_config


def member(workdir, data_dir, **fields):
    """A shrunk network of subtask 1 on a fixed half."""
    config = load_config("configs/subtask1/aimm_siamese.py").member
    config.data_dir, config.data.folds, config.data.fold = data_dir, 2, 0
    config.decision.name, config.decision.params.value = "threshold", -0.3
    config.update_from_flattened_dict(fields)
    methods.get("gradient").fit(Run(config, workdir))
    return Run.load(workdir)


@pytest.fixture(scope="module")
def half(data_dir, tmp_path_factory):
    return member(tmp_path_factory.mktemp("half") / "run", data_dir, **{"data.valid": 0.2})


def test_a_fixed_half_has_a_p_and_what_was_trained_on_has_none(half):
    for split in ("heldout", "valid"):
        assert lineage.unavailable(half, half.rows(split)) is None
    rows = half.rows("train_real")
    reason = lineage.unavailable(half, rows)
    assert f"was trained on the labels of {len(rows)} of these {len(rows)} images" in reason
    assert "--config.data.folds=2 --config.data.fold=0 and score heldout" in reason
    assert lineage.unavailable(half, half.rows("heldout:1")) == f"all {len(half.rows('heldout:1'))} labels are 1"


def test_another_image_of_a_patient_counts(half):
    rows, trained = half.rows("heldout"), half.rows("train_real")
    shared = dataclasses.replace(rows, groups=np.where(np.arange(len(rows)) == 0, trained.groups[0], rows.groups))
    assert f"the labels of 1 of these {len(rows)} images or of their groups" in lineage.unavailable(half, shared)
    # A synthetic image is nobody's: its id is its group, and may be the same as that of a real one.
    synthetic = half.rows("train_generated").groups[0]
    alike = dataclasses.replace(rows, groups=np.where(np.arange(len(rows)) == 0, synthetic, rows.groups))
    assert lineage.unavailable(half, alike) is None


def test_labels_that_go_with_the_size_of_a_group_are_not_exchanged(half):
    rows = half.rows("heldout")
    single = dataclasses.replace(rows, groups=np.where(rows.labels == 1, rows.ids, rows.groups))
    reason = lineage.unavailable(half, single)
    assert reason.startswith("used groups have 1.0 images each, the others 2.0: the label goes with the size")


def test_a_checkpoint_chosen_by_the_labels_has_no_p_on_them(data_dir, tmp_path, half):
    run = member(tmp_path / "run", data_dir, **{"data.valid": 0.2, "best": "max:auc"})
    assert "chose its checkpoint by the labels" in lineage.unavailable(run, run.rows("valid"))
    assert lineage.unavailable(run, run.rows("heldout")) is None
    best = watch.watch(half.workdir, "valid", 5, score.evaluate)
    assert "watch-valid chose its checkpoint by the labels" in lineage.unavailable(best, best.rows("valid"))
    assert lineage.unavailable(best, best.rows("heldout")) is None


def test_data_that_changed_leave_open_what_was_learned(half, data_dir, tmp_path):
    shutil.copytree(half.workdir, tmp_path / "run")
    path = tmp_path / "run" / "provenance.json"
    known = json.loads(path.read_text())
    path.write_text(json.dumps(known | {"changes": [{"step": 2, "field": "data.fold", "from": 1, "to": 0}]}))
    run = Run.load(tmp_path / "run")
    reason = f"data.fold changed after {run.workdir} was started: what it learned from is not known"
    assert lineage.unavailable(run, run.rows("heldout")) == reason
    fields = [("data.cache", True, False), ("data.streams.real", 8, 16)]  # which move no image
    changes = [{"step": 2, "field": field, "from": before, "to": after} for field, before, after in fields]
    path.write_text(json.dumps(known | {"changes": changes}))
    assert lineage.unavailable(run, run.rows("heldout")) is None
    path.write_text(json.dumps(known | {"changes": [{"step": 2, "field": "data.streams.test_real", "from": 8, "to": None}]}))
    assert "data.streams.test_real changed after" in lineage.unavailable(run, run.rows("heldout"))
    # Of packed splits labels stand in one.
    path.write_text(json.dumps(known | {"fingerprints": {"train_real": known["fingerprints"]["train_real"]}}))
    assert lineage.unavailable(run, run.rows("heldout")) is None
    path.write_text(json.dumps(known | {"fingerprints": known["fingerprints"] | {"extra_labels": "x"}}))
    assert "data.extra_labels or its images changed after" in lineage.unavailable(run, run.rows("heldout"))
    path.write_text(json.dumps(known | {"fingerprints": known["fingerprints"] | {"train_real": "x"}}))
    assert "was trained on images of another data set" in lineage.unavailable(run, run.rows("train_real"))


def test_an_estimator_and_its_network_both_count(half, data_dir, tmp_path):
    config = base.classical(half.config)
    config.data_dir, config.data, config.features.run = data_dir, half.config.data, str(half.workdir)
    config.gallery["labelled"], config.pca = ("train_real",), 2
    run = Run(config, tmp_path / "run")
    methods.get("classical").fit(run)
    assert lineage.unavailable(run, run.rows("heldout")) is None
    assert "fitted its estimator to the labels" in lineage.unavailable(run, run.rows("train_real"))
    # The estimator did not see them, the network did.
    config.gallery["labelled"] = ("train_real:1",)
    unused = run.rows("train_real").take(run.rows("train_real").labels == 0)
    mixed = type(unused).concatenate([unused, run.rows("heldout")])
    assert f"{half.workdir} was trained on" in lineage.unavailable(run, mixed)


def test_a_gallery_that_holds_the_rows_has_no_p(half):
    run = Run.load(half.workdir)
    rows = type(half.rows("heldout")).concatenate([run.rows("reference"), run.rows("heldout:1")])
    assert lineage.unavailable(run, rows) is None
    run.config.gallery["reference"] = ("reference",)
    reason = f"compares images with a gallery that may depend on the labels of {len(run.rows('reference'))} of these"
    assert reason in lineage.unavailable(run, rows)


def test_a_method_that_does_not_say_what_it_has_read_has_no_p(half):
    run = Run.load(half.workdir)
    run.config.method = "pseudo_label"
    assert "may have read the labels" in lineage.unavailable(run, run.rows("heldout"))


@pytest.fixture(scope="module")
def crossed(data_dir, tmp_path_factory):
    """A cross-fitted logistic regression of the pixels' principal components."""
    config = load_config("configs/subtask1/gan_leaks.py")
    config.data_dir, config.data.folds = data_dir, 4
    config.member.pca, config.member.estimator.name = 2, "linear_svm"
    config.member.gallery = ConfigDict({"labelled": ("train_real",)})
    run = Run(config, tmp_path_factory.mktemp("crossed") / "run")
    methods.get("ensemble").fit(run)
    return run


def test_a_cross_fitted_run_is_fitted_anew_to_permuted_labels(crossed):
    rows = crossed.rows("heldout")
    assert "fitted its estimator to the labels" in lineage.unavailable(crossed, rows)
    permuted = np.random.default_rng(3).permutation(rows.labels)
    found = methods.predict(Run(crossed.config, crossed.workdir, labels=permuted), "heldout")
    x = crossed.source.images(rows.index).reshape(len(rows), -1) / np.float32(255)
    folds = StratifiedGroupKFold(4, shuffle=True, random_state=crossed.config.data.split_seed)
    expected = np.empty(len(rows))
    numbers = [list(dict.fromkeys(rows.groups)).index(group) for group in rows.groups]
    for seen, held in folds.split(x, permuted, numbers):
        model = make_pipeline(StandardScaler(), PCA(2, random_state=0)).fit(x[seen])
        known, asked = (model.transform(x[part]).astype(np.float32) for part in (seen, held))
        labelled = estimators.Features(known, permuted[seen], seen)
        query = estimators.Features(asked, permuted[held], held)
        expected[held] = estimators.get("linear_svm")(query, {"labelled": labelled}, seed=0)[:, 0]
    np.testing.assert_allclose(found.scores[:, 0], expected, rtol=1e-3, atol=1e-3)
    # Nothing of it is kept, and the run's own table is as it was.
    assert not np.allclose(methods.predict(crossed, "heldout").scores[:, 0], expected, atol=1e-2)


def test_the_p_of_refits_is_of_the_run_as_it_stands(crossed):
    results = score.evaluate(crossed, "heldout", refits=19)["metrics"]
    found = results["permutation"]
    assert found["permutations"] == len(found["null"]) == 19 and found["reason"] is None
    assert found["p"] == (1 + np.sum(np.array(found["null"]) >= results["scores"]["auc"])) / 20
    assert found["null_mean"] == pytest.approx(np.mean(found["null"])) and 0.3 < found["null_mean"] < 0.7
    # The permutations are those of any other score of these images.
    rows = crossed.rows("heldout")
    seen = []
    permutation.permutation_p(lambda y: (seen.append(y), y[:1])[1], rows.labels, rows.groups, 19)
    fitted = methods.predict(Run(crossed.config, crossed.workdir, labels=seen[7]), "heldout")
    assert score_metrics.auc(seen[7], fitted.scores[:, 0]) == pytest.approx(found["null"][6])
    # It has a gallery of labelled real images alone.
    caption = str(terminal.table("", results).caption)
    assert found["note"] == permutation.NOTHING_SYNTHETIC and f"AUC and p: {found['note']}" in caption
    assert "p not available" not in caption
    assert score.evaluate(crossed, "heldout")["metrics"]["permutation"] == found  # it took long, and the scores are the same
    with tables.anew():
        assert score.evaluate(crossed, "heldout")["metrics"]["permutation"]["p"] is None


def test_folds_of_what_reads_labels_are_cross_fitted(crossed, half, data_dir, packs, tmp_path):
    assert lineage.cross_fitted(crossed, "heldout") and not lineage.cross_fitted(half, "heldout")
    found = score.evaluate(crossed, "heldout")["metrics"]
    assert found["cross_fitted"] and found["permutation"]["reason"].endswith("with --refits=199")
    assert not lineage.cross_fitted(crossed, "test_real")
    config = load_config("configs/subtask1/gan_leaks.py")
    config.data_dir, config.member.gallery.reference = data_dir, ("train_generated",)
    run = Run(config, tmp_path / "run")
    methods.get("ensemble").fit(run)
    assert config.data.folds and not lineage.cross_fitted(run, "heldout")
    assert "note" not in score.evaluate(run, "heldout")["metrics"]["permutation"]
    # Other splits may be packed anew.
    run, again = Run.load(run.workdir, data_dir=packs["moved"]), Run.load(crossed.workdir, data_dir=packs["moved"])
    assert run.source.fingerprints.keys() != run.provenance["fingerprints"].keys()
    assert not lineage.cross_fitted(run, "heldout") and lineage.cross_fitted(again, "heldout")
    assert score.evaluate(run, "heldout")["metrics"]["permutation"]["p"]
    # Which labels were learned from may be unknown, that some were is not.
    known = again.provenance | {"changes": [{"step": 2, "field": "data.split_seed", "from": 1, "to": 0}]}
    shutil.copytree(crossed.workdir, tmp_path / "changed")
    for path in (tmp_path / "changed").glob("children/*/provenance.json"):
        path.write_text(json.dumps(known))
    changed = Run.load(tmp_path / "changed")
    assert "data.split_seed changed" in lineage.unavailable(changed, changed.rows("heldout"))
    assert lineage.cross_fitted(changed, "heldout")


def test_a_network_is_not_trained_anew_for_a_p(half, data_dir, tmp_path):
    config = load_config("configs/subtask1/aimm_siamese.py")
    config.data_dir = data_dir
    methods.get("ensemble").fit(Run(config, tmp_path / "run"))
    run = Run.load(tmp_path / "run")
    found = score.evaluate(run, "heldout", refits=9)["metrics"]["permutation"]
    assert found["p"] is None and "was trained on the labels of" in found["reason"]
    assert "refits need an ensemble whose folds" in lineage.unavailable(half, half.rows("heldout"), refitted=True)
    with pytest.raises(ValueError, match="was trained on the labels of"):
        score.refitted_p(run, 9)


def test_labels_of_a_test_set_that_were_read_are_named(phantoms, tmp_path):
    real = phantoms["subtask2"] / "train" / "real"
    (tmp_path / "test").mkdir()
    for k in range(1, 6):  # other files of the same classes
        shutil.copytree(phantoms["subtask2"] / "train" / "generated" / f"gen_t{k}", tmp_path / "test" / f"t{k}")
    packing.pack("images", tmp_path / "data", real, tmp_path / "test")
    config = base.featured("images", "pixels")
    config.data_dir, config.decision.name, config.decision.known = str(tmp_path / "data"), "argmax", ""
    config.gallery = ConfigDict({"labelled": ("train",)})
    clean, cheats = Run(config.copy_and_resolve_references(), tmp_path / "clean"), Run(config, tmp_path / "cheats")
    config.gallery.labelled = ("train", "test")
    trained = load_config("configs/subtask2/medhastra_resnet18.py")
    trained.task, trained.data_dir, trained.data.folds, trained.data.fold = "images", config.data_dir, 0, -1
    trained.data.valid, trained.best, trained.decision.known = 0.0, "", ""
    trained.data.streams = ConfigDict({"train": 8, "test": 8})
    network = Run(trained, tmp_path / "network")
    for run in (clean, cheats, network):
        with methods.fitting(run):
            pass
    count = len(clean.rows("test"))
    assert lineage.in_sample(clean, "test") == []
    for run, what in ((cheats, "fitted its estimator to"), (network, "was trained on")):
        assert lineage.in_sample(run, "test") == [
            f"{run.workdir} {what} the labels of {count} of these {count} images: the figures may be too good."
        ]


def test_images_of_a_reference_that_a_network_was_trained_on_are_counted_in_other_data(data_dir, phantoms, tmp_path):
    root, config = phantoms["subtask1"], load_config("configs/subtask1/likelihood_ratio.py")
    config.data_dir = data_dir
    methods.fit(run := Run(config, tmp_path / "run"))
    shutil.copytree(root / "train", tmp_path / "i")
    for path in sorted((root / "reference").iterdir())[:7]:
        shutil.copy(path, tmp_path / "i" / "real_not_used" / f"r{path.name}")
    packing.pack("subtask1", tmp_path / "other", tmp_path / "i")
    reasons = lineage.in_sample(methods.load(run.workdir, data_dir=str(tmp_path / "other")), "train_real")
    assert reasons and all("was trained on 7 of these 47 images, in another split" in reason for reason in reasons)
    assert lineage.in_sample(methods.load(run.workdir), "train_real") == []
    # Nor are they forgotten where the run is a member of one on those data, or what a network of those begins with.
    of_runs = base.ensemble(config.member)
    of_runs.data_dir, of_runs.ensemble.runs = str(tmp_path / "other"), (str(run.workdir),)
    of_runs.decision.name, of_runs.decision.params = "top_fraction", ConfigDict({"fraction": 0.5})
    methods.fit(outer := Run(of_runs, tmp_path / "outer"))
    reasons = lineage.in_sample(outer, "train_real")
    assert any("was trained on 7 of these 47 images, in another split" in reason for reason in reasons)
    begun = config.member.copy_and_resolve_references()
    begun.data_dir, begun.data.folds, begun.data.fold = of_runs.data_dir, 2, 0
    (child,) = sorted((run.workdir / "children").iterdir())[:1]
    begun.init_from = str(child)
    with pytest.raises(ValueError, match=r"its network is trained on \d images that this run holds out"):
        methods.fit(Run(begun, tmp_path / "begun"))


def test_on_other_data_a_run_has_read_what_it_was_started_with(phantoms, tmp_path):
    real = phantoms["subtask2"] / "train" / "real"
    for k in range(1, 6):
        shutil.copytree(phantoms["subtask2"] / "train" / "generated" / f"gen_t{k}", tmp_path / "other" / f"t{k}")
    for name, folders in {"own": [real], "leaky": [tmp_path / "other", real], "twice": [tmp_path / "other"] * 2}.items():
        packing.pack("images", tmp_path / name, *folders)
    config = base.featured("images", "pixels")
    config.data_dir, config.gallery = str(tmp_path / "own"), ConfigDict({"labelled": ("train",)})
    config.data.folds, config.data.fold = 2, 0
    config.decision.name, config.decision.known = "learned_threshold", "heldout"
    run = Run(config, tmp_path / "run")
    with start.fitting(run, lambda _: None, methods.fields):
        pass
    seen, held = len(run.training_rows("train")), len(run.rows("heldout"))

    def reasons(name):
        return lineage.in_sample(Run.load(run.workdir, data_dir=str(tmp_path / name)), "test")

    assert reasons("leaky") == [
        f"{run.workdir} {what} the labels of {count} of these {seen + held} images: the figures may be too good."
        for what, count in (("fitted its estimator to", seen), ("learned its decision from", held))
    ]
    whole = base.ensemble(config)
    whole.data_dir, whole.decision.known = config.data_dir, "heldout"
    whole.data.folds = 2
    ensemble = Run(whole, tmp_path / "ensemble")
    methods.fit(ensemble)
    named = lineage.in_sample(Run.load(ensemble.workdir, data_dir=str(tmp_path / "leaky")), "test")
    assert named[-1] == (
        f"{ensemble.workdir} learned its decision from the labels of {seen + held} of these {seen + held} images:"
        " the figures may be too good."
    )
    assert reasons("twice") == []  # the training split of the other data is none that it has read
    shutil.rmtree(tmp_path / "own")
    open_source.cache_clear()
    assert reasons("leaky") == [
        f"Whether any of these {seen + held} images is among those that {run.workdir} has read is not known: those are gone, or of"
        " another size."
    ]
