"""Weights of scores, learned on benchmarks whose members are known, for images whose members nobody knows.

What a score is worth depends on how a generator leaks, so that the benchmarks are shadows of the real question (Shokri et al. 2017,
arXiv 1610.05820): other generators, of other images. Scores are brought to mean 0 and deviation 1 within a benchmark, as
`ensemble.combine=weighted` brings them among the images that are asked about. No label of those is read.
"""

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from fingerprint_jax import methods
from fingerprint_jax.methods.ensemble import standardised
from fingerprint_jax.stats import score_metrics

LEAST = 2  # benchmarks: each is asked about by the weights of the others


def scores(workdirs: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Of a benchmark: standardised scores of the labelled real images by finished attacks [N,A], and the labels [N]."""
    runs = [methods.load(workdir) for workdir in workdirs]
    found = np.stack([methods.predict(run, "train_real").scores for run in runs])
    return standardised(found)[..., 0].T, runs[0].rows("train_real").labels


def learned(benchmarks: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The weights [A] of a logistic regression without intercept (C = 1, as many votes a benchmark), of length 1."""
    x, y = (np.concatenate(part) for part in zip(*benchmarks, strict=True))
    votes = np.concatenate([np.full(len(labels), len(y) / len(benchmarks) / len(labels)) for _, labels in benchmarks])
    weights = LogisticRegression(fit_intercept=False).fit(x, y, sample_weight=votes).coef_[0]
    return weights / np.linalg.norm(weights)


def shadow(attacks: list[str], benchmarks: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """{weights: {attack: weight}, auc: of each benchmark by the weights of the others, mean: AUC of each attack and of that}."""
    left_out = []
    for k, (x, y) in enumerate(benchmarks):
        others = benchmarks[:k] + benchmarks[k + 1 :]
        left_out.append(score_metrics.auc(y, x @ learned(others)))
    aucs = {name: [score_metrics.auc(y, x[:, k]) for x, y in benchmarks] for k, name in enumerate(attacks)} | {"shadow": left_out}
    means = {name: float(np.mean(np.array(values, float))) for name, values in aucs.items()}
    return {"weights": dict(zip(attacks, learned(benchmarks).tolist(), strict=True)), "auc": left_out, "mean": means}
