import dataclasses
import functools
import itertools
import json
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy.stats import mannwhitneyu
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from configs import base
from fingerprint_jax import estimators, evaluate, methods, score_metrics, significance, watch
from fingerprint_jax.run import Run
from tests import null_simulations as null
from tests.conftest import load_config


def test_auc_of_is_that_of_scikit_learn_and_scipy_with_ties():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    scores = np.round(rng.normal(size=(200, 3)), 1)
    found = significance.auc_of(scores)(labels)
    assert found == pytest.approx([roc_auc_score(labels, column) for column in scores.T], abs=1e-12)
    u = mannwhitneyu(scores[labels == 1, 0], scores[labels == 0, 0]).statistic
    assert found[0] == pytest.approx(u / (labels.sum() * (200 - labels.sum())), abs=1e-12)
    assert significance.auc_of(scores[:, 0])(labels).tolist() == found[:1].tolist()


@pytest.mark.parametrize("effect", [0, 0.3, 0.8])
def test_p_is_that_of_the_rank_test(effect):
    rng = np.random.default_rng(1)
    labels = np.arange(80) % 2
    scores = rng.normal(effect * labels)
    expected = mannwhitneyu(scores[labels == 1], scores[labels == 0], alternative="greater", method="exact").pvalue
    found = significance.permutation_p(significance.auc_of(scores), labels, permutations=9999)
    assert found["p"] == pytest.approx([expected], abs=4 * np.sqrt(expected * (1 - expected) / 9999) + 1e-4)
    assert found["family_wise"] == found["p"][0]
    assert found.pop("null").shape == (9999, 1) and json.loads(json.dumps(found)) == found


def exact_p(scores, unit_labels, unit):
    """Over all assignments of the labels to the units."""
    units, used = len(unit_labels), sum(unit_labels)
    every = []
    for chosen in itertools.combinations(range(units), used):
        labels = np.isin(np.arange(units), chosen).astype(int)[unit]
        every.append(roc_auc_score(labels, scores))
    return np.mean(np.array(every) >= roc_auc_score(np.array(unit_labels)[unit], scores) - 1e-12)


def test_groups_of_unequal_size_are_permuted_whole():
    rng = np.random.default_rng(2)
    unit_labels = [1, 1, 1, 1, 0, 0, 0, 0, 0]
    unit = np.repeat(np.arange(9), [1, 4, 2, 6, 3, 1, 5, 2, 2])
    scores = (rng.normal(size=9) + 1.2 * np.array(unit_labels))[unit] + 0.1 * rng.normal(size=len(unit))
    labels = np.array(unit_labels)[unit]
    seen = []

    def statistic(permuted):
        seen.append(permuted)
        return significance.auc_of(scores)(permuted)

    found = significance.permutation_p(statistic, labels, groups=[f"patient {u}" for u in unit], permutations=2000)
    expected = exact_p(scores, unit_labels, unit)
    assert found["p"] == pytest.approx([expected], abs=4 * np.sqrt(expected / 2000))
    assert found["split_groups"] == 0
    for permuted in seen[1:50]:
        per_unit = [np.unique(permuted[unit == u]) for u in range(9)]
        assert all(len(found) == 1 for found in per_unit) and sum(int(found[0]) for found in per_unit) == 4


def test_a_group_of_both_labels_is_split_and_counted():
    groups = ["a", "a", "a", "b", "b", "c", "d", "d"]
    labels = np.array([1, 1, 0, 1, 0, 0, 1, 1])
    scores = np.arange(8.0)
    found = significance.permutation_p(significance.auc_of(scores), labels, groups, permutations=4000)
    assert found["split_groups"] == 2
    expected = exact_p(scores, [1, 0, 1, 0, 0, 1], np.array([0, 0, 1, 2, 3, 4, 5, 5]))
    assert found["p"] == pytest.approx([expected], abs=0.04)


def test_the_smallest_p_is_one_in_all_permutations_and_one():
    labels = np.arange(60) % 2
    found = significance.permutation_p(significance.auc_of(labels + 0.01 * np.arange(60)), labels, permutations=199)
    assert found["p"] == [1 / 200] and found["permutations"] == 199
    worst = significance.permutation_p(significance.auc_of(-labels), labels, permutations=199)
    assert worst["p"] == [1.0]  # one-sided


