"""One score a patient: by hand, by scikit-learn, and the same figures as of images where each image is a patient of its own."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fingerprint_jax.audit import panel
from fingerprint_jax.audit.patients import SCORES, Patients
from fingerprint_jax.audit.sides import Images
from fingerprint_jax.stats import permutation, score_metrics
from tests.audit.content_differences import Arrays

CONTROLS = ("intensity", "layout", "files")


def test_a_patient_with_both_labels_is_two_in_the_order_of_the_first_images():
    labels, groups = np.array([1, 0, 1, 1, 0, 1]), np.array(["b", "a", "b", "c", "c", "b"])
    found = Patients.of(labels, groups)
    assert found.labels.tolist() == [1, 0, 1, 0] and found.groups.tolist() == ["b", "a", "c", "c"]
    assert found.of_image.tolist() == [0, 1, 0, 2, 3, 0]
    scores = np.array([[1, 6], [2, 5], [7, 4], [4, 3], [5, 2], [1, 2]])
    assert found.scores(scores, "max").tolist() == [[7, 6], [2, 5], [4, 3], [5, 2]]
    assert found.scores(scores, "mean").tolist() == [[3, 4], [2, 5], [4, 3], [5, 2]]
    assert found.scores(scores[:, 0], "mean").tolist() == [3, 2, 4, 5]


def audit(groups, score):
    """An audit of 60 images whose pixels say nothing, and scores of them by the panel and by controls."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (90, 8, 8), np.uint8)
    parts = Arrays(pixels[:30], pixels[30:60], pixels[60:75], pixels[75:], seed=3)
    parts.score = score
    real = parts.sides["real"]
    names = np.array([groups(int(name[1:])) for name in real.ids])
    parts.sides["real"] = Images(real.ids, real.pixels, real.labels, names)
    scores = rng.normal(size=(60, len(panel.METHODS))) + 0.6 * real.labels[:, None]
    others = {name: rng.normal(size=60).tolist() for name in CONTROLS}
    return parts, scores, others


@pytest.mark.parametrize("score", SCORES)
def test_where_each_image_is_a_patient_the_figures_are_those_of_images_to_the_bit(score):
    parts, scores, others = audit(str, score)
    real, none = parts.sides["real"], {name: np.zeros(60).tolist() for name in panel.METHODS}
    found = parts.primary(scores)
    auc = permutation.auc_of(scores)
    expected = permutation.permutation_p(auc, real.labels, real.units, seed=3)
    assert (found["p"], [line["p"] for line in found["methods"]]) == (expected["family_wise"], expected["p"])
    assert [line["auc"] for line in found["methods"]] == auc(real.labels).tolist()
    spans = [score_metrics.auc_interval(real.labels, column, real.units) for column in scores.T]
    assert [line["interval"] for line in found["methods"]] == spans
    replaced = {"replaced_by": "x", "scores": none}
    for line, values in zip(parts.control_figures(replaced, others, none)["content"], others.values(), strict=True):
        column = np.array(values)
        assert line["auc"] == score_metrics.auc(real.labels, column)
        assert line["interval"] == score_metrics.auc_interval(real.labels, column, real.units)
    against = np.array([*none.values(), *none.values(), others["intensity"], others["layout"], np.zeros(60)]).T
    expected = score_metrics.excess_auc(real.labels, scores, against, real.units, 3)
    found = parts.excess(scores, replaced, others, none)
    assert (found["value"], found["interval"]) == (expected["value"], expected["interval"])


@pytest.mark.parametrize(("score", "of"), [("mean", np.mean), ("max", np.max)])
def test_of_patients_with_several_images_the_auc_is_that_of_one_score_each(score, of):
    parts, scores, _ = audit(lambda k: f"p{k // 2 if k < 30 else 15 + (k - 30) // 2}", score)
    real = parts.sides["real"]
    assert parts.primary(scores)["reason"] == "15 patients or images are used: at least 20 are needed"
    asked = parts.patients
    assert len(asked.labels) == 30 and parts.grouped
    rows = [real.groups == name for name in np.unique(real.groups)]
    labels = [real.labels[row][0] for row in rows]
    expected = [roc_auc_score(labels, [of(column[row]) for row in rows]) for column in scores.T]
    np.testing.assert_allclose(permutation.auc_of(parts._by_patient(scores))(asked.labels), expected)
