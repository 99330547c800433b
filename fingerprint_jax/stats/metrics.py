"""Figures of predicted labels, with their 95% intervals; pure functions on the host. Those of scores are in score_metrics.py.

Whatever takes groups [N] resamples whole groups, stratified by the true classes they hold (`bootstrap`); without them, rows. Where
groups are too few for that, an interval is [None, None].
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest, hypergeom, t
from sklearn.metrics import cohen_kappa_score, confusion_matrix, precision_recall_fscore_support

from fingerprint_jax.stats import bootstrap

RESAMPLES = bootstrap.RESAMPLES
FIGURES = ("precision", "recall", "f1", "specificity")


def report(
    labels: np.ndarray, predicted: np.ndarray, num_classes: int, groups: np.ndarray | None = None, seed: int = 0
) -> dict[str, Any]:
    """Figures of predicted labels as JSON types.

    Args:
        labels: int [N] in 0..num_classes-1.
        predicted: int [N] in the same range.
        num_classes: K.
        groups: [N]; where a group has more than one row, intervals come from resampled groups instead of cells.
        seed: of the resampling.

    Returns:
        n
        cohen_kappa: None where it is not defined, that is where truth and prediction are one and the same class.
        accuracy, accuracy_wilson: the share of correct rows and its 95% Wilson interval (rows taken as independent).
        confusion_matrix: rows are the truth, columns the prediction.
        per_class: {precision, recall, f1, specificity, support: [K]}; a figure whose denominator is 0 is 0.
        class_groups: [K], the groups that hold a class; rows where no group has more than one.
        outside_groups: the groups, each counted once, but for those that hold the most frequent class alone.
        macro, weighted: {precision, recall, f1, specificity} averaged over all K classes, evenly or by support.
        positive: the same of class 1, where there are two classes.
        intervals, interval_method: 95% bootstrap intervals, see `bootstrap_confusion` and `bootstrap_groups`.

    Raises ValueError for labels outside the range, unequal lengths or an empty table.
    """
    labels, predicted = checked_labels(labels, predicted, num_classes)
    classes = np.arange(num_classes)
    confusion = confusion_matrix(labels, predicted, labels=classes)
    kappa = None
    if len(np.unique(np.concatenate([labels, predicted]))) > 1:
        kappa = float(cohen_kappa_score(labels, predicted, labels=classes))
    precision, recall, f1, support = precision_recall_fscore_support(
        labels,
        predicted,
        labels=classes,
        zero_division=0,  # pyright: ignore[reportArgumentType]
    )
    specificity = _specificity(confusion[None])[0]
    per_class: dict[str, Any] = {"precision": precision, "recall": recall, "f1": f1, "specificity": specificity, "support": support}
    correct = int(np.trace(confusion))
    class_groups = np.zeros(num_classes, int)
    class_groups[np.unique(labels)] = bootstrap.holding(labels, groups)
    out = {
        "n": len(labels),
        "cohen_kappa": kappa,
        "accuracy": correct / len(labels),
        "accuracy_wilson": wilson(correct, len(labels)),
        "confusion_matrix": confusion.tolist(),
        "per_class": {name: values.tolist() for name, values in per_class.items()},
        "class_groups": class_groups.tolist(),
        "outside_groups": bootstrap.outside(labels, groups),
        "macro": {name: float(np.mean(per_class[name])) for name in FIGURES},
        "weighted": {name: float(np.average(per_class[name], weights=support)) for name in FIGURES},
    }
    if num_classes == 2:
        out["positive"] = {name: float(per_class[name][1]) for name in FIGURES}
    if (predicted == predicted[0]).all():  # every resample would have the same kappa
        out["intervals"] = {name: [None, None] for name in figures(confusion[None])}
        out["interval_method"] = "none, since all images were given one class"
    elif groups is not None and len(np.unique(groups)) < len(labels):
        out["intervals"] = bootstrap_groups(labels, predicted, groups, num_classes, seed=seed)
        out["interval_method"] = "bootstrap over groups"
        if bootstrap.too_few(labels, groups):
            out["interval_method"] = f"none, since a class occurs in fewer than {bootstrap.LEAST} groups"
    else:
        out["intervals"] = bootstrap_confusion(confusion, seed=seed)
        out["interval_method"] = "multinomial resampling of each row of the confusion table"
    return out


def figures(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """The figures of many confusion tables at once: [R,K,K] (rows: truth) -> {name: [R]}.

    Names are `cohen_kappa` (Cohen 1960; NaN where it is not defined), `accuracy`, and `macro.`, `weighted.` and for two
    classes `positive.` before precision, recall, f1 and specificity.
    """
    confusion = confusion.astype(np.float64)
    total, support = confusion.sum(axis=(1, 2)), confusion.sum(axis=2)
    called, hits = confusion.sum(axis=1), np.diagonal(confusion, axis1=1, axis2=2)
    accuracy = hits.sum(axis=1) / total
    chance = (support * called).sum(axis=1) / total**2
    with np.errstate(invalid="ignore", divide="ignore"):
        kappa = (accuracy - chance) / (1 - chance)
    per_class = {
        "precision": _ratio(hits, called),
        "recall": _ratio(hits, support),
        "f1": _ratio(2 * hits, called + support),
        "specificity": _specificity(confusion),
    }
    out = {"cohen_kappa": kappa, "accuracy": accuracy}
    for name, values in per_class.items():
        out[f"macro.{name}"] = values.mean(axis=1)
        out[f"weighted.{name}"] = (values * support).sum(axis=1) / total
        if confusion.shape[1] == 2:
            out[f"positive.{name}"] = values[:, 1]
    return out


def labels_p(labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Exact one-sided p-values of decided labels [N] of two classes, 0 and 1, by nothing but the labels.

    Given how many rows are of class 1 and how many were called so, the number of those that are both is hypergeometric where the
    labels know nothing of each other (Fisher 1935). `p` is the chance of as many, `p_wrong_direction` that of as few. The rows are
    taken as independent.
    """
    labels, predicted = checked_labels(labels, predicted, 2)
    both, of = int((labels & predicted).sum()), (len(labels), int(labels.sum()), int(predicted.sum()))
    return {"p": float(hypergeom.sf(both - 1, *of)), "p_wrong_direction": float(hypergeom.cdf(both, *of))}


