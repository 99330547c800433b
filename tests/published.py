"""The published runs as whole-number confusion tables and as files, for the tests that rebuild them."""

import csv
import importlib.resources
import json
from pathlib import Path

import numpy as np

PER_CLASS = 250  # the unknown real images of the 2025 task: 250 used and 250 not used
FIGURES = ("kappa", "accuracy", "precision", "recall", "f1")
HALF_DIGIT = 0.5e-4 + 1e-9  # figures are printed with four digits


def runs(subtask: str = "subtask1") -> list[dict]:
    """Rows of Table 2 (subtask1) or Table 3 (subtask2) of the task's overview."""
    text = importlib.resources.files("fingerprint_jax").joinpath("published_runs.json").read_text(encoding="utf-8")
    return json.loads(text)[subtask]


def confusion(row: dict) -> list[list[int]]:
    """The one table [[tn, fp], [fn, tp]] over 250/250 whose figures round to all that the row prints.

    All 251 x 251 tables are tried, so that it is known to be the only one. Raises ValueError where it is not.
    """
    tp, fp = np.meshgrid(np.arange(PER_CLASS + 1), np.arange(PER_CLASS + 1), indexing="ij")
    tn = PER_CLASS - fp
    accuracy = (tp + tn) / (2 * PER_CLASS)
    values = {
        "kappa": 2 * accuracy - 1,  # the truth is balanced, so that chance is 1/2 whatever is predicted
        "accuracy": accuracy,
        "precision": tp / np.maximum(tp + fp, 1),
        "recall": tp / PER_CLASS,
        "f1": 2 * tp / (tp + fp + PER_CLASS),
    }
    fits = np.all([np.abs(values[name] - row[name]) <= HALF_DIGIT for name in FIGURES], axis=0)
    found = np.argwhere(fits)
    if len(found) != 1:
        raise ValueError(f"run {row['run']}: {len(found)} confusion tables have the printed figures, expected one")
    true_positive, false_positive = found[0].tolist()
    return [[PER_CLASS - false_positive, false_positive], [PER_CLASS - true_positive, true_positive]]


def write_files(folder: Path, table: list[list[int]]) -> tuple[Path, Path]:
    """Writes `predictions.csv` (bare ids, no header, shuffled) and `truth.csv` (header, .png) of a table [K,K]."""
    pairs = [(t, p) for t, row in enumerate(table) for p, count in enumerate(row) for _ in range(count)]
    ids = [f"{i:04d}" for i in np.random.default_rng(0).permutation(len(pairs))]
    predictions, truth = folder / "predictions.csv", folder / "truth.csv"
    with predictions.open("w", newline="") as file:
        csv.writer(file).writerows((name, p) for name, (_, p) in zip(ids, pairs, strict=True))
    with truth.open("w", newline="") as file:
        csv.writer(file).writerows([("id", "label"), *sorted((f"{n}.png", t) for n, (t, _) in zip(ids, pairs, strict=True))])
    return predictions, truth
