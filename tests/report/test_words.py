"""What the page says of a result: never more than it shows."""

import numpy as np
import pytest

from fingerprint_jax.report import words
from fingerprint_jax.stats import metrics
from tests import published


def report(confusion):
    pairs = [(t, p) for t, row in enumerate(confusion) for p, count in enumerate(row) for _ in range(count)]
    labels, predicted = np.array(pairs).T
    return metrics.report(labels, predicted, len(confusion))


@pytest.mark.parametrize(
    "confusion, side",
    [
        ([[69, 31], [69, 31]], 0),
        ([[80, 20], [20, 80]], 1),
        ([[20, 80], [80, 20]], -1),
        ([[20, 0], [0, 20]], 1),
        ([[0, 20], [0, 180]], 0),  # accuracy 0.9 by always saying the frequent class
    ],
)
def test_better_than_chance_is_said_only_where_it_is(confusion, side):
    found = report(confusion)
    assert words.against_chance(found) == side
    text = words.verdict("subtask1", found, found["n"])
    assert ("cannot be told from chance" in text, "better than chance" in text, "worse than chance" in text) == (
        side == 0,
        side == 1,
        side == -1,
    )


@pytest.mark.parametrize("confusion", [[[1, 0], [0, 1]], [[2, 0], [0, 2]], [[0, 2], [2, 0]], [[19, 0], [0, 500]]])
def test_a_small_table_without_errors_says_nothing(confusion):
    # Resampling gives [1, 1]; of 2 + 2 images one in six assignments of the labels is as good.
    found = report(confusion)
    assert found["intervals"]["cohen_kappa"][0] == found["intervals"]["cohen_kappa"][1]
    assert words.against_chance(found) == 0
    text = words.verdict("subtask1", found, found["n"])
    assert "(resampling gives it no width)" in text and "at least 20 images" in text
    assert "better" not in text and "worse" not in text and "95%" not in text
    ordered = found | {"scores": {"auc": 1.0, "auc_interval": [1.0, 1.0]}}
    assert "do order" not in words.verdict("subtask1", ordered, found["n"])
    assert "do order" not in words.verdict("subtask1", ordered | {"permutation": {"p": 1 / 6, "reason": None}}, found["n"])


def test_images_of_few_patients_say_nothing():
    labels, groups = np.repeat([0, 1], 100), np.arange(200) // 50
    found = metrics.report(labels, labels, 2, groups)
    assert words.against_chance(found) == 0
    text = words.verdict("subtask1", found, 200)
    assert "kappa 1.000 (no interval)" in text and "a class occurs in fewer than 5 groups" in text
    for a_class, side in ((19, 0), (20, 1)):
        groups = np.arange(200) % 100 % a_class + 100 * labels
        assert words.against_chance(metrics.report(labels, labels, 2, groups)) == side
    # A patient counts once, whatever classes there are of it.
    labels = np.arange(500) % 5
    for patients, side in ((5, 0), (19, 0), (20, 1)):
        found = metrics.report(labels, labels, 5, np.arange(500) // 5 % patients)
        assert found["class_groups"] == [patients] * 5 and found["outside_groups"] == patients
        assert words.against_chance(found) == side
    assert report([[30, 1], [2, 7]])["outside_groups"] == 9


def test_the_published_runs_read_as_the_overview_has_them():
    # The best of 33 differs from chance on 500 images, the median one does not.
    rows = published.runs()
    assert words.against_chance(report(published.confusion(rows[0]))) == 1
    assert words.against_chance(report(published.confusion(rows[len(rows) // 2]))) == 0


@pytest.mark.parametrize("p, side, mirrored", [(0.001, 1, 0), (0.05, 1, 0), (0.2, 0, 0), (0.95, 0, -1), (1.0, 0, -1), (None, 0, 0)])
def test_a_permutation_is_heard_and_without_one_nothing_is_said(p, side, mirrored):
    permutation = {"permutation": {"p": p, "reason": "x" * (p is None)}}
    for confusion, expected in (([[80, 20], [20, 80]], side), ([[20, 80], [80, 20]], mirrored)):
        found = report(confusion) | permutation
        assert words.against_chance(found) == expected
        text = words.verdict("subtask1", found, 200)
        assert ("Whether that is more than chance is not said: that takes a permutation test" in text) == (p is None)
        assert ("better than chance" in text or "worse than chance" in text) == (expected != 0)


@pytest.mark.parametrize("p, said", [(0.001, True), (0.06, False), (None, False)])
def test_scores_that_order_better_than_the_labels_show_are_mentioned(p, said):
    found = report([[50, 50], [50, 50]]) | {"scores": {"auc": 0.7, "auc_interval": [0.6, 0.8]}, "permutation": {"p": p}}
    text = words.verdict("subtask1", found, 200)
    assert ("Yet the scores do order the images: AUC 0.700 (0.600 to 0.800)" in text) == said
    assert ("do order" in text) == said


def test_attribution_names_the_generator_run_not_the_data():
    assert "which need not be the data" in words.verdict("subtask2", report((np.eye(5, dtype=int) * 20).tolist()), 100)


def test_one_class_says_nothing():
    assert "Nothing can be said" in words.verdict("subtask1", report([[10, 0], [0, 0]]), 10)


def test_chance_agreement_is_that_of_the_margins():
    assert words.chance_agreement([[30, 20], [10, 40]]) == pytest.approx(0.5 * 0.4 + 0.5 * 0.6)


def test_a_place_counts_the_better_ones():
    assert words.placed(0.1, [0.0, 0.2], [0.15, 0.1, 0.05, -0.1]) == (
        "With 0.100 this run would stand at place 2 beside the 4 published runs, the ends of its interval at places 1 and 4."
    )
