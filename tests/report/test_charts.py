"""Geometry of the charts, against closed forms."""

import numpy as np
import pytest

from fingerprint_jax.report import charts


@pytest.mark.parametrize(
    "low, high, expected", [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (-1, 1, [-1, -0.5, 0, 0.5, 1]), (3, 41, [10, 20, 30, 40])]
)
def test_ticks_are_round_and_inside(low, high, expected):
    np.testing.assert_allclose(charts.ticks(low, high), expected, atol=1e-12)


def test_a_perfect_ranking_goes_through_the_corner():
    chart = charts.roc(np.array([0, 0, 1, 1]), np.array([[0.1], [0.2], [0.8], [0.9]]), ["not used", "used"])
    assert chart is not None
    left, top = charts.LEFT, charts.TOP
    assert (left, top) in chart.series[0].points  # false positive rate 0, true positive rate 1
    assert chart.series[0].points[0] == (left, top + charts.HEIGHT)
    assert chart.series[0].points[-1] == (left + charts.WIDTH, top)
    assert chart.words[0].startswith("used: area 1.000")


def test_a_curve_of_many_images_stays_small():
    rng = np.random.default_rng(0)
    chart = charts.roc(rng.integers(0, 2, 20000), rng.random((20000, 1)), ["a", "b"])
    assert chart is not None and len(chart.series[0].points) == charts.CURVE_POINTS


def test_one_class_has_no_curve():
    assert charts.roc(np.ones(4, int), np.arange(4.0)[:, None], ["a", "b"]) is None


def test_bars_are_shares_of_their_class():
    labels, scores = np.array([0] * 30 + [1] * 10), np.array([0.0] * 30 + [1.0] * 10)[:, None]
    (chart,) = charts.histograms(labels, scores, ["not used", "used"])
    used, not_used = chart.series
    # Each class fills one bar, at opposite ends and equally high whatever its size.
    top = pytest.approx(charts.TOP + charts.HEIGHT * (1 - 1 / 1.05))
    assert min(y for _, y in used.points) == min(y for _, y in not_used.points) == top
    assert chart.words == [
        "used: 10 images, median 1.000, middle half 1.000 to 1.000.",
        "not used: 30 images, median 0.000, middle half 0.000 to 0.000.",
    ]


def test_equal_scores_and_unknown_labels_have_a_histogram():
    (chart,) = charts.histograms(np.full(5, -1), np.full((5, 1), 2.0), ["a", "b"])
    assert [s.name for s in chart.series] == ["all images"]


def test_calibration_lies_where_the_bins_say():
    bins = [{"low": 0.2, "high": 0.3, "confidence": 0.25, "accuracy": 0.5, "count": 8}]
    chart = charts.calibration({"brier": 0.25, "ece": 0.25, "bins": bins})
    assert chart.series[0].points == [(charts.LEFT + 0.25 * charts.WIDTH, charts.TOP + 0.5 * charts.HEIGHT)]
    assert "0.25 came true 0.50 of the time (8 images)" in chart.words[1]
