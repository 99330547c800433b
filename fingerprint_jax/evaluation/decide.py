"""Scores to labels. A threshold is never fitted on the images that it labels."""

import numpy as np

from fingerprint_jax import methods
from fingerprint_jax.runs.run import Predictions, Run
from fingerprint_jax.stats import decisions


def decide(run: Run, split: str, predictions: Predictions) -> np.ndarray:
    """Labels [N] by the run's decision. What a decision learns from is never what it decides about.

    Raises ValueError where the decision would learn from the rows that it decides, or the known split has none.
    """
    decision = run.config.decision
    function = decisions.get(decision.name)
    params = decision.params.to_dict()
    decisions.check(decision, run.task.membership)
    if not decision.known:
        return function(predictions.scores, None, None, **params)
    own = run.own  # scored on other data, a run still decides by what it learned on its own
    if own.packed(decision.known) == own.target and not own.same_target:
        raise ValueError(
            f"decision.known={decision.known!r}: the images that the decision learns from are gone: {own.config.data_dir} was"
            f" packed anew after {run.workdir} was started. Train it anew, or write a fixed decision into its config.json"
            " (decision.name 'threshold', its params and an empty known)"
        )
    known, rows, asked = methods.predict(own, decision.known), own.rows(decision.known), run.rows(split)
    packed = run.packed(split)
    same_split = own.source.fingerprints.get(packed) == run.source.fingerprints[packed]
    if packed != own.packed(decision.known):
        again = 0
    elif same_split:  # by their ids: other splits may have moved the record numbers
        again = np.isin(asked.ids, rows.ids).sum()
    else:
        again = np.isin(run.source.digests(asked.index), own.source.digests(rows.index)).sum()
    if not again:
        return function(predictions.scores, known.scores, rows.labels, **params)
    if split != decision.known or not run.cross_fits or not same_split:
        images = f"{split} itself" if same_split else f"{again} of its images, which {own.config.data_dir} has too"
        raise ValueError(f"decision.known={decision.known!r}: a decision on {split} cannot learn from {images}")
    fold = own.folds(rows)
    labels = np.empty(len(rows), np.int64)
    for k in np.unique(fold):
        inside, outside = fold == k, fold != k
        labels[inside] = function(predictions.scores[inside], known.scores[outside], rows.labels[outside], **params)
    return labels
