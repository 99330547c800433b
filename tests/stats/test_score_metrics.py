import json
import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import cohen_kappa_score, roc_auc_score, roc_curve

from fingerprint_jax.stats import bootstrap, decisions, metrics, score_metrics


def test_auc_counts_ordered_pairs():
    assert score_metrics.auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) == 3 / 4
    assert score_metrics.auc([0, 1], [0.5, 0.5]) == 1 / 2
    assert score_metrics.auc([1, 1], [0.1, 0.2]) is None


def test_quick_watches_accuracy_or_auc():
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    assert score_metrics.quick(np.array([0, 1, 1]), scores, "accuracy") == {"accuracy": pytest.approx(2 / 3)}
    assert score_metrics.quick(np.array([0, 0, 1, 1]), np.array([[0.1], [0.4], [0.35], [0.8]]), "auc") == {"auc": 3 / 4}
    assert score_metrics.quick(np.array([1, 1]), np.array([[0.1], [0.4]]), "auc") == {}


def tied_scores(rng, n, effect=0.7):
    """Labels and scores with many ties."""
    labels = np.append(rng.integers(0, 2, n - 2), [0, 1])
    return labels, np.round(rng.normal(effect * labels), 1)


def expanded(weights, *columns):
    """Rows as often as they were drawn."""
    return [np.repeat(column, weights) for column in columns]


@pytest.mark.parametrize("grouped", [False, True])
def test_every_resample_has_the_auc_and_tpr_of_scikit_learn(grouped):
    rng = np.random.default_rng(0)
    labels, scores = tied_scores(rng, 120)
    other = np.round(rng.normal(size=120), 1)
    groups = rng.integers(0, 40, 120) if grouped else None
    draws = np.concatenate(list(bootstrap.weights(labels, groups, seed=3)))
    aucs = score_metrics._resampled_auc(labels, [scores, other], groups, seed=3)
    assert draws.shape == (2000, 120) and len(aucs[0]) == 2000
    tprs = score_metrics._resampled_tpr(labels, scores, 0.1, groups, seed=3)
    for i in range(0, 2000, 100):
        y, a, b = expanded(draws[i], labels, scores, other)
        assert aucs[0][i] == pytest.approx(roc_auc_score(y, a), abs=1e-12)
        assert aucs[1][i] == pytest.approx(roc_auc_score(y, b), abs=1e-12)
        fpr, tpr, _ = roc_curve(y, a, drop_intermediate=False)
        assert tprs[i] == pytest.approx(tpr[fpr <= 0.1].max(), abs=1e-12)


def test_auc_interval_has_the_width_of_delong():
    rng = np.random.default_rng(0)
    labels = np.arange(800) % 2
    scores = rng.normal(labels)
    negative, positive = scores[labels == 0], scores[labels == 1]
    beats = (positive[:, None] > negative[None, :]).mean(axis=1), (positive[:, None] > negative[None, :]).mean(axis=0)
    sd = math.sqrt(beats[0].var(ddof=1) / 400 + beats[1].var(ddof=1) / 400)  # DeLong, DeLong & Clarke-Pearson 1988
    auc = roc_auc_score(labels, scores)
    assert score_metrics.auc_interval(labels, scores) == pytest.approx([auc - 1.96 * sd, auc + 1.96 * sd], abs=0.15 * sd)


def test_auc_interval_of_groups_of_copies_is_that_of_single_rows():
    rng = np.random.default_rng(0)
    labels, scores = tied_scores(rng, 100)
    single = score_metrics.auc_interval(labels, scores)
    copies = score_metrics.auc_interval(np.repeat(labels, 4), np.repeat(scores, 4), np.repeat(np.arange(100), 4))
    assert copies == pytest.approx(single, abs=0.1 * (single[1] - single[0]))
    unaware = score_metrics.auc_interval(np.repeat(labels, 4), np.repeat(scores, 4))
    assert unaware[1] - unaware[0] == pytest.approx((single[1] - single[0]) / 2, rel=0.1)


def test_scores_of_a_class_in_too_few_groups_have_no_interval():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(44), 5)
    labels = (groups < 4).astype(int)
    scores = rng.normal(size=len(labels)) + labels
    report = score_metrics.score_report(labels, scores, False, groups)
    assert report["auc"] == roc_auc_score(labels, scores) and report["auc_interval"] == [None, None]
    assert [at["interval"] for at in report["tpr_at_fpr"]] == [[None, None]] * 2
    assert score_metrics.paired_auc(labels, scores, -scores, groups)["interval"] == [None, None]
    assert score_metrics.excess_auc(labels, scores[:, None], -scores[:, None], groups)["interval"] == [None, None]
    over = score_metrics.over_runs(labels, scores[None], labels[None], 0.1, groups)
    assert [over[name]["interval"] for name in ("auc", "tpr", "cohen_kappa")] == [[None, None]] * 3