def test_family_wise_p_of_the_best_of_independent_methods():
    # For M independent methods it is 1 - (1 - p)^M of the best; for copies of one method it is the p of that one.
    rng = np.random.default_rng(3)
    labels = np.arange(200) % 2
    scores = rng.normal(size=(200, 10))
    scores[:, 4] += 0.5 * labels
    found = significance.permutation_p(significance.auc_of(scores), labels, permutations=4999)
    best = min(found["p"])
    assert found["p"].index(best) == 4
    assert found["family_wise"] == pytest.approx(1 - (1 - best) ** 10, rel=0.35)
    copies = significance.permutation_p(significance.auc_of(np.repeat(scores[:, 4:5], 10, axis=1)), labels, permutations=4999)
    assert copies["p"] == [copies["family_wise"]] * 10


def test_a_statistic_that_fits_is_fitted_for_every_permutation():
    fitted = []

    def statistic(labels):
        fitted.append(labels.tolist())
        return 0.5

    found = significance.permutation_p(statistic, [0, 1, 1, 0], permutations=199)
    assert found["p"] == [1.0] and len(fitted) == 200 and fitted[0] == [0, 1, 1, 0]
    assert {sum(labels) for labels in fitted} == {2}


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, np.nan, 0.2], [0, 1, 1], "1 of 3 scores are not finite"),
        ([0.3, 0.3, 0.3], [0, 1, 1], "all 3 scores are 0.3: they tell no two images apart"),
        ([0.1, 0.2, 0.3], [1, 1, 1], r"needs rows labelled 0 and 1, these have \[1\]"),
        ([0.1, 0.2, 0.3], [0, 1, -1], r"needs rows labelled 0 and 1, these have \[-1, 0, 1\]"),
    ],
)
def test_what_has_no_p_is_refused(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        significance.permutation_p(significance.auc_of(scores), np.array(labels))


def test_a_statistic_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match=r"the statistic is not finite: \[nan\]"):
        significance.permutation_p(lambda labels: np.nan, [0, 1])


@pytest.mark.parametrize("draw", [d for _, d, _, _ in null.RIGHT if d is not null.fitted_again], ids=lambda draw: draw.__name__)
def test_nothing_is_significant_as_often_as_the_level_says(draw):
    assert 0 <= null.count(draw, 100, null.SEED) <= 12


def test_labels_shuffled_after_cross_fitting_give_false_alarms():
    # What `unavailable` refuses: 100 draws would have 5.
    assert null.count(null.shuffled_after_cross_fitting, 300, null.SEED) > 15 + 4 * np.sqrt(15)


def test_intervals_of_cross_fitted_scores_cover_too_little():
    # What `CONDITIONAL` says: of 200 draws 95% intervals would cover 190, give or take 3.
    held = 200 * null.coverage(functools.partial(null.interval_cross_fitted, features=8), 200, null.SEED)
    assert held < 190 - 4 * 3 and 0.77 < held / 200 < 0.89
    assert 200 * null.coverage(null.interval_without_labels, 200, null.SEED) > 190 - 4 * 3


def test_an_effect_is_found():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(40) % 2, 5)
    scores = np.repeat(rng.normal(size=40), 5) + 1.5 * labels + rng.normal(size=200)
    found = significance.permutation_p(significance.auc_of(scores), labels, np.repeat(np.arange(40), 5), 999)
    assert found["p"][0] < 0.01


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
        assert significance.unavailable(half, half.rows(split)) is None
    rows = half.rows("train_real")
    reason = significance.unavailable(half, rows)
    assert f"was trained on the labels of {len(rows)} of these {len(rows)} images" in reason
    assert "--config.data.folds=2 --config.data.fold=0 and score heldout" in reason
    assert significance.unavailable(half, half.rows("heldout:1")) == f"all {len(half.rows('heldout:1'))} labels are 1"


def test_another_image_of_a_patient_counts(half):
    rows, trained = half.rows("heldout"), half.rows("train_real")
    shared = dataclasses.replace(rows, groups=np.where(np.arange(len(rows)) == 0, trained.groups[0], rows.groups))
    assert f"the labels of 1 of these {len(rows)} images or of their groups" in significance.unavailable(half, shared)
    # A synthetic image is nobody's: its id is its group, and may be the same as that of a real one.
    synthetic = half.rows("train_generated").groups[0]
    alike = dataclasses.replace(rows, groups=np.where(np.arange(len(rows)) == 0, synthetic, rows.groups))
    assert significance.unavailable(half, alike) is None


