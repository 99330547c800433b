"""Weights of scores, learned on benchmarks whose members are known, for images whose members nobody knows.

What a score is worth depends on how a generator leaks, so that the benchmarks are shadows of the real question (Shokri et al. 2017,
arXiv 1610.05820): other generators, of other images. Scores are brought to mean 0 and deviation 1 within a benchmark, as
`ensemble.combine=weighted` brings them among the images that are asked about. No label of those is read.
"""

from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from fingerprint_jax.methods.ensemble import standardised
from fingerprint_jax.stats import score_metrics


def joined(attacks: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Of a benchmark: standardised scores of the labelled real images by its attacks [N,A], and the labels [N].

    Attacks are as `members.attacked` gives them. Raises ValueError where they are not of the same images.
    """
    labels = [np.array(attack["labels"]) for attack in attacks]
    if not all(np.array_equal(each, labels[0]) for each in labels):
        raise ValueError("the attacks of a benchmark have scores of other images each: remove its benchmark.json")
    return standardised(np.array([attack["scores"] for attack in attacks])[..., None])[..., 0].T, labels[0]


def learned(benchmarks: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The weights [A] of a logistic regression without intercept (C = 1, as many votes a benchmark).

    Their length is 1; it is 0 where no score says anything.
    """
    x, y = (np.concatenate(part) for part in zip(*benchmarks, strict=True))
    votes = np.concatenate([np.full(len(labels), len(y) / len(benchmarks) / len(labels)) for _, labels in benchmarks])
    weights = LogisticRegression(fit_intercept=False).fit(x, y, sample_weight=votes).coef_[0]
    return weights / max(float(np.linalg.norm(weights)), 1e-12)  # of scores that are all constant it is 0


def shadow(attacks: list[str], benchmarks: list[tuple[np.ndarray, np.ndarray]], seeds: list[int]) -> dict[str, Any]:
    """What the attacks of some benchmarks are worth, by themselves and together.

    Benchmarks of one seed share their used and not used images: each is asked about by the weights of those of other seeds.

    Returns:
        weights: {attack: weight}, of all benchmarks.
        auc: of the weighted sum on each benchmark; None where all have one seed.
        mean: {attack, or `shadow`: mean AUC over the benchmarks}; `shadow` is left out with one seed.
    """
    found: list[float | None] = []
    for (x, y), seed in zip(benchmarks, seeds, strict=True):
        others = [benchmark for benchmark, other in zip(benchmarks, seeds, strict=True) if other != seed]
        found.append(score_metrics.auc(y, x @ learned(others)) if others else None)
    aucs = {name: [score_metrics.auc(y, x[:, k]) for x, y in benchmarks] for k, name in enumerate(attacks)}
    aucs |= {"shadow": found} if len(set(seeds)) > 1 else {}
    means = {name: float(np.mean(np.array(values, float))) for name, values in aucs.items()}
    return {"weights": dict(zip(attacks, learned(benchmarks).tolist(), strict=True)), "auc": found, "mean": means}
