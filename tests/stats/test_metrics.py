import json
import math
import tracemalloc

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score, precision_recall_fscore_support, recall_score

from fingerprint_jax.data import tables
from fingerprint_jax.stats import bootstrap, decisions, metrics
from tests import published


def expand(confusion):
    """Labels and predictions of a confusion table."""
    pairs = [(t, p) for t, row in enumerate(confusion) for p, count in enumerate(row) for _ in range(count)]
    return tuple(np.array(side) for side in zip(*pairs, strict=True))


def random_tables(classes, count):
    """Tables with many empty cells, rows and columns."""
    rng = np.random.default_rng(classes)
    many = rng.integers(0, 8, (count, classes, classes)) * (rng.random((count, classes, classes)) < 0.4)
    many[:, 0, 1] += 1
    return many


@pytest.mark.parametrize("row", published.runs(), ids=lambda row: f"rank{row['rank']}")
def test_report_gives_the_figures_of_table_2(row, tmp_path):
    table = published.confusion(row)
    predictions, truth = published.write_files(tmp_path, table)
    ids, predicted = tables.read_labels(predictions, 2, "subtask1")
    true_ids, labels = tables.read_labels(truth, 2, "subtask1")
    report = metrics.report(labels, predicted[tables.align(true_ids, ids, either=True)], 2)
    assert report["n"] == 500
    assert report["confusion_matrix"] == table
    got = {"kappa": report["cohen_kappa"], "accuracy": report["accuracy"], **report["positive"]}
    assert {name: got[name] for name in published.FIGURES} == pytest.approx(
        {name: row[name] for name in published.FIGURES}, rel=0, abs=published.HALF_DIGIT
    )


def test_table_2_is_complete():
    assert [row["rank"] for row in published.runs()] == list(range(1, 34))


def test_report_of_three_classes_by_hand():
    report = metrics.report(*expand([[5, 1, 0], [2, 3, 1], [0, 0, 4]]), 3)
    precision, recall, specificity = [5 / 7, 3 / 4, 4 / 5], [5 / 6, 3 / 6, 4 / 4], [8 / 10, 9 / 10, 11 / 12]
    f1 = [10 / 13, 6 / 10, 8 / 9]
    support = [6, 6, 4]
    assert report["n"] == 16
    assert report["accuracy"] == 12 / 16
    assert report["cohen_kappa"] == pytest.approx((12 / 16 - 86 / 256) / (1 - 86 / 256))
    assert report["confusion_matrix"] == [[5, 1, 0], [2, 3, 1], [0, 0, 4]]
    assert report["per_class"]["support"] == support
    assert "positive" not in report
    for name, expected in {"precision": precision, "recall": recall, "f1": f1, "specificity": specificity}.items():
        assert report["per_class"][name] == pytest.approx(expected)
        assert report["macro"][name] == pytest.approx(sum(expected) / 3)
        assert report["weighted"][name] == pytest.approx(sum(s * v for s, v in zip(support, expected, strict=True)) / 16)