def test_a_resample_without_a_class_has_no_auc():
    # Four patients with images of each class alone and one of both are one stratum of nine: (4/9)^9 of the resamples lack a class.
    groups = np.repeat(np.arange(9), 6)
    labels = np.where(groups < 4, 0, np.where(groups < 8, 1, np.arange(54) % 2))
    scores = np.random.default_rng(0).normal(size=54) + labels
    draws = np.concatenate(list(bootstrap.weights(labels, groups, seed=2)))
    lacking = (draws[:, labels == 0].sum(axis=1) == 0) | (draws[:, labels == 1].sum(axis=1) == 0)
    assert 0 < lacking.sum() < 10
    np.testing.assert_array_equal(np.isnan(score_metrics._resampled_auc(labels, [scores], groups, 2)[0]), lacking)
    np.testing.assert_array_equal(np.isnan(score_metrics._resampled_tpr(labels, scores, 0.2, groups, 2)), lacking)
    assert np.isfinite(score_metrics.auc_interval(labels, scores, groups, 2)).all()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fpr", [0.05, 0.1, 0.3])
def test_tpr_at_fpr_is_the_best_that_scikit_learn_finds(seed, fpr):
    labels, scores = tied_scores(np.random.default_rng(seed), 300)
    rates, tprs, _ = roc_curve(labels, scores, drop_intermediate=False)
    found = score_metrics.tpr_at_fpr(labels, scores, fpr)
    assert found["tpr"] == tprs[rates <= fpr].max()
    called = decisions.threshold(scores[:, None], value=found["threshold"])
    assert called[labels == 1].mean() == found["tpr"] and called[labels == 0].mean() <= fpr
    low, high = found["interval"]
    assert low <= found["tpr"] <= high and low < high


def test_tpr_at_fpr_by_hand():
    # 100 not used at 0..99, used at 94.5 and 95.5, which is above all but four.
    labels = np.repeat([0, 1], [100, 2])
    scores = np.append(np.arange(100), [94.5, 95.5])
    assert score_metrics.tpr_at_fpr(labels, scores, 0.05) | {"interval": None} == {
        "fpr": 0.05,
        "tpr": 1.0,
        "threshold": 94.5,
        "interval": None,
    }
    tied = np.where(scores > 50, 50, scores)
    assert score_metrics.tpr_at_fpr(labels, tied, 0.05) == {"fpr": 0.05, "tpr": 0.0, "threshold": None, "interval": [0.0, 0.0]}


@pytest.mark.parametrize(("fpr", "unused", "given"), [(0.01, 499, False), (0.01, 500, True), (0.05, 99, False), (0.05, 100, True)])
def test_tpr_at_fpr_needs_five_false_positives(fpr, unused, given):
    labels = np.repeat([0, 1], [unused, 50])
    assert (score_metrics.tpr_at_fpr(labels, np.arange(len(labels)), fpr) is not None) == given


def test_the_threshold_is_drawn_again_in_each_resample():
    # Two classes from one distribution: TPR is about FPR, with the variance of both the share and the threshold.
    rng = np.random.default_rng(0)
    labels = np.arange(4000) % 2
    low, high = score_metrics.tpr_at_fpr(labels, rng.normal(size=4000), 0.1)["interval"]
    sd = math.sqrt(2 * 0.1 * 0.9 / 2000)
    assert high - low == pytest.approx(2 * 1.96 * sd, rel=0.15)


@pytest.mark.parametrize("fpr", [0, 1, -0.1, 5])
def test_tpr_at_fpr_refuses_what_is_no_rate(fpr):
    with pytest.raises(ValueError, match=rf"fpr={fpr} is outside 0\.\.1"):
        score_metrics.tpr_at_fpr([0, 1], [0.1, 0.2], fpr)


