"""The table of subtask 2: accuracy, its controls, and the other run of the same generators."""

import itertools

import numpy as np
from sklearn.metrics import confusion_matrix

from fingerprint_jax import metrics
from launch import lines
from launch.collect import Scored, number
from launch.systems import Comparison, Row

# Column -> (data the system was trained on, split and data it is scored on).
CONTROLS = {
    "one_generator": ("one_generator", "heldout", ""),
    "reals": ("reals", "heldout", ""),
    "phantom": ("phantom_runs", "heldout", ""),
    "phantom_other_run": ("phantom_runs", "train_generated", "other_run"),
}
COLUMNS = (
    *lines.BEFORE,
    *("accuracy", "low", "high", "values", "seeds_low", "seeds_high", "difference", "difference_low", "difference_high"),
    *(name + bound for name in CONTROLS for bound in ("", "_low", "_high")),
    "phantom_other_run_p",
    *lines.AFTER,
)
FIGURE = "Accuracy"


def line(c: Comparison, data: str, row: Row, baseline: str = "") -> dict:
    """What is finished of a row on a data set: COLUMNS; what is not there is None.

    `values` are those of the seeds and `seeds_low`, `seeds_high` Student's t for their mean; `valid` are those of the learning
    rates; every other interval is over the images. `processor_minutes` is the median over the seeds of all that `fit` did.
    """
    scored = c.scored(data, row)
    found, notes = lines.common(c, data, row, list(scored))
    out = dict.fromkeys(COLUMNS) | found | {"values": []}
    if scored:
        right = _right(scored)
        out |= _mean("", scored, right)
        over = metrics.over_seeds(right.mean(axis=1))
        out["values"], (out["seeds_low"], out["seeds_high"]) = over["values"], over["interval"] or (None, None)
        if baseline and row.name != baseline:
            other = c.scored(data, c.row(baseline))
            shared = [seed for seed in scored if seed in other]
            if not all(scored[seed].same_images(other[seed]) for seed in shared):
                notes.append("other images than the baseline")
            elif shared:
                sides = [_right({seed: side[seed] for seed in shared}) * 1.0 for side in (scored, other)]
                out |= _mean("difference", scored, sides[0] - sides[1])
    if data == c.first and c.kinds:
        for name, (trained, split, other) in CONTROLS.items():
            if one := c.scored(trained, row, split, other):
                out |= _mean(name, one, _right(one))
                if other:
                    out[f"{name}_p"] = class_p(next(iter(one.values())))
    return out | {"note": "; ".join(notes)}


def _right(scored: dict[int, Scored]) -> np.ndarray:
    """Whether a seed is right about an image: [S,N]."""
    return np.stack([one.predicted == one.labels for one in scored.values()])


def _mean(name: str, scored: dict[int, Scored], values: np.ndarray) -> dict:
    """Columns of a mean over seeds and images [S,N], its interval over the images."""
    one = next(iter(scored.values()))
    found = metrics.over_images(one.labels, values.mean(axis=0), one.groups)
    low, high = (f"{name}_{bound}" if name else bound for bound in ("low", "high"))
    return {name or "accuracy": found["mean"], low: found["interval"][0], high: found["interval"][1]}


def class_p(scored: Scored) -> float:
    """p of an accuracy on images that err class by class: the share of all assignments of the classes that are right as often.

    Images of a generator that a system has not seen are taken for another one together, so that an interval over images is far too
    narrow for chance. With five classes p is 1/120 at least.
    """
    table = confusion_matrix(scored.labels, scored.predicted, labels=np.arange(scored.num_classes))
    orders = list(itertools.permutations(range(scored.num_classes)))
    right = table[np.arange(scored.num_classes), orders].sum(axis=1)
    return float(np.mean(right >= np.trace(table)))


def shown(line: dict) -> dict[str, str]:
    """A line of the table as people read it."""
    figures = {
        "accuracy": lines.value(line, "accuracy", ""),
        "each seed": " ".join(map(number, line["values"])),
        "difference": lines.value(line, "difference"),
        **{name.replace("_", " "): lines.value(line, name) for name in CONTROLS},
        "its p": "" if line["phantom_other_run_p"] is None else f"{line['phantom_other_run_p']:.3f}",
    }
    return lines.shown(line, figures)


def footer(c: Comparison, data: str, found: list[dict]) -> str:
    """What stands under the table of a data set."""
    return ""