def test_report_is_json():
    report = metrics.report(*expand([[5, 1], [2, 3]]), 2, groups=np.arange(11) // 2)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["intervals"]["accuracy"] == [None, None]  # of a handful of groups


def test_positive_is_class_1():
    assert metrics.report(*expand([[7, 3], [4, 6]]), 2)["positive"] == pytest.approx(
        {"precision": 6 / 9, "recall": 6 / 10, "f1": 12 / 19, "specificity": 7 / 10}
    )


def test_kappa_of_one_class_is_null():
    report = metrics.report([1, 1, 1], [1, 1, 1], 2)
    assert report["cohen_kappa"] is None
    assert report["intervals"]["cohen_kappa"] == [None, None]
    assert report["accuracy"] == 1.0
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_kappa_of_a_constant_prediction_is_zero():
    report = metrics.report([0, 0, 1, 1], [1, 1, 1, 1], 2)
    assert report["cohen_kappa"] == 0
    assert report["per_class"]["precision"] == [0, 0.5]


def test_absent_class_counts_as_zero_in_the_macro_average():
    report = metrics.report([0, 1, 1], [0, 1, 1], 5)
    assert report["macro"]["recall"] == pytest.approx(2 / 5)
    assert report["weighted"]["recall"] == 1.0


@pytest.mark.parametrize(
    ("labels", "predicted", "message"),
    [
        ([], [], "0 labels and 0 predictions"),
        ([0, 1], [0], "2 labels and 1 predictions"),
        ([0, -1], [0, 1], r"1 labels are outside 0\.\.1, the first is -1"),
        ([0, 1], [5, 2], r"2 predictions are outside 0\.\.1, the first is 5"),
    ],
)
def test_report_refuses(labels, predicted, message):
    with pytest.raises(ValueError, match=message):
        metrics.report(labels, predicted, 2)


@pytest.mark.parametrize("classes", [2, 5])
def test_figures_of_many_tables_agree_with_scikit_learn(classes):
    many = random_tables(classes, 20)
    got = metrics.figures(many)
    for i, confusion in enumerate(many):
        labels, predicted = expand(confusion)
        assert got["accuracy"][i] == pytest.approx((labels == predicted).mean())
        assert got["cohen_kappa"][i] == pytest.approx(cohen_kappa_score(labels, predicted), abs=1e-12)
        for average in ("macro", "weighted"):
            expected = precision_recall_fscore_support(labels, predicted, labels=range(classes), average=average, zero_division=0)
            for name, value in zip(("precision", "recall", "f1"), expected, strict=False):
                assert got[f"{average}.{name}"][i] == pytest.approx(value)
        # Specificity is the recall of "not this class".
        each = [recall_score(labels != k, predicted != k, zero_division=0) for k in range(classes)]
        assert got["macro.specificity"][i] == pytest.approx(np.mean(each))
        assert got["weighted.specificity"][i] == pytest.approx(np.average(each, weights=confusion.sum(axis=1)))
        assert ("positive.f1" in got) == (classes == 2)


@pytest.mark.parametrize(("successes", "n"), [(0, 20), (7, 20), (20, 20), (287, 500)])
def test_wilson_closed_form(successes, n):
    z, p = 1.959963984540054, successes / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert metrics.wilson(successes, n) == pytest.approx([centre - half, centre + half], abs=1e-12)


def test_bootstrap_of_cells_has_the_width_of_the_normal_approximation():
    confusion = [[300, 100], [50, 550]]
    sd = math.sqrt(400 * 0.75 * 0.25 + 600 * (550 / 600) * (50 / 600)) / 1000
    low, high = metrics.bootstrap_confusion(confusion, resamples=20_000)["accuracy"]
    assert [low, high] == pytest.approx([0.85 - 1.96 * sd, 0.85 + 1.96 * sd], abs=0.1 * sd)
    narrow = metrics.bootstrap_confusion(confusion, resamples=20_000, confidence=0.6827)["accuracy"]
    assert narrow == pytest.approx([0.85 - sd, 0.85 + sd], abs=0.1 * sd)


def test_bootstrap_keeps_the_class_sizes():
    # With balanced truth kappa is 2 * accuracy - 1 and accuracy the mean recall; both hold only if each row keeps its size.
    table = [[150, 100], [110, 140]]
    for intervals in (metrics.bootstrap_confusion(table), metrics.bootstrap_groups(*expand(table), np.arange(500), 2)):
        assert intervals["cohen_kappa"] == pytest.approx([2 * x - 1 for x in intervals["accuracy"]])
        assert intervals["macro.recall"] == pytest.approx(intervals["accuracy"])


def test_bootstrap_of_cells_degenerate_tables():
    assert metrics.bootstrap_confusion([[5, 0], [0, 5]])["cohen_kappa"] == [1, 1]
    absent = metrics.bootstrap_confusion([[5, 5, 0], [0, 0, 0], [0, 2, 8]])
    assert absent["macro.recall"][1] <= 2 / 3


def test_bootstrap_is_seeded():
    confusion = [[15, 10], [11, 14]]
    assert metrics.bootstrap_confusion(confusion, seed=1) == metrics.bootstrap_confusion(confusion, seed=1)
    assert metrics.bootstrap_confusion(confusion, seed=1) != metrics.bootstrap_confusion(confusion, seed=2)


def test_bootstrap_over_groups_of_copies_is_that_of_single_images():
    labels, predicted = expand([[30, 12, 3], [8, 25, 7], [0, 9, 21]])
    groups = np.arange(len(labels))
    single = metrics.bootstrap_groups(labels, predicted, groups, 3)
    copies = metrics.bootstrap_groups(np.repeat(labels, 4), np.repeat(predicted, 4), np.repeat(groups, 4), 3)
    for name, interval in single.items():
        assert copies[name] == pytest.approx(interval)
    cells = metrics.bootstrap_confusion([[30, 12, 3], [8, 25, 7], [0, 9, 21]], resamples=20_000)
    many = metrics.bootstrap_groups(labels, predicted, groups, 3, resamples=20_000)
    for name, interval in cells.items():
        assert many[name] == pytest.approx(interval, abs=0.1 * (interval[1] - interval[0]))


def test_bootstrap_over_groups_of_both_classes_has_the_width_of_the_mean_of_groups():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(100), 10)
    labels = np.tile([0, 1], 500)
    ease = rng.uniform(0.3, 1, 100)[groups]
    predicted = np.where(rng.random(1000) < ease, labels, 1 - labels)
    share = (labels == predicted).reshape(100, 10).mean(axis=1)
    sd = share.std() / 10
    names = np.array([f"patient {g}" for g in groups])
    low, high = metrics.bootstrap_groups(labels, predicted, names, 2, resamples=20_000)["accuracy"]
    assert [low, high] == pytest.approx([share.mean() - 1.96 * sd, share.mean() + 1.96 * sd], abs=0.1 * sd)


