import inspect

import numpy as np
import pytest
from ml_collections import ConfigDict
from sklearn.metrics import cohen_kappa_score

from fingerprint_jax.stats import decisions

PARAMS = {
    "threshold": {"value": 0.5},
    "both_thresholds": {"confidence": 0.6, "value": None},
    "mean_plus_std": {"k": 1.0},
    "top_fraction": {"fraction": 0.5},
}
KNOWN = np.array([[0.1, 0.9], [0.9, 0.1]]), np.array([0, 1])


def column(*values):
    return np.array(values, np.float32)[:, None]


def test_argmax_ties_go_to_the_lower_class():
    assert decisions.argmax([[0.1, 0.7, 0.2], [0.5, 0.1, 0.5]]).tolist() == [1, 0]


def test_argmax_needs_a_score_a_class():
    with pytest.raises(ValueError, match="argmax.*learned_threshold"):
        decisions.argmax(column(0.1, 0.2))


def test_threshold_is_reached_by_equal_scores_of_column_0():
    scores = np.array([[0.7, 0], [0.69, 1], [0.71, 0]], np.float32)
    for value in (0.7, np.float64(0.7)):
        assert decisions.threshold(scores, value=value).tolist() == [1, 0, 1]


@pytest.mark.parametrize("seed", range(10))
def test_learned_threshold_has_the_best_kappa_of_all_cuts(seed):
    rng = np.random.default_rng(seed)
    labels = np.append(rng.integers(0, 2, 30), [0, 1])
    scores = np.round(rng.normal(0.7 * labels, 1), 1).astype(np.float32)  # rounded, so that scores are tied
    values = np.unique(scores)
    best = max(cohen_kappa_score(labels, scores >= t) for t in (values[1:] + values[:-1]) / 2)
    predicted = decisions.learned_threshold(scores[:, None], scores[:, None], labels)
    assert cohen_kappa_score(labels, predicted) == pytest.approx(best, abs=1e-12)


def test_learned_threshold_takes_the_middle_of_the_widest_of_the_best_gaps():
    # Cuts between 1 and 2 and between 3 and 7 both make one mistake of four, with kappa 1/2.
    scores, labels = np.array([1.0, 2.0, 3.0, 7.0]), np.array([0, 1, 0, 1])
    assert cohen_kappa_score(labels, scores >= 1.5) == cohen_kappa_score(labels, scores >= 5) == 0.5
    assert decisions.best_threshold(scores, labels) == 5


def test_learned_threshold_decides_other_rows():
    known, labels = column(0, 1, 2, 3), np.array([0, 0, 1, 1])
    assert decisions.learned_threshold(column(1.4, 1.6, -5, 9), known, labels).tolist() == [0, 1, 0, 1]


def test_learned_threshold_separates_neighbouring_floats():
    low = np.float32(1.0)
    for _ in range(4):
        high = np.nextafter(low, np.float32(2))
        scores = column(low, high)
        assert decisions.learned_threshold(scores, scores, np.array([0, 1])).tolist() == [0, 1]
        low = high


def test_both_conditions_hold_where_it_is_used():
    known, labels = np.array([[0, 0], [1, 0], [2, 9], [3, 0]]), np.array([0, 0, 1, 1])  # the threshold is 1.5
    scores = np.array([[1.4, 0.9], [1.6, 0.9], [1.6, 0.6], [1.6, 0.61], [9, 0.1]], np.float32)
    assert decisions.both_thresholds(scores, known, labels, confidence=0.6, value=None).tolist() == [0, 1, 0, 1, 0]
    assert decisions.both_thresholds(scores, known, labels, confidence=-1, value=None).tolist() == [0, 1, 1, 1, 1]
    assert decisions.both_thresholds(scores, confidence=0.6, value=1.4).tolist() == [1, 1, 0, 1, 0]
    with pytest.raises(ValueError, match="both_thresholds' needs a second column, the confidence"):
        decisions.both_thresholds(scores[:, :1], known, labels, confidence=0.6, value=None)


def test_a_threshold_is_not_learned_from_equal_scores():
    scores = column(0.3, 0.3)
    with pytest.raises(ValueError, match="a threshold cannot be learned: all 2 known scores are 0.3"):
        decisions.learned_threshold(column(0.1, 0.2), scores, np.array([0, 1]))


def test_learned_threshold_needs_both_labels():
    with pytest.raises(ValueError, match=r"labelled 0 and 1, the known rows have \[1\]"):
        decisions.learned_threshold(column(0.1, 0.2), column(0.1, 0.2), np.array([1, 1]))


def test_mean_plus_std_of_the_known_scores():
    # Mean 4, population standard deviation 2.
    known = column(2, 2, 6, 6)
    assert decisions.mean_plus_std(column(5.9, 6, 6.1, -9), known, None, k=1).tolist() == [0, 1, 1, 0]
    assert decisions.mean_plus_std(column(2.9, 3, 4), known, None, k=-0.5).tolist() == [0, 1, 1]


