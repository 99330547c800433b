"""Permutation p-values: exact where the labels of units can be exchanged."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu, rankdata

from fingerprint_jax.stats import bootstrap

PERMUTATIONS = 999
CONDITIONAL = (
    "intervals hold the fits fixed and are too narrow. Without any effect they hold chance in about 83% of cases instead of 95%"
    " where there are two classes, in about 91% where there are five (simulated)"
)
NOTHING_SYNTHETIC = "a difference between the real images; no synthetic image was read"


def permutation_p(
    statistic: Callable[[np.ndarray], np.ndarray],
    labels: np.ndarray,
    groups: np.ndarray | None = None,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> dict[str, Any]:
    """One-sided p-values by permuting the labels of whole groups (without groups: of rows).

    A group keeps its rows together and hands on its label as one unit; a group with both labels is split into a unit a label.
    p = (1 + #(permuted >= observed)) / (1 + permutations), which is valid for any number of permutations (Phipson & Smyth 2010).
    The labels of units must be exchangeable: then their sizes may differ, but a label must not go with the size.

    Args:
        statistic: labels [N] -> [M], one value a method, higher is more evidence. Where labels were used to make the scores it
            has to make them anew; `auc_of` is for scores that no label of these rows has entered.
        labels: int [N] in {0, 1}.
        groups: [N].
        permutations: B; the smallest p is 1 / (1 + B).
        seed: of the permutations, which all methods share.

    Returns:
        p: [M].
        family_wise: the p of the largest statistic of all methods (Westfall & Young 1993): right however many were tried.
        permutations: B.
        split_groups: groups that held both labels.
        null: [B,M], the statistics of the permuted labels, which are the same ones for the same labels, groups and seed.

    Raises ValueError for other labels, one class only, or a statistic that is not finite.
    """
    labels = np.asarray(labels)
    if np.unique(labels).tolist() != [0, 1]:
        raise ValueError(f"a permutation needs rows labelled 0 and 1, these have {np.unique(labels).tolist()}")
    group = bootstrap.as_they_come(np.arange(len(labels)) if groups is None else groups)
    units, first, unit = np.unique(2 * group + labels, return_index=True, return_inverse=True)
    unit_labels = labels[first]
    rng = np.random.default_rng(seed)
    observed = np.atleast_1d(statistic(labels))
    null = np.empty((permutations, len(observed)))
    for permuted in null:
        permuted[:] = statistic(rng.permutation(unit_labels)[unit])
        if not np.isfinite(permuted).all() or not np.isfinite(observed).all():
            raise ValueError(f"the statistic is not finite: {observed.tolist()}, and {permuted.tolist()} after a permutation")
    return p_of(observed, null) | {"permutations": permutations, "split_groups": len(units) - len(np.unique(group)), "null": null}


def p_of(observed: np.ndarray, null: np.ndarray) -> dict[str, Any]:
    """`p` and `family_wise` as `permutation_p` gives them, of statistics [M] and those after each permutation [B,M]."""
    reached = 1 + (null >= observed).sum(axis=0), 1 + (null.max(axis=1) >= observed.max()).sum()
    return {"p": (reached[0] / (1 + len(null))).tolist(), "family_wise": float(reached[1] / (1 + len(null)))}


def auc_of(scores: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The statistic of scores [N] or [N,M] of M methods: labels [N] -> AUC [M], by rank sums (Mann & Whitney 1947).

    Raises ValueError for scores that are not finite, or all equal.
    """
    scores = np.asarray(scores, np.float64).reshape(len(scores), -1)
    if not np.isfinite(scores).all():
        raise ValueError(f"{(~np.isfinite(scores)).any(axis=1).sum()} of {len(scores)} scores are not finite")
    constant = np.flatnonzero((scores == scores[0]).all(axis=0))
    if len(constant):
        raise ValueError(f"all {len(scores)} scores are {scores[0, constant[0]]:g}: they tell no two images apart")
    ranks = rankdata(scores, axis=0)  # tied scores share their mean rank, a multiple of 1/2: sums are exact

    def auc(labels: np.ndarray) -> np.ndarray:
        used = ranks[labels == 1]
        n = len(used)
        return (used.sum(axis=0) - n * (n + 1) / 2) / (n * (len(labels) - n))

    return auc


def uneven(labels: np.ndarray, groups: np.ndarray) -> str | None:
    """Why the labels of groups cannot be exchanged: they go with the sizes of the groups; None where they do not."""
    _, group = np.unique(groups, return_inverse=True)
    unit, size = np.unique(2 * group + labels, return_counts=True)
    used, others = size[unit % 2 == 1], size[unit % 2 == 0]
    of_size: Any = mannwhitneyu(used, others)  # the stubs of its result differ between versions of scipy
    if len(np.unique(size)) > 1 and of_size.pvalue < 0.01:
        means = f"used groups have {used.mean():.1f} images each, the others {others.mean():.1f}"
        return f"{means}: the label goes with the size, so labels of groups cannot be exchanged; score equally many images of each"
    return None