def test_report_resamples_groups_only_where_there_are_any():
    labels, predicted = expand([[30, 10], [10, 30]])
    alone = metrics.report(labels, predicted, 2, groups=np.arange(80))
    assert alone == metrics.report(labels, predicted, 2)
    grouped = metrics.report(labels, predicted, 2, groups=np.arange(80) // 5)
    assert grouped["interval_method"] == "bootstrap over groups"
    assert grouped["intervals"] == metrics.bootstrap_groups(labels, predicted, np.arange(80) // 5, 2)


def test_groups_are_drawn_whole_and_classes_keep_their_groups():
    # Groups of two rows: five of class 0, six of class 1, seven of both.
    groups = np.repeat([f"patient {g}" for g in range(18)], 2)
    labels = np.concatenate([np.zeros(10, int), np.ones(12, int), np.tile([0, 1], 7)])
    draws = np.concatenate(list(bootstrap.weights(labels, groups, resamples=500)))
    assert (draws[:, ::2] == draws[:, 1::2]).all()
    assert (draws[:, :10].sum(axis=1) == 10).all() and (draws[:, 10:22].sum(axis=1) == 12).all()
    assert draws[:, 0].mean() == pytest.approx(1, abs=0.1)


def cluster_bootstrap(values, groups, resamples=20_000):
    """95% percentiles of the mean of values [N], whole groups drawn with replacement and nothing else."""
    _, group = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(group, values), np.bincount(group)
    drawn = np.random.default_rng(1).integers(len(sums), size=(resamples, len(sums)))
    return np.percentile(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1), [2.5, 97.5])


def test_sets_of_classes_that_few_groups_hold_are_one_stratum():
    # 30 patients of four images of eight classes: nearly each has a set of classes of its own, and such a stratum has no variance.
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 8, 120), np.repeat(np.arange(30), 4)
    right = rng.random(120) < rng.uniform(0.1, 1, 30)[groups]
    predicted = np.where(right, labels, (labels + 1) % 8)
    expected = cluster_bootstrap(right, groups)
    for found in (
        metrics.report(labels, predicted, 8, groups)["intervals"]["accuracy"],
        metrics.over_images(labels, right, groups)["interval"],
        metrics.paired_difference(labels, predicted, (labels + 1) % 8, 8, groups)["accuracy"]["interval"],
    ):
        assert found == pytest.approx(expected, abs=0.1 * (expected[1] - expected[0]))