def wilson(successes: int, n: int, confidence: float = 0.95) -> list[float]:
    """The score interval of a proportion [low, high] (Wilson 1927), n >= 1."""
    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return [float(interval.low), float(interval.high)]


def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> list[float]:
    """The exact interval of a proportion [low, high] (Clopper & Pearson 1934), n >= 1."""
    interval = binomtest(successes, n).proportion_ci(confidence, method="exact")
    return [float(interval.low), float(interval.high)]


def bootstrap_confusion(
    confusion: np.ndarray, resamples: int = RESAMPLES, seed: int = 0, confidence: float = 0.95
) -> dict[str, Any]:
    """Percentile intervals {figure: [low, high]} of a confusion table [K,K] of independent images.

    The cells of each true class are resampled as one multinomial, so that its size stays. Figures are named as by
    `figures`. A table without errors gets no width here; `wilson` gives it one. Resamples without a kappa are left out of
    its interval, which is [None, None] where none is left.
    """
    confusion = np.asarray(confusion)
    sizes = confusion.sum(axis=1)
    shares = confusion / np.maximum(sizes, 1)[:, None]
    rng, blocks = np.random.default_rng(seed), bootstrap.blocks(resamples, confusion.size)
    return _intervals((rng.multinomial(sizes, shares, size=(b.stop - b.start, len(sizes))) for b in blocks), confidence)