def test_labels_that_go_with_the_size_of_a_group_are_not_exchanged(half):
    rows = half.rows("heldout")
    single = dataclasses.replace(rows, groups=np.where(rows.labels == 1, rows.ids, rows.groups))
    reason = significance.unavailable(half, single)
    assert reason.startswith("used groups have 1.0 images each, the others 2.0: where the label goes with the size")


def test_a_checkpoint_chosen_by_the_labels_has_no_p_on_them(data_dir, tmp_path, half):
    run = member(tmp_path / "run", data_dir, **{"data.valid": 0.2, "best": "max:auc"})
    assert "chose its checkpoint by the labels" in significance.unavailable(run, run.rows("valid"))
    assert significance.unavailable(run, run.rows("heldout")) is None
    best = watch.watch(half.workdir, "valid", 5, evaluate.evaluate)
    assert "watch-valid chose its checkpoint by the labels" in significance.unavailable(best, best.rows("valid"))
    assert significance.unavailable(best, best.rows("heldout")) is None


def test_data_that_changed_leave_open_what_was_learned(half, data_dir, tmp_path):
    shutil.copytree(half.workdir, tmp_path / "run")
    path = tmp_path / "run" / "provenance.json"
    known = json.loads(path.read_text())
    path.write_text(json.dumps(known | {"changes": [{"step": 2, "field": "data.fold", "from": 1, "to": 0}]}))
    run = Run.load(tmp_path / "run")
    reason = f"data.fold changed after {run.workdir} was started: what it learned from is not known"
    assert significance.unavailable(run, run.rows("heldout")) == reason
    fields = [("data.cache", True, False), ("data.streams.real", 8, 16)]  # which move no image
    changes = [{"step": 2, "field": field, "from": before, "to": after} for field, before, after in fields]
    path.write_text(json.dumps(known | {"changes": changes}))
    assert significance.unavailable(run, run.rows("heldout")) is None
    path.write_text(json.dumps(known | {"changes": [{"step": 2, "field": "data.streams.test_real", "from": 8, "to": None}]}))
    assert "data.streams.test_real changed after" in significance.unavailable(run, run.rows("heldout"))
    # Of packed splits labels stand in one.
    path.write_text(json.dumps(known | {"fingerprints": {"train_real": known["fingerprints"]["train_real"]}}))
    assert significance.unavailable(run, run.rows("heldout")) is None
    path.write_text(json.dumps(known | {"fingerprints": known["fingerprints"] | {"extra_labels": "x"}}))
    assert "data.extra_labels or its images changed after" in significance.unavailable(run, run.rows("heldout"))
    path.write_text(json.dumps(known | {"fingerprints": known["fingerprints"] | {"train_real": "x"}}))
    assert "was trained on images of another data set" in significance.unavailable(run, run.rows("train_real"))


def test_an_estimator_and_its_network_both_count(half, data_dir, tmp_path):
    config = base.classical(half.config)
    config.data_dir, config.data, config.features.run = data_dir, half.config.data, str(half.workdir)
    config.gallery["labelled"], config.pca = ("train_real",), 2
    run = Run(config, tmp_path / "run")
    methods.get("classical").fit(run)
    assert significance.unavailable(run, run.rows("heldout")) is None
    assert "fitted its estimator to the labels" in significance.unavailable(run, run.rows("train_real"))
    # The estimator did not see them, the network did.
    config.gallery["labelled"] = ("train_real:1",)
    unused = run.rows("train_real").take(run.rows("train_real").labels == 0)
    mixed = type(unused).concatenate([unused, run.rows("heldout")])
    assert f"{half.workdir} was trained on" in significance.unavailable(run, mixed)


def test_a_gallery_that_holds_the_rows_has_no_p(half):
    run = Run.load(half.workdir)
    rows = type(half.rows("heldout")).concatenate([run.rows("reference"), run.rows("heldout:1")])
    assert significance.unavailable(run, rows) is None
    run.config.gallery["reference"] = ("reference",)
    reason = f"compares images with a gallery that may depend on the labels of {len(run.rows('reference'))} of these"
    assert reason in significance.unavailable(run, rows)