def test_a_stratum_of_few_groups_joins_the_smallest_of_the_others():
    # Nine patients of class 0, seven of class 1, two of both, which join those of class 1.
    groups = np.repeat(np.arange(18), 2)
    labels = np.concatenate([np.zeros(18, int), np.ones(14, int), [0, 1, 0, 1]])
    draws = np.concatenate(list(bootstrap.weights(labels, groups, resamples=500)))
    assert (draws[:, :18].sum(axis=1) == 18).all() and (draws[:, 18:].sum(axis=1) == 18).all()
    assert draws[:, 32:].sum(axis=1).std() > 1 and (draws[:, 32] == draws[:, 33]).all()


@pytest.mark.parametrize("patients", [1, 4, 5])
def test_a_class_in_too_few_groups_has_no_interval(patients):
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40 + patients), 10)
    labels = (groups < patients).astype(int)
    predicted = np.where(rng.random(len(labels)) < 0.8, labels, 1 - labels)
    report = metrics.report(labels, predicted, 2, groups)
    assert report["class_groups"] == [40, patients]
    difference = metrics.paired_difference(labels, predicted, 1 - predicted, 2, groups)
    intervals = [*report["intervals"].values(), metrics.over_images(labels, predicted, groups)["interval"]]
    intervals += [difference[name]["interval"] for name in ("cohen_kappa", "accuracy")]
    if patients == 5:
        assert all(low < high for low, high in intervals) and report["interval_method"] == "bootstrap over groups"
    else:
        assert intervals == [[None, None]] * len(intervals)
        assert report["interval_method"] == "none, since a class occurs in fewer than 5 groups"
    # Rows that are no groups keep theirs.
    assert metrics.report(labels, predicted, 2, np.arange(len(labels))) == metrics.report(labels, predicted, 2)


@pytest.mark.parametrize("classes", [2, 5])
def test_paired_difference_is_that_of_the_two_reports(classes):
    rng = np.random.default_rng(0)
    labels, a, b = rng.integers(0, classes, (3, 400))
    a = np.where(rng.random(400) < 0.5, labels, a)
    found = metrics.paired_difference(labels, a, b, classes)
    assert found["cohen_kappa"]["difference"] == pytest.approx(cohen_kappa_score(labels, a) - cohen_kappa_score(labels, b))
    difference = (labels == a).astype(int) - (labels == b)
    assert found["accuracy"]["difference"] == pytest.approx(difference.mean())
    sd = math.sqrt(sum(difference[labels == k].var() * (labels == k).sum() for k in range(classes))) / 400
    assert found["accuracy"]["interval"] == pytest.approx(
        [difference.mean() - 1.96 * sd, difference.mean() + 1.96 * sd], abs=0.15 * sd
    )
    opposite = metrics.paired_difference(labels, b, a, classes)["accuracy"]["difference"]
    assert opposite == pytest.approx(-found["accuracy"]["difference"])


def test_paired_difference_of_a_run_with_itself_is_zero():
    labels, predicted = expand([[30, 12], [8, 25]])
    assert metrics.paired_difference(labels, predicted, predicted, 2) == {
        name: {"difference": 0, "interval": [0, 0]} for name in ("cohen_kappa", "accuracy")
    }
    assert metrics.paired_difference([1, 1], [1, 1], [1, 1], 2)["cohen_kappa"] == {"difference": None, "interval": [None, None]}


