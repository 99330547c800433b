"""Processor seconds of the SVM with a Gaussian kernel, ours and libsvm's, on five classes of rows as long as `residual` gives.

    python -m benchmarks.svm [--rows=1000,2000,4000]

Both are scikit-learn's SVC; libsvm compares rows one by one, ours gives it the kernel of a pair of classes as a matrix product
(estimators/classify.py). As many rows are asked about as a quarter of those that are fitted.
"""

import time

import numpy as np
from absl import flags
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from fingerprint_jax.estimators import Features, classify
from fingerprint_jax.runtime import cli

CLASSES, WIDTH, PENALTY = 5, 3528, 3.0  # those of subtask2/residual_svm


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""
    flags.DEFINE_list("rows", ["1000", "2000", "4000"], "Rows that are fitted.", flag_values=values)
    flags.DEFINE_bool("libsvm", True, "Measure libsvm's own kernel too.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Prints a row of a Markdown table for each number of rows."""
    print("| rows | asked about | ours, s | libsvm, s | ratio | same labels |\n|---|---|---|---|---|---|")
    for count in map(int, values.rows):
        known, asked = _rows(count, 0), _rows(count // 4, count)
        begin = time.process_time()
        scores = classify.rbf_svm(asked, {"labelled": known}, seed=0, C=PENALTY)
        ours = time.process_time() - begin
        line = [f"{count:,}", f"{count // 4:,}", f"{ours:.1f}", "", "", ""]
        if values.libsvm:
            begin = time.process_time()
            model = make_pipeline(StandardScaler(), SVC(C=PENALTY)).fit(known.values, known.labels)
            theirs = model.decision_function(asked.values)
            spent = time.process_time() - begin
            same = np.mean(scores.argmax(axis=1) == theirs.argmax(axis=1))
            line[3:] = [f"{spent:.1f}", f"{spent / ours:.1f}", f"{same:.1%}"]
        print(f"| {' | '.join(line)} |", flush=True)


def _rows(count: int, first: int) -> Features:
    """Normal rows, a deviation and a half of one of the first features for each class."""
    rng, labels = np.random.default_rng(first), np.arange(count) % CLASSES
    values = rng.normal(size=(count, WIDTH)).astype(np.float32)
    values[:, :CLASSES] += 1.5 * np.eye(CLASSES, dtype=np.float32)[labels]
    return Features(values, labels, first + np.arange(count))


if __name__ == "__main__":
    cli.run("benchmarks.svm", define_flags, main)
