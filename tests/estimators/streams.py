"""Streams of features as the estimators take them."""

import numpy as np

from fingerprint_jax.estimators import Features


def rows(values, labels=None, first=0):
    """Rows with record numbers from `first` on, without labels unless they are given."""
    values = np.asarray(values, np.float32)
    return Features(values, np.full(len(values), -1) if labels is None else np.asarray(labels), first + np.arange(len(values)))


def take(features, selection):
    """Some of the rows."""
    return Features(features.values[selection], features.labels[selection], features.index[selection])


def join(*parts):
    """The rows of all."""
    return Features(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("values", "labels", "index")))