def test_paired_difference_over_groups_has_the_width_of_the_mean_of_groups():
    rng = np.random.default_rng(0)
    labels, groups = np.tile([0, 1], 500), np.repeat(np.arange(100), 10)
    ease = rng.uniform(0.2, 1, 100)[groups]
    a = np.where(rng.random(1000) < ease, labels, 1 - labels)
    b = np.where(rng.random(1000) < 0.5, labels, 1 - labels)
    share = ((a == labels).astype(float) - (b == labels)).reshape(100, 10).mean(axis=1)
    sd = share.std() / 10
    found = metrics.paired_difference(labels, a, b, 2, groups)["accuracy"]
    assert found["interval"] == pytest.approx([share.mean() - 1.96 * sd, share.mean() + 1.96 * sd], abs=0.15 * sd)


def test_over_images_has_the_width_of_the_mean_within_classes():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 400)
    values = labels / 2 + rng.integers(0, 4, 1200) / 3  # the means of the classes differ: their spread is not the error's
    found = metrics.over_images(labels, values)
    assert found["mean"] == pytest.approx(values.mean())
    error = np.sqrt(sum(values[labels == k].var() / 400 for k in range(3))) / 3
    np.testing.assert_allclose(found["interval"], values.mean() + 1.96 * error * np.array([-1, 1]), atol=0.08 * error)
    assert found == metrics.over_images(labels, values, groups=np.arange(1200))
    # Copies in one group say nothing new.
    twice = metrics.over_images(np.tile(labels, 2), np.tile(values, 2), groups=np.tile(np.arange(1200), 2))
    np.testing.assert_allclose(twice["interval"], found["interval"], atol=0.08 * error)
    one = metrics.over_images(np.zeros(50, int), np.arange(50) < 40)
    np.testing.assert_allclose(one["interval"], stats.binom.ppf([0.025, 0.975], 50, 0.8) / 50, atol=0.021)


def test_over_seeds_is_the_t_interval_of_the_mean():
    values = [0.61, 0.66, 0.58, 0.7]
    found = metrics.over_seeds(values)
    assert found["values"] == values and found["mean"] == pytest.approx(np.mean(values))
    assert found["interval"] == pytest.approx(stats.t.interval(0.95, 3, np.mean(values), stats.sem(values)))
    assert metrics.over_seeds([0.5]) == {"values": [0.5], "mean": 0.5, "interval": None}
    assert metrics.over_seeds([0.668] * 3)["interval"] is None  # no spread to learn from
    assert metrics.over_seeds([0.9 - 0.7, 0.5 - 0.3])["interval"] is None and 0.9 - 0.7 != 0.5 - 0.3


def test_over_seeds_stays_within_the_range_of_the_figure():
    values = [1, 1, 0.99]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert high > 1
    assert metrics.over_seeds(values)["interval"] == pytest.approx([low, 1])
    assert metrics.over_seeds([-0.9, 0.9], (-1, 1))["interval"] == [-1, 1]


def test_over_seeds_refuses():
    for bad in ([], [0.5, np.nan]):
        with pytest.raises(ValueError, match="a finite figure of at least one seed"):
            metrics.over_seeds(bad)