def bootstrap_groups(
    labels: np.ndarray,
    predicted: np.ndarray,
    groups: np.ndarray,
    num_classes: int,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Percentile intervals {figure: [low, high]} where the images of a group [N] are not independent.

    Whole groups are drawn with replacement, stratified by the set of true classes that a group holds, sets that few groups hold
    together (`bootstrap`). With one image a group it is `bootstrap_confusion`.
    """
    cells, draws = bootstrap.sums(labels, np.asarray(labels) * num_classes + np.asarray(predicted), groups, resamples, seed)
    return _intervals(_tables(cells, draws, num_classes), confidence)


def paired_difference(
    labels: np.ndarray,
    predicted_a: np.ndarray,
    predicted_b: np.ndarray,
    num_classes: int,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """How much better a is than b on the same rows.

    Args:
        labels: int [N] in 0..num_classes-1.
        predicted_a, predicted_b: int [N] in the same range.
        num_classes: K.
        groups: [N].
        seed: of the resampling.

    Returns:
        {cohen_kappa, accuracy: {difference: a - b, interval: [low, high]}}, the interval from resamples that both sides share; a
        kappa that is not defined leaves None.

    Raises ValueError as `report` does.
    """
    labels, a = checked_labels(labels, predicted_a, num_classes)
    _, b = checked_labels(labels, predicted_b, num_classes)
    of_row = (labels * num_classes + a) * num_classes + b
    cells, draws = bootstrap.sums(labels, of_row, groups, seed=seed)
    _, once = np.unique(of_row, return_counts=True)
    draws, (label, called) = np.concatenate([once[None], draws]), np.divmod(cells, num_classes**2)
    sides = [label * num_classes + side for side in np.divmod(called, num_classes)]
    of_a, of_b = (_over(_tables(side, draws, num_classes)) for side in sides)
    out = {}
    for name in ("cohen_kappa", "accuracy"):
        difference = of_a[name] - of_b[name]
        observed = float(difference[0]) if np.isfinite(difference[0]) else None
        out[name] = {"difference": observed, "interval": bootstrap.percentiles(difference[1:])}
    return out


def over_images(labels: np.ndarray, values: np.ndarray, groups: np.ndarray | None = None, seed: int = 0) -> dict[str, Any]:
    """The mean of one figure of each image, for example the share of seeds that are right about it.

    Args:
        labels: int [N], the true classes, which stratify the resamples.
        values: float [N].
        groups: [N].
        seed: of the resampling.

    Returns:
        {mean, interval: [low, high]}, from resamples of the images; the trained networks are held fixed.
    """
    levels, cells = np.unique(np.asarray(values, np.float64), return_inverse=True)
    _, draws = bootstrap.sums(labels, cells, groups, seed=seed)
    return {"mean": float(np.mean(values)), "interval": bootstrap.percentiles(draws @ levels / draws.sum(axis=1))}


def over_seeds(values: Sequence[float | None] | np.ndarray, bounds: tuple[float, float] = (0, 1)) -> dict[str, Any]:
    """The mean of one figure of several seeds.

    Args:
        values: [S].
        bounds: of the figure, which cut the interval off.

    Returns:
        {values, mean, interval}: Student's t for the mean. None for a single value, and where all are equal: their spread says
        nothing, the interval over the images of one of them does. Equal to 1e-9: differences of equal shares are rounded.

    Raises ValueError where there is none, or one is not finite.
    """
    values = np.asarray(values, np.float64)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"values={values.tolist()}: a finite figure of at least one seed is needed")
    interval = None
    if np.ptp(values) > 1e-9:
        half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
        interval = np.clip([values.mean() - half, values.mean() + half], *bounds).tolist()
    return {"values": values.tolist(), "mean": float(values.mean()), "interval": interval}


def _tables(cells: np.ndarray, draws: np.ndarray, num_classes: int) -> Iterator[np.ndarray]:
    """Confusion tables [block,K,K] of rows per cell [R,C]: a cell [C] is a true class by K and a called one."""
    for block in [*bootstrap.blocks(len(draws), num_classes**2)] or [slice(0, 0)]:
        tables = np.zeros((block.stop - block.start, num_classes**2))
        np.add.at(tables, (np.arange(len(tables))[:, None], cells[None]), draws[block])
        yield tables.reshape(-1, num_classes, num_classes)


def _over(tables: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """`figures` of all tables, some of which are held at a time."""
    parts = [figures(each) for each in tables]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _intervals(tables: Iterable[np.ndarray], confidence: float) -> dict[str, Any]:
    return {name: bootstrap.percentiles(values, confidence) for name, values in _over(tables).items()}


def checked_labels(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Both as int [N]; raises ValueError for labels outside 0..num_classes-1 and for none or unequally many."""
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    if not len(labels) or len(labels) != len(predicted):
        raise ValueError(f"{len(labels)} labels and {len(predicted)} predictions: both must be there, equally many")
    for name, values in (("label", labels), ("prediction", predicted)):
        outside = values[(values < 0) | (values >= num_classes)]
        if len(outside):
            raise ValueError(f"{len(outside)} {name}s are outside 0..{num_classes - 1}, the first is {outside[0]}")
    return labels, predicted


def _specificity(confusion: np.ndarray) -> np.ndarray:
    """[R,K,K] -> [R,K]: TN / (TN + FP), 0 where no row is of another class."""
    total = confusion.sum(axis=(1, 2), keepdims=True)[..., 0]
    negatives = total - confusion.sum(axis=2)
    false_positives = confusion.sum(axis=1) - np.diagonal(confusion, axis1=1, axis2=2)
    return _ratio(negatives - false_positives, negatives)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros(np.broadcast(a, b).shape), where=np.asarray(b) != 0)