def test_mean_plus_std_of_the_scores_where_none_are_known():
    assert decisions.mean_plus_std(column(2, 2, 6, 6), k=1).tolist() == [0, 0, 1, 1]
    assert decisions.mean_plus_std(column(0.1, 0.1, 0.1), k=3).tolist() == [1, 1, 1]


@pytest.mark.parametrize(("fraction", "count"), [(0, 0), (0.2, 1), (0.5, 2), (0.7, 4), (1, 5)])
def test_top_fraction_count_is_exact(fraction, count):
    labels = decisions.top_fraction(column(5, 1, 4, 2, 3), fraction=fraction)
    assert labels.sum() == count
    assert set(np.flatnonzero(labels)) == set([0, 2, 4, 3, 1][:count])


def test_top_fraction_ties_go_to_the_earlier_rows():
    assert decisions.top_fraction(column(1, 1, 2, 1), fraction=0.5).tolist() == [1, 0, 1, 0]
    labels = decisions.top_fraction(column(*[0, 1] * 500), fraction=0.25)
    assert np.flatnonzero(labels).tolist() == list(range(1, 500, 2))


@pytest.mark.parametrize("name", decisions.DECISIONS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_every_decision_refuses_scores_that_are_not_finite(name, bad):
    scores = np.array([[0.1, 0.2], [0.3, bad], [bad, 0.4]])
    with pytest.raises(ValueError, match="scores of 2 of 3 rows are not finite, the first is row 1"):
        decisions.get(name)(scores, *KNOWN, **PARAMS.get(name, {}))


@pytest.mark.parametrize("name", ["learned_threshold", "both_thresholds", "mean_plus_std"])
def test_known_scores_must_be_finite(name):
    with pytest.raises(ValueError, match="scores of 1 of 2 rows are not finite"):
        decisions.get(name)(KNOWN[0], [[0.1], [np.nan]], KNOWN[1], **PARAMS.get(name, {}))


@pytest.mark.parametrize("name", decisions.DECISIONS)
def test_the_parameters_of_a_decision_are_known_here(name):
    parameters = inspect.signature(decisions.get(name)).parameters.values()
    needed = {each.name for each in parameters if each.kind is each.KEYWORD_ONLY and each.default is each.empty}
    assert needed <= {*PARAMS.get(name, {})}, f"{name}: add a line with {', '.join(sorted(needed))} to PARAMS of this file"


@pytest.mark.parametrize("name", decisions.DECISIONS)
def test_every_decision_gives_integer_labels_and_is_the_same_in_float32_and_float64(name):
    scores = np.random.default_rng(0).random((200, 2))
    scores[0] = 0.5 - 1e-12, 0.5  # 0.5 and a tie in float32
    known, labels = scores[::2], np.arange(100) % 2
    wide = decisions.get(name)(scores, known, labels, **PARAMS.get(name, {}))
    narrow = decisions.get(name)(scores.astype(np.float32), known.astype(np.float32), labels, **PARAMS.get(name, {}))
    assert wide.shape == (200,) and wide.dtype == np.int64
    assert (wide == narrow).all()


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="decision.name='median' is unknown.*argmax, threshold, learned_threshold"):
        decisions.get("median")


def test_only_learned_thresholds_need_known_scores():
    needing = [name for name in decisions.DECISIONS if decisions.needs_known(name, PARAMS.get(name, {}))]
    assert needing == ["learned_threshold", "both_thresholds"]
    assert not decisions.needs_known("both_thresholds", {"confidence": 0.6, "value": 0.4})


def test_only_the_top_fraction_uses_the_class_balance():
    assert [name for name in decisions.DECISIONS if decisions.uses_class_balance(name)] == ["top_fraction"]


@pytest.mark.parametrize("name", decisions.DECISIONS)
def test_decisions_of_membership_are_refused_for_classes(name):
    """They read one column, and answer 0 or 1: all classes but two would never be named."""
    config = ConfigDict({"name": name, "params": PARAMS.get(name, {}), "known": "valid"})
    decisions.check(config, True)
    if name == "argmax":
        decisions.check(config, False)
    else:
        with pytest.raises(ValueError, match=f"decision.name='{name}' tells used images from others: use argmax for a task of"):
            decisions.check(config, False)


def test_a_decision_of_somebody_that_cannot_be_called_as_one_is_named_before_a_training(monkeypatch):
    config = ConfigDict({"name": "argmax", "params": {}, "known": ""})
    decisions.check(config, True)
    monkeypatch.setitem(decisions.DECISIONS, "argmax", lambda scores: scores.argmax(axis=1))
    with pytest.raises(ValueError, match="decision.name='argmax' cannot be called as a decision is: write it def NAME"):
        decisions.check(config, True)