def test_a_method_that_is_not_known_has_no_p(half):
    run = Run.load(half.workdir)
    run.config.method = "divination"
    assert "may have read the labels" in significance.unavailable(run, run.rows("heldout"))


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
    assert "fitted its estimator to the labels" in significance.unavailable(crossed, rows)
    permuted = np.random.default_rng(3).permutation(rows.labels)
    found = Run(crossed.config, crossed.workdir, labels=permuted).predict("heldout")
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
    assert not np.allclose(crossed.predict("heldout").scores[:, 0], expected, atol=1e-2)


def test_the_p_of_refits_is_of_the_run_as_it_stands(crossed):
    results = evaluate.evaluate(crossed, "heldout", refits=19)["metrics"]
    found = results["permutation"]
    assert found["permutations"] == len(found["null"]) == 19 and found["reason"] is None
    assert found["p"] == (1 + np.sum(np.array(found["null"]) >= results["scores"]["auc"])) / 20
    assert found["null_mean"] == pytest.approx(np.mean(found["null"])) and 0.3 < found["null_mean"] < 0.7
    # The permutations are those of any other score of these images.
    rows = crossed.rows("heldout")
    seen = []
    significance.permutation_p(lambda y: (seen.append(y), y[:1])[1], rows.labels, rows.groups, 19)
    fitted = Run(crossed.config, crossed.workdir, labels=seen[7]).predict("heldout")
    assert score_metrics.auc(seen[7], fitted.scores[:, 0]) == pytest.approx(found["null"][6])
    # It has a gallery of labelled real images alone.
    caption = str(evaluate.table("", results).caption)
    assert found["note"] == significance.NOTHING_SYNTHETIC and f"AUC and p: {found['note']}" in caption
    assert "p not available" not in caption


def test_folds_of_what_reads_labels_are_cross_fitted(crossed, half, data_dir, packs, tmp_path):
    assert significance.cross_fitted(crossed, "heldout") and not significance.cross_fitted(half, "heldout")
    found = evaluate.evaluate(crossed, "heldout")["metrics"]
    assert found["cross_fitted"] and found["permutation"]["reason"].endswith("with --refits=199")
    assert not significance.cross_fitted(crossed, "test_real")
    config = load_config("configs/subtask1/gan_leaks.py")
    config.data_dir, config.member.gallery.reference = data_dir, ("train_generated",)
    run = Run(config, tmp_path / "run")
    methods.get("ensemble").fit(run)
    assert config.data.folds and not significance.cross_fitted(run, "heldout")
    assert "note" not in evaluate.evaluate(run, "heldout")["metrics"]["permutation"]
    # Other splits may be packed anew.
    run, again = Run.load(run.workdir, data_dir=packs["moved"]), Run.load(crossed.workdir, data_dir=packs["moved"])
    assert run.source.fingerprints.keys() != run.provenance["fingerprints"].keys()
    assert not significance.cross_fitted(run, "heldout") and significance.cross_fitted(again, "heldout")
    assert evaluate.evaluate(run, "heldout")["metrics"]["permutation"]["p"]
    # Which labels were learned from may be unknown, that some were is not.
    known = again.provenance | {"changes": [{"step": 2, "field": "data.split_seed", "from": 1, "to": 0}]}
    shutil.copytree(crossed.workdir, tmp_path / "changed")
    for path in (tmp_path / "changed").glob("children/*/provenance.json"):
        path.write_text(json.dumps(known))
    changed = Run.load(tmp_path / "changed")
    assert "data.split_seed changed" in significance.unavailable(changed, changed.rows("heldout"))
    assert significance.cross_fitted(changed, "heldout")


def test_a_network_is_not_trained_anew_for_a_p(half, data_dir, tmp_path):
    config = load_config("configs/subtask1/aimm_siamese.py")
    config.data_dir = data_dir
    methods.get("ensemble").fit(Run(config, tmp_path / "run"))
    run = Run.load(tmp_path / "run")
    found = evaluate.evaluate(run, "heldout", refits=9)["metrics"]["permutation"]
    assert found["p"] is None and "was trained on the labels of" in found["reason"]
    assert "refits are of the folds of an ensemble" in significance.unavailable(half, half.rows("heldout"), refitted=True)
    with pytest.raises(ValueError, match="was trained on the labels of"):
        significance.refitted_p(run, 9)
