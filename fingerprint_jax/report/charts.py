"""Figures -> geometry of small SVG charts. The template draws it in the reader's colours: one picture for light, dark, print."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np
from sklearn.metrics import auc as area_under
from sklearn.metrics import roc_curve

LEFT, TOP, WIDTH, HEIGHT = 54, 10, 292, 210  # the plot area, in the coordinates of the template
WIDE, NAMES = 652, 190  # the width of one as wide as the text, and of this what the names in a forest take
BINS = 24
CURVE_POINTS = 200  # of a ROC curve, which bounds the size of the page
FALSE_POSITIVES = (0.1, 0.5)  # rates at which a ROC curve is told in words


@dataclasses.dataclass(frozen=True)
class Series:
    """One curve: `points` in viewBox coordinates; `kind` is line, area or dots; `look` numbers its colour."""

    name: str
    points: list[tuple[float, float]]
    kind: str
    look: int


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart and what it shows in `words`, a sentence a line; ticks are (position, text)."""

    title: str
    words: list[str]
    x_label: str
    y_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    series: list[Series]
    diagonal: bool = False
    level: float | None = None  # height of a dashed horizontal line
    width: int = WIDTH


@dataclasses.dataclass(frozen=True)
class Forest:
    """Figures with their intervals under one another, an axis below; all in the coordinates of the template.

    `heads` are (y, text) above each part, `rows` are (y, name, x of the figure, x of both ends or None, look), `ticks` (x, text).
    """

    title: str
    words: list[str]
    x_label: str
    ticks: list[tuple[float, str]]
    chance: float
    heads: list[tuple[float, str]]
    rows: list[tuple[float, str, float, list[float] | None, int]]
    height: float


def number(value: float | None, digits: int = 3) -> str:
    """A figure for readers: a true minus sign, `not defined` for None."""
    if value is None:
        return "not defined"
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers inside [low, high], low < high, about `count` of them."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def roc(labels: np.ndarray, scores: np.ndarray, classes: list[str]) -> Chart | None:
    """ROC of scores [N,1] for labels in {0, 1}, or of each column of [N,K] against the rest; None where only one class occurs."""
    columns = [(1, 0)] if scores.shape[1] == 1 else [(k, k) for k in range(scores.shape[1])]
    curves, words = [], []
    for look, (k, column) in enumerate(columns):
        truth = labels == k
        if truth.all() or not truth.any():
            continue
        false, true, _ = roc_curve(truth, scores[:, column])
        if len(false) > CURVE_POINTS:
            keep = np.unique(np.linspace(0, len(false) - 1, CURVE_POINTS).round().astype(int))
            curve = false[keep], true[keep]
        else:
            curve = false, true
        curves.append((classes[k], curve, "line", look))
        # A rate between two thresholds is not reached: the highest one below it counts.
        rates = " and ".join(f"{number(true[false <= rate].max())} at {rate}" for rate in FALSE_POSITIVES)
        words.append(
            f"{classes[k]}: area {number(float(area_under(false, true)))}; true positive rate by false positive rate: {rates}."
        )
    if not curves:
        return None
    title = "ROC" if len(columns) == 1 else "ROC, each class against the rest"
    return _chart(title, words, ("false positive rate", 0, 1), ("true positive rate", 0, 1), curves, diagonal=True)


def histograms(labels: np.ndarray, scores: np.ndarray, classes: list[str]) -> list[Chart]:
    """How column 0 [N,1] is distributed in each class, or column k of [N,K] in class k and in the others.

    Labels of -1 are unknown: then one histogram of all images. Bars are shares of a class, since classes differ in size.
    """
    charts = []
    for column in range(scores.shape[1]):
        values = scores[:, column]
        name = "Scores" if scores.shape[1] == 1 else f"Score of {classes[column]}"
        if (labels < 0).any():
            parts = [("all images", np.ones(len(values), bool))]
        elif scores.shape[1] == 1:
            parts = [(classes[k], labels == k) for k in (1, 0)]
        else:
            parts = [(classes[column], labels == column), ("the others", labels != column)]
        parts = [(label, inside) for label, inside in parts if inside.any()]
        low, high = float(values.min()), float(values.max())
        if low == high:
            low, high = low - 0.5, high + 0.5
        edges = np.linspace(low, high, BINS + 1)
        bars = [(label, np.histogram(values[inside], edges)[0] / inside.sum()) for label, inside in parts]
        top = max(float(share.max()) for _, share in bars) * 1.05
        curves = [(label, _steps(edges, share), "area", look) for look, (label, share) in enumerate(bars)]
        words = []
        for label, inside in parts:
            q = np.percentile(values[inside], [25, 50, 75])
            middle = f"middle half {number(q[0])} to {number(q[2])}"
            words.append(f"{label}: {inside.sum()} images, median {number(q[1])}, {middle}.")
        charts.append(_chart(name, words, ("score", low, high), ("share of the class", 0, top), curves))
    return charts