@pytest.mark.parametrize("row", published.runs("subtask1"), ids=lambda row: f"rank{row['rank']}")
def test_decisions_reproduce_table_2_from_scores(row):
    # Scores in 0..1 whose calls at 0.5 are the published ones.
    (tn, fp), (fn, tp) = table = published.confusion(row)
    labels, predicted = expand(table)
    scores = 0.5 * (predicted + np.random.default_rng(0).random(500)).astype(np.float32)[:, None]
    report = metrics.report(labels, decisions.threshold(scores, value=0.5), 2)
    got = {"kappa": report["cohen_kappa"], "accuracy": report["accuracy"], **report["positive"]}
    assert {n: got[n] for n in published.FIGURES} == pytest.approx({n: row[n] for n in published.FIGURES}, abs=published.HALF_DIGIT)
    # One score a call: the balanced rule calls exactly half used, filled up from the tied ones in the order of the rows, which
    # `expand` sorts by class. With balanced truth and calls kappa is 2 * accuracy - 1.
    steps = predicted.astype(np.float32)[:, None]
    called = decisions.top_fraction(steps, fraction=0.5)
    missing = 250 - (tp + fp)  # calls to add (from the first rows: not used), or to drop (the last rows: used)
    true_positive = tp + max(0, missing - tn) if missing >= 0 else tp + missing if tp >= -missing else 0
    report = metrics.report(labels, called, 2)
    assert called.sum() == 250
    assert report["cohen_kappa"] == pytest.approx(2 * (2 * true_positive / 500) - 1)


@pytest.mark.parametrize(("used", "others"), [((151, 99), (114, 136)), ((67, 183), (111, 139)), ((5, 0), (0, 5)), ((3, 4), (2, 9))])
def test_the_p_of_labels_alone_is_fishers(used, others):
    """`used`: images that were called used, and not; `others` likewise."""
    labels = np.repeat([1, 1, 0, 0], [*used, *others])
    predicted = np.repeat([1, 0, 1, 0], [*used, *others])
    found = metrics.labels_p(labels, predicted)
    table = [list(used), list(others)]
    assert found["p"] == pytest.approx(stats.fisher_exact(table, "greater").pvalue)
    assert found["p_wrong_direction"] == pytest.approx(stats.fisher_exact(table, "less").pvalue)


def test_the_best_and_the_worst_published_run_by_their_labels():
    """Runs 1878 (kappa 0.148) and 1776 (-0.176) of the task, 250 images a class."""
    of = np.repeat([1, 1, 0, 0], [151, 99, 114, 136]), np.repeat([1, 0, 1, 0], [151, 99, 114, 136])
    assert metrics.report(*of, 2)["cohen_kappa"] == pytest.approx(0.148) and metrics.labels_p(*of)["p"] == pytest.approx(
        6e-4, rel=0.1
    )
    of = np.repeat([1, 1, 0, 0], [67, 183, 111, 139]), np.repeat([1, 0, 1, 0], [67, 183, 111, 139])
    assert metrics.report(*of, 2)["cohen_kappa"] == pytest.approx(-0.176) and metrics.labels_p(*of)["p_wrong_direction"] < 1e-4


@pytest.mark.parametrize("groups", [None, np.arange(40) // 2])
def test_labels_that_are_all_the_same_have_no_interval(groups):
    found = metrics.report(np.arange(40) % 2, np.ones(40, int), 2, groups)
    assert found["cohen_kappa"] == 0 and set(map(tuple, found["intervals"].values())) == {(None, None)}
    assert found["interval_method"] == "none, since all images were given one class"
    assert metrics.labels_p(np.arange(40) % 2, np.ones(40, int)) == {"p": 1.0, "p_wrong_direction": 1.0}


def test_intervals_of_many_classes_need_no_table_of_all_their_pairs_at_once():
    """Tables of 100 classes, paired, are a million cells a resample: 16 GB of them at once."""
    rng, k = np.random.default_rng(0), 100
    labels = rng.integers(0, k, 400)
    a, b = (np.where(rng.random(400) < right, labels, rng.integers(0, k, 400)) for right in (0.6, 0.4))
    tracemalloc.start()
    found = metrics.paired_difference(labels, a, b, k)
    metrics.report(labels, a, k, groups=np.arange(400) // 2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3e8
    assert found["accuracy"]["difference"] == pytest.approx(np.mean(a == labels) - np.mean(b == labels))
    low, high = found["accuracy"]["interval"]
    assert low < found["accuracy"]["difference"] < high
