"""The table of subtask 2: accuracy, its controls, and the other run of the same generators."""

import itertools

import numpy as np
from sklearn.metrics import confusion_matrix

from fingerprint_jax.stats import metrics
from launch import lines
from launch.compare import Scored
from launch.formats import number
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


def table(c: Comparison, data: str, baseline: str = "") -> tuple[list[dict], str]:
    """The lines of all rows on a data set, and what stands under them."""
    return [line(c, data, row, baseline) for row in c.rows], ""


def line(c: Comparison, data: str, row: Row, baseline: str = "") -> dict:
    """What is finished of a row on a data set: COLUMNS; what is not there is None.

    `values` are those of the seeds and `seeds_low`, `seeds_high` Student's t for their mean; `valid` are those of the learning
    rates; every other interval is over the images. `processor_minutes` is the median over the seeds of all that `fit` did.
    """
    scored = c.scored(data, row)
    found, notes = lines.common(c, data, row, list(scored))
    out = dict.fromkeys(COLUMNS) | found | {"values": []}
    if scored:
        runs = list(scored.values())
        right = _right(runs)
        out |= _mean("accuracy", runs, right, "")
        over = metrics.over_seeds(right.mean(axis=1))
        out["values"], (out["seeds_low"], out["seeds_high"]) = over["values"], over["interval"] or (None, None)
        if sides := lines.beside(c, data, row, scored, baseline, notes):
            out |= _mean("difference", sides[0], _right(sides[0]) * 1.0 - _right(sides[1]))
    if data == c.first and c.kinds:
        for name, (trained, split, other) in CONTROLS.items():
            if runs := list(c.scored(trained, row, split, other).values()):
                out |= _mean(name, runs, _right(runs))
                if other:
                    out[f"{name}_p"] = class_p(runs[0].labels, runs[0].predicted, runs[0].num_classes)
    return out | {"note": "; ".join(notes)}


def _right(runs: list[Scored]) -> np.ndarray:
    """Whether a seed is right about an image: [S,N]."""
    return np.stack([one.predicted == one.labels for one in runs])


def _mean(name: str, runs: list[Scored], values: np.ndarray, prefix: str | None = None) -> dict:
    """Columns of a mean over seeds and images [S,N], its interval over the images."""
    found = metrics.over_images(runs[0].labels, values.mean(axis=0), runs[0].groups)
    return lines.columns(name, found, prefix)


def class_p(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> float:
    """p of an accuracy on images that err class by class: the share of all assignments of the classes that are right as often.

    Images of a generator that a system has not seen are taken for another one together, so that an interval over images is far too
    narrow for chance. With five classes p is 1/120 at least.
    """
    table = confusion_matrix(labels, predicted, labels=np.arange(num_classes))
    orders = list(itertools.permutations(range(num_classes)))
    right = table[np.arange(num_classes), orders].sum(axis=1)
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