def calibration(report: dict) -> Chart:
    """Reliability diagram of `score_metrics.calibration`: how often that came true which was given a probability."""
    bins = report["bins"]
    words = [f"{number(b['confidence'], 2)} came true {number(b['accuracy'], 2)} of the time ({b['count']} images)" for b in bins]
    errors = f"Brier score {number(report['brier'])}, expected calibration error {number(report['ece'])}."
    points = np.array([b["confidence"] for b in bins]), np.array([b["accuracy"] for b in bins])
    curve = [("mean of a bin", points, "dots", 0)]
    text = f"Probability given: {'; '.join(words)}."
    return _chart("Calibration", [errors, text], ("probability", 0, 1), ("frequency", 0, 1), curve, diagonal=True)


def over_steps(
    title: str,
    words: list[str],
    x_label: str,
    y_label: str,
    steps: list[str],
    curves: Iterable[tuple[str, Sequence[float], Sequence[float]]],
    level: float,
) -> Chart:
    """Curves over steps of these names, equally far apart, with values in 0..1 and a dashed line at `level`.

    Args:
        curves: [(name, xs, ys)], xs are positions among the steps.
    """
    series = [(name, (xs, ys), "dots", look) for look, (name, xs, ys) in enumerate(curves)]
    last = len(steps) - 1
    chart = _chart(title, words, (x_label, 0, last), (y_label, 0, 1), series, width=WIDE)
    x_ticks = [(place(k, 0, last, WIDE), name) for k, name in enumerate(steps)]
    return dataclasses.replace(chart, x_ticks=x_ticks, level=round(TOP + HEIGHT * (1 - level), 1))


def forest(title: str, x_label: str, chance: float, parts: list[tuple[str, list[tuple[str, float, list | None]]]]) -> Forest:
    """Dots with intervals, part by part: `parts` are (text, [(name, figure, [low, high] or None)]); `chance` is a dashed line."""
    values = [v for _, rows in parts for _, value, pair in rows for v in (value, *(pair or []))]
    # Both ends are a tenth, so that small figures look small.
    low, high = math.floor(10 * min(values, default=0.4)) / 10, math.ceil(10 * max(values, default=0.6)) / 10
    low, high = min(low, chance - 0.1), max(high, chance + 0.1)
    left, width = LEFT + NAMES, WIDE - NAMES
    y, heads, drawn, words = 0, [], [], []

    def along(x: float) -> float:
        return round(left + width * (x - low) / (high - low), 1)

    for look, (text, rows) in enumerate(parts):
        y += 22
        heads.append((y, text))
        for name, value, pair in rows:
            y += 20
            drawn.append((y, name, along(value), [along(v) for v in pair] if pair else None, look))
        figures = [
            f"{name} {number(value)}{f' ({number(pair[0])} to {number(pair[1])})' if pair else ''}" for name, value, pair in rows
        ]
        words.append(f"{text}: {', '.join(figures)}.")
    x_ticks = [(along(t), f"{t:.4g}") for t in ticks(low, high)]
    return Forest(title, words, x_label, x_ticks, along(chance), heads, drawn, y + 12)


def place(x: float, low: float, high: float, width: int = WIDTH) -> float:
    """Position of x on a horizontal axis, in viewBox coordinates."""
    return round(LEFT + width * (x - low) / (high - low), 1)


def _chart(
    title: str,
    words: list[str],
    x: tuple[str, float, float],
    y: tuple[str, float, float],
    curves: Iterable[tuple[str, tuple, str, int]],
    diagonal: bool = False,
    width: int = WIDTH,
) -> Chart:
    """`x`, `y` are (label, low, high), `curves` are (name, (xs, ys), kind, look) in the units of the axes."""
    (x_label, x_low, x_high), (y_label, y_low, y_high) = x, y

    def up(v: float) -> float:
        return round(TOP + HEIGHT * (1 - (v - y_low) / (y_high - y_low)), 1)

    series = [
        Series(name, [(place(a, x_low, x_high, width), up(b)) for a, b in zip(*xy, strict=True)], kind, look)
        for name, xy, kind, look in curves
    ]
    x_ticks = [(place(t, x_low, x_high, width), f"{t:.4g}".replace("-", "\N{MINUS SIGN}")) for t in ticks(x_low, x_high)]
    y_ticks = [(up(t), f"{t:.4g}") for t in ticks(y_low, y_high)]
    return Chart(title, words, x_label, y_label, x_ticks, y_ticks, series, diagonal, width=width)


def _steps(edges: np.ndarray, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The outline of bars, from the axis and back to it."""
    return np.repeat(edges, 2), np.concatenate([[0], np.repeat(heights, 2), [0]])
