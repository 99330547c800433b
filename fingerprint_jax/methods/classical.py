"""Features of a network, reduced and given to an estimator. No estimator is stored: `predict` refits it."""

import json

from fingerprint_jax import estimators, methods, tables
from fingerprint_jax.estimators import reduce
from fingerprint_jax.features import deep
from fingerprint_jax.run import Predictions, Run


def encoder(run: Run) -> Run:
    """The run whose network gives the features: a finished one, or the child `encoder`."""
    if run.config.features.run:
        return Run.load(run.config.features.run, data_dir=run.config.data_dir)
    return run.child("encoder", run.config.member, seed=run.config.seed, fold=run.config.data.fold)


def fit(run: Run) -> None:
    """Trains the encoder where it is a child, and fills the cache with the training features."""
    with run.fitting(lambda: _estimator(run)):
        source = encoder(run)
        if not run.config.features.run:
            methods.get(source.config.method).fit(source)
        _check_views(run, source)
        _features(run, run.config.train_split)
        tables.write_text(run.workdir / "done", json.dumps({"encoder": str(source.workdir)}))


def state(run: Run) -> dict:
    """The state of the encoder."""
    source = encoder(run)
    return {str(source.workdir): methods.get(source.config.method).state(source)}


def predict(run: Run, split: str) -> Predictions:
    """Scores [N,K] of the estimator, fitted on the labelled rows of `train_split`."""
    # Scored on other data, it still learns from its own.
    same_data = run.source.fingerprints == run.provenance["fingerprints"]
    rows, x = _features(run if same_data else Run.load(run.workdir, run.step), run.config.train_split)
    query, q = _features(run, split)
    if run.config.pca:
        x, q = reduce.pca(x, q, run.config.pca, run.config.seed)
    return Predictions(query.ids, _estimator(run)(x, rows.labels, q, seed=run.config.seed), False)


def _estimator(run: Run):
    return estimators.get(**run.config.estimator.to_dict())


def _features(run: Run, split: str):
    rows = run.rows(split)
    source = encoder(run)
    known = deep.features(source, rows, run.config.features.output, run.workdir / "features")
    return rows, known


def _check_views(run: Run, source: Run) -> None:
    # A network that was trained on the rows this run holds out would make its held-out figures look better than they are.
    seen = int(((run.parts == 2) & (source.parts != 2)).sum())
    if seen and source.source.fingerprints == run.source.fingerprints:
        raise ValueError(
            f"features.run={str(source.workdir)!r} was trained on {seen} images that this run holds out:"
            " give both the same data.folds, data.fold and data.split_seed"
        )
