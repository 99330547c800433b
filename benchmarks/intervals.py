"""Processor time of the statistics: python -m benchmarks.intervals [rows]."""

import sys
import time
from collections.abc import Callable

import numpy as np

from fingerprint_jax.stats import metrics, permutation, score_metrics


def main() -> None:
    """Prints a line a figure, 25,000 rows unless told otherwise."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 25_000
    labels, scores = np.arange(rows) % 2, np.random.default_rng(0).normal(size=rows)
    timed: dict[str, Callable] = {
        "score_report": lambda: score_metrics.score_report(labels, scores, False),
        "auc_interval": lambda: score_metrics.auc_interval(labels, scores),
        "paired_difference": lambda: metrics.paired_difference(labels, scores > 0, scores > 0.1, 2),
        "permutation_p": lambda: permutation.permutation_p(permutation.auc_of(scores), labels),
    }
    for name, function in timed.items():
        start = time.process_time()
        function()
        print(f"{name:20}{time.process_time() - start:6.1f} s")


if __name__ == "__main__":
    main()
