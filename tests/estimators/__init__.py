"""What the tests of estimators share."""

import numpy as np

from fingerprint_jax import estimators


def on_labelled(name, **options):
    """An estimator as a function of labelled rows and a query: f(x, y, query, *, seed)."""
    estimate = estimators.get(name, **options)

    def scores(x, y, query, *, seed):
        # No estimator needs the label or the number of a query.
        asked = estimators.Features(query, np.full(len(query), -1), np.full(len(query), -1))
        return estimate(asked, {"labelled": estimators.Features(x, y, np.arange(len(x)))}, seed=seed)

    return scores
