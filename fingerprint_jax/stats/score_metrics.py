"""Figures of scores that no decision enters, with their 95% intervals; pure functions on the host.

Whatever takes groups [N] resamples whole groups, as in metrics.py; an interval is [None, None] where they are too few.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import brier_score_loss, roc_auc_score, roc_curve

from fingerprint_jax.stats import bootstrap
from fingerprint_jax.stats.metrics import checked_labels, figures

FALSE_POSITIVE_RATES = (0.01, 0.05, 0.1)
BINS = 10  # of the calibration


def quick(labels: np.ndarray, scores: np.ndarray, figure: str) -> dict[str, float]:
    """What a training watches: the `auc` of column 0, or the `accuracy` of the highest score; {} where it is not defined."""
    if figure == "auc":
        value = auc(labels, scores[:, 0])
        return {} if value is None else {"auc": value}
    return {"accuracy": float((scores.argmax(axis=1) == labels).mean())}


def auc(labels: np.ndarray, scores: np.ndarray) -> float | None:
    """Area under the ROC curve of scores [N] for labels [N] in {0, 1}; None where only one class occurs."""
    return float(roc_auc_score(labels, scores)) if len(np.unique(labels)) == 2 else None


def auc_interval(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray | None = None, seed: int = 0) -> bootstrap.Interval:
    """Interval [low, high] of the AUC of scores [N] for labels [N] in {0, 1}; [None, None] where groups are too few (`bootstrap`).

    It holds whatever made the scores fixed. Cross-fitted scores depend on the labels of the other folds, which it leaves out: where
    nothing is to be found it then covers 0.5 far less often than 95% (docs/statistics.md).

    Raises ValueError for scores that are not finite, other labels, one class only or unequal lengths.
    """
    labels, scores = _checked_scores(labels, scores)
    return bootstrap.percentiles(_resampled_auc(labels, [scores], groups, seed)[0])


def paired_auc(
    labels: np.ndarray, scores_a: np.ndarray, scores_b: np.ndarray, groups: np.ndarray | None = None, seed: int = 0
) -> dict[str, Any]:
    """{difference: AUC of a - AUC of b, interval: [low, high]} on the same rows, from resamples that both sides share.

    Scores are [N], or [S,N] of S runs, whose mean AUC counts. Raises ValueError as `auc_interval` does.
    """
    observed, draws = [], []
    for scores in (scores_a, scores_b):
        runs = np.asarray(scores)
        if runs.ndim != 2 or runs.shape[1] != len(labels):
            runs = _checked_scores(labels, scores)[1][None]
        columns = [_checked_scores(labels, column)[1] for column in runs]
        observed.append(np.mean([roc_auc_score(labels, column) for column in columns]))
        draws.append(np.mean(_resampled_auc(np.asarray(labels), columns, groups, seed), axis=0))
    return {"difference": float(observed[0] - observed[1]), "interval": bootstrap.percentiles(draws[0] - draws[1])}


def excess_auc(
    labels: np.ndarray, attacks: np.ndarray, controls: np.ndarray, groups: np.ndarray | None = None, seed: int = 0
) -> dict[str, Any]:
    """How much more the best of some attacks tells than the best of some controls: the largest AUC of each, and their difference.

    Args:
        labels: int [N] in {0, 1}.
        attacks: scores [N,A].
        controls: scores [N,C]; one that is constant has an AUC of 0.5.
        groups: [N].
        seed: of the resampling.

    Returns:
        {value, interval: [low, high], attack, control}: the positions of the two in the observed data. In every resample both sides
        are the largest anew, so that the choice of the best is part of the uncertainty.

    Raises ValueError as `auc_interval` does.
    """
    best, observed, draws = [], [], []
    for side in (attacks, controls):
        columns = [_checked_scores(labels, column)[1] for column in np.asarray(side).T]
        aucs = [roc_auc_score(labels, column) for column in columns]
        best.append(int(np.argmax(aucs)))
        observed.append(max(aucs))
        draws.append(np.max(_resampled_auc(np.asarray(labels), columns, groups, seed), axis=0))
    interval = bootstrap.percentiles(draws[0] - draws[1])
    return {"value": float(observed[0] - observed[1]), "interval": interval, "attack": best[0], "control": best[1]}


def tpr_at_fpr(
    labels: np.ndarray, scores: np.ndarray, fpr: float, groups: np.ndarray | None = None, seed: int = 0
) -> dict[str, Any] | None:
    """The largest share of used rows (label 1) called used, where at most a share `fpr` of the others is called used too.

    Args:
        labels: int [N] in {0, 1}.
        scores: [N].
        fpr: in (0, 1).
        groups: [N].
        seed: of the resampling.

    Returns:
        fpr, tpr
        threshold: rows that reach it are called used, tied ones together; None where every threshold calls too many.
        interval: [low, high]; every resample has a threshold of its own.
        Or None where fpr * (rows labelled 0) is below 5: the threshold would rest on too few rows.

    Raises ValueError for an fpr outside (0, 1), and as `auc_interval` does.
    """
    labels, scores = _checked_scores(labels, scores)
    if not 0 < fpr < 1:
        raise ValueError(f"fpr={fpr} is outside 0..1, both excluded")
    if round(fpr * np.sum(labels == 0), 6) < 5:
        return None
    rates, tprs, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    last = np.flatnonzero(rates <= fpr)[-1]  # both rates rise along the curve, which begins at 0, 0 and an infinite threshold
    return {
        "fpr": fpr,
        "tpr": float(tprs[last]),
        "threshold": float(thresholds[last]) if last else None,
        "interval": bootstrap.percentiles(_resampled_tpr(labels, scores, fpr, groups, seed)),
    }


def calibration(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    """How far probabilities can be taken at their word.

    Args:
        labels: int [N] in 0..K-1.
        probabilities: [N,K] of each class, or [N] of class 1.

    Returns:
        brier: mean squared error of the probabilities (Brier 1950): of class 1 in 0..1, of K > 2 classes their sum in 0..2.
        ece: expected calibration error (Naeini et al. 2015): mean distance of confidence and accuracy over the bins, by their rows.
        bins: {low, high, confidence, accuracy, count} of each of 10 bins of equal width that holds rows, for a reliability diagram.
            [N]: confidence is the mean probability of class 1, accuracy its share. [N,K]: of the likeliest class.

    Raises ValueError for probabilities outside 0..1 or that do not add up to 1, labels outside the range or unequal lengths.
    """
    p = np.asarray(probabilities, np.float64)
    table = np.stack([1 - p, p], axis=1) if p.ndim == 1 else p
    whole = table.sum(axis=1, keepdims=True)
    if not (table >= -1e-4).all() or not np.allclose(whole, 1, rtol=0, atol=1e-4):
        raise ValueError(f"probabilities lie in 0..1 and add up to 1 in each row, these lie in {p.min()}..{p.max()}")
    table = np.maximum(table, 0) / whole  # in float32 the sum is 1 to seven digits only
    labels, likeliest = checked_labels(labels, table.argmax(axis=1), table.shape[1])
    confidence, hit = (table[:, 1], labels == 1) if p.ndim == 1 else (table.max(axis=1), labels == likeliest)
    chosen = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = []
    for k in np.unique(chosen):
        inside = chosen == k
        bins.append(
            {
                "low": int(k) / BINS,
                "high": (int(k) + 1) / BINS,
                "confidence": float(confidence[inside].mean()),
                "accuracy": float(hit[inside].mean()),
                "count": int(inside.sum()),
            }
        )
    return {
        "brier": float(brier_score_loss(labels, table, labels=np.arange(table.shape[1]))),
        "ece": sum(b["count"] * abs(b["confidence"] - b["accuracy"]) for b in bins) / len(labels),
        "bins": bins,
    }


def score_report(
    labels: np.ndarray, scores: np.ndarray, probabilities: bool, groups: np.ndarray | None = None, seed: int = 0
) -> dict[str, Any]:
    """Figures of membership scores that no decision enters, as JSON types.

    Args:
        labels: int [N] in {0, 1}.
        scores: [N], higher is likelier used.
        probabilities: whether the scores are probabilities of `used`.
        groups: [N].
        seed: of the resampling.

    Returns:
        auc, auc_interval: None where only one class occurs.
        tpr_at_fpr: a list of what `tpr_at_fpr` gives at 0.01, 0.05 and 0.1, without those that rest on too few rows.
        calibration: as `calibration` gives it; only where the scores are probabilities.

    Raises ValueError for scores that are not finite, other labels or unequal lengths.
    """
    labels, scores = _checked_scores(labels, scores, both=False)
    out: dict[str, Any] = {"auc": auc(labels, scores), "auc_interval": None, "tpr_at_fpr": []}
    if out["auc"] is not None:
        out["auc_interval"] = auc_interval(labels, scores, groups, seed)
        found = (tpr_at_fpr(labels, scores, fpr, groups, seed) for fpr in FALSE_POSITIVE_RATES)
        out["tpr_at_fpr"] = [figure for figure in found if figure]
    if probabilities:
        out["calibration"] = calibration(labels, scores)
    return out


def over_runs(
    labels: np.ndarray, scores: np.ndarray, predicted: np.ndarray, fpr: float, groups: np.ndarray | None = None, seed: int = 0
) -> dict[str, Any]:
    """Means of membership figures over S runs that are about the same images, for example of several seeds.

    Args:
        labels: int [N] in {0, 1}.
        scores: [S,N].
        predicted: int [S,N] in {0, 1}.
        fpr: in (0, 1), of the true-positive rate.
        groups: [N].
        seed: of the resampling.

    Returns:
        {auc, tpr, cohen_kappa: {mean, interval: [low, high]}}, from resamples of the images that the runs share; the trained
        networks are held fixed. `tpr` as `tpr_at_fpr` defines it, None where that is; a kappa that is not defined leaves None.

    Raises ValueError for scores that are not finite, other labels, one class only or unequal lengths.
    """
    columns = [_checked_scores(labels, column)[1] for column in scores]
    labels = np.asarray(labels)
    draws = np.mean(_resampled_auc(labels, columns, groups, seed), axis=0)
    mean = np.mean([roc_auc_score(labels, column) for column in columns])
    out: dict[str, Any] = {"auc": {"mean": float(mean), "interval": bootstrap.percentiles(draws)}, "tpr": None}
    if rates := [found["tpr"] for column in columns if (found := tpr_at_fpr(labels, column, fpr, groups, seed))]:
        draws = np.mean([_resampled_tpr(labels, column, fpr, groups, seed) for column in columns], axis=0)
        out["tpr"] = {"mean": float(np.mean(rates)), "interval": bootstrap.percentiles(draws)}
    # What a row is called by all runs is one cell, so that the runs share the resamples.
    calls, cells = np.unique(np.vstack([labels, predicted]), axis=1, return_inverse=True)
    counts = np.bincount(cells, minlength=calls.shape[1])[None]
    counts = np.concatenate([counts, bootstrap.sums(labels, cells, groups, seed=seed)[1]])
    of_runs = [counts @ (2 * calls[0] + called == np.arange(4)[:, None]).T for called in calls[1:]]
    kappa = np.mean([figures(tables.reshape(-1, 2, 2))["cohen_kappa"] for tables in of_runs], axis=0)
    observed = float(kappa[0]) if np.isfinite(kappa[0]) else None
    return out | {"cohen_kappa": {"mean": observed, "interval": bootstrap.percentiles(kappa[1:])}}


def _resampled_auc(labels: np.ndarray, columns: Sequence[np.ndarray], groups: np.ndarray | None, seed: int) -> list[np.ndarray]:
    """The AUC [R] of each of the columns of scores [N], in the same resamples: the Mann-Whitney count of weighted rows.

    NaN in a resample that lacks a class.
    """
    negative, positive = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
    plans = []
    for scores in columns:
        order = negative[np.argsort(scores[negative], kind="stable")]
        beaten = [np.searchsorted(scores[order], scores[positive], side=side) for side in ("left", "right")]  # ties: half-way
        plans.append((order, *beaten))
    parts: list[list[np.ndarray]] = [[] for _ in columns]
    for weights in bootstrap.weights(labels, groups, seed=seed):
        used = weights[:, positive]
        for part, (order, below, level) in zip(parts, plans, strict=True):
            count = _running(weights[:, order])
            pairs = (used * (count[:, below] + count[:, level])).sum(axis=1)
            with np.errstate(invalid="ignore"):
                part.append(pairs / (2 * used.sum(axis=1) * count[:, -1]))
    return [np.concatenate(part) if part else np.empty(0) for part in parts]


def _resampled_tpr(labels: np.ndarray, scores: np.ndarray, fpr: float, groups: np.ndarray | None, seed: int) -> np.ndarray:
    """The largest true-positive rate [R] within a false-positive rate, the threshold drawn anew in each resample.

    NaN in a resample that lacks a class.
    """
    negative, positive = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
    negative, positive = (side[np.argsort(-scores[side], kind="stable")] for side in (negative, positive))
    above = np.searchsorted(-scores[positive], -scores[negative], side="left")  # used rows above each of the others
    parts = []
    for weights in bootstrap.weights(labels, groups, seed=seed):
        others, used = _running(weights[:, negative]), _running(weights[:, positive])
        with np.errstate(invalid="ignore"):
            first = (others[:, 1:] / others[:, -1:] > fpr).argmax(axis=1)  # the row that would be one too many
            tpr = used[np.arange(len(used)), above[first]] / used[:, -1]
        parts.append(np.where(others[:, -1] > 0, tpr, np.nan))
    return np.concatenate(parts) if parts else np.empty(0)


def _running(weights: np.ndarray) -> np.ndarray:
    """Sums over the first 0..N columns: [R,N] -> [R,N+1]."""
    return np.pad(np.cumsum(weights, axis=1, dtype=np.int64), ((0, 0), (1, 0)))


def _checked_scores(labels: np.ndarray, scores: np.ndarray, both: bool = True) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    if not len(labels) or scores.shape != labels.shape:
        raise ValueError(f"{len(labels)} labels and scores of shape {list(scores.shape)}: one score a label is needed")
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise ValueError(f"{len(bad)} of {len(scores)} scores are not finite, the first is row {bad[0]}: {scores[bad[0]]}")
    checked_labels(labels, labels, 2)
    if both and (labels == labels[0]).all():
        raise ValueError(f"all {len(labels)} labels are {labels[0]}: the figure needs rows labelled 0 and rows labelled 1")
    return labels, scores
