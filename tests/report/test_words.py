"""What the page says of a result: never more than it shows."""

import numpy as np
import pytest

from fingerprint_jax import metrics
from fingerprint_jax.report import words
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
        ([[1, 0], [0, 1]], 0),  # resampling gives [1, 1], but two images prove nothing
        ([[50, 0], [0, 50]], 1),
        ([[0, 10], [0, 90]], 0),  # accuracy 0.9 by always saying the frequent class
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


def test_the_published_runs_read_as_the_overview_has_them():
    # The best of 33 differs from chance on 500 images, the median one does not.
    rows = published.runs()
    assert words.against_chance(report(published.confusion(rows[0]))) == 1
    assert words.against_chance(report(published.confusion(rows[len(rows) // 2]))) == 0


def test_a_permutation_that_says_chance_is_heard():
    found = report([[80, 20], [20, 80]])
    assert words.against_chance(found | {"permutation": {"p": 0.2, "reason": None}}) == 0
    assert words.against_chance(found | {"permutation": {"p": None, "reason": "x"}}) == 1


def test_scores_that_order_better_than_the_labels_show_are_mentioned():
    found = report([[50, 50], [50, 50]]) | {"scores": {"auc": 0.7, "auc_interval": [0.6, 0.8]}}
    assert "Yet the scores do order the images: AUC 0.700 (0.600 to 0.800)" in words.verdict("subtask1", found, 200)


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
