"""Permutation p-values against every permutation there is, SciPy and scikit-learn."""

import functools
import itertools
import json

import numpy as np
import pytest
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score

from fingerprint_jax.stats import permutation
from tests import null_simulations as null


def exact_p(scores, unit_labels, unit):
    """Over all assignments of the labels to the units."""
    units, used = len(unit_labels), sum(unit_labels)
    every = []
    for chosen in itertools.combinations(range(units), used):
        labels = np.isin(np.arange(units), chosen).astype(int)[unit]
        every.append(roc_auc_score(labels, scores))
    return np.mean(np.array(every) >= roc_auc_score(np.array(unit_labels)[unit], scores) - 1e-12)


def test_auc_of_is_that_of_scikit_learn_and_scipy_with_ties():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    scores = np.round(rng.normal(size=(200, 3)), 1)
    found = permutation.auc_of(scores)(labels)
    assert found == pytest.approx([roc_auc_score(labels, column) for column in scores.T], abs=1e-12)
    u = mannwhitneyu(scores[labels == 1, 0], scores[labels == 0, 0]).statistic
    assert found[0] == pytest.approx(u / (labels.sum() * (200 - labels.sum())), abs=1e-12)
    assert permutation.auc_of(scores[:, 0])(labels).tolist() == found[:1].tolist()


@pytest.mark.parametrize("effect", [0, 0.3, 0.8])
def test_p_is_that_of_the_rank_test(effect):
    rng = np.random.default_rng(1)
    labels = np.arange(80) % 2
    scores = rng.normal(effect * labels)
    expected = mannwhitneyu(scores[labels == 1], scores[labels == 0], alternative="greater", method="exact").pvalue
    found = permutation.permutation_p(permutation.auc_of(scores), labels, permutations=9999)
    assert found["p"] == pytest.approx([expected], abs=4 * np.sqrt(expected * (1 - expected) / 9999) + 1e-4)
    assert found["family_wise"] == found["p"][0]
    assert found.pop("null").shape == (9999, 1) and json.loads(json.dumps(found)) == found


def test_groups_of_unequal_size_are_permuted_whole():
    rng = np.random.default_rng(2)
    unit_labels = [1, 1, 1, 1, 0, 0, 0, 0, 0]
    unit = np.repeat(np.arange(9), [1, 4, 2, 6, 3, 1, 5, 2, 2])
    scores = (rng.normal(size=9) + 1.2 * np.array(unit_labels))[unit] + 0.1 * rng.normal(size=len(unit))
    labels = np.array(unit_labels)[unit]
    seen = []

    def statistic(permuted):
        seen.append(permuted)
        return permutation.auc_of(scores)(permuted)

    found = permutation.permutation_p(statistic, labels, groups=[f"patient {u}" for u in unit], permutations=2000)
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
    found = permutation.permutation_p(permutation.auc_of(scores), labels, groups, permutations=4000)
    assert found["split_groups"] == 2
    expected = exact_p(scores, [1, 0, 1, 0, 0, 1], np.array([0, 0, 1, 2, 3, 4, 5, 5]))
    assert found["p"] == pytest.approx([expected], abs=0.04)


def test_the_smallest_p_is_one_in_all_permutations_and_one():
    labels = np.arange(60) % 2
    found = permutation.permutation_p(permutation.auc_of(labels + 0.01 * np.arange(60)), labels, permutations=199)
    assert found["p"] == [1 / 200] and found["permutations"] == 199
    worst = permutation.permutation_p(permutation.auc_of(-labels), labels, permutations=199)
    assert worst["p"] == [1.0]  # one-sided


def test_family_wise_p_of_the_best_of_independent_methods():
    # For M independent methods it is 1 - (1 - p)^M of the best; for copies of one method it is the p of that one.
    rng = np.random.default_rng(3)
    labels = np.arange(200) % 2
    scores = rng.normal(size=(200, 10))
    scores[:, 4] += 0.5 * labels
    found = permutation.permutation_p(permutation.auc_of(scores), labels, permutations=4999)
    best = min(found["p"])
    assert found["p"].index(best) == 4
    assert found["family_wise"] == pytest.approx(1 - (1 - best) ** 10, rel=0.35)
    copies = permutation.permutation_p(permutation.auc_of(np.repeat(scores[:, 4:5], 10, axis=1)), labels, permutations=4999)
    assert copies["p"] == [copies["family_wise"]] * 10


def test_a_statistic_that_fits_is_fitted_for_every_permutation():
    fitted = []

    def statistic(labels):
        fitted.append(labels.tolist())
        return 0.5

    found = permutation.permutation_p(statistic, [0, 1, 1, 0], permutations=199)
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
        permutation.permutation_p(permutation.auc_of(scores), np.array(labels))


def test_a_statistic_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match=r"the statistic is not finite: \[nan\]"):
        permutation.permutation_p(lambda labels: np.nan, [0, 1])


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
    found = permutation.permutation_p(permutation.auc_of(scores), labels, np.repeat(np.arange(40), 5), 999)
    assert found["p"][0] < 0.01
