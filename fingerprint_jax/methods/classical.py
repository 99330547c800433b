"""Features of a network, or of the residual, reduced and given to an estimator. No estimator is stored: `predict` refits it."""

import json

import numpy as np

from fingerprint_jax import estimators, methods, tables
from fingerprint_jax.data.source import Rows
from fingerprint_jax.estimators import reduce
from fingerprint_jax.features import deep, residual
from fingerprint_jax.run import Predictions, Run


def encoder(run: Run) -> Run | None:
    """The run whose network gives the features: a finished one, or the child `encoder`; None for features without a network."""
    if run.config.features.name == "residual":
        return None
    if run.config.features.name != "network":
        raise ValueError(f"features.name={run.config.features.name!r} is unknown: use network or residual")
    if run.config.features.run:
        return Run.load(run.config.features.run, data_dir=run.config.data_dir)
    return run.child("encoder", run.config.member, seed=run.config.seed, fold=run.config.data.fold)


def fit(run: Run) -> None:
    """Trains the encoder where it is a child, and fills the cache with the training features."""
    with run.fitting(lambda: (_estimator(run), encoder(run))):
        source = encoder(run)
        if source is not None:
            if not run.config.features.run:
                methods.get(source.config.method).fit(source)
            _check_views(run, source)
        _features(run, run.training_rows(run.config.train_split))
        tables.write_text(run.workdir / "done", json.dumps({"encoder": str(source.workdir) if source else None}))


def state(run: Run) -> dict:
    """The state of the encoder; nothing where there is none, since config and data then tell all."""
    source = encoder(run)
    return {str(source.workdir): methods.get(source.config.method).state(source)} if source else {}


def predict(run: Run, split: str) -> Predictions:
    """Scores [N,K] of the estimator, fitted on the labelled rows of `train_split`."""
    # Scored on other data, it still learns from its own.
    own = run if run.fingerprints == run.provenance["fingerprints"] else Run.load(run.workdir, run.step)
    rows, query = own.training_rows(run.config.train_split), run.rows(split)
    x, q = _features(own, rows), _features(run, query)
    if run.config.pca:
        x, q = reduce.pca(x, q, run.config.pca, run.config.seed)
    return Predictions(query.ids, _estimator(run)(x, rows.labels, q, seed=run.config.seed), False)


def _estimator(run: Run):
    return estimators.get(**run.config.estimator.to_dict())


def _features(run: Run, rows: Rows) -> np.ndarray:
    source, options, cache = encoder(run), run.config.features, run.workdir / "features"
    if source is None:
        return residual.features(run, rows, options.steps, options.levels, cache)
    return deep.features(source, rows, options.output, cache)


def _check_views(run: Run, source: Run) -> None:
    # A network that was trained on the rows this run holds out would make its held-out figures look better than they are.
    seen = int((np.isin(run.parts, (2, 3)) & ~np.isin(source.parts, (2, 3))).sum())
    if seen and source.source.fingerprints == run.source.fingerprints:
        raise ValueError(
            f"features.run={str(source.workdir)!r} was trained on {seen} images that this run holds out:"
            " give both the same data.folds, data.fold, data.valid, data.sequester and data.split_seed"
        )