def test_calibration_by_hand_and_scikit_learn():
    rng = np.random.default_rng(0)
    p = rng.random(500)
    labels = (rng.random(500) < p**2).astype(int)
    found = score_metrics.calibration(labels, p)
    assert found["brier"] == pytest.approx(np.mean((p - labels) ** 2))
    accuracy, confidence = calibration_curve(labels, p, n_bins=10)
    assert [b["accuracy"] for b in found["bins"]] == pytest.approx(accuracy)
    assert [b["confidence"] for b in found["bins"]] == pytest.approx(confidence)
    counts = np.histogram(p, 10, (0, 1))[0]
    assert [b["count"] for b in found["bins"]] == counts.tolist()
    assert found["ece"] == pytest.approx(np.average(abs(accuracy - confidence), weights=counts))
    assert found["bins"][3]["low"] == 0.3 and found["bins"][3]["high"] == 0.4


def test_calibration_of_classes_is_that_of_the_likeliest():
    p = np.array([[0.7, 0.2, 0.1], [0.75, 0.2, 0.05], [0.1, 0.5, 0.4], [0, 0, 1]])
    found = score_metrics.calibration([0, 1, 2, 2], p)
    assert found["brier"] == pytest.approx((0.14 + (0.5625 + 0.64 + 0.0025) + (0.01 + 0.25 + 0.36) + 0) / 4)
    assert found["bins"] == [
        {"low": 0.5, "high": 0.6, "confidence": pytest.approx(0.5), "accuracy": 0.0, "count": 1},
        {"low": 0.7, "high": 0.8, "confidence": pytest.approx(0.725), "accuracy": 0.5, "count": 2},
        {"low": 0.9, "high": 1.0, "confidence": pytest.approx(1.0), "accuracy": 1.0, "count": 1},
    ]
    assert found["ece"] == pytest.approx((0.5 + 2 * 0.225 + 0) / 4)


@pytest.mark.parametrize("p", [[0.2, 1.5], [-0.5, 0.2], [0.1, np.nan], [[0.5, 0.2], [0.5, 0.5]]])
def test_calibration_refuses_what_is_no_probability(p):
    with pytest.raises(ValueError, match=r"probabilities lie in 0\.\.1 and add up to 1"):
        score_metrics.calibration([0, 1], p)


def test_calibration_takes_float32_probabilities():
    logits = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert sum(b["count"] for b in score_metrics.calibration(np.arange(300) % 5, p)["bins"]) == 300


def test_paired_auc_shares_the_resamples():
    rng = np.random.default_rng(0)
    labels, scores = tied_scores(rng, 300)
    assert score_metrics.paired_auc(labels, scores, scores) == {"difference": 0, "interval": [0, 0]}
    near = scores + rng.normal(size=300) * 0.2
    found = score_metrics.paired_auc(labels, scores, near)
    assert found["difference"] == pytest.approx(roc_auc_score(labels, scores) - roc_auc_score(labels, near))
    alone = score_metrics.auc_interval(labels, scores)
    assert 0 < found["interval"][1] - found["interval"][0] < 0.6 * (alone[1] - alone[0])
    mirrored = score_metrics.paired_auc(labels, scores, -scores)
    assert mirrored["interval"] == pytest.approx([2 * x - 1 for x in alone])  # the AUC of -scores is 1 - AUC


def test_score_report_is_json_and_leaves_out_what_rests_on_too_few():
    labels, scores = tied_scores(np.random.default_rng(0), 300)
    report = score_metrics.score_report(labels, scores.astype(np.float32), False)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert [at["fpr"] for at in report["tpr_at_fpr"]] == [0.05, 0.1] and "calibration" not in report
    assert report["auc_interval"][0] < report["auc"] < report["auc_interval"][1]
    assert score_metrics.score_report(labels, (scores > 0).astype(float), True)["calibration"]["bins"][0]["low"] == 0
    assert score_metrics.score_report([1, 1], [0.1, 0.2], False) == {"auc": None, "auc_interval": None, "tpr_at_fpr": []}


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([], [], "0 labels"),
        ([0, 1], [0.1], r"2 labels and scores of shape \[1\]"),
        ([0, 1], [[0.1], [0.2]], r"scores of shape \[2, 1\]: one score a label"),
        ([0, 1, 1], [0.1, np.nan, 0.2], "1 of 3 scores are not finite, the first is row 1: nan"),
        ([0, 2], [0.1, 0.2], r"1 labels are outside 0\.\.1, the first is 2"),
        ([0, -1], [0.1, 0.2], r"1 labels are outside 0\.\.1, the first is -1"),
        ([1, 1], [0.1, 0.2], "all 2 labels are 1: the figure needs rows labelled 0 and rows labelled 1"),
    ],
)
def test_figures_of_scores_refuse(labels, scores, message):
    for figure in (
        lambda: score_metrics.auc_interval(labels, scores),
        lambda: score_metrics.tpr_at_fpr(labels, scores, 0.1),
        lambda: score_metrics.paired_auc(labels, scores, scores),
    ):
        with pytest.raises(ValueError, match=message):
            figure()


def test_means_over_runs_are_those_of_scikit_learn_and_one_run_is_its_own_report():
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1], 60)
    scores = rng.normal(size=(3, 120)) + 0.7 * labels
    predicted = (scores > 0.4).astype(int)
    found = score_metrics.over_runs(labels, scores, predicted, 0.1)
    assert found["auc"]["mean"] == pytest.approx(np.mean([roc_auc_score(labels, s) for s in scores]))
    assert found["cohen_kappa"]["mean"] == pytest.approx(np.mean([cohen_kappa_score(labels, p) for p in predicted]))
    assert found["tpr"]["mean"] == pytest.approx(np.mean([score_metrics.tpr_at_fpr(labels, s, 0.1)["tpr"] for s in scores]))
    one = score_metrics.over_runs(labels, scores[:1], predicted[:1], 0.1)
    assert one["auc"]["interval"] == score_metrics.auc_interval(labels, scores[0])
    assert one["tpr"]["interval"] == score_metrics.tpr_at_fpr(labels, scores[0], 0.1)["interval"]
    report = metrics.report(labels, predicted[0], 2)
    np.testing.assert_allclose(one["cohen_kappa"]["interval"], report["intervals"]["cohen_kappa"], atol=0.03)
    # Runs that agree in everything are one run; independent ones average their errors out.
    same = score_metrics.over_runs(labels, scores[[0, 0]], predicted[[0, 0]], 0.1)
    assert same["auc"] == one["auc"] and same["tpr"] == one["tpr"]
    np.testing.assert_allclose(same["cohen_kappa"]["interval"], one["cohen_kappa"]["interval"])
    width = [np.ptp(f["auc"]["interval"]) for f in (found, one)]
    assert width[0] < width[1]
    assert score_metrics.over_runs(labels[30:90], scores[:, 30:90], predicted[:, 30:90], 0.1)["tpr"] is None  # of 30 rows 3


def test_a_difference_of_several_runs_is_that_of_their_mean_aucs():
    rng = np.random.default_rng(4)
    labels = np.repeat([0, 1], 40)
    a, b = rng.normal(size=(2, 3, 80)) + np.array([0.8, 0.2])[:, None, None] * labels
    means = [np.mean([roc_auc_score(labels, s) for s in side]) for side in (a, b)]
    found = score_metrics.paired_auc(labels, a, b)
    assert found["difference"] == pytest.approx(means[0] - means[1])
    assert found["interval"][0] < found["difference"] < found["interval"][1]
    assert score_metrics.paired_auc(labels, a[0], b[0]) == score_metrics.paired_auc(labels, a[:1], b[:1])


def test_the_excess_is_between_the_best_of_each_side_anew_in_every_resample():
    rng = np.random.default_rng(5)
    labels = np.repeat([0, 1], 40)
    attacks = rng.normal(size=(80, 3)) + np.array([0.0, 1.5, 0.2]) * labels[:, None]
    controls = rng.normal(size=(80, 2)) + np.array([0.4, 0.0]) * labels[:, None]
    found = score_metrics.excess_auc(labels, attacks, controls, seed=3)
    aucs = [[roc_auc_score(labels, x) for x in side.T] for side in (attacks, controls)]
    assert (found["attack"], found["control"]) == (int(np.argmax(aucs[0])), int(np.argmax(aucs[1])))
    assert found["value"] == pytest.approx(max(aucs[0]) - max(aucs[1]))
    draws = []
    for block in bootstrap.weights(labels, resamples=200, seed=3):
        for w in block:
            best = [max(roc_auc_score(labels, x, sample_weight=w) for x in side.T) for side in (attacks, controls)]
            draws.append(best[0] - best[1])
    np.testing.assert_allclose(found["interval"], np.percentile(draws, [2.5, 97.5]), atol=0.05)
    # A constant control is chance.
    alone = score_metrics.excess_auc(labels, attacks, np.zeros((80, 1)))
    assert alone["value"] == pytest.approx(max(aucs[0]) - 0.5) and alone["interval"][0] > 0.1
